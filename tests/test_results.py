"""The comparisons' runner and the page that is rendered from its logs."""

import argparse
import dataclasses
import json
import shutil
import sys

import evidence
import pytest
import results
import studies
import yaml

from timm_attn.cli import _parser
from timm_attn.train import compare_options

TRAIN = """
import csv, json, os, sys
args = sys.argv[1:]
folder = os.path.join(args[args.index('--output') + 1], args[args.index('--experiment') + 1])
model, seed = args[args.index('--model') + 1], int(args[args.index('--seed') + 1])
json.dump(args, open(os.path.join(folder, 'args.json'), 'w'))
crash = os.path.exists('crash-' + model) and '--resume' not in args
with open(os.path.join(folder, 'summary.csv'), 'a') as file:
    rows = csv.writer(file)
    rows.writerow(['epoch', 'train_loss', 'eval_loss', 'eval_top1', 'lr'])
    for epoch in range(1 if crash else 50):
        rows.writerow([epoch, 1, 1, 50 + seed + 10 * model.startswith('se_') + 9 * ('--pretrained' in args), 0.1])
open(os.path.join(folder, 'last.pth.tar'), 'w').close()
sys.exit(crash)
"""


@pytest.fixture
def flowers(tmp_path, monkeypatch):
    """The comparison on flowers, with fewer networks, its logs elsewhere and a train.py that writes them at once."""
    monkeypatch.setattr(evidence, 'ROOT', tmp_path)
    monkeypatch.setattr(evidence, 'LOGS', tmp_path / 'logs')
    experiment = dataclasses.replace(
        evidence.EXPERIMENTS['imagenette128'],
        name='flowers12',
        title='Twelve flowers',
        models=(('resnet20_cifar', 'se_resnet20_cifar', 'csa_resnet20_cifar'),),
        starts={'scratch': (), 'cifar10': ('--pretrained',)},
        seeds=(0, 1, 2),
    )
    monkeypatch.setattr(results, 'STUDIES', {})
    monkeypatch.setitem(evidence.EXPERIMENTS, 'flowers12', experiment)
    (tmp_path / 'train.py').write_text(TRAIN)
    (tmp_path / 'flowers').mkdir()
    command = ['evidence.py', 'flowers12', '--data-dir', str(tmp_path / 'flowers')]
    command += [
        '--train-script',
        str(tmp_path / 'train.py'),
        '--output',
        str(tmp_path / 'runs'),
        '--',
        '--device',
        'cpu',
    ]
    monkeypatch.setattr(sys, 'argv', command)
    return tmp_path


def test_runs_resume_and_are_not_repeated(flowers, capsys):
    (flowers / 'crash-se_resnet20_cifar').touch()
    assert evidence.main() == 1
    out = capsys.readouterr().out
    assert out.count('failed') == 6
    assert len(list((flowers / 'logs').rglob('*.csv'))) == 12
    assert evidence.main() == 0
    out = capsys.readouterr().out
    assert out.count('resumes') == 6
    assert 'starts' not in out
    commands = (flowers / 'logs' / 'flowers12' / 'commands.txt').read_text().splitlines()
    assert len(commands) == 18
    assert (
        'python train.py --config timm_attn/train/recipes/imagenette128.yaml --device-modules timm_attn '
        '--model csa_resnet20_cifar --seed 2 --pretrained --device cpu --data-dir flowers --output OUTPUT '
        '--experiment csa_resnet20_cifar.cifar10.seed2'
    ) in commands
    assert not any(str(flowers) in command for command in commands)
    assert evidence.EXPERIMENTS['flowers12'].resumed() == [
        f'se_resnet20_cifar.{start}.seed{seed}' for start in ('cifar10', 'scratch') for seed in range(3)
    ]
    assert '--resume' in json.loads((flowers / 'runs/se_resnet20_cifar.scratch.seed0/args.json').read_text())
    assert evidence.main() == 0
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('name', [e.name for e in evidence.EXPERIMENTS.values() if e.tool != 'train.py'])
def test_commands_of_detection_and_segmentation(name):
    experiment = evidence.EXPERIMENTS[name]
    places = evidence.Places('data', '', 'weights.safetensors', 'OUTPUT')
    run = next(experiment.runs())
    for resumes in (False, True):
        words = experiment.command(*run, resumes, places, ['--amp'])
        assert words[:2] == ['-m', 'timm_attn']
        args = _parser().parse_args(words[2:], argparse.Namespace(argv=[]))
        assert args.resume if resumes else bool(args.pretrained_path) == experiment.needs_weights
        assert experiment.name_of(words) == experiment.log(*run).stem


def test_page_and_plot_follow_the_logs(flowers, monkeypatch):
    before = results.page()
    assert 'Not run yet: Twelve flowers' in before
    assert '### resnet20_cifar from cifar10' not in before
    evidence.main()
    page = results.page()
    assert '| se_resnet20_cifar | 60.00 | 61.00 | 62.00 | 61.00 ± 1.00 | +10.00, higher |' in page
    assert '| csa_resnet20_cifar | 59.00 | 60.00 | 61.00 | 60.00 ± 1.00 | +0.00, no clear difference |' in page
    assert 'Not run yet: Twelve flowers' not in page
    assert 'Not run yet: Imagenette' in page
    monkeypatch.setattr(results, 'PLOT', flowers / 'plot.png')
    assert results.is_stale()
    results.write_plot()
    assert not results.is_stale()
    log = flowers / 'logs/flowers12/se_resnet20_cifar.scratch.seed0.csv'
    log.write_text(log.read_text().replace(',60,', ',59,'))
    assert results.is_stale()
    log.unlink()
    assert '| se_resnet20_cifar | - | 61.00 | 62.00 | 61.50 ± 0.71 | +10.50, higher |' in results.page()
    for log in (flowers / 'logs/flowers12').glob('resnet20_cifar.scratch.*.csv'):
        log.unlink()
    assert '### resnet20_cifar from scratch' not in results.page()  # nothing to compare with
    assert '### resnet20_cifar from cifar10' in results.page()


def test_only_differences_beyond_chance_are_called_so():
    assert results.verdict([51.0, 51.0], [50.0, 50.0]) == '+1.00, higher'
    assert results.verdict([51.0, 52.0], [50.0, 51.0]) == '+1.00, no clear difference'
    assert results.verdict([50.0, 50.1], [55.0, 55.1]) == '-5.00, lower'
    assert results.verdict([90.0], [50.0, 51.0]) == '+39.50, one seed'


STUDY = studies.Study('flowers12', 'Twelve flowers', 'About.', {'cifar10': (), 'scratch': ('--no-pretrained',)})


def test_the_page_follows_the_reports(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, 'REPORTS', tmp_path)
    monkeypatch.setattr(results, 'STUDIES', {'flowers12': STUDY})
    monkeypatch.setattr(results, 'EXPERIMENTS', {})
    assert 'Not run yet: Twelve flowers' in results.page()
    folder = tmp_path / 'flowers12.scratch'
    folder.mkdir()
    networks = [
        dict(network='resnet20_cifar', top1={'0': 50.0, '1': 51.0, '2': 52.0}),
        dict(network='csa_resnet20_cifar.cifar10_8ep', top1={'0': 60.0, '1': 61.0, '2': 62.0}),
        dict(network='se_resnet20_cifar', failures={'0': 'no space'}),
    ]
    (folder / 'results.json').write_text(json.dumps(dict(networks=networks, test_images=240)))
    page = results.page()
    assert '| csa_resnet20_cifar | 60.00 | 61.00 | 62.00 | 61.00 ± 1.00 | +10.00, higher |' in page
    assert '### resnet20_cifar from scratch' in page
    assert '### resnet20_cifar from cifar10' not in page
    assert '[from scratch](reports/flowers12.scratch/report.md)' in ' '.join(page.split())
    assert 'Not run yet: Twelve flowers' not in page


@pytest.mark.parametrize('study', studies.STUDIES.values(), ids=lambda study: study.name)
def test_a_study_is_run_resumed_and_kept(study, tmp_path, monkeypatch):
    calls = []

    def compare(words):
        calls.append(words)
        folder = tmp_path / 'out' / f'{study.name}.{start}'
        for name in ('report_files', 'answers', 'runs/finished', 'runs/under_way'):
            (folder / name).mkdir(parents=True, exist_ok=True)
        files = ['args.yaml', 'recipe.yaml', 'split.json', 'results.json', 'report.html', 'report.md']
        files += ['report_files/a.svg', 'runs/finished/summary.csv', 'runs/finished/last.pth.tar']
        if '--resume' in words:  # on a machine that has what was kept, and nothing else
            kept = sorted(str(file.relative_to(folder)) for file in folder.rglob('*') if file.is_file())
            runs = ['runs/finished/summary.csv']
            assert yaml.safe_load((folder / 'args.yaml').read_text()) == dict(seeds=3)
            assert kept == ['answers/finished.json', 'args.yaml', 'recipe.yaml', *runs, 'split.json']
        for name in (*files, 'answers/finished.json', 'runs/under_way/summary.csv'):
            (folder / name).write_text(str(len(calls)))
        (folder / 'args.yaml').write_text(yaml.safe_dump(dict(data_dir='data', output=str(tmp_path), seeds=3)))
        return argparse.Namespace(returncode=0 if '--resume' in words else 130)

    monkeypatch.setattr(studies, 'REPORTS', tmp_path / 'reports')
    monkeypatch.setattr(studies.subprocess, 'run', compare)
    for start, options in study.starts.items():
        calls.clear()
        assert studies.run(study, start, 'data', tmp_path / 'out') == 130
        assert study.results(start) is None
        shutil.rmtree(tmp_path / 'out')
        assert studies.run(study, start, 'data', tmp_path / 'out') == 0
        assert (study.report(start) / 'report_files' / 'a.svg').read_text() == '2'
        assert not study.unfinished(start).exists()
        first, second = (words[words.index('compare') + 1 :] for words in calls)
        assert second == ['data', '--resume', str(tmp_path / 'out' / f'{study.name}.{start}'), '--jobs', '1']
        args = _parser().parse_args(['compare', *first], argparse.Namespace(argv=['compare', *first]))
        parsed = compare_options.parse(args.func.args[0], first)
        assert parsed.pretrained == ('--no-pretrained' not in options and study.name != 'cifar10')
        assert (parsed.seeds, parsed.pictures, len(parsed.models)) == (3, 0, 6)


def test_an_interruption_ends_a_study(monkeypatch):
    begun = []
    monkeypatch.setattr(studies, 'run', lambda study, start, *args: begun.append(start) or 130)
    monkeypatch.setattr(sys, 'argv', ['studies.py', 'flowers12', '--data-dir', 'flowers12'])
    assert studies.main() == 130
    assert begun == ['cifar10']
