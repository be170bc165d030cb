"""The documentation: its Python runs, its command lines parse, and what it names exists."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import timm
from PIL import Image

from timm_attn.cli import _parser
from timm_attn.train.export import export_model
from timm_attn.train.recipes import list_recipes

ROOT = Path(__file__).parent.parent
PAGES = sorted(path.stem for path in (ROOT / 'docs').glob('*.md'))
BLOCK = re.compile(r'(?:^<!-- (not run|file): (.*?) -->\n)?^```(\w+)\n(.*?)^```$', re.M | re.S)
# Blocks of a page that must run, at least.
RUN = dict(
    install=1, models=6, attach=6, weights=4, predict=2, finetune=1, dense=5, deploy=5, use_with=3, contributing=2,
)  # fmt: skip

by_page = pytest.mark.parametrize('page', PAGES)


def read(page):
    return (ROOT / 'docs' / f'{page}.md').read_text(encoding='utf-8')


def python_blocks(page):
    """Python to run: the number of its first line, and the text."""
    text = read(page)
    for match in BLOCK.finditer(text):
        mark, reason, language, code = match.groups()
        if language == 'python' and mark != 'file':
            assert mark is None or reason.strip(), code
            if mark is None:
                yield text.count('\n', 0, match.start(4)), code


def command_lines(page):
    """Words of each command of this package."""
    for _, _, language, code in BLOCK.findall(read(page)):
        if language in ('sh', 'console'):
            for line in code.replace('\\\n', ' ').splitlines():
                words = shlex.split(line.removeprefix('$ '), comments=True)
                if words[:1] == ['timm-attn']:
                    yield words[1:]
                for start in range(len(words) - 1):
                    if words[start : start + 2] == ['-m', 'timm_attn']:
                        yield words[start + 2 :]


def prepare(folder):
    """What a user has: the clone, a photograph, and a run of fine-tuning."""
    (folder / 'timm-attn').symlink_to(ROOT)
    Image.radial_gradient('L').convert('RGB').save(folder / 'photo.jpg')
    model = timm.create_model('csa_resnet20_cifar', num_classes=2)
    model.pretrained_cfg['label_names'] = ['daisy', 'tulip']
    export_model(model, folder / 'output/finetune/first/model')


@pytest.mark.parametrize('page', sorted(set(PAGES) - {'contributing'}))
def test_python_runs(page, tmp_path, monkeypatch):
    blocks = list(python_blocks(page))
    assert len(blocks) >= RUN.get(page, 0)
    for package in ('onnxruntime', 'openvino', 'segmentation_models_pytorch', 'transformers'):
        if any(package in code for _, code in blocks):
            pytest.importorskip(package)
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for line, code in blocks:  # empty lines first, so that a traceback names the line of the page
        exec(compile('\n' * line + code, ROOT / 'docs' / f'{page}.md', 'exec'), namespace)


def test_attention_in_three_files(tmp_path):
    """The example is complete: a copy of the package with its files, in a process of its own, runs the rest of it."""
    shutil.copytree(ROOT / 'timm_attn', tmp_path / 'timm_attn', ignore=shutil.ignore_patterns('__pycache__'))
    (tmp_path / 'tests/data/modules').mkdir(parents=True)
    files = [(name, code) for mark, name, _, code in BLOCK.findall(read('contributing')) if mark == 'file']
    assert [Path(name).parent.name for name, _ in files] == ['layers', 'models']
    for name, code in files:
        (tmp_path / name).write_text(code)
    blocks = [code for _, code in python_blocks('contributing')]
    assert len(blocks) == RUN['contributing']
    (tmp_path / 'rest.py').write_text('\n'.join(blocks) + CHECK)
    env = {**os.environ, 'PYTHONPATH': str(tmp_path)}
    process = subprocess.run([sys.executable, 'rest.py'], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


CHECK = """
from pathlib import Path
from safetensors import safe_open
from timm_attn.layers import get_attention
from timm_attn.models import zoo_models

assert 'toy_resnet18.warm_a1_in1k' in zoo_models(include_tags=True)
(path,) = Path('tests/data/modules').iterdir()
with safe_open(path, 'pt') as golden:
    metadata = {key: json.loads(value) for key, value in golden.metadata().items()}
    tensors = {key: golden.get_tensor(key) for key in golden.keys()}
layer = get_attention(metadata['attention']).layer(**metadata['arguments'])
layer.load_state_dict({key[6:]: value for key, value in tensors.items() if key.startswith('state/')})
torch.testing.assert_close(layer(tensors['x']), tensors['y'])
assert tensors['grad_x'].abs().sum() > 0 and tensors['grad/fc.weight'].abs().sum() > 0
"""


@by_page
def test_command_lines_parse(page):
    for words in command_lines(page):
        args = _parser().parse_args(words, Namespace(argv=words))
        names = {getattr(args, 'model', None), *([args.name] if words[0] == 'info' else [])} - {None}
        assert all(':' in name or timm.is_model(name) for name in names), words


@by_page
def test_what_it_names_exists(page):
    text = read(page)
    for link in re.findall(r'\]\((?!https?:|#)([^)#\s]+)', text):
        assert (ROOT / 'docs' / link).exists(), link
    for path in re.findall(r'(?<![\w/.-])(?:scripts|timm_attn|tests|model_cards)/[\w./-]+', text):
        assert 'toy' in path or (ROOT / path.rstrip('.')).exists(), path  # the example's files are made by the reader
    for name in re.findall(r'`((?:\w+_)?(?:resnet\w+|mbv2_\w+|mobilenext\w*))`', text):
        assert name.startswith('toy') or timm.is_model(name) or name in list_recipes(), name


def test_every_page_is_in_the_menu():
    assert {page for page in PAGES if re.search(rf'^{page}$', read('index'), re.M)} == {*PAGES} - {'index'}


def test_every_recipe_is_listed():
    assert all(f'`{name}`' in read('finetune') for name in list_recipes())
