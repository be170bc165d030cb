"""timm-attn finetune: what it learns and writes, interruptions, and folders that cannot be trained on."""

import argparse
import errno
import importlib.machinery
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import time
import types
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config
from timm.utils import CheckpointSaver

from timm_attn.cli import main
from timm_attn.image_files import open_image
from timm_attn.train import image_folder
from timm_attn.train.finetune_options import add_arguments
from timm_attn.train.log import read_summary
from timm_attn.train.loop import ClassifierRun as Run
from timm_attn.train.options import RunError
from timm_attn.train.recipes import recipe_path
from timm_attn.train.run_lock import lock_folder
from timm_attn.train.split import hold_out

ROOT = Path(__file__).parent.parent
COLOURS = {'blue': (30, 40, 200), 'green': (30, 180, 60), 'red': (200, 40, 30)}
SMALL = ('--model', 'csa_resnet20_cifar', '-j', '0', '-b', '16', '--output', 'runs', '--experiment', 'run')


def make_images(folder, per_class=16):
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            noise = Image.effect_noise((40, 36), 60)
            image = Image.merge('RGB', [noise.point(lambda v, c=c: (v + c) // 2) for c in colour])
            image.save(folder / name / f'{i}.jpg')


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / 'data')
    return tmp_path / 'data'


@pytest.fixture(autouse=True)
def quick_reports(request, monkeypatch):
    """Reports without figures, which take longer than a run of this size."""
    if request.node.name != 'test_the_report':
        monkeypatch.setattr('timm_attn.train.report_blocks.has_matplotlib', lambda: False)


def finetune(*args):
    return main(['finetune', *map(str, args)])


def status(*args):
    """Exit status, also where argparse ends the process."""
    try:
        return finetune(*args)
    except SystemExit as e:
        return e.code


def weights(run='runs/run'):
    return load_file(Path(run) / 'model' / 'model.safetensors')


def results(run='runs/run'):
    """Rows of the log of a run, without the times."""
    rows = read_summary(Path(run) / 'summary.csv')
    return [{key: value for key, value in row.items() if not key.endswith('_time')} for row in rows]


def files(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob('*') if path.is_file()}


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_learns_and_leaves_a_folder_to_use(data, capsys):
    assert finetune('data', *SMALL, '--epochs', 4, '--lr', '0.005') == 0
    out = capsys.readouterr().out
    assert 'data: 3 classes, 39 images to train, 9 to validate (held out)' in out
    rows = read_summary(Path('runs/run/summary.csv'))
    assert [row['epoch'] for row in rows] == [0, 1, 2, 3]
    assert rows[-1]['train_loss'] < rows[0]['train_loss']
    assert max(row['eval_top1'] for row in rows) > 90
    assert Image.open('runs/run/curves.png').size[0] > 500

    model = timm.create_model('local-dir:runs/run/model', pretrained=True).eval()
    assert model.pretrained_cfg['label_names'] == ['blue', 'green', 'red']
    transform = create_transform(**resolve_data_config(model=model))
    _, val, _ = image_folder.open_folder('data')
    with torch.inference_mode():
        right = [model(transform(image)[None]).argmax().item() == target for image, target in val]
    assert 100 * sum(right) / len(right) == pytest.approx(max(row['eval_top1'] for row in rows))
    image = Path('data/green/3.jpg')
    assert main(['predict', str(image), '--model', 'local-dir:runs/run/model', '--topk', '1']) == 0
    assert capsys.readouterr().out.split()[-1] == 'green'


def test_the_report(data):
    assert finetune('data', *SMALL, '--epochs', 2) == 0
    best = max(row['eval_top1'] for row in results())
    html, markdown = (Path('runs/run', f'report.{end}').read_text() for end in ('html', 'md'))
    for page in (html, markdown):
        assert f'{best:.2f}' in page
        for text in ('Result', 'Over the epochs', 'By class', 'Confusion', 'Calibration', 'csa_resnet20_cifar on data'):
            assert text in page
    assert 'timm-attn finetune data --model csa_resnet20_cifar' in html
    assert html.count('<svg') >= 5


def test_split_folders_and_config(data, capsys):
    make_images(Path('split/training'), 6)
    make_images(Path('split/val'), 4)
    shutil.rmtree('split/val/blue')  # a class may be missing, and the others keep their numbers
    Path('few.yaml').write_text('epochs: 1\nlr: 1e-3\nmixup: 0.2\nbatch_size: 99\n')
    assert finetune('split', '--config', 'few.yaml', *SMALL[:-6], '--output', 'runs', '--experiment', 'run') == 0
    assert '18 images to train, 8 to validate (split/val)' in capsys.readouterr().out
    options = yaml.safe_load(Path('runs/run/args.yaml').read_text())
    assert (options['epochs'], options['lr'], options['class_names']) == (1, 1e-3, ['blue', 'green', 'red'])
    _, val, classes = image_folder.open_folder('split')
    assert {(Path(path).parent.name, i) for path, i in val.reader.samples} == {('green', 1), ('red', 2)}
    assert classes == ['blue', 'green', 'red']


@pytest.mark.slow
@pytest.mark.parametrize('model', ['csa_resnet20_cifar', 'scsa_resnet20_cifar', 'ca_resnet20_cifar'])
def test_every_option_at_once(model, data):
    torch.save(timm.create_model(model, num_classes=5).state_dict(), 'five.pth')
    options = [
        '--pretrained-path', 'five.pth', '--amp', '--channels-last', '--grad-checkpointing', '--model-ema',
        '--drop', 0.1, '--drop-path', 0.1, '--clip-grad', 1, '--mixup', 0.1, '--cutmix', 0.5, '--aa',
        'rand-m5', '--opt', 'nesterov', '--torchcompile', 'aot_eager',
    ]  # fmt: skip
    small = [model if arg == 'csa_resnet20_cifar' else arg for arg in SMALL]
    assert finetune('data', *small, *options, '--epochs', 2) == 0
    assert finetune('--resume', 'runs/run', '--epochs', 3) == 0
    rows = read_summary(Path('runs/run/summary.csv'))
    assert [row['epoch'] for row in rows] == [0, 1, 2]
    assert all(torch.tensor(list(row.values())).isfinite().all() for row in rows)
    assert len(list(Path('runs/run').glob('checkpoint-*'))) == 1
    best = torch.load('runs/run/model_best.pth.tar')
    assert all(torch.equal(best['state_dict_ema'][key], value) for key, value in weights().items())


def test_run_of_an_earlier_version_resumes(data):
    """Options that finetune no longer has keep the values of the run."""
    assert finetune('data', *SMALL, '--epochs', 1) == 0
    path = Path('runs/run/args.yaml')
    options = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(options | dict(sched='step', sched_on_updates=False, checkpoint_hist=2, epochs=3)))
    assert finetune('--resume', 'runs/run') == 0
    assert yaml.safe_load(path.read_text())['sched'] == 'step'
    assert len(list(Path('runs/run').glob('checkpoint-*'))) == 2
    assert len(read_summary(Path('runs/run/summary.csv'))) == 3


def test_constants_may_be_written_in_any_notation(data, capsys):
    Path('my.yaml').write_text('warmup_lr: 1e-6\nratio: [0.75, 1.3333]\nvflip: 0\nepochs: 1\n')
    assert finetune('data', *SMALL, '--config', 'my.yaml') == 0
    Path('my.yaml').write_text('warmup_lr: 1e-3\n')
    assert finetune('data', '--config', 'my.yaml') == 2
    assert 'warmup_lr: 1e-3' in capsys.readouterr().err


def test_attention_alone(data):
    start = timm.create_model('csa_resnet20_cifar', pretrained=True).state_dict()
    assert (
        finetune('data', *SMALL, '--epochs', 1, '--warmup-epochs', 0, '--model-kwargs', 'trainable=attention,head') == 0
    )
    end = {key: value for key, value in weights().items() if not key.endswith('num_batches_tracked')}
    changed = {
        key for key, value in end.items() if value.shape != start[key].shape or not torch.equal(value, start[key])
    }
    assert changed == {key for key in end if '.se.' in key or key.startswith('classifier.')}
    model = timm.create_model('local-dir:runs/run/model', pretrained=True)  # frozen for that run only
    assert all(p.requires_grad for p in model.parameters())


def python(*args, wait=True):
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, *map(str, args)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    if not wait:
        return process
    out, err = process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


def kill(process):
    """Kill a process and wait for its own end: the workers that load its images may hold its pipes a while longer."""
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()


@pytest.mark.slow
def test_killed_run_ends_as_if_it_had_not_been(data):
    args = ('data', *SMALL[:-1], 'whole', '--epochs', 4, '--model-ema', '--reprob', 0.5, '-j', 1)
    assert finetune(*args) == 0
    process = python('-m', 'timm_attn', 'finetune', *args, '--experiment', 'killed', wait=False)
    summary = Path('runs/killed/summary.csv')
    wait_for(lambda: len(read_summary(summary)) >= 2, process)
    kill(process)
    done = len(read_summary(summary))
    assert done < 4
    # the worst moment: a row in the log without its checkpoint, and half a checkpoint that is newer than the whole one
    summary.write_text(summary.read_text() + f'{done},9,9,9,9,9,9,9\n')
    Path('runs/killed/tmp.pth.tar').write_bytes(Path('runs/killed/last.pth.tar').read_bytes()[:-9000])
    assert finetune('--resume', 'runs/killed') == 0
    assert results('runs/killed') == results('runs/whole')
    whole, resumed = weights('runs/whole'), weights('runs/killed')
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


@pytest.mark.slow
def test_stopped_at_any_point_of_saving(data, monkeypatch):
    """Between the log, the checkpoint, its name, its copy in the history and the best one, in the first epoch too."""
    args = ('data', *SMALL[:-1], 'whole', '--epochs', 2, '--lr', '0.005')
    copies, duplicate = [], CheckpointSaver._duplicate
    with monkeypatch.context() as patch:  # how many copies there are depends on which epoch is the best
        patch.setattr(CheckpointSaver, '_duplicate', lambda self, *a: copies.append(a) or duplicate(self, *a))
        assert finetune(*args) == 0
    points = [('save_checkpoint', 0), *[(name, n) for name in ('_replace', '_duplicate') for n in range(2)]]
    for name, n in dict.fromkeys([*points, ('_duplicate', len(copies) - 1), ('_replace', 'done')]):
        run = f'{name}{n}'
        real, calls = getattr(CheckpointSaver, name), []

        def stop(self, *args, real=real, calls=calls, n=n, **kwargs):
            calls.append(args)
            if n == 'done':  # the name is gone, and the new one is not there yet
                Path(args[1]).unlink(missing_ok=True)
            if len(calls) == (2 if n == 'done' else n + 1):
                raise KeyboardInterrupt
            return real(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(CheckpointSaver, name, stop)
            assert finetune(*args[:-5], run, *args[-4:]) == 130
        assert finetune('--resume', f'runs/{run}') == 0, run
        assert results(f'runs/{run}') == results('runs/whole'), run
        whole, resumed = weights('runs/whole'), weights(f'runs/{run}')
        assert all(torch.equal(whole[key], resumed[key]) for key in whole), run


def test_resume_refuses_what_does_not_belong(data, capsys):
    assert finetune('data', *SMALL, '--epochs', 1) == 0
    before = files('runs/run')
    shutil.copytree('data', 'more')
    shutil.copytree('data/red', 'more/rot')
    shutil.copytree('runs/run', 'runs/bare')
    for path in Path('runs/bare').glob('*.pth.tar'):
        path.write_bytes(b'half')
    capsys.readouterr()
    for args, message in (
        (('more', '--resume', 'runs/run'), 'they differ in rot'),
        (('--resume', 'data'), 'no args.yaml'),
        (('--resume', 'runs/bare', '--epochs', '2'), 'cannot be used'),
        (('data', *SMALL), 'has a run already'),
        (('--resume', 'runs/run', '--model', 'se_resnet20_cifar'), 'has model: csa_resnet20_cifar'),
        (('--resume', 'runs/run', '--lr', '0.1'), 'has lr: 0.002'),
        (('--resume', 'runs/run', '--model-kwargs', 'foo=1'), 'Start a new run'),
    ):
        assert finetune(*args) == 2
        assert message in capsys.readouterr().err
    assert before == files('runs/run')


def test_two_processes_in_one_folder(data, capsys):
    """The second one is refused as long as the first lives, and not a moment longer, whatever ends it."""
    process = python('-m', 'timm_attn', 'finetune', 'data', *SMALL, '--epochs', 500, '-j', 1, wait=False)
    wait_for(Path('runs/run/last.pth.tar').exists, process)
    for args in (('data', *SMALL), ('--resume', 'runs/run')):
        assert finetune(*args) == 2
        error = capsys.readouterr().err
        assert 'has a run already' in error if args[0] == 'data' else f'in use by process {process.pid} on ' in error
    kill(process)
    done = len(read_summary(Path('runs/run/summary.csv')))
    assert finetune('--resume', 'runs/run', '--epochs', done + 1) == 0
    assert [row['epoch'] for row in results()] == list(range(done + 1))
    assert not Path('runs/run/run.lock').exists()


def test_one_process_holds_a_folder_once(tmp_path):
    """The lock of the operating system belongs to the whole process."""
    other = 'import sys, pathlib; from timm_attn.train.run_lock import lock_folder\n'
    other += f'with lock_folder(pathlib.Path({str(tmp_path)!r})): pass'
    with lock_folder(tmp_path):
        with pytest.raises(RunError, match='in use by this process'), lock_folder(tmp_path / '.'):
            pass
        done = subprocess.run([sys.executable, '-c', other], capture_output=True, text=True, cwd=ROOT)
        assert 'in use by process' in done.stderr
    with lock_folder(tmp_path):
        pass


def test_a_full_disk_before_the_checkpoints_are_read_costs_none(data, capsys, monkeypatch):
    """tmp.pth.tar may be complete, where the run was killed before it was renamed."""
    assert finetune('data', *SMALL, '--epochs', 1) == 0
    shutil.copy('runs/run/last.pth.tar', 'runs/run/tmp.pth.tar')
    before = files('runs/run')

    def is_full(folder):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr('timm_attn.train.finetune.lock_folder', is_full)
    assert finetune('--resume', 'runs/run', '--epochs', 2) == 2
    assert 'free some space' in capsys.readouterr().err
    assert files('runs/run') == before


@pytest.mark.slow
def test_names_of_images_may_come_from_another_system(data):
    """Some file systems take letters with accents apart."""
    shutil.copy('data/red/1.jpg', unicodedata.normalize('NFC', 'data/red/é.jpg'))
    assert finetune('data', *SMALL, '--epochs', 1) == 0
    Path(unicodedata.normalize('NFC', 'data/red/é.jpg')).rename(unicodedata.normalize('NFD', 'data/red/é.jpg'))
    assert finetune('--resume', 'runs/run', '--epochs', 2) == 0


def test_a_folder_that_is_no_run_is_one_clear_error(data, capsys):
    assert finetune('data', *SMALL, '--epochs', 1) == 0
    args = Path('runs/run/args.yaml').read_text()
    for line, text in (('num_classes: 3', 'num_classes: xx'), ('model_kwargs: {}', 'model_kwargs: [1]')):
        assert line in args
        Path('runs/run/args.yaml').write_text(args.replace(line, text))
        assert main(['export', 'runs/run', 'out']) == 2
        assert 'does not contain the options of a training run' in capsys.readouterr().err
    Path('runs/run/args.yaml').write_text(args)
    Path('runs/run/summary.csv').write_text('a,b\n1,2\n')
    assert finetune('--resume', 'runs/run', '--epochs', 2) == 2
    assert 'no column epoch' in capsys.readouterr().err


@pytest.mark.slow
def test_new_runs_at_the_same_time(data, capsys):
    """Before the first checkpoint, a new run is told from one that was given up by its lock alone."""
    Path('runs').mkdir()
    Path('hold.py').write_text(
        'import pathlib, time\n'
        'from timm_attn.train.run_lock import lock_folder\n'
        'with lock_folder(pathlib.Path("runs")):\n'
        '    open("ready", "w").close()\n'
        '    while not pathlib.Path("stop").exists():\n'
        '        time.sleep(0.01)\n'
    )
    process = python('hold.py', wait=False)
    wait_for(Path('ready').exists, process)
    before = files('runs')
    assert finetune('data', *SMALL[:-2], '--experiment', '.', '--epochs', 1) == 2
    assert f'in use by process {process.pid}' in capsys.readouterr().err
    assert files('runs') == before
    Path('stop').touch()
    process.communicate()
    assert finetune('data', *SMALL[:-2], '--experiment', '.', '--epochs', 1) == 0


def names(folder):
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob('*.*')}


CHANGES = {
    'added': (lambda d: shutil.copy(d / 'red/1.jpg', d / 'red/01.jpg'), '1 new (red/01.jpg)'),
    'removed': (lambda d: (d / 'red/1.jpg').unlink(), '1 gone (red/1.jpg)'),
    'renamed': (lambda d: (d / 'red/1.jpg').rename(d / 'red/x.jpg'), '1 new (red/x.jpg) and 1 gone (red/1.jpg)'),
    'moved': (lambda d: (d / 'red/1.jpg').rename(d / 'blue/x.jpg'), '1 new (blue/x.jpg) and 1 gone (red/1.jpg)'),
    'broken': (lambda d: (d / 'red/1.jpg').write_text(''), '1 gone (red/1.jpg)'),
    'many': (lambda d: [p.unlink() for p in (d / 'red').glob('1*')], '7 gone (red/1.jpg, red/10.jpg, red/11.jpg, ...)'),
}


def test_resume_refuses_other_images(data, capsys):
    assert finetune('data', *SMALL, '--epochs', 1) == 0
    before = files('runs/run')
    for case, (change, message) in CHANGES.items():
        shutil.copytree('data', 'changed')
        change(Path('changed'))
        assert finetune('changed', '--resume', 'runs/run', '--epochs', 2) == 2, case
        assert message in capsys.readouterr().err, case
        shutil.rmtree('changed')
    assert finetune('--resume', 'runs/run', '--epochs', 2, '--val-fraction', 0.5) == 2
    assert 'has val_fraction: 0.2' in capsys.readouterr().err
    assert files('runs/run') == before
    data.rename('moved')  # the names count, not where they are
    assert finetune('moved', '--resume', 'runs/run', '--epochs', 2) == 0


def held_out(folder):
    _, val, _ = image_folder.open_folder(folder)
    return set(image_folder.image_names(val, folder))


def test_one_more_image_moves_no_other(data):
    before = held_out('data')
    assert len(before) == 9
    for i in range(20):
        shutil.copy('data/red/1.jpg', f'data/red/new{i}.jpg')
        after = held_out('data')
        assert {name for name in after if 'red' not in name} == {name for name in before if 'red' not in name}
        assert len((before ^ after) - {f'red/new{i}.jpg'}) <= 1
        before = after
    assert held_out('data') == before


def test_draw_is_the_same_everywhere():
    """In any order of the files, and where the file system decomposes letters, as that of macOS."""
    drawn = hold_out([f'{c}/{i}.jpg' for c in ('a', 'bü') for i in range(10)], 0.2)
    assert sorted(drawn) == ['a/2.jpg', 'a/6.jpg', 'bü/2.jpg', 'bü/9.jpg']
    decomposed = hold_out([f'{c}/{i}.jpg' for c in ('bu\u0308', 'a') for i in reversed(range(10))], 0.2)
    assert {unicodedata.normalize('NFC', name) for name in decomposed} == drawn


def test_run_without_a_record_of_its_images_keeps_its_draw(data, caplog):
    """Earlier versions drew from the list of all files, and recorded nothing."""
    assert finetune('data', *SMALL, '--epochs', 1) == 0
    Path('runs/run/split.json').unlink()
    assert finetune('--resume', 'runs/run', '--epochs', 2) == 0
    assert 'of an earlier version' in caplog.text
    recorded = json.loads(Path('runs/run/split.json').read_text())
    drawn = {f'{name}/{i}.jpg' for name in COLOURS for i in (10, 14, 5)}
    assert set(recorded['val']) == drawn
    assert set(recorded['train']) == names('data') - drawn
    caplog.clear()
    assert finetune('--resume', 'runs/run', '--epochs', 3) == 0
    assert not caplog.text
    Path('runs/run/split.json').write_text('{"train": [1], "val": []}')
    assert finetune('--resume', 'runs/run', '--epochs', 4) == 2


def test_images_are_read_as_by_predict(data):
    values = np.linspace(20000, 40000, 40 * 36).reshape(36, 40).astype(np.uint16)
    Image.fromarray(values).save('data/red/deep.png')
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open('data/red/1.jpg').save('data/red/turned.jpg', exif=exif)
    train, val, _ = image_folder.open_folder('data')
    seen = 0
    for dataset in (train, val):
        for (path, _), (image, _) in zip(dataset.reader.samples, dataset, strict=True):
            assert image.tobytes() == open_image(path).tobytes()
            if path.endswith(('deep.png', 'turned.jpg')):
                seen += 1
                assert image.size == ((40, 36) if path.endswith('png') else (36, 40))
                assert len(set(image.tobytes())) > 50
    assert seen == 2


def test_a_pipe_is_no_image(data, caplog):
    os.mkfifo('data/red/pipe.jpg')
    Path('data/red/link.jpg').symlink_to('/dev/zero')
    train, val, _ = image_folder.open_folder('data')
    assert len(train) + len(val) == 48
    assert 'pipe.jpg' in caplog.text
    assert 'link.jpg' in caplog.text


def test_one_image_too_large_is_left_out(data, caplog):
    Image.new('L', (12000, 12000)).save('data/red/huge.png')
    train, val, _ = image_folder.open_folder('data')
    assert len(train) + len(val) == 48
    assert 'huge.png' in caplog.text


def test_what_starts_is_said_before_the_first_epoch(data, capsys):
    assert finetune('data', *SMALL, '--epochs', 2, '--model-kwargs', 'trainable=attention,head') == 0
    out = capsys.readouterr().out.splitlines()
    assert out[2].startswith('csa_resnet20_cifar: pretrained weights cifar10; 0.0')
    assert out[2].endswith(' of 0.27 M parameters are trained; cpu, float32')
    assert out[3] == (
        'epochs 0 to 1, 2 steps each: batch size 16, images 32 x 32, adamw, lr 0.002, warm-up epochs 1 (not 3: at most '
        'half of all epochs)'
    )
    assert out[4].startswith('epoch 0 (1 of 2)  loss ')
    assert finetune('--resume', 'runs/run', '--epochs', 3, '--amp') == 0
    out = capsys.readouterr().out
    assert 'runs/run: resumes with epoch 2' in out
    assert 'weights of last.pth.tar' in out
    assert 'bfloat16 mixed precision' in out
    assert 'epochs 2 to 2' in out
    assert 'best' in out


def test_log_has_the_rate_and_the_time_of_each_epoch(data):
    assert finetune('data', *SMALL, '--epochs', 3, '--warmup-epochs', 0) == 0
    rows = read_summary(Path('runs/run/summary.csv'))
    steps = [0.002 * (1 + math.cos(math.pi * (2 * epoch + 1) / 6)) / 2 for epoch in range(3)]  # two in each epoch
    assert [row['lr'] for row in rows] == pytest.approx(steps)
    assert all(row['train_time'] > 0 and row['eval_time'] > 0 for row in rows)


def test_log_of_an_earlier_version_is_continued(data):
    assert finetune('data', *SMALL, '--epochs', 1) == 0
    summary = Path('runs/run/summary.csv')
    summary.write_text('epoch,train_loss,eval_loss,eval_top1,eval_top5,lr\n0,1.0,1.0,50.0,100.0,0.0\n')
    assert finetune('--resume', 'runs/run', '--epochs', 2) == 0
    rows = read_summary(summary)
    assert [row['epoch'] for row in rows] == [0, 1]
    assert math.isnan(rows[0]['train_time'])
    assert rows[1]['train_time'] > 0


@pytest.mark.slow
def test_patience(data, capsys, monkeypatch):
    """What an epoch reaches is given here; the run stops after two without anything better, also after a resume."""
    reached = iter([40.0, 60.0, 50.0, 60.0, 50.0, 70.0, 10.0, 10.0])
    real = Run.validate
    monkeypatch.setattr(Run, 'validate', lambda self: real(self) | dict(top1=next(reached)))
    Path('my.yaml').write_text('patience: 2\n')
    assert finetune('data', *SMALL, '--epochs', 9, '--config', 'my.yaml') == 0
    assert [row['eval_top1'] for row in results()] == [40, 60, 50, 60]
    assert 'stops: no better top-1 in 2 epochs (best 60.00 % in epoch 1)' in capsys.readouterr().out
    assert torch.load('runs/run/model_best.pth.tar')['epoch'] == 1
    assert finetune('--resume', 'runs/run') == 0
    assert len(results()) == 4
    assert finetune('--resume', 'runs/run', '--patience', 3) == 0
    assert [row['eval_top1'] for row in results()] == [40, 60, 50, 60, 50]
    assert yaml.safe_load(Path('runs/run/args.yaml').read_text())['patience'] == 3


@pytest.fixture
def trackers(monkeypatch):
    """Stand-ins for TensorBoard and Weights & Biases that record what they are given."""
    seen = dict(scalars=[], init=[], rows=[], closed=[])

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            seen['folder'] = (folder, purge_step)

        def add_scalar(self, name, value, step):
            seen['scalars'].append((name, value, step))

        flush = staticmethod(lambda: None)
        close = staticmethod(lambda: seen['closed'].append('tensorboard'))

    class WandbRun:
        id = 'abc'

        def __enter__(self):
            return self

        def __exit__(self, *error):
            seen['closed'].append('wandb')

    def init(**kwargs):
        seen['init'].append(kwargs)
        return WandbRun()

    wandb = types.ModuleType('wandb')
    wandb.__spec__ = importlib.machinery.ModuleSpec('wandb', None)
    wandb.init, wandb.log = init, seen['rows'].append
    tensorboard = types.ModuleType('tensorboard')
    tensorboard.__spec__ = importlib.machinery.ModuleSpec('tensorboard', None)
    writers = types.ModuleType('torch.utils.tensorboard')
    writers.SummaryWriter = SummaryWriter
    for module in (wandb, tensorboard, writers):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr('timm.utils.summary.wandb', wandb, raising=False)
    return seen


@pytest.mark.slow
def test_trackers(data, trackers):
    options = ('--log-tensorboard', '--log-wandb', '--wandb-project', 'flowers')
    assert finetune('data', *SMALL, '--epochs', 1, *options) == 0
    (row,) = read_summary(Path('runs/run/summary.csv'))
    assert trackers['rows'] == [row]
    assert trackers['folder'] == ('runs/run/tensorboard', 0)
    assert {name: value for name, value, step in trackers['scalars']} == {k: v for k, v in row.items() if k != 'epoch'}
    assert (trackers['init'][0]['project'], trackers['init'][0]['name']) == ('flowers', 'run')
    assert trackers['init'][0]['config']['epochs'] == 1
    assert sorted(trackers['closed']) == ['tensorboard', 'wandb']
    assert finetune('--resume', 'runs/run', '--epochs', 2) == 0
    assert trackers['init'][1]['id'] == 'abc'
    assert trackers['folder'] == ('runs/run/tensorboard', 1)
    assert [row['epoch'] for row in trackers['rows']] == [0, 1]
    assert finetune('data', '--config', 'runs/run/args.yaml', '--experiment', 'other') == 0
    assert trackers['init'][2]['id'] is None  # a run of its own


@pytest.mark.parametrize('package', ['tensorboard', 'wandb'])
def test_trackers_that_are_not_installed(package, data, capsys, monkeypatch):
    monkeypatch.setattr('timm_attn.train.trackers.find_spec', lambda name: None)
    assert finetune('data', *SMALL, f'--log-{package}') == 2
    assert f'pip install {package}' in capsys.readouterr().err
    assert not Path('runs').exists()


def test_help_shows_every_default(capsys):
    with pytest.raises(SystemExit):
        finetune('--help')
    text = ' '.join(capsys.readouterr().out.split())
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    for action in parser._actions:
        if action.option_strings and action.dest not in ('config', 'resume'):
            assert '(default: ' in action.help or 'default: ' in action.help, action.dest
            if isinstance(action.default, int | float) and not isinstance(action.default, bool):
                assert str(action.default) in action.help % vars(action), action.dest
    assert text.count('(default: ') > 30


def test_checkpoints_take_the_space_of_two(data):
    assert finetune('data', *SMALL, '--epochs', 3) == 0
    assert len(list(Path('runs/run').glob('*.pth.tar'))) == 3
    assert len({path.stat().st_ino for path in Path('runs/run').glob('*.pth.tar')}) <= 2


def test_interruption_says_how_to_resume(data, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Run, 'validate', lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        assert finetune('data', *SMALL) == 130
        assert capsys.readouterr().err == 'stopped; resume with --resume runs/run\n'
        patch.setattr(image_folder, 'ThreadPoolExecutor', lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        assert finetune('data', *SMALL[:-1], 'other') == 130
        assert capsys.readouterr().err == 'stopped; nothing was written\n'
    assert finetune('--resume', 'runs/run', '--epochs', 1) == 0


def test_folder_that_cannot_be_written_to(data, capsys, monkeypatch):
    """Deleted during the run, or without permission: neither is a matter of space."""
    real = Run.validate
    with monkeypatch.context() as patch:
        patch.setattr(Run, 'validate', lambda self: (shutil.rmtree(self.folder), real(self))[1])
        assert finetune('data', *SMALL) == 2
    error = capsys.readouterr().err
    assert 'it was deleted or renamed' in error
    assert 'space' not in error
    assert finetune('data', *SMALL[:-4], '--output', '/sys') == 2
    error = capsys.readouterr().err
    assert 'Cannot create /sys/' in error
    assert '--output' in error
    assert 'space' not in error

    assert finetune('data', *SMALL, '--epochs', 1) == 0
    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', lambda *args: (_ for _ in ()).throw(PermissionError(13, 'Permission denied')))
        assert finetune('--resume', 'runs/run', '--epochs', 2) == 2
    assert 'no permission' in capsys.readouterr().err
    assert finetune('--resume', 'runs/run', '--epochs', 2) == 0


def test_values_that_are_not_finite_stop_the_run(data, capsys, monkeypatch):
    for model, key in (('csa_resnet20_cifar', 'conv_stem.weight'), ('resnet10t', 'layer1.0.bn1.running_var')):
        state = timm.create_model(model).state_dict()
        state[key].view(-1)[0] = float('nan')
        torch.save(state, 'nan.pth')
        assert finetune('data', *SMALL, '--model', model, '--pretrained-path', 'nan.pth') == 2
        error = capsys.readouterr().err
        assert 'nan.pth: ' in error
        assert 'not finite' in error
        assert key in error
    assert not Path('runs').exists()
    real = Run.validate
    monkeypatch.setattr(Run, 'validate', lambda self: real(self) | dict(loss=float('nan')))
    assert finetune('data', *SMALL) == 2
    assert 'loss on the validation images became nan in epoch 0' in capsys.readouterr().err
    assert not Path('runs/run/last.pth.tar').exists()


def test_errors_name_options_of_the_command_line(data, capsys):
    torch.save(timm.create_model('csa_resnet18', csa_blocks='all').state_dict(), 'all.pth')
    Path('text.pth').write_text('text')
    for args, message in (
        (('--model', 'mbv2_ca'), '--pretrained-path FILE, or start from random weights with --no-pretrained'),
        (('--model', 'resnet18'), '--pretrained-path FILE, or start from random weights with --no-pretrained'),
        (('--model', 'csa_resnet18', '--pretrained-path', 'all.pth'), '--model-kwargs KEY=VALUE'),
        (('--model', 'resnet18', '--pretrained-path', 'text.pth'), 'Cannot read the checkpoint'),
        (('--model', 'resnet18', '--pretrained-path', 'absent.pth'), '--pretrained-path absent.pth: there is no such'),
        (('--no-pretrained', '--pretrained-path', 'all.pth'), '--no-pretrained and --pretrained-path'),
    ):
        assert finetune('data', *SMALL, *args) == 2, args
        error = capsys.readouterr().err
        assert message in error, args
        assert 'pretrained_cfg_overlay' not in error
    assert not Path('runs').exists()


def test_full_disk(data, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, 'disk_usage', lambda path: argparse.Namespace(free=1e6))
        assert finetune('data', *SMALL) == 2
    assert 'no space' in capsys.readouterr().err
    assert not Path('runs/run/args.yaml').exists()

    assert finetune('data', *SMALL, '--epochs', 1) == 0
    last = Path('runs/run/last.pth.tar').read_bytes()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, hard))  # no file may become larger, as on a disk that is full
    try:
        assert finetune('--resume', 'runs/run', '--epochs', 2) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    message = capsys.readouterr().err
    assert 'free some space' in message
    assert '--resume runs/run' in message
    assert Path('runs/run/last.pth.tar').read_bytes() == last
    assert not Path('runs/run/tmp.pth.tar').exists()
    assert finetune('--resume', 'runs/run', '--epochs', 2) == 0
    assert [row['epoch'] for row in read_summary(Path('runs/run/summary.csv'))] == [0, 1]


def test_broken_images_are_named_and_left_out(data, caplog, capsys):
    broken = [Path('data/red/page.jpg'), Path('data/blue/2.jpg'), Path('data/green/5.png'), Path('data/green/6.webp')]
    broken[0].write_text('<html>not found</html>')
    broken[1].write_bytes(broken[1].read_bytes()[:700])
    noise = Image.effect_noise((300, 300), 90)
    noise.save(broken[2])
    damaged = bytearray(broken[2].read_bytes())
    second = damaged.index(b'IDAT', damaged.index(b'IDAT') + 4)
    damaged[second : second + 4] = b'\0\0\0\0'
    broken[2].write_bytes(damaged)
    noise.convert('RGB').save(broken[3])
    assert finetune('data', *SMALL, '--epochs', 1) == 0
    assert [str(path) in caplog.text for path in broken] == [True, True, True, False]
    assert '39 images to train, 9 to validate' in capsys.readouterr().out


BAD_DATA = {
    'nothing there': (lambda d: shutil.rmtree(d), 'does not exist'),
    'a file': (lambda d: (shutil.rmtree(d), d.write_text('')), 'is not a directory'),
    'empty folder': (lambda d: [shutil.rmtree(p) for p in d.iterdir()], 'no images'),
    'one class': (lambda d: [shutil.rmtree(d / c) for c in ('red', 'blue')], "only one class, 'green'"),
    'class without images': (lambda d: (d / 'yellow').mkdir(), 'yellow has no readable images'),
    'class of broken images': (
        lambda d: [p.write_text('') for p in (d / 'red').iterdir()],
        'red has no readable images',
    ),
    'folder of one class': (
        lambda d: [p.rename(d / f'{p.parent.name}{p.name}') for p in d.rglob('*.jpg')],
        'its parent',
    ),
    'loose image': (lambda d: shutil.copy(d / 'red' / '1.jpg', d), 'is not directly inside the folder of a class'),
    'nested classes': (lambda d: shutil.copytree(d / 'red', d / 'blue' / 'day'), 'is not directly inside'),
    'hidden folder': (lambda d: shutil.copytree(d / 'red', d / '.checkpoints'), 'is hidden'),
    'no share': (lambda d: None, 'must be between 0 and 1', '--val-fraction', '1.5'),
    'one image in each class': (
        lambda d: [p.unlink() for p in d.rglob('*.jpg') if p.stem != '0'],
        'a single image of each class',
    ),
    'validation only': (lambda d: shutil.copytree(d, d / 'val'), "no folder 'train'"),
}


@pytest.mark.parametrize('case', BAD_DATA)
def test_bad_data_is_refused_before_anything_is_written(case, data, capsys):
    spoil, message, *options = BAD_DATA[case]
    spoil(data)
    assert finetune('data', *SMALL, *options) == 2
    assert message in capsys.readouterr().err
    assert not Path('runs').exists()


def test_a_test_folder_that_is_not_used_is_reported(data, caplog):
    shutil.copytree('data', 'split/train')
    shutil.copytree('data', 'split/test')
    image_folder.open_folder('split')
    assert '--val-split test' in caplog.text
    caplog.clear()
    image_folder.open_folder('split', val_split='test')
    assert not caplog.text


def test_unknown_class_in_validation(data, capsys):
    shutil.copytree('data', 'split/train')
    shutil.copytree('data', 'split/val')
    shutil.copytree('data/red', 'split/val/rot')
    assert finetune('split', *SMALL) == 2
    assert 'not among those for training: rot' in capsys.readouterr().err
    assert finetune('split', *SMALL, '--val-split', 'test') == 2
    assert "no folder 'test' for validation; it has: train, val" in capsys.readouterr().err


PAPER = recipe_path('csa_resnet_in1k')
BAD_OPTIONS = {
    'no folder': ((), 'Name the folder'),
    'unknown model': (('data', '--output', 'runs', '--model', 'csa_resnet20_cifr'), 'csa_resnet20_cifar'),
    'no weights': (('data', '--output', 'runs', '--model', 'mbv2_ca_075'), 'No pretrained weights exist'),
    'no config': (('data', *SMALL, '--config', 'absent.yaml'), 'absent.yaml'),
    'other config': (('data', *SMALL, '--config', PAPER), 'unknown options: '),
    'unknown part': (('data', *SMALL, '--model-kwargs', 'trainable=neck'), 'attention,head'),
    'unknown argument': (('data', *SMALL, '--model-kwargs', 'foo=1'), 'foo'),
    'batch of one': (('data', *SMALL, '-b', '1'), 'at least 2 images'),
    'scale': (('data', *SMALL, '--scale', '0.9', '0.1'), 'the lower share comes first'),
    'no run': (('--resume', 'absent'), 'no run absent'),
}


@pytest.mark.parametrize('case', BAD_OPTIONS)
def test_bad_options(case, data, capsys):
    args, message = BAD_OPTIONS[case]
    assert finetune(*args) == 2
    assert message in capsys.readouterr().err
    assert not Path('runs').exists()


@pytest.mark.parametrize(
    'option', ['--config', '--resume', '--model', '--pretrained-path', '--experiment', '--img-size']
)
def test_an_empty_value_is_no_default(option, data, capsys):
    assert status('data', *SMALL[:-2], option, '') == 2
    error = capsys.readouterr().err
    assert option in error
    assert 'empty' in error or "''" in error
    Path('my.yaml').write_text(f'{option[2:].replace("-", "_")}: ""\n')
    assert status('data', *SMALL, '--config', 'my.yaml') == 2
    assert not Path('runs').exists()


def test_image_size_has_a_limit(data, capsys):
    assert status('data', *SMALL, '--img-size', 100000) == 2
    assert 'more than 4096 pixels a side' in capsys.readouterr().err


def test_fewer_epochs_than_there_are(data, capsys):
    assert finetune('data', *SMALL, '--epochs', 2) == 0
    before = files('runs/run')
    assert finetune('--resume', 'runs/run', '--epochs', 1) == 2
    assert 'has 2 epochs already' in capsys.readouterr().err
    assert files('runs/run') == before


def test_misspelt_options_in_yaml(data, capsys):
    Path('my.yaml').write_text('batch-size: 8\nlrr: 0.1\n')
    assert finetune('data', *SMALL, '--config', 'my.yaml') == 2
    assert 'unknown options: lrr. Did you mean lr?' in capsys.readouterr().err


def test_config_is_checked_like_options(data, capsys):
    for text in ('', '- epochs'):
        Path('my.yaml').write_text(text)
        assert finetune('data', *SMALL, '--config', 'my.yaml') == 2
        assert 'contains no options' in capsys.readouterr().err
    for text, message in (
        ('epochs: 0', 'not a positive integer'),
        ('sched: plateau', 'sched: plateau'),
        ('amp_dtype: int8', 'choose from'),
        ('amp: maybe', "'maybe'"),
        ('scale: 3', 'expected 2 arguments'),
        ('lr: [1, 2]', 'unrecognized arguments: 2'),
    ):
        Path('my.yaml').write_text(text)
        assert finetune('data', *SMALL, '--config', 'my.yaml') == 2
        error = capsys.readouterr().err
        assert message in error
        assert 'my.yaml' in error
    assert not Path('runs').exists()


def test_loss_that_is_not_finite_stops_the_run(data, capsys):
    assert finetune('data', *SMALL, '--epochs', 3, '--opt', 'sgd', '--lr', '1e30', '--layer-decay', 1) == 2
    assert 'smaller --lr' in capsys.readouterr().err


@pytest.fixture
def train_py_run(data):
    """What a run of timm's train.py writes."""
    model = timm.create_model('scsa_resnet20_cifar', num_classes=3)
    options = dict(
        model='scsa_resnet20_cifar', num_classes=3, data_dir='data', dataset='', class_map='', train_split='train',
        input_size=[3, 48, 48], img_size=None, in_chans=None, gp=None, crop_pct=0.9,
        model_kwargs=dict(trainable='head'),
    )  # fmt: skip
    Path('run').mkdir()
    Path('run/args.yaml').write_text(yaml.safe_dump(options))
    saver = CheckpointSaver(
        model, torch.optim.SGD(model.parameters()), argparse.Namespace(**options), checkpoint_dir='run'
    )
    saver.save_checkpoint(0, metric=50.0)
    return model


def test_a_run_of_train_py_becomes_a_folder(train_py_run, capsys):
    assert main(['export', 'run', 'mine']) == 0
    assert capsys.readouterr().out == 'mine: 3 classes, with names\n'
    assert (
        len({path.stat().st_mode for path in Path('mine').iterdir()}) == 1
    )  # all readable by those who read the config
    model = timm.create_model('local-dir:mine', pretrained=True)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in train_py_run.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    cfg = model.pretrained_cfg
    assert (cfg['label_names'], cfg['crop_pct'], tuple(cfg['input_size'])) == (
        ['blue', 'green', 'red'],
        0.9,
        (3, 48, 48),
    )

    shutil.rmtree('data')
    assert main(['export', 'run', 'nameless']) == 0
    assert 'without (see --labels)' in capsys.readouterr().out
    Path('labels.txt').write_text('b\ng\nr\n')
    assert main(['export', 'run', 'named', '--labels', 'labels.txt']) == 0
    assert timm.create_model('local-dir:named', pretrained=True).pretrained_cfg['label_names'] == ['b', 'g', 'r']


def test_export_refuses(train_py_run, capsys):
    Path('labels.txt').write_text('b\ng\n')
    Path('mine').mkdir()
    Path('run/half.pth.tar').write_bytes(Path('run/last.pth.tar').read_bytes()[:-9000])
    for args, message in (
        (('run', 'mine'), 'exists'),
        (('data', 'out'), 'no args.yaml'),
        (('run', 'out', '--checkpoint', 'best.pth.tar'), 'no checkpoint best.pth.tar'),
        (('run', 'out', '--checkpoint', 'half.pth.tar'), 'half.pth.tar'),
        (('run', 'out', '--labels', 'labels.txt'), '2 names for 3 classes'),
        (('run', 'out', '--labels', 'absent.txt'), 'absent.txt'),
    ):
        assert main(['export', *args]) == 2, args
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in Path.cwd().iterdir()) == ['data', 'labels.txt', 'mine', 'run']
    assert list(Path('mine').iterdir()) == []


@pytest.mark.slow
def test_two_processes_train_like_one_with_twice_the_batch(data):
    args = ('data', *SMALL[:2], '-j', 0, '--epochs', 5, '--lr', 0.005, '--output', 'runs')
    assert finetune(*args, '--experiment', 'one', '-b', 12) == 0
    torchrun = ('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2')
    python(*torchrun, '-m', 'timm_attn', 'finetune', *args, '--experiment', 'two', '-b', 6)
    one, two = (read_summary(Path(f'runs/{name}/summary.csv')) for name in ('one', 'two'))
    for a, b in zip(one, two, strict=True):
        assert b['train_loss'] == pytest.approx(a['train_loss'], abs=0.25)
    assert two[-1]['train_loss'] < two[0]['train_loss'] - 0.2
    assert two[-1]['eval_top1'] > 80
