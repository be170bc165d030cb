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
import csv, os, sys
words = sys.argv[1:]
resumes = '--resume' in words
option = dict(zip(words, words[1:]))
folder = option['--resume'] if resumes else os.path.join(option['--output'], option['--experiment'])
model, _, seed = os.path.basename(folder).split('.')
crash = os.path.exists('crash-' + model) and not resumes
with open(os.path.join(folder, 'summary.csv'), 'a') as file:
    rows = csv.writer(file)
    if not resumes:
        rows.writerow(['epoch', 'eval_mIoU', 'eval_pixel_accuracy'])
    for epoch in range(resumes, 1 if crash else 12):
        share = 0.5 + 0.01 * int(seed.removeprefix('seed')) + 0.1 * (model == 'mbv2_se')
        rows.writerow([epoch, share, 2 * share / 3])
open(os.path.join(folder, 'last.pth.tar'), 'w').close()
sys.exit(crash)
"""


@pytest.fixture
def streets(tmp_path, monkeypatch):
    """The comparison of segmenters, with more networks, its logs elsewhere and a command that writes them at once."""
    monkeypatch.setattr(evidence, 'ROOT', tmp_path)
    monkeypatch.setattr(evidence, 'LOGS', tmp_path / 'logs')
    experiment = dataclasses.replace(
        evidence.EXPERIMENTS['camvid'], models=('mobilenetv2_100', 'mbv2_se', 'mbv2_ca'), seeds=(0, 1, 2)
    )
    monkeypatch.setitem(evidence.EXPERIMENTS, 'camvid', experiment)
    package = tmp_path / 'timm_attn'
    weights = tmp_path / 'weights.safetensors'
    for path, text in {package / '__init__.py': '', package / '__main__.py': TRAIN, weights: ''}.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (tmp_path / 'streets').mkdir()
    command = ['evidence.py', 'camvid', '--data-dir', tmp_path / 'streets', '--weights', weights]
    command += ['--output', tmp_path / 'runs', '--', '--amp']
    monkeypatch.setattr(sys, 'argv', [str(word) for word in command])
    return tmp_path


def test_runs_resume_and_are_not_repeated(streets, capsys):
    (streets / 'crash-mbv2_se').touch()
    assert evidence.main() == 1
    out = capsys.readouterr().out
    assert out.count('failed') == 3
    assert len(list((streets / 'logs').rglob('*.csv'))) == 6
    assert evidence.main() == 0
    out = capsys.readouterr().out
    assert out.count('resumes') == 3
    assert 'starts' not in out
    commands = (streets / 'logs/camvid/commands.txt').read_text().splitlines()
    assert len(commands) == 9
    assert (
        'python -m timm_attn train-segmentation streets --config timm_attn/train/recipes/camvid.yaml '
        '--backbone mbv2_ca --seed 2 --pretrained-path weights.safetensors --amp --output OUTPUT '
        '--experiment mbv2_ca.imagenette128.seed2'
    ) in commands
    assert 'python -m timm_attn train-segmentation --resume OUTPUT/mbv2_se.imagenette128.seed2' in commands
    assert not any(str(streets) in command for command in commands)
    assert evidence.EXPERIMENTS['camvid'].resumed() == [f'mbv2_se.imagenette128.seed{seed}' for seed in range(3)]
    assert evidence.main() == 0
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('name', list(evidence.EXPERIMENTS))
def test_commands_of_detection_and_segmentation(name):
    experiment = evidence.EXPERIMENTS[name]
    places = evidence.Places('data', 'weights.safetensors', 'OUTPUT')
    run = next(experiment.runs())
    for resumes in (False, True):
        words = experiment.words(*run, resumes, places, ['--amp'])
        assert words[:2] == ['-m', 'timm_attn']
        args = _parser().parse_args(words[2:], argparse.Namespace(argv=[]))
        assert args.resume if resumes else bool(args.pretrained_path) == experiment.needs_weights
        assert experiment.name_of(words) == experiment.log(*run).stem


def test_page_follows_the_logs(streets):
    before = results.page()
    assert 'Not run yet: Segmentation' in before
    assert 'mobilenetv2_100 from imagenette128: mIoU, validation images' not in before
    evidence.main()
    page = results.page()
    assert '| mbv2_se | 60.00 | 61.00 | 62.00 | 61.00 ± 1.00 | +10.00 (+7.73 to +12.27), higher |' in page
    assert '| mbv2_ca | 50.00 | 51.00 | 52.00 | 51.00 ± 1.00 | +0.00 (-2.27 to +2.27), no clear difference |' in page
    assert '| mbv2_se | 40.00 | 40.67 | 41.33 | 40.67 ± 0.67 | +6.67 (+5.16 to +8.18), higher |' in page  # of pixels
    assert 'Not run yet: Segmentation' not in page
    (streets / 'logs/camvid/mbv2_se.imagenette128.seed0.csv').unlink()
    assert '| mbv2_se | - | 61.00 | 62.00 | 61.50 ± 0.71 | +10.50 (+0.80 to +20.20), higher |' in results.page()
    for log in (streets / 'logs/camvid').glob('mobilenetv2_100.*.csv'):
        log.unlink()
    assert 'Not run yet: Segmentation' in results.page()  # nothing to compare with


@pytest.mark.parametrize(
    ('values', 'plain', 'cell', 'said'),
    [
        ([51.0, 51.0], [50.0, 50.0], '+1.00 (+0.99 to +1.01), higher', 'Higher than the plain network: a.'),
        ([51.0, 52.0], [50.0, 51.0], '+1.00 (-2.04 to +4.04), no clear difference', 'No clear difference: a.'),
        ([50.0, 50.1], [55.0, 55.1], '-5.00 (-5.30 to -4.70), lower', 'Lower than the plain network: a.'),
        ([90.0], [50.0, 51.0], '+39.50, too few seeds to tell', 'Too few seeds to tell: a.'),
    ],
)
def test_only_differences_beyond_chance_are_called_so(values, plain, cell, said):
    runs = dict(plain=dict(enumerate(plain)), a=dict(enumerate(values)))
    assert results.table(runs).endswith(f'| {cell} |')
    assert results.helps(runs) == said


STUDY = studies.Study(
    'flowers12', 'flowers12', 'Twelve flowers', 'About.', {'cifar10': (), 'scratch': ('--no-pretrained',)}
)


def test_page_plot_and_documentation_follow_the_reports(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, 'REPORTS', tmp_path)
    monkeypatch.setattr(results, 'STUDIES', {'flowers12': STUDY})
    monkeypatch.setattr(results, 'EXPERIMENTS', {})
    monkeypatch.setattr(results, 'PLOT', tmp_path / 'plot.png')
    assert 'Not run yet: Twelve flowers' in results.page()
    assert not results.is_stale()
    assert not results.documents()
    folder = tmp_path / 'flowers12.scratch'
    folder.mkdir()
    networks = [
        dict(network='resnet20_cifar', top1={'0': 50.0, '1': 51.0, '2': 52.0}),
        dict(network='csa_resnet20_cifar.cifar10_8ep', top1={'0': 60.0, '1': 61.0, '2': 62.0}),
        dict(network='se_resnet20_cifar', failures={'0': 'no space'}),
    ]
    (folder / 'results.json').write_text(json.dumps(dict(networks=networks, test_images=240)))
    assert [path.parent.name for path in results.documents()] == ['flowers12.scratch']
    assert results.is_stale()
    results.write_plot()
    assert not results.is_stale()
    networks[0]['top1']['0'] = 49.0
    (folder / 'results.json').write_text(json.dumps(dict(networks=networks, test_images=240)))
    assert results.is_stale()
    page = results.page()
    assert '| csa_resnet20_cifar | 60.00 | 61.00 | 62.00 | 61.00 ± 1.00 | +10.33 (+7.21 to +13.45), higher |' in page
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
    for start in study.starts:
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
        assert parsed.pretrained == (start != 'scratch')
        assert (parsed.seeds, parsed.pictures) == (3, 0)
        assert len(parsed.models) > 3


def test_an_interruption_ends_a_study(monkeypatch):
    begun = []
    monkeypatch.setattr(studies, 'run', lambda study, start, *args: begun.append(start) or 130)
    monkeypatch.setattr(sys, 'argv', ['studies.py', 'flowers12', '--data-dir', 'flowers12'])
    assert studies.main() == 130
    assert begun == ['cifar10']
