"""Fine-tuning under attack: broken data, impossible options, kills, full disks, two runs in one folder."""

import argparse
import math
import os
import random
import resource
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
import zlib
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from timm_attn.cli import main
from timm_attn.image_files import open_image
from timm_attn.train.finetune_options import add_arguments, parse
from timm_attn.train.image_folder import open_folder
from timm_attn.train.log import read_summary
from timm_attn.train.loop import ClassifierRun
from timm_attn.train.options import RunError

COLOURS = dict(blue=(30, 40, 200), green=(30, 180, 60), red=(200, 40, 30))
TINY = ('--model', 'csa_resnet20_cifar', '--no-pretrained', '-j', '0', '-b', '8', '--output', 'runs')


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # processes are forked here
    make_images(tmp_path / 'data')
    yield tmp_path / 'data'
    torch.set_num_threads(threads)


def make_images(folder):
    noise = random.Random(1)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(8):
            image = Image.new('RGB', (24, 24), tuple(min(255, c + noise.randrange(40)) for c in colour))
            image.save(folder / name / f'{i}.png')


def finetune(*args):
    """Exit status, also where argparse ends the process."""
    try:
        return main(['finetune', *map(str, args)])
    except SystemExit as e:
        return e.code


def refused(args, capsys, *words):
    """Check that a command line is refused with one line that has some words, and that nothing was written."""
    capsys.readouterr()
    before = snapshot('runs')
    assert finetune(*args) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(('usage:', ' '))]
    error = lines[-1]
    assert 'error: ' in error
    assert all(word in '\n'.join(lines) for word in words), lines
    assert snapshot('runs') == before


def snapshot(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob('*') if path.is_file()}


def weights(run):
    return load_file(Path('runs', run, 'model', 'model.safetensors'))


def same(run, other):
    """Check that two runs ended alike, to the bit."""
    a, b = weights(run), weights(other)
    assert all(torch.equal(a[key], b[key]) for key in a)
    logs = [
        [(row['epoch'], row['train_loss'], row['eval_loss'], row['eval_top1'], row['lr']) for row in rows]
        for rows in (read_summary(Path('runs', name, 'summary.csv')) for name in (run, other))
    ]
    assert logs[0] == logs[1]


class Forked:
    """A command in a process of its own, which needs no second to import torch."""

    def __init__(self, *args, before=lambda: None):
        self.reader, writer = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            sys.stdout = sys.stderr = os.fdopen(writer, 'w', buffering=1)
            status = 99
            try:
                before()
                status = finetune(*args)
            finally:
                os._exit(status)
        os.close(writer)

    def wait(self):
        """Exit status and output."""
        with os.fdopen(self.reader, errors='replace') as output:
            text = output.read()
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status), text


def first(d):
    return d / 'red' / '1.png'


BROKEN = {
    'absent': (shutil.rmtree, 'does not exist'),
    'file': (lambda d: (shutil.rmtree(d), d.write_text('')), 'is not a directory'),
    'empty': (lambda d: [shutil.rmtree(p) for p in d.iterdir()], 'no images'),
    'one class': (lambda d: [shutil.rmtree(d / c) for c in ('red', 'blue')], 'only one class'),
    'inside a class': (
        lambda d: (shutil.copytree(d / 'red', 'red'), shutil.rmtree(d), Path('red').rename(d)),
        'parent',
    ),
    'loose image': (lambda d: shutil.copy(first(d), d), 'directly inside'),
    'nested': (lambda d: shutil.copytree(d / 'red', d / 'blue' / 'deep'), 'directly inside'),
    'hidden': (lambda d: shutil.copytree(d / 'red', d / '.cache'), 'hidden'),
    'empty class': (lambda d: (d / 'yellow').mkdir(), 'yellow'),
    'class of texts': (lambda d: [p.write_text('x') for p in (d / 'red').iterdir()], 'red'),
    'class of pipes': (lambda d: ((d / 'pipe').mkdir(), os.mkfifo(d / 'pipe' / '1.jpg')), 'pipe'),
    'class of links to nothing': (lambda d: ((d / 'x').mkdir(), (d / 'x/1.jpg').symlink_to('/absent')), 'x has no'),
    'single images': (lambda d: [p.unlink() for p in d.rglob('*.png') if p.stem != '0'], 'single image'),
    'validation alone': (lambda d: shutil.copytree(d, d / 'val'), "no folder 'train'"),
    'foreign class': (
        lambda d: (shutil.copytree(d, 'x'), shutil.move('x', d / 'train'), shutil.copytree(d / 'red', d / 'val/rot')),
        'rot',
    ),
    'name that is not UTF-8': (lambda d: os.rename(bytes(d / 'red'), bytes(d) + b'/r\xffd'), 'not UTF-8'),
    'loop of links': (lambda d: (d / 'red' / 'up').symlink_to(d), 'a folder that it lies in'),
}


def empty_png(width, height):
    """Start of a PNG, which announces its size."""
    header = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + header + struct.pack('>I', zlib.crc32(header))


ODD_FILES = {
    'pipe': (os.mkfifo, False),
    'device': (lambda path: path.symlink_to('/dev/zero'), False),
    'socket': (lambda path: socket.socket(socket.AF_UNIX).bind(path.name), False),
    'folder': (Path.mkdir, False),
    'no bytes': (Path.touch, False),
    'text': (lambda path: path.write_text('<html>'), False),
    'zeros': (lambda path: path.write_bytes(bytes(1000)), False),
    'huge': (lambda path: Image.new('1', (9500, 9500)).save(path, 'PNG'), False),
    'bomb': (lambda path: path.write_bytes(empty_png(30000, 30000)), False),
    'one pixel': (lambda path: Image.new('RGB', (1, 1)).save(path, 'PNG'), True),
    'long': (lambda path: Image.new('RGB', (1, 5000)).save(path, 'PNG'), True),
    'palette': (lambda path: Image.new('P', (20, 20)).save(path, 'PNG'), True),
    'two colours': (lambda path: Image.new('1', (20, 20)).save(path, 'PNG'), True),
    'alpha': (lambda path: Image.new('RGBA', (20, 20)).save(path, 'PNG'), True),
    '16 bits': (lambda path: Image.new('I;16', (20, 20), 30000).save(path, 'PNG'), True),
    'cmyk': (lambda path: Image.new('CMYK', (20, 20)).save(path, 'JPEG'), True),
    'floats': (lambda path: Image.new('F', (20, 20), 0.5).save(path, 'TIFF'), True),
    'floats without a range': (lambda path: Image.new('F', (20, 20), -1e9).save(path, 'TIFF'), False),
    'capitals': (lambda path: Image.new('RGB', (20, 20)).save(path.with_suffix('.PNG')), True),
    'newline': (lambda path: Image.new('RGB', (20, 20)).save(path.with_name('a\nb.png')), True),
    'not UTF-8': (lambda path: Path(os.fsdecode(bytes(path.parent) + b'/\xff.png')).write_bytes(b'x'), False),
}


def test_data_that_cannot_be_trained_on(attack, data, capsys):
    shutil.copytree(data, 'whole')
    for name, (spoil, word) in BROKEN.items():
        with attack.case(name):
            shutil.rmtree(data, ignore_errors=True)
            data.unlink() if data.is_file() else None
            shutil.copytree('whole', data)
            spoil(data)
            refused(('data', *TINY), capsys, word)


def test_files_among_the_images(attack, data, monkeypatch):
    for name, (make, is_read) in ODD_FILES.items():
        with attack.case(name):
            shutil.copytree('data', 'odd')
            with monkeypatch.context() as there:
                there.chdir('odd/red')
                make(Path('x.jpg'))  # a short name, as a socket needs
            train, val, _ = open_folder('odd')
            assert len(train) + len(val) == 24 + is_read
            for dataset in (train, val):
                for path, (image, _) in zip(dataset.filenames(absolute=True), dataset, strict=True):
                    assert image.mode == 'RGB'
                    assert image.tobytes() == open_image(path).tobytes()
        shutil.rmtree('odd')
    with attack.case('all of them'), monkeypatch.context() as there:
        there.chdir('data/red')
        for i, (make, _) in enumerate(ODD_FILES.values()):
            make(Path(f'x{i}.jpg'))
        there.chdir(data.parent)
        assert finetune('data', *TINY, '--epochs', 1) == 0


def number(text):
    try:
        return float(text)
    except ValueError:
        return math.nan


def is_positive(x):
    return 0 < x < math.inf


def is_share(x):
    return 0 <= x <= 1


FLOATS = {
    '--drop': is_share, '--drop-path': is_share, '--model-ema-decay': is_share, '--lr': is_positive,
    '--weight-decay': lambda x: 0 <= x < math.inf, '--layer-decay': lambda x: 0 < x <= 1, '--clip-grad': is_positive,
    '--hflip': is_share, '--color-jitter': lambda x: 0 <= x < math.inf, '--reprob': is_share,
    '--mixup': lambda x: 0 <= x < math.inf, '--cutmix': lambda x: 0 <= x < math.inf,
    '--smoothing': lambda x: 0 <= x < 1,
}  # fmt: skip
INTEGERS = {
    '--img-size': (1, 4096), '--batch-size': (1, math.inf), '--workers': (0, 256), '--seed': (0, 2**31 - 1),
    '--epochs': (1, math.inf), '--patience': (1, math.inf), '--warmup-epochs': (0, 10**9),
}  # fmt: skip
TEXTS = ('--train-split', '--val-split', '--model', '--pretrained-path', '--device', '--opt', '--aa', '--output',
         '--experiment', '--wandb-project', '--torchcompile', '--config', '--resume')  # fmt: skip
VALUES = ('nan', 'NaN', 'inf', '-inf', '-1', '-0.5', '0', '0.5', '1', '1.0', '1.5', '1e9', '1000000000', '1e400',
          '', ' ', 'text', '0x10', '1,5', '--', 'None', '1 2', '²', '9' * 30)  # fmt: skip


def test_options_out_of_range(attack, data, capsys):
    def parsed(option, *values):
        parser = argparse.ArgumentParser(prog='finetune')
        add_arguments(parser)
        argv = ['data', f'{option}={values[0]}'] if len(values) == 1 else ['data', option, *values]
        reason = ''
        try:
            return getattr(parse(parser, argv), option[2:].replace('-', '_'))
        except SystemExit:
            reason = capsys.readouterr().err
        except RunError as e:
            reason = str(e)
        assert option in reason
        return None

    for option, allowed in FLOATS.items():
        for value in VALUES:
            with attack.case(f'{option} {value!r}'):
                found = parsed(option, value)
                assert (found == number(value)) if allowed(number(value)) else found is None
    for option, (low, high) in INTEGERS.items():
        for value in VALUES:
            with attack.case(f'{option} {value!r}'):
                is_allowed = value.isdecimal() and low <= int(value) <= high
                assert parsed(option, value) == (int(value) if is_allowed else None)
    for option in TEXTS:
        for value in ('', ' ', '\t'):
            with attack.case(f'{option} {value!r}'):
                assert parsed(option, value) is None
    for values in (('0', '1'), ('nan', '1'), ('0.5', 'inf'), ('0.1', '2'), ('0.9', '0.1'), ('', ''), ('-1', '0.5')):
        with attack.case(f'--scale {values}'):
            refused(('data', *TINY, '--scale', *values), capsys, 'scale')
    for value in ('nan', 'inf', '-1', '0', '1', '1e9', 'text', ''):
        with attack.case(f'--val-fraction {value!r}'):
            refused(('data', *TINY, f'--val-fraction={value}'), capsys)


RUNS = [
    ('--mixup', '1e9'), ('--cutmix', '1e9'), ('--mixup', '1e-300'), ('--color-jitter', '1e9'), ('--reprob', '1'),
    ('--weight-decay', '1e9'), ('--lr', '1e9'), ('--lr', '1e-300'), ('--drop', '1'), ('--drop-path', '1'),
    ('--layer-decay', '1e-300'), ('--clip-grad', '1e-300'), ('--smoothing', '0.999999'), ('--img-size', '8'),
    ('--batch-size', '9' * 30), ('--warmup-epochs', '1000000000'),
    ('--epochs', '9' * 30, '--lr', '1e30', '--opt', 'sgd'),
    ('--seed', 2**31 - 1), ('--model-ema', '--model-ema-decay', '1'), ('--scale', '1e-9', '1e-9'),
    ('--val-fraction', '0.999'), ('--val-fraction', '1e-9'), ('--img-size', '1'), ('--opt', 'nonsense'),
    ('--aa', 'nonsense'), ('--device', 'nonsense'), ('--device', 'meta'), ('--experiment', '/dev/null/x'),
    ('--experiment', 'a' * 300), ('--model-kwargs', 'drop_rate'), ('--model-kwargs', '=1'), ('--model-kwargs', 'a=b=c'),
    ('--model-kwargs', 'in_chans=0'), ('--model-kwargs', 'num_classes=5'), ('--pretrained-path', 'data'),
]  # fmt: skip


def test_extreme_values_that_are_allowed_run_or_are_explained(attack, data, capsys):
    for i, options in enumerate(RUNS):
        with attack.case(' '.join(map(str, options))):
            shutil.rmtree('runs', ignore_errors=True)
            capsys.readouterr()
            pretrained = ('--pretrained',) if '--pretrained-path' in options else ()
            status = finetune('data', *TINY, '--experiment', i, '--epochs', 1, *options, *pretrained)
            err = capsys.readouterr().err
            assert status in (0, 2)
            assert (status == 2) == ('error: ' in err), err
            assert 'Traceback' not in err


BAD_YAML = [
    '', '- epochs', '5', 'text', 'null', '{', '[1, 2', 'a: b: c', '\tepochs: 1', 'epochs: 0', 'epochs: -1',
    'epochs: 1.5', 'epochs: ten', 'epochs: [1]', 'epochs: {a: 1}', 'epochs: true', 'epochs: .nan', 'lr: .nan',
    'lr: .inf', 'lr: -1', 'lr: ""', 'lr: [1, 2]', 'lr: [[1]]', 'model: ""', 'model: [a, [b]]', 'amp: maybe', 'amp: 3',
    'scale: 3', 'scale: [1]', 'scale: [0.9, 0.1]', 'scale: [a, b]', 'sched: plateau', 'warmup_lr: 1', 'unknown: 1',
    '1: 2', '? [a, b]\n: 1', 'null: 1', 'config: other.yaml', 'resume: runs/run', 'func: 1', 'help: true',
    'class_names: 5', 'class_names: [1, 2]', 'model_kwargs: 5', 'model_kwargs: {a: {b: 1}}', 'model_kwargs: text',
    'data_dir: [a]', 'data_dir: --help', 'img_size: 100000', 'workers: 1000000000', 'mixup: 1e999', 'seed: -1',
    '!!python/object/apply:os.system ["true"]', '!!binary x', '*absent', 'a: &a [*a]', '\x00', '\ufffe: 1',
    '[' * 5000, 'model: ' + 'a' * 10**5, 'patience: 0', 'log_wandb: 3', 'pretrained_path: absent.pth',
    'a: &a [x, x, x, x, x, x, x, x, x]\n' + '\n'.join(
        f'{b}: &{b} [{", ".join([f"*{a}"] * 9)}]' for a, b in zip('abcdefghi', 'bcdefghij', strict=True)
    ) + '\nmodel: *j',
]  # fmt: skip


def test_options_in_broken_files(attack, data, capsys):
    for text in BAD_YAML:
        with attack.case(repr(text[:60])):
            Path('my.yaml').write_text(text)
            refused(('data', *TINY[2:], '--pretrained', '--config', 'my.yaml'), capsys)
    rng = random.Random(3)
    good = yaml.safe_dump(dict(epochs=1, lr=0.01, model='csa_resnet20_cifar', scale=[0.5, 1.0]))
    for i in range(60):
        with attack.case(f'damaged {i}'):
            text = bytearray(good.encode())
            for _ in range(rng.randint(1, 4)):
                text[rng.randrange(len(text))] = rng.randrange(256)
            Path('my.yaml').write_bytes(text)
            status = finetune('absent', '--config', 'my.yaml')  # stops at the folder at the latest
            assert status == 2
            assert 'error: ' in capsys.readouterr().err
    for path in ('absent.yaml', 'data', '/dev/null', 'data/red/1.png'):
        with attack.case(path):
            refused(('data', *TINY, '--config', path), capsys, path)


def test_killed_at_any_moment(attack, data):
    """However often a run is killed, it ends as one that was not."""
    rng = random.Random(4)
    args = ('data', *TINY, '--epochs', 4, '--model-ema', '--experiment')
    began = time.monotonic()
    assert Forked(*args, 'whole').wait()[0] == 0
    duration = time.monotonic() - began
    for i in range(6):
        with attack.case(f'kill {i}'):
            for _ in range(rng.randint(1, 2)):
                started = Path('runs', str(i), 'args.yaml').exists()
                process = Forked(*(('--resume', f'runs/{i}') if started else (*args, i)))
                time.sleep(rng.random() * duration)
                os.kill(process.pid, signal.SIGKILL)
                assert process.wait()[0] in (-signal.SIGKILL, 0)
            started = Path('runs', str(i), 'args.yaml').exists()
            assert finetune(*(('--resume', f'runs/{i}') if started else (*args, i))) == 0
            same(str(i), 'whole')
            assert not list(Path('runs', str(i)).glob('*.part'))


def test_interrupted_at_any_moment(attack, data):
    rng = random.Random(5)
    args = ('data', *TINY, '--epochs', 4, '--experiment')
    began = time.monotonic()
    assert Forked(*args, 'whole').wait()[0] == 0
    duration = time.monotonic() - began
    for i in range(4):
        with attack.case(f'interrupt {i}'):
            process = Forked(*args, i, before=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
            time.sleep((0.3 + 0.7 * rng.random()) * duration)
            os.kill(process.pid, signal.SIGINT)
            status, text = process.wait()
            assert status in (0, 130), text
            if status and 'use it: ' not in text:  # which is said at the end, when there is nothing left to stop
                assert 'stopped; ' in text
                started = Path('runs', str(i), 'args.yaml').exists()
                assert (f'--resume runs/{i}' in text) == started
                assert finetune(*(('--resume', f'runs/{i}') if started else (*args, i))) == 0
            same(str(i), 'whole')


def test_two_at_once(attack, data):
    args = ('data', *TINY, '--epochs', 3)
    assert finetune(*args, '--experiment', 'whole') == 0
    for i in range(3):
        with attack.case(f'new runs {i}'):
            statuses = [(process.wait()) for process in [Forked(*args, '--experiment', i) for _ in range(3)]]
            assert sorted(status for status, _ in statuses) == [0, 2, 2], statuses
            assert all('in use by process' in text or 'has a run' in text for status, text in statuses if status)
            same(str(i), 'whole')
    for i in range(2):
        with attack.case(f'resumed runs {i}'):
            shutil.copytree('runs/whole', f'runs/again{i}')
            resumed = ('--resume', f'runs/again{i}', '--epochs', 5)
            ended = [process.wait() for process in [Forked(*resumed) for _ in range(3)]]
            assert {status for status, _ in ended} <= {0, 2}
            assert any(not status for status, _ in ended)
            assert all('in use by process' in text for status, text in ended if status)
            assert [row['epoch'] for row in read_summary(Path(f'runs/again{i}/summary.csv'))] == list(range(5))
    with attack.case('named by the time'):
        before = set(Path('runs').iterdir())
        ended = [process.wait()[0] for process in [Forked(*args) for _ in range(3)]]
        assert set(ended) <= {0, 2}
        assert len(set(Path('runs').iterdir()) - before) == ended.count(0)


def test_full_disk(attack, data):
    args = ('data', *TINY, '--epochs', 3, '--experiment')
    assert finetune(*args, 'whole') == 0
    largest = max(path.stat().st_size for path in Path('runs/whole').rglob('*'))

    def limit(size):
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    for size in (0, 100, 700, 500_000, largest - 5000, largest - 1, largest):
        with attack.case(f'{size} bytes'):
            status, text = Forked(*args, size, before=limit(size)).wait()
            assert status == (0 if size == largest else 2), text
            if status:
                assert 'no space' in text, text
                assert len([line for line in text.splitlines() if line.startswith('error: ')]) == 1
            started = Path('runs', str(size), 'args.yaml').exists()
            assert finetune(*(('--resume', f'runs/{size}') if started else (*args, size))) == 0
            same(str(size), 'whole')


def test_folders_that_go_away(attack, data, capsys, monkeypatch):
    args = ('data', *TINY, '--epochs', 2, '--experiment')
    assert finetune(*args, 'whole') == 0
    for method in ('train_epoch', 'validate'):
        for epoch in range(2):
            real, calls = getattr(ClassifierRun, method), []

            def delete(self, *given, real=real, calls=calls, epoch=epoch):
                calls.append(0)
                if len(calls) == epoch + 1:
                    shutil.rmtree(self.folder)
                return real(self, *given)

            with attack.case(f'{method} {epoch}'), monkeypatch.context() as patch:
                patch.setattr(ClassifierRun, method, delete)
                capsys.readouterr()
                assert finetune(*args, 'gone') == 2
                error = capsys.readouterr().err
                assert 'deleted or renamed' in error
                assert 'space' not in error
                assert not Path('runs/gone').exists()
    real = ClassifierRun.validate
    with attack.case('the data'), monkeypatch.context() as patch:
        patch.setattr(ClassifierRun, 'validate', lambda self: (data.exists() and data.rename('away'), real(self))[1])
        assert finetune(*args, 'lost') == 2
        assert 'cannot be read any more' in capsys.readouterr().err
    with attack.case('the data came back'):
        Path('away').rename(data)
        assert finetune('--resume', 'runs/lost') == 0
        same('lost', 'whole')


def test_without_permission(attack, data, monkeypatch):
    """As another user, since root may write everywhere."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        monkeypatch.chdir(folder)
        shutil.copytree(data, 'data')
        assert finetune('data', *TINY, '--epochs', 1, '--experiment', 'run') == 0
        before = snapshot('.')
        for path in Path('.').rglob('*'):
            path.chmod(path.stat().st_mode & ~0o222)
        drop = (lambda: os.setuid(65534)) if os.getuid() == 0 else (lambda: None)
        for args in (('data', *TINY, '--epochs', 1, '--experiment', 'new'), ('--resume', 'runs/run', '--epochs', 2)):
            with attack.case(' '.join(map(str, args))):
                status, text = Forked(*args, before=drop).wait()
                assert status == 2
                assert 'permission' in text.lower(), text
                assert 'space' not in text
                assert snapshot('.') == before
        for path in Path('.').rglob('*'):
            path.chmod(path.stat().st_mode | 0o200)
        monkeypatch.chdir(data.parent)


def images(folder):
    return sorted(folder.rglob('*.png'))


CHANGES = {
    'added': lambda d, rng: shutil.copy(rng.choice(images(d)), d / 'red' / f'new{rng.random()}.png'),
    'removed': lambda d, rng: rng.choice(images(d)).unlink(),
    'renamed': lambda d, rng: (path := rng.choice(images(d))).rename(path.with_name(f'{rng.random()}.png')),
    'moved': lambda d, rng: rng.choice(images(d / 'red')).rename(d / 'blue' / f'{rng.random()}.png'),
    'broken': lambda d, rng: rng.choice(images(d)).write_bytes(b'x'),
    'another kind': lambda d, rng: (path := rng.choice(images(d))).rename(path.with_suffix('.bmp')),
    'capitals': lambda d, rng: (path := rng.choice(images(d))).rename(path.with_suffix('.PNG')),
}


def test_changed_data_on_resume(attack, data, capsys):
    args = ('data', *TINY, '--experiment', 'run')
    assert finetune(*args, '--epochs', 1) == 0
    resumed = ('--resume', 'runs/run', '--epochs', 2)
    rng = random.Random(6)
    for name, change in CHANGES.items():
        for i in range(5):
            with attack.case(f'{name} {i}'):
                shutil.copytree('data', 'changed')
                for _ in range(rng.randint(1, 4)):
                    change(Path('changed'), rng)
                refused(
                    ('changed', '--resume', 'runs/run', '--epochs', 2), capsys, 'has other images', '--pretrained-path'
                )
            shutil.rmtree('changed')
    for name in ('red', 'blue'):
        with attack.case(f'renamed class {name}'):
            shutil.copytree('data', 'changed')
            Path('changed', name).rename(f'changed/x{name}')
            refused(('changed', *resumed), capsys, 'they differ in')
        shutil.rmtree('changed')
    for text in ('', '{', '[]', '{"train": []}', '{"train": 1, "val": 2}', '{"train": [], "val": [], "x": 1}', 'null'):
        with attack.case(f'split.json: {text}'):
            shutil.copytree('runs/run', 'runs/damaged')
            Path('runs/damaged/split.json').write_text(text)
            refused(('--resume', 'runs/damaged', '--epochs', 2), capsys, 'split.json')
        shutil.rmtree('runs/damaged')
    with attack.case('other bytes under the same names'):
        for path in images(data)[:3]:
            Image.new('RGB', (24, 24), 'white').save(path)
        assert finetune('--resume', 'runs/run', '--epochs', 2) == 0
