"""timm-attn finetune: what it learns and writes, interruptions, and folders that cannot be trained on."""

import argparse
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
import yaml
from packaging.version import Version
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config
from timm.utils import CheckpointSaver

from timm_attn.cli import main
from timm_attn.train import image_folder
from timm_attn.train.log import read_summary
from timm_attn.train.recipes import recipe_path

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


def finetune(*args):
    return main(['finetune', *map(str, args)])


def weights(run='runs/run'):
    return load_file(Path(run) / 'model' / 'model.safetensors')


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


@pytest.mark.parametrize('model', ['csa_resnet20_cifar', 'scsa_resnet20_cifar', 'ca_resnet20_cifar'])
def test_every_option_at_once(model, data):
    torch.save(timm.create_model(model, num_classes=5).state_dict(), 'five.pth')
    options = [
        '--pretrained-path', 'five.pth', '--amp', '--channels-last', '--grad-checkpointing', '--model-ema',
        '--drop', 0.1, '--drop-path', 0.1, '--clip-grad', 1, '--mixup', 0.1, '--cutmix', 0.5, '--aa',
        'rand-m5', '--opt', 'nesterov',
    ]  # fmt: skip
    if Version(torch.__version__) >= Version('2.5'):  # 2.4 fails to compile dropout inside recomputed blocks
        options += ['--torchcompile', 'aot_eager']
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


@pytest.mark.slow
def test_killed_run_ends_as_if_it_had_not_been(data):
    args = ('data', *SMALL[:-1], 'whole', '--epochs', 4, '--model-ema', '--reprob', 0.5, '-j', 1)
    assert finetune(*args) == 0
    process = python('-m', 'timm_attn', 'finetune', *args, '--experiment', 'killed', wait=False)
    summary = Path('runs/killed/summary.csv')
    while len(read_summary(summary)) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    done = len(read_summary(summary))
    assert done < 4
    # the worst moment: a row in the log without its checkpoint, and half a checkpoint that is newer than the whole one
    summary.write_text(summary.read_text() + f'{done},9,9,9,9,9\n')
    Path('runs/killed/tmp.pth.tar').write_bytes(Path('runs/killed/last.pth.tar').read_bytes()[:-9000])
    assert finetune('--resume', 'runs/killed') == 0
    assert read_summary(summary) == read_summary(Path('runs/whole/summary.csv'))
    whole, resumed = weights('runs/whole'), weights('runs/killed')
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_stopped_at_any_point_of_saving(data, monkeypatch):
    """Between the log, the checkpoint, its name, its copy in the history and the best one, in the first epoch too."""
    args = ('data', *SMALL[:-1], 'whole', '--epochs', 2, '--lr', '0.005')
    assert finetune(*args) == 0
    points = [('save_checkpoint', 0), *[(name, n) for name in ('_replace', '_duplicate') for n in range(2)]]
    for name, n in [*points, ('_duplicate', 3), ('_replace', 'done')]:
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
            assert finetune(*args[:-5], run, *args[-4:]) == 2
        assert finetune('--resume', f'runs/{run}') == 0, run
        assert read_summary(Path(f'runs/{run}/summary.csv')) == read_summary(Path('runs/whole/summary.csv')), run
        whole, resumed = weights('runs/whole'), weights(f'runs/{run}')
        assert all(torch.equal(whole[key], resumed[key]) for key in whole), run


def test_resume_refuses_what_does_not_belong(data, capsys):
    assert finetune('data', *SMALL, '--epochs', 1) == 0
    before = {path: path.read_bytes() for path in Path('runs/run').rglob('*') if path.is_file()}
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
    assert before == {path: path.read_bytes() for path in Path('runs/run').rglob('*') if path.is_file()}


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
    'other config': (('data', *SMALL, '--config', PAPER), "only timm's train.py knows"),
    'unknown part': (('data', *SMALL, '--model-kwargs', 'trainable=neck'), 'attention,head'),
    'unknown argument': (('data', *SMALL, '--model-kwargs', 'foo=1'), 'foo'),
    'batch of one': (('data', *SMALL, '-b', '1'), 'at least 2 images'),
}


@pytest.mark.parametrize('case', BAD_OPTIONS)
def test_bad_options(case, data, capsys):
    args, message = BAD_OPTIONS[case]
    assert finetune(*args) == 2
    assert message in capsys.readouterr().err
    assert not Path('runs').exists()


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
        (('run', 'out', '--checkpoint', 'best.pth.tar'), 'no best.pth.tar'),
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
