"""timm-attn compare: what it finds and claims, interruptions, failures, budgets and bad input."""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from test_finetune import files, make_images
from torchmetrics.functional.classification import multiclass_calibration_error

from timm_attn.cli import main
from timm_attn.train.answers import BINS, Answers
from timm_attn.train.budget import plan, seconds_of_epoch, sizes_of
from timm_attn.train.compare_pictures import disagreements
from timm_attn.train.compare_results import Network, Results
from timm_attn.train.contestants import parse_contestant
from timm_attn.train.log import read_summary
from timm_attn.train.options import RunError
from timm_attn.train.significance import difference

MODELS = ('resnet20_cifar', 'csa_resnet20_cifar')
ARGS = ('data', '--epochs', '2', '--lr', '0.003', '-b', '16', '-j', '0', '--output', 'out', '--experiment', 'run')


def compare(*args):
    return main(['compare', *map(str, args)])


def status(*args):
    """Exit status, also where argparse ends the process."""
    try:
        return compare(*args)
    except SystemExit as e:
        return e.code


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / 'data', 8)
    return tmp_path / 'data'


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A folder with a data set and a comparison of two networks with two seeds."""
    folder = tmp_path_factory.mktemp('compare')
    make_images(folder / 'data' / 'train', 8)
    make_images(folder / 'data' / 'test', 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert compare(*ARGS, '--models', *MODELS, '--seeds', 2) == 0
    return folder


@pytest.fixture
def copy(finished, tmp_path, monkeypatch):
    """A copy of the finished comparison, of the same data."""
    shutil.copytree(finished / 'out', tmp_path / 'out')
    os.symlink(finished / 'data', tmp_path / 'data')
    monkeypatch.chdir(tmp_path)
    return tmp_path / 'out' / 'run'


def results(run='out/run'):
    return json.loads(Path(run, 'results.json').read_text())


def test_what_it_finds(finished):
    run = finished / 'out' / 'run'
    found = results(run)
    plain, csa = found['networks']
    assert [plain['network'], csa['network']] == list(MODELS)
    assert plain['top1'].keys() == csa['top1'].keys() == {'42', '43'}
    for network in (plain, csa):
        for seed, top1 in network['top1'].items():
            answers = Answers.read(run / 'answers' / f'{network["network"]}.seed{seed}.json')
            assert sorted(answers.images) == sorted(f'{c}/{i}.jpg' for c in ('blue', 'green', 'red') for i in range(4))
            assert answers.top1 == pytest.approx(top1, abs=1e-3)
        assert network['mean'] == pytest.approx(np.mean(list(network['top1'].values())), abs=1e-3)
        assert network['deviation'] == pytest.approx(np.std(list(network['top1'].values()), ddof=1), abs=1e-3)
        assert network['per_class'].keys() == {'blue', 'green', 'red'}
    assert csa['difference'] == pytest.approx(csa['mean'] - plain['mean'], abs=1e-3)
    assert csa['low'] < csa['difference'] < csa['high']
    assert 'difference' not in plain
    assert csa['cost']['params'] - plain['cost']['params'] == 1928  # as DESIGN and the manifest have it, less the head
    assert plain['cost']['inference'] == plain['cost']['memory'] == 1
    assert csa['cost']['inference'] > 0
    assert found['recipe']['epochs'] == 2
    assert found['recipe']['val_split'] == 'test'


def test_the_report(finished):
    run = finished / 'out' / 'run'
    html, markdown = ((run / f'report.{end}').read_text() for end in ('html', 'md'))
    top1 = results(run)['networks'][1]['mean']
    for page in (html, markdown):
        assert f'{top1:.2f}' in page
        for text in ('Result', 'Cost', 'By class', 'Confusion', 'Calibration', 'How it was made', 'csa_resnet20_cifar'):
            assert text in page
    assert 'timm-attn compare data --models resnet20_cifar csa_resnet20_cifar --seeds 2 ' in html
    assert ' --epochs 2 ' in html
    assert not re.search(r'--(output|experiment|workers|minutes)', html)
    names = Answers.read(run / 'answers' / f'{MODELS[0]}.seed42.json').images
    wrong = [name for name in names if f'| {name} | ' in markdown]
    found = Results([Network(m, {42: Answers.read(run / 'answers' / f'{m}.seed42.json')}) for m in MODELS],
                    'data', '', 0, {}, True, '', [], {})  # fmt: skip
    assert sorted(wrong) == sorted(disagreements(found, 6))
    pictures = {path.suffix for path in (run / 'report_files').iterdir()}
    assert '.svg' in pictures


def test_the_result_is_that_of_the_last_epoch(finished):
    """Without a choice of the epoch the images that it validates on are test images."""
    from timm_attn.train.export import load_run

    run = finished / 'out' / 'run'
    answers = Answers.read(run / 'answers' / 'csa_resnet20_cifar.seed43.json')
    model, _ = load_run(run / 'runs' / 'csa_resnet20_cifar.seed43', checkpoint='last.pth.tar')
    samples = [
        (str(finished / 'data' / 'test' / name), i) for name, i in zip(answers.images, answers.true, strict=True)
    ]
    again = Answers.of(model, samples, answers.labels, finished / 'data' / 'test', 5)
    assert again.predicted == answers.predicted
    assert again.confidence == pytest.approx(answers.confidence, abs=1e-5)


def test_what_is_finished_is_not_repeated(copy, capsys):
    before = {path: path.stat().st_mtime_ns for path in copy.glob('runs/*/last.pth.tar')}
    found = results()
    assert compare('--resume', copy) == 0
    assert {path: path.stat().st_mtime_ns for path in copy.glob('runs/*/last.pth.tar')} == before
    assert len(before) == 4
    assert results()['networks'] == found['networks']
    assert 'epoch' not in capsys.readouterr().out


def test_a_network_that_fails_takes_no_other_with_it(copy, capsys):
    """Added to a comparison that is finished; its width has no SCSA."""
    assert compare('--resume', copy, '--models', *MODELS, 'rexnet_100+scsa', '--no-pretrained') == 2
    assert 'has pretrained: True' in capsys.readouterr().err  # the recipe stays
    for option, was in (
        (('--img-size', 64), 'no img_size'),
        (('--minutes', 5), 'no minutes'),
        (('--lr', 1), 'lr: 0.003'),
    ):
        assert compare('--resume', copy, *option) == 2
        assert f'has {was}. Start a new run to change it' in capsys.readouterr().err
    assert compare('--resume', copy, '--models', *MODELS, 'resnetv2_18+gc@slot') == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1
    assert 'resnetv2_18+gc@slot, seed 42' in err
    found = results()['networks']
    assert [set(network) >= {'top1'} for network in found] == [True, True, False]
    assert found[2]['failures'].keys() == {'42', '43'}
    assert 'failed' in (copy / 'report.html').read_text()


def test_costs_are_relative_to_the_first_network(copy):
    assert compare('--resume', copy, '--models', *reversed(MODELS)) == 0
    csa, plain = results()['networks']
    assert csa['network'] == MODELS[1]
    assert csa['cost']['inference'] == csa['cost']['memory'] == 1
    assert not csa['cost']['relative']
    assert plain['cost']['relative']
    command = 'timm-attn compare data --models csa_resnet20_cifar resnet20_cifar --seeds 2 '
    assert command in (copy / 'report.html').read_text()


def test_a_damaged_answer_is_tested_again(copy):
    found = results()['networks']
    (copy / 'answers' / 'csa_resnet20_cifar.seed43.json').write_text('{"labels": [')
    assert compare('--resume', copy) == 0
    assert results()['networks'] == found


def test_a_run_that_was_not_ended_is_not_tested(copy, monkeypatch):
    """Its log is complete, its last checkpoint and what comes after that are not."""
    from timm_attn.train.children import Children

    (copy / 'answers' / 'csa_resnet20_cifar.seed43.json').unlink()
    run = copy / 'runs' / 'csa_resnet20_cifar.seed43'
    (run / 'report.html').unlink()
    resumed = []
    monkeypatch.setattr(Children, 'finetune', lambda self, run, words, place: resumed.append(words))
    assert compare('--resume', copy) == 0
    (words,) = resumed
    assert words[1:3] == ['--resume', str(run)]


def test_networks_without_maps_or_cost_have_results(copy, monkeypatch):
    """A transformer has no maps; whatever fails for one network, the results of all are kept."""
    from timm_attn.train import compare_costs, compare_pictures

    def fail(*args, **kwargs):
        raise ValueError('no maps here')

    found = results()['networks']
    monkeypatch.setattr(compare_pictures, 'explain', fail)
    monkeypatch.setattr(compare_costs, 'count_cost', fail)
    monkeypatch.setattr(compare_pictures, 'disagreements', lambda results, most: ['red/0.jpg'])
    (copy / 'costs.json').unlink()
    assert compare('--resume', copy) == 0
    assert [n['top1'] for n in results()['networks']] == [n['top1'] for n in found]
    assert not any('cost' in n for n in results()['networks'])
    assert 'has no maps' in (copy / 'report.html').read_text()


def test_stopped_while_it_waits(tmp_path):
    """What another process still trains is not taken for finished."""
    from timm_attn.train.children import Children
    from timm_attn.train.run_lock import lock_folder

    (tmp_path / 'run').mkdir()
    children = Children(tmp_path, 1, torch.device('cpu'))
    with lock_folder(tmp_path / 'run'):
        timer = threading.Timer(0.5, children.stop)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            children.wait_for(tmp_path / 'run')
    with pytest.raises(KeyboardInterrupt):
        children.finetune(tmp_path / 'run', ['--help'], 0)


def test_a_child_ends_with_the_output(tmp_path, monkeypatch):
    """As where the reader of a pipe has gone."""
    from timm_attn.train import children

    def broken(*args, **kwargs):
        raise BrokenPipeError

    monkeypatch.setattr(children, 'print', broken, raising=False)
    monkeypatch.setenv('SLURM_NTASKS', '4')  # a run is not one of four that train together
    environments = []
    started = []
    real = subprocess.Popen

    def start(*args, **kwargs):
        environments.append(kwargs['env'])
        started.append(real(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(children.subprocess, 'Popen', start)
    with pytest.raises(BrokenPipeError):
        children.Children(tmp_path, 1, torch.device('cpu')).finetune(tmp_path / 'run', ['--help'], 0)
    assert started[0].poll() is not None
    assert 'SLURM_NTASKS' not in environments[0]
    assert environments[0]['PATH'] == os.environ['PATH']


def test_other_images_are_refused(copy, capsys):
    (copy.parent.parent / 'data').unlink()
    make_images(Path('data/train'), 8)
    make_images(Path('data/test'), 5)
    assert compare('--resume', copy, 'data') == 2
    assert '3 new' in capsys.readouterr().err


@pytest.mark.slow
def test_attached_networks_and_held_out_images(data, capsys):
    assert compare(*ARGS, '--models', 'resnet20_cifar', 'resnet20_cifar+eca@stage', '--seeds', 1) == 0
    out = capsys.readouterr().out
    assert 'with one seed no difference is claimed' in out
    assert 'held out' in out
    found = results()['networks']
    assert found[1]['verdict'] == 'too few seeds to tell'
    assert found[1]['low'] is None
    split = json.loads(Path('out/run/split.json').read_text())
    answers = Answers.read(Path('out/run/answers/resnet20_cifar+eca@stage.seed42.json'))
    assert sorted(answers.images) == sorted(split['val'])
    options = yaml.safe_load(Path('out/run/runs/resnet20_cifar+eca@stage.seed42/args.yaml').read_text())
    assert options['model_kwargs'] == dict(backbone='resnet20_cifar', attention='eca', where='stage')


@pytest.mark.slow
def test_killed_ten_times(finished, tmp_path, monkeypatch):
    """The table is the one of an undisturbed comparison."""
    monkeypatch.chdir(tmp_path)
    os.symlink(finished / 'data', tmp_path / 'data')
    args = [*ARGS, '--models', *MODELS, '--seeds', '2']
    draw = random.Random(0)
    kills = 0
    while kills < 10:
        resumes = Path('out/run/args.yaml').exists()
        words = ['--resume', 'out/run'] if resumes else args
        command = [sys.executable, '-m', 'timm_attn', 'compare', *words]
        with Path('log').open('a') as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(draw.uniform(4, 14))
            os.killpg(process.pid, draw.choice((signal.SIGKILL, signal.SIGTERM)))
            process.wait()
        kills += 1
        if len(list(Path('out/run/answers').glob('*'))) == 4:
            break
    assert kills >= 4
    assert compare('--resume', 'out/run') == 0
    keys = ('network', 'top1', 'mean', 'deviation', 'calibration_error', 'per_class', 'difference', 'low', 'high')
    tables = [
        [{k: n.get(k) for k in keys} for n in results(run)['networks']] for run in ('out/run', finished / 'out/run')
    ]
    assert tables[0] == tables[1]


def test_interrupted(data):
    """Ctrl-C reaches the whole group, and the command says how to resume."""
    command = [sys.executable, '-m', 'timm_attn', 'compare', *ARGS, '--models', *MODELS, '--epochs', '500']
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    while not list(Path('out/run/runs').glob('*/summary.csv')):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.decode().splitlines()[-1] == 'stopped; resume with --resume out/run'


@pytest.mark.parametrize(
    ('args', 'told'),
    [
        (('data',), 'name the models'),
        (('data', '--models', 'resnet20_cifar'), '--models needs two or more'),
        (('data', '--models', *MODELS, 'resnet20_cifar'), 'names resnet20_cifar'),
        (('data', '--models', 'resnet20_cifar', 'csa_resnet20'), 'did you mean'),
        (('data', '--models', 'resnet20_cifar', 'resnet20_cifar+sca'), "'sca'"),
        (('data', '--models', 'resnet20_cifar', 'resnet20_cifar+csa@end'), 'slot or stage'),
        (('none', '--models', *MODELS), 'none does not exist'),
        (('--models', *MODELS), 'Name the folder of images'),
        (('data', '--models', *MODELS, '--seeds', '0'), 'not a positive integer'),
        (('data', '--models', *MODELS, '--patience', '3'), '--patience'),
        (('--resume', 'none'), 'There is no run none'),
        (('data', '--models', *MODELS, '--minutes', '0.01'), 'minutes'),
        (('data', '--models', *MODELS, '--output', 'data/blue/0.jpg'), 'Cannot write to'),
    ],
)
def test_bad_input_is_one_clear_line(args, told, data, capsys):
    before = files('.')
    assert status(*args) == 2
    assert told in capsys.readouterr().err.splitlines()[-1]
    assert files('.') == before


def test_a_comparison_is_not_replaced(copy, capsys):
    assert compare(*ARGS, '--models', *MODELS) == 2
    assert '--resume out/run' in capsys.readouterr().err


def test_an_interval_needs_two_seeds():
    for values, reference in (([80.0], [70.0, 71.0]), ([80.0, 81.0], [70.0])):
        found = difference(values, reference)
        assert (found.low, found.high, found.differs) == (None, None, None)
        assert found.words == 'too few seeds to tell'


def test_an_interval_is_that_of_welch():
    from scipy.stats import ttest_ind

    values, reference = [81.2, 80.7, 82.4], [79.9, 80.3, 80.1]
    expected = ttest_ind(values, reference, equal_var=False).confidence_interval(0.95)
    found = difference(values, reference)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.words == 'no clear difference'
    assert difference([90.1, 90.3, 90.2], reference).words == 'higher'
    assert difference(reference, [90.1, 90.3, 90.2]).words == 'lower'
    assert difference([80.0, 80.0], [80.0, 80.0]).words == 'no clear difference'


@pytest.mark.parametrize('seeds', [2, 3, 5])
@pytest.mark.parametrize(('images', 'share'), [(20, 0.9), (240, 0.6), (10000, 0.9)])
def test_identical_networks_are_rarely_told_apart(seeds, images, share):
    """In no more than 5 % of repeated simulations, up to what 2000 of them can tell."""
    rng = np.random.default_rng(seeds * images)
    told_apart = 0
    for _ in range(2000):
        # each run has an accuracy of its own, and each answer is drawn
        accuracy = np.clip(share + 0.01 * rng.standard_normal(2 * seeds), 0, 1)
        top1 = 100 * rng.binomial(images, accuracy) / images
        told_apart += bool(difference(list(top1[:seeds]), list(top1[seeds:]), step=100 / images).differs)
    assert told_apart / 2000 < 0.05 + 3 * (0.05 * 0.95 / 2000) ** 0.5


def test_different_networks_are_told_apart():
    rng = np.random.default_rng(0)
    runs = [100 * rng.binomial(1000, p, (200, 3)) / 1000 for p in (0.8, 0.9)]
    assert np.mean([difference(list(b), list(a), 0.1).words == 'higher' for a, b in zip(*runs, strict=True)]) > 0.9


def random_answers(n=200, classes=4):
    logits = 2 * torch.randn(n, classes)
    confidence, predicted = logits.softmax(1).max(1)
    true = torch.randint(classes, (n,)).tolist()
    labels = [f'class {i}' for i in range(classes)]
    answers = Answers(labels, [f'{i}.jpg' for i in range(n)], true, predicted.tolist(), confidence.tolist())
    return answers, logits.softmax(1)


def test_what_is_computed_from_answers(tmp_path):
    answers, probabilities = random_answers()
    true = torch.tensor(answers.true)
    expected = multiclass_calibration_error(probabilities, true, num_classes=4, n_bins=BINS)
    assert answers.calibration_error == pytest.approx(100 * expected.item(), abs=1e-3)
    assert sum(n for _, _, n in answers.reliability) == 200
    right = (probabilities.argmax(1) == true).double()
    assert answers.top1 == pytest.approx(100 * right.mean().item())
    assert answers.confusion.sum() == 200
    assert answers.confusion.diagonal().sum() == right.sum()
    for i, name in enumerate(answers.labels):
        assert answers.per_class()[name] == pytest.approx(100 * right[true == i].mean().item())
    answers.write(tmp_path / 'a.json')
    assert Answers.read(tmp_path / 'a.json') == answers
    (tmp_path / 'a.json').write_text('{"labels": []')
    with pytest.raises(RunError, match=r'Cannot read .*a\.json'):
        Answers.read(tmp_path / 'a.json')


def test_unequal_numbers_of_seeds_are_on_the_safe_side():
    rng = np.random.default_rng(0)
    runs = 80 + rng.standard_normal((2000, 12))
    assert np.mean([difference(list(row[:10]), list(row[10:])).differs for row in runs]) < 0.05
    assert np.mean([difference(list(row[:5]), list(80 + 3 * (row[5:7] - 80))).differs for row in runs]) < 0.05


def test_disagreements_are_images_that_divide():
    first, second = (
        Answers(['a', 'b'], list('wxyz'), [0, 0, 1, 1], p, [0.9] * 4) for p in ([0, 0, 0, 1], [0, 1, 1, 1])
    )
    networks = [Network('one', {0: first}), Network('two', {0: second})]
    found = Results(networks, 'data', '', 0, {}, True, '', [], {})
    assert sorted(disagreements(found, 10)) == ['x', 'y']
    assert len(disagreements(found, 1)) == 1


def test_names_of_networks():
    assert parse_contestant('resnet18+csa').kwargs == dict(backbone='resnet18', attention='csa')
    assert parse_contestant('resnet18.a1_in1k+csa@stage').options == [
        *('--model', 'attached', '--model-kwargs', 'backbone=resnet18.a1_in1k', 'attention=csa', 'where=stage')
    ]
    assert parse_contestant('hf-hub:a/b+c').model == 'hf-hub:a/b+c'
    assert '/' not in parse_contestant('hf-hub:a/b').folder


def test_a_budget_counts_whole_rounds():
    """Two runs on eight GPUs take as long as one; six on four as long as two."""
    for runs, jobs, rounds in ((2, 8, 1), (6, 4, 2), (6, 1, 6)):
        chosen = plan(60, lambda size, runs=runs: 60.0 * runs, [224], epochs=1000, runs=runs, jobs=jobs)
        assert chosen.epochs == pytest.approx(54 / rounds, abs=1)


def test_a_budget_chooses_a_size_that_all_models_take():
    chosen = plan(20, lambda size: 300 if size == 224 else float('inf'), (224, 192, 160), epochs=40, runs=6, jobs=1)
    assert (chosen.image_size, chosen.epochs) == (224, 3)
    models = [timm.create_model(name) for name in ('resnet18', 'vit_tiny_patch16_224')]
    assert sizes_of(models, None) == [224]
    assert sizes_of(models[:1], None) == [224, 192, 160, 128, 96]
    assert sizes_of(models, 160) == [160]


@pytest.mark.parametrize(('minutes', 'size', 'epochs'), [(1000, 224, 40), (70, 224, 12), (20, 128, 10), (8, 96, 6)])
def test_a_budget_chooses_size_and_epochs(minutes, size, epochs):
    def seconds(size):
        return 300 * (size / 224) ** 2

    chosen = plan(minutes, seconds, (224, 192, 160, 128, 96), epochs=40, runs=6, jobs=1)
    assert (chosen.image_size, chosen.epochs) == (size, epochs)
    assert chosen.minutes <= minutes
    twice = plan(minutes, seconds, (224, 192, 160, 128, 96), epochs=40, runs=6, jobs=2)
    assert (twice.image_size, twice.epochs) >= (size, epochs)


def test_a_budget_that_is_too_short_says_what_would_do():
    with pytest.raises(RunError, match=r'3 epochs at 96 px need about \d+ minutes'):
        plan(1, lambda size: 300 * (size / 224) ** 2, (224, 96), epochs=40, runs=6, jobs=1)


@pytest.mark.slow
def test_what_a_budget_chooses_is_trained(data, monkeypatch, capsys):
    from timm_attn.train import budget

    monkeypatch.setattr(budget, 'seconds_of_epoch', lambda *args: 10.0)
    args = [word for word in ARGS if word not in ('--epochs', '2')]
    assert compare(*args, '--models', *MODELS, '--seeds', 1, '--minutes', 2, '--epochs', 1000) == 0
    assert '--minutes 2 chose --img-size 32 --epochs 3: about 2 minutes for 2 runs' in capsys.readouterr().out
    options = yaml.safe_load(Path('out/run/args.yaml').read_text())
    assert (options['img_size'], options['epochs'], options['minutes']) == (32, 3, 2.0)
    assert len(read_summary(Path('out/run/runs/csa_resnet20_cifar.seed42/summary.csv'))) == 3
    assert '--minutes 2 chose --img-size 32 --epochs 3' in Path('out/run/report.html').read_text()
    assert status('--resume', 'out/run', '--minutes', 5) == 2
    assert 'has minutes: 2.0' in capsys.readouterr().err


def test_an_estimate_grows_with_the_work():
    args = argparse.Namespace(batch_size=8)
    model = timm.create_model('resnet20_cifar')
    seconds = [
        seconds_of_epoch(model, args, counts, reading, 32, torch.device('cpu'), nullcontext)
        for counts, reading in (((100, 0), 0.0), ((100, 0), 1.0), ((10000, 0), 0.0))
    ]
    assert 100 < seconds[1] < 150
    assert 0 < seconds[0] < seconds[2] / 10
