"""Every recipe is one that timm's train.py or a command of the package takes, and says where it comes from."""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image
from timm.optim import create_optimizer_v2, list_optimizers
from train_options import SCRIPTS, options_of, parser_of, recorded

from timm_attn import dense
from timm_attn.cli import _parser, main
from timm_attn.models import zoo_models
from timm_attn.train import compare_options, dense_options, finetune_options
from timm_attn.train.finetune_options import CONSTANT, add_arguments
from timm_attn.train.recipes import command_of, list_recipes, recipe_path

RECIPES = [recipe_path(name) for name in list_recipes() if command_of(name) == 'train.py']
DENSE_RECIPES = [name for name in list_recipes() if command_of(name).startswith('train-')]
OWN_RECIPES = [name for name in list_recipes() if command_of(name) in ('finetune', 'compare')]
TYPES = dict(flag=bool, dict=dict, str=str, int=int, float=(int, float))


@pytest.fixture(scope='module')
def options():
    if SCRIPTS:
        return options_of(parser_of(Path(SCRIPTS) / 'train.py'))
    return recorded()['options']


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_recipe_is_one_that_train_py_takes(path, options):
    recipe = yaml.safe_load(path.read_text())
    assert set(recipe) <= set(options)
    for key, value in recipe.items():
        kind = options[key]
        values = value if isinstance(kind, list) else [value]
        assert isinstance(values, list), key
        for one in values:
            assert isinstance(one, TYPES[kind[0] if isinstance(kind, list) else kind]), (key, value)
            assert kind == 'flag' or not isinstance(one, bool), (key, value)
    if SCRIPTS:
        parser = parser_of(Path(SCRIPTS) / 'train.py')
        parser.set_defaults(**recipe)
        assert vars(parser.parse_args([])).items() >= recipe.items()


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_recipe_uses_what_exists_and_states_its_origin(path):
    text = path.read_text()
    header = ' '.join(line.removeprefix('#').strip() for line in text.splitlines() if line.startswith('#'))
    for part in (
        '--device-modules timm_attn',
        f'timm-attn recipe {path.stem} -o .',
        'Source:',
        'Hardware assumed:',
        'Expected',
    ):
        assert part in header, part
    recipe = yaml.safe_load(text)
    assert recipe['model'] in zoo_models()
    for name in re.findall(r'--model (\w+)', header):
        assert timm.is_model(name), name
    assert recipe['opt'] in list_optimizers()
    model = timm.create_model(recipe['model'], **recipe.get('model_kwargs', {}))
    create_optimizer_v2(
        model, recipe['opt'], recipe['lr'], layer_decay=recipe.get('layer_decay'), **recipe.get('opt_kwargs', {})
    )


def parsed(command, *words):
    args = _parser().parse_args([command, 'DIR', *map(str, words)], argparse.Namespace(argv=[]))
    return dense_options.parse(args.func.args[0], ['DIR', *map(str, words)])


@pytest.mark.parametrize('name', DENSE_RECIPES)
def test_recipe_of_a_dense_task(name):
    text = recipe_path(name).read_text()
    header = ' '.join(line.removeprefix('#').strip() for line in text.splitlines() if line.startswith('#'))
    for part in (f'timm-attn recipe {name} -o .', f'--config {name}.yaml', 'Source:', 'Hardware assumed:', 'Reported:',
                 'Not certain:'):  # fmt: skip
        assert part in header, part
    for model in re.findall(r'--backbone (\w+)', header):
        assert timm.is_model(model), model
    given = yaml.safe_load(text)
    kind = given.get('detector') or given.get('segmenter')
    named = name.partition('_')[0]  # bccd, camvid and others name the data only
    assert named == kind or named not in (*dense_options.DETECTORS, *dense_options.SEGMENTERS)
    args = parsed(command_of(name), '--config', recipe_path(name))
    assert all(getattr(args, key) == value for key, value in given.items())
    assert args.opt in list_optimizers()
    assert args.warmup_epochs < args.epochs / 2
    others = re.findall(r'^#   \.\.\. (--.+?)(?: {2,}#|$)', text, re.MULTILINE)
    for words in ('', *others):
        args = parsed(command_of(name), '--config', recipe_path(name), *words.split())
        kwargs = {k: v for k, v in args.model_kwargs.items() if k != 'trainable_layers'}  # of pretrained ones
        model = getattr(dense, kind)(args.backbone, 5, backbone_args=args.backbone_kwargs, **kwargs)
        if kwargs.get('batch_norm') == 'eval':
            assert not any(m.training for m in model.train().backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))


@pytest.mark.parametrize('name', OWN_RECIPES)
def test_recipe_of_a_classifier(name):
    text = recipe_path(name).read_text()
    header = ' '.join(line.removeprefix('#').strip() for line in text.splitlines() if line.startswith('#'))
    for part in (f'timm-attn recipe {name} -o .', f'--config {name}.yaml', 'Source:', 'Hardware assumed:', 'Expected:'):
        assert part in header, part
    command = command_of(name)
    words = ['DIR', '--config', str(recipe_path(name))]
    parser = _parser().parse_args([command, *words], argparse.Namespace(argv=[])).func.args[0]
    args = dict(finetune=finetune_options, compare=compare_options)[command].parse(parser, words)
    given = yaml.safe_load(text)
    assert all(getattr(args, key) == value for key, value in given.items())
    assert args.opt in list_optimizers()
    assert all(timm.is_model(model.partition('.')[0]) for model in given.get('models', [given.get('model')]))


def test_command_lists_what_a_recipe_is_for(capsys):
    assert main(['recipe']) == 0
    lines = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()}
    assert lines == {name: command_of(name) for name in list_recipes()}
    assert (lines['bccd'], lines['flowers12'], lines['cifar10_long']) == ('train-detection', 'compare', 'finetune')


def test_plain_sgd_decays_norms_too():
    recipe = yaml.safe_load(recipe_path('csa_resnet_in1k').read_text())
    model = timm.create_model('csa_resnet18')
    groups = create_optimizer_v2(
        model, recipe['opt'], 0.1, recipe['weight_decay'], recipe['momentum'], **recipe['opt_kwargs']
    ).param_groups
    assert {(g['weight_decay'], g['momentum'], g['nesterov']) for g in groups} == {(1e-4, 0.9, True)}


def test_finetune_speaks_train_py(options):
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    own = {action.dest for action in parser._actions}
    # train.py parses --config before all others
    assert own - set(options) == {'config', 'val_fraction', 'patience', 'log_tensorboard'}
    recipe = yaml.safe_load(recipe_path('finetune').read_text())
    assert CONSTANT.keys() <= set(options)
    defaults = {**CONSTANT, **vars(parser.parse_args([]))}
    assert {key: defaults[key] for key in recipe if key != 'amp'} == {k: v for k, v in recipe.items() if k != 'amp'}


@pytest.mark.skipif(not SCRIPTS, reason="needs timm's scripts: TIMM_SCRIPTS=path/to/pytorch-image-models")
def test_record_is_of_this_script():
    assert recorded()['options'].items() <= options_of(parser_of(Path(SCRIPTS) / 'train.py')).items()


@pytest.mark.slow
@pytest.mark.skipif(not SCRIPTS, reason="needs timm's scripts: TIMM_SCRIPTS=path/to/pytorch-image-models")
@pytest.mark.parametrize('recipe', ['finetune', 'tune_attention'])
def test_train_py_runs_a_recipe(recipe, tmp_path):
    for split in ('train', 'val'):
        for name, colour in dict(dark=40, light=200).items():
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(8):
                Image.effect_noise((32, 32), 30).point(lambda v, c=colour: (v + c) // 2).save(
                    tmp_path / split / name / f'{i}.png'
                )
    command = [
        sys.executable, Path(SCRIPTS) / 'train.py', '--config', recipe_path(recipe),
        '--device-modules', 'timm_attn', '--model', 'csa_resnet20_cifar', '--num-classes', '2', '--data-dir', tmp_path,
        '--device', 'cpu', '--amp-dtype', 'bfloat16', '--epochs', '1', '-b', '8', '-j', '1',
        '--output', tmp_path / 'out',
    ]  # fmt: skip
    done = subprocess.run([str(arg) for arg in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'Best metric' in done.stderr
