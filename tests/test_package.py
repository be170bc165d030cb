"""The package as a whole: importing, torch.hub, the command line, the scripts' own claims."""

import csv
import importlib.metadata
import io
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import timm
import torch
from golden import authors_state_dict, load_model_case
from PIL import Image
from safetensors.torch import save_file
from timm.models import model_entrypoint

import timm_attn
from timm_attn.cli import main, zoo
from timm_attn.image_files import find_images
from timm_attn.models import zoo_models
from timm_attn.models.info import describe
from timm_attn.predict import load_classifier
from timm_attn.train.image_folder import FolderError, open_folder
from timm_attn.weights import DownloadError

ROOT = Path(__file__).parent.parent


def python(*args, cwd, env=None, check=True):
    process = subprocess.run(
        [sys.executable, *args], cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True
    )
    if check:
        assert process.returncode == 0, process.stderr
    return process


def command(*args, cwd, check=True):
    return python('-m', 'timm_attn', *args, cwd=cwd, env={'PYTHONPATH': str(ROOT)}, check=check)


def cli(*args, cwd, check=True):
    """Run the command line in this process: a new one spends seconds on imports."""
    out, err, home = io.StringIO(), io.StringIO(), os.getcwd()
    os.chdir(cwd)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            status = main(list(args))
    except SystemExit as e:
        status = e.code
    finally:
        os.chdir(home)
    if check:
        assert status == 0, err.getvalue()
    return subprocess.CompletedProcess(args, status, out.getvalue(), err.getvalue())


def test_import_is_quiet_cheap_and_touches_nothing(tmp_path):
    code = """
import sys, time, builtins, socket
start = time.perf_counter()
import timm
timm_seconds = time.perf_counter() - start
names = set(timm.list_models())
modules = set(timm.list_modules())
attributes = {(m, k): v for m in (timm, timm.models, timm.layers) for k, v in vars(m).items()}
touched = []
WRITES = {'os.mkdir', 'os.rename', 'os.remove', 'os.link', 'os.symlink', 'os.truncate', 'subprocess.Popen'}
def audit(event, args):
    writes = event == 'open' and args[1] is not None and set(args[1]) & set('wax+')
    if event.startswith('socket.') or event in WRITES or writes:
        touched.append((event, args))
sys.dont_write_bytecode = True
sys.addaudithook(audit)
start = time.perf_counter()
import timm_attn
seconds = time.perf_counter() - start
assert not touched, touched
assert all(vars(m)[k] is v for (m, k), v in attributes.items())
assert names < set(timm.list_models())
assert modules < set(timm.list_modules())
ours = set(timm_attn.models.zoo_models())
assert not ours & names
assert ours | names | {'attached'} == set(timm.list_models())
print(seconds / timm_seconds)
"""
    process = python('-W', 'error', '-c', code, cwd=tmp_path, env={'PYTHONPATH': str(ROOT)})
    assert process.stderr == ''
    lines = process.stdout.splitlines()
    assert len(lines) == 1  # ours: the import itself printed nothing
    assert float(lines[0]) < 0.1  # of the seconds that timm itself takes


def test_hub_entrypoints_are_the_zoo():
    import importlib.util

    spec = importlib.util.spec_from_file_location('hubconf', ROOT / 'hubconf.py')
    hubconf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hubconf)
    public = {n for n, f in vars(hubconf).items() if callable(f) and not n.startswith('_')}
    assert public == {'attached', *zoo_models()}
    assert public < set(hubconf.__all__)
    for name in hubconf.dependencies:
        assert importlib.util.find_spec(name), name


def test_torch_hub_without_installation(tmp_path):
    code = f"""
import sys
sys.path = [p for p in sys.path if p not in ('', {str(ROOT)!r})]
sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]
import importlib.util, torch
assert importlib.util.find_spec('timm_attn') is None
model = torch.hub.load({str(ROOT)!r}, 'csa_resnet50', source='local', num_classes=3)
print(type(model).__name__, tuple(model.eval()(torch.zeros(1, 3, 64, 64)).shape))
torch.hub.load({str(ROOT)!r}, 'csa_resnet20_cifar', source='local', pretrained=True, pretrained_cfg='cifar10')
try:
    torch.hub.load({str(ROOT)!r}, 'csa_resnet20_cifar', source='local', pretrained=True, pretrained_cfg='other')
except RuntimeError as e:
    print(e)
"""
    out = python('-c', code, cwd=tmp_path).stdout
    assert 'CsaResNet (1, 3)' in out
    assert "Unknown tag 'other'" in out
    assert list(tmp_path.iterdir()) == []


def test_every_entrypoint_is_documented():
    for name in zoo_models():
        assert model_entrypoint(name).__doc__, name


def test_versions_agree():
    changelog = (ROOT / 'CHANGELOG.md').read_text()
    citation = (ROOT / 'CITATION.cff').read_text()
    assert f'## {timm_attn.__version__}' in changelog
    assert re.search(rf'^version: {re.escape(timm_attn.__version__)}$', citation, re.M)


def test_list_and_info(tmp_path):
    out = cli('list', 'csa_resnet50', cwd=tmp_path).stdout.splitlines()
    assert out[0].split() == ['model', 'params', '(M)', 'GMACs', 'input', 'weights']
    assert out[1].split()[:2] == ['csa_resnet50', '26.26']
    assert len(cli('list', 'mbv2*', cwd=tmp_path).stdout.splitlines()) == 7
    info = cli('info', 'csa_resnet20_cifar', cwd=tmp_path).stdout
    assert re.search(r'^tags +cifar10, cifar10_8ep$', info, re.M)
    assert re.search(r'^quality +top-1 [\d.]+ % on CIFAR-10', info, re.M)
    info = cli('info', 'csa_resnet50', cwd=tmp_path).stdout
    assert re.search(r'^origin +https://huggingface.co/timm/resnet50.a1_in1k$', info, re.M)


@pytest.mark.parametrize('name', zoo_models())
def test_described_params_and_macs_are_those_of_the_real_model(name):
    d = describe(name)
    model = timm.create_model(name).eval()
    assert d['params'] == sum(p.numel() for p in model.parameters())
    assert d['about']
    assert d['paper']

    macs = 0

    def count(module, args, out):
        nonlocal macs
        macs += out.numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, *d['input_size']))
    if 'csa' in name or name.startswith(('aa', 'gsop', 'sasa')):  # they also multiply matrices without weights
        assert macs / 1e9 < d['gmacs'] < 1.25 * macs / 1e9
    else:
        assert d['gmacs'] == pytest.approx(macs / 1e9, abs=1e-6)


@pytest.mark.parametrize(('name', 'gmacs'), [('resnet20_cifar', 0.041), ('mobilenext', 0.31)])
def test_macs_are_near_the_reported(name, gmacs):
    assert describe(name)['gmacs'] == pytest.approx(gmacs, rel=0.02)


@pytest.fixture
def photo(tmp_path):
    """A picture made here: smooth colours and an edge."""
    path = tmp_path / 'photo.png'
    image = Image.linear_gradient('L').resize((90, 70))
    Image.merge('RGB', (image, image.rotate(180), image.point(lambda v: 255 * (v > 99)))).save(path)
    return path


def test_predict(photo, tmp_path):
    out = cli('predict', str(photo), '--model', 'csa_resnet20_cifar', cwd=tmp_path).stdout.splitlines()
    assert out[0] == str(photo)
    assert len(out) == 6
    assert all(re.fullmatch(r' *\d+\.\d\d %  \w+', line) for line in out[1:])

    data = json.loads(cli('predict', str(photo), str(photo), '--model', 'csa_resnet20_cifar.cifar10', '--json',
                          '--topk', '10', cwd=tmp_path).stdout)  # fmt: skip
    assert data['model'] == 'csa_resnet20_cifar.cifar10'
    assert data['checkpoint'] is None
    first, second = data['predictions']
    assert first == second
    assert abs(sum(c['probability'] for c in first['classes']) - 1) < 1e-4
    assert {c['label'] for c in first['classes']} >= {'cat', 'ship', 'truck'}


def test_predict_a_folder(photo, tmp_path):
    """Directories and wildcards; unreadable files are left out; CSV and JSON; the same whatever the batch."""
    (tmp_path / 'album' / 'more').mkdir(parents=True)
    for i, name in enumerate(('b.png', 'a.JPG', 'more/c.webp')):
        Image.open(photo).rotate(90 * i).save(tmp_path / 'album' / name, {'a.JPG': 'JPEG'}.get(name))
    (tmp_path / 'album' / 'notes.txt').write_text('no image')
    (tmp_path / 'album' / 'broken.png').write_text('no image')
    model = ('--model', 'csa_resnet20_cifar')
    done = cli('predict', 'album', *model, '--csv', '--topk', '2', '-b', '2', cwd=tmp_path)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row['image'] for row in rows[::2]] == ['album/a.JPG', 'album/b.png', 'album/more/c.webp']
    assert [row['rank'] for row in rows] == ['1', '2'] * 3
    assert 'album/broken.png' in done.stderr
    cli('predict', 'album', *model, '-o', 'out.json', '--topk', '2', '-b', '1', cwd=tmp_path)
    data = json.loads((tmp_path / 'out.json').read_text())
    flat = [c for p in data['predictions'] for c in p['classes']]
    assert [c['label'] for c in flat] == [row['label'] for row in rows]
    assert [c['probability'] for c in flat] == pytest.approx([float(row['probability']) for row in rows], abs=1e-5)
    # a file that was named and cannot be read is an error, after the results of the others
    done = cli('predict', 'album/broken.png', 'album/b.png', *model, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stdout.startswith('album/b.png')


def test_predict_honours_the_orientation(photo, tmp_path):
    upright = Image.open(photo)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    upright.rotate(90, expand=True).save(tmp_path / 'turned.png', exif=exif)
    done = cli('predict', 'turned.png', str(photo), '--model', 'csa_resnet20_cifar', '--json', cwd=tmp_path)
    first, second = json.loads(done.stdout)['predictions']
    assert first['classes'] == second['classes']


def test_predict_says_what_the_network_is(photo, tmp_path):
    done = cli('predict', str(photo), '--model', 'csa_resnet20_cifar', '--json', cwd=tmp_path)
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(
        r'csa_resnet20_cifar\.cifar10: 10 classes of CIFAR-10.*, 32 px, 0\.27 M parameters, '
        r'top-1 [\d.]+ % on its test images \(measured\)',
        line,
    )
    json.loads(done.stdout)  # is not part of it


def test_predict_draws_a_grid(photo, tmp_path):
    cli('predict', str(photo), str(photo), '--model', 'csa_resnet20_cifar', '--grid', 'grid.png', cwd=tmp_path)
    with Image.open(tmp_path / 'grid.png') as grid:
        assert grid.width > 2 * grid.height * 0.8
        assert len(grid.getcolors(10**6)) > 10


@pytest.mark.parametrize(('mode', 'scale', 'suffix'), [('I;16', 257, 'png'), ('F', 1 / 255, 'tiff'), ('I', 1, 'tiff')])
def test_predict_converts_grey_of_more_than_eight_bits(mode, scale, suffix, photo, tmp_path):
    grey = Image.open(photo).convert('L')
    grey.save(tmp_path / 'grey.png')
    wide = grey.convert('F' if mode == 'F' else 'I').point(lambda v: v * scale + 0)
    wide.convert(mode).save(tmp_path / f'wide.{suffix}')
    done = cli('predict', 'grey.png', f'wide.{suffix}', '--model', 'csa_resnet20_cifar', '--json', cwd=tmp_path)
    first, second = json.loads(done.stdout)['predictions']
    assert first['classes'] == second['classes']


def saved_model(folder, **changes):
    """A folder with three classes, and changes to its config."""
    model = timm.create_model('csa_resnet20_cifar', num_classes=3)
    timm.models.save_for_hf(model, folder, model_config=dict(label_names=['a', 'b', 'c']), safe_serialization=True)
    config = json.loads((folder / 'config.json').read_text())
    config['pretrained_cfg'] |= changes.pop('pretrained_cfg', {})
    (folder / 'config.json').write_text(json.dumps(config | changes))
    return model


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(num_classes=7), 'num_classes is 7, but num_classes in model_args is 3'),
        (dict(num_classes=None), 'num_classes is absent'),
        (dict(num_classes=7, model_args={}, label_names=None), 'trained for 3 classes, not as its config.json says'),
        (dict(label_names=['a', 'b']), 'label_names has 2 names for 3 classes'),
        (dict(model_args=dict(pretrained_strict=False)), 'model_args may not contain pretrained_strict'),
        (dict(pretrained_cfg=dict(std=[0, 0, 0])), 'std is'),
        (dict(pretrained_cfg=dict(crop_pct=1e-9)), 'crop_pct is 1e-09'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_a_folder_whose_config_is_wrong(changes, message, photo, tmp_path):
    """A number of classes that is not that of the weights would make the classifier random."""
    saved_model(tmp_path / 'mine', **changes)
    done = cli('predict', str(photo), '--model', 'local-dir:mine', cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ''


def test_weights_that_are_not_numbers(photo, tmp_path):
    model = saved_model(tmp_path / 'mine')
    model.classifier.bias.data[1] = float('nan')
    torch.save(model.state_dict(), tmp_path / 'nan.pth')
    options = ('--model', 'csa_resnet20_cifar', '--checkpoint', 'nan.pth', '--num-classes', '3')
    done = cli('predict', str(photo), *options, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert 'nan.pth' in done.stderr
    assert 'classifier.bias' in done.stderr


@pytest.mark.parametrize('args', [['photo.png', '--checkpoint', ''], ['photo.png', '--model='], ['']])
def test_an_empty_argument_is_an_error(args, photo, tmp_path):
    done = cli('predict', *args, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert 'is empty' in done.stderr
    assert '(see timm-attn predict --help)' in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / 'pipe.jpg')
    done = cli('predict', 'pipe.jpg', '--model', 'csa_resnet20_cifar', cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (2, "error: 'pipe.jpg' is a named pipe, not a regular file.\n")


def test_an_unknown_option_names_the_nearest(tmp_path):
    for option in ('--check', '--chekpoint', '--check-point', '--checkpoints=x'):  # abbreviations are not guessed
        done = cli('predict', 'photo.png', option, 'x', cwd=tmp_path, check=False)
        assert done.returncode == 2
        assert 'did you mean --checkpoint?' in done.stderr
        assert '(see timm-attn predict --help)' in done.stderr


def test_info_of_a_model_of_timm(tmp_path):
    out = cli('info', 'resnet18', cwd=tmp_path).stdout
    assert 'not of this package' in out
    assert re.search(r'^params +11689512$', out, re.M)
    assert re.search(r'^weights +a1_in1k$', out, re.M)


def test_an_interruption_ends_with_130(photo, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr('timm_attn.predict.load_classifier', interrupt)
    done = cli('predict', str(photo), '--model', 'csa_resnet20_cifar', cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (130, 'error: interrupted\n')


def test_recipe(tmp_path):
    assert 'csa_resnet_in1k' in cli('recipe', cwd=tmp_path).stdout
    printed = cli('recipe', 'finetune', cwd=tmp_path).stdout
    assert cli('recipe', 'finetune.yaml', '-o', '.', cwd=tmp_path).stdout == 'finetune.yaml\n'
    assert (tmp_path / 'finetune.yaml').read_text() == printed
    assert 'layer_decay' in printed


def test_command_is_installed():
    (entry,) = importlib.metadata.entry_points(group='console_scripts', name='timm-attn')
    assert entry.load() is main


def test_predict_from_a_checkpoint(photo, tmp_path):
    torch.save(timm.create_model('mbv2_ca_050', num_classes=4).state_dict(), tmp_path / 'mine.pth')
    out = cli('predict', str(photo), '--model', 'mbv2_ca_050', '--checkpoint', 'mine.pth', '--num-classes', '4',
              cwd=tmp_path).stdout  # fmt: skip
    assert len(re.findall(r'class \d', out)) == 4
    # ten classes of one's own are not those of CIFAR-10
    torch.save(timm.create_model('csa_resnet20_cifar').state_dict(), tmp_path / 'ten.pth')
    out = cli('predict', str(photo), '--model', 'csa_resnet20_cifar', '--checkpoint', 'ten.pth', '--json', cwd=tmp_path)
    data = json.loads(out.stdout)
    assert (data['model'], data['checkpoint']) == ('csa_resnet20_cifar', 'ten.pth')
    assert data['predictions'][0]['classes'][0]['label'].startswith('class ')


def test_predict_from_a_local_dir(photo, tmp_path):
    model = timm.create_model('csa_resnet20_cifar', num_classes=3)
    timm.models.save_for_hf(
        model, tmp_path / 'mine', model_config=dict(label_names=['a', 'b', 'c']), safe_serialization=True
    )
    data = json.loads(cli('predict', str(photo), '--model', 'local-dir:mine', '--json', cwd=tmp_path).stdout)
    assert data['model'] == 'local-dir:mine'
    assert {c['label'] for c in data['predictions'][0]['classes']} == {'a', 'b', 'c'}


LIGHT = (['--help'], ['--version'], ['finetune', '--help'], ['predict', '--help'], [], ['predict'], ['train'])


@pytest.mark.parametrize('args', LIGHT, ids=' '.join)
@pytest.mark.parametrize('how', ['script', 'module'])
def test_what_needs_no_model_imports_neither_torch_nor_timm(how, args, tmp_path):
    script = Path(sys.executable).with_name('timm-attn')
    if how == 'script' and not script.exists():
        pytest.skip('the package is not installed')
    start = [str(script)] if how == 'script' else ['-m', 'timm_attn']
    env = {} if how == 'script' else {'PYTHONPATH': str(ROOT)}
    process = python('-X', 'importtime', *start, *args, cwd=tmp_path, env=env, check=False)
    assert process.returncode in (0, 2)
    imported = {line.rpartition('|')[2].strip() for line in process.stderr.splitlines() if line.startswith('import')}
    assert 'timm_attn.cli' in imported
    assert not imported & {'torch', 'timm', 'torchvision', 'PIL', 'huggingface_hub'}


def test_the_command_registers_the_models_when_it_needs_them(tmp_path):
    code = """
import sys
sys.argv = ['/usr/bin/timm-attn', 'list']
import timm_attn
assert 'torch' not in sys.modules
assert timm_attn.optimize and not hasattr(timm_attn, 'other')
assert 'csa_resnet50' in timm_attn.models.zoo_models()
"""
    python('-c', code, cwd=tmp_path, env={'PYTHONPATH': str(ROOT)})


def test_list_may_be_cut_short(tmp_path):
    command = f'{sys.executable} -m timm_attn list | head -n 1'
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    process = subprocess.run(command, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert process.stderr == ''
    assert process.stdout.startswith('model')


BAD_COMMANDS = {
    'no command': ([], 'see timm-attn --help'),
    'unknown command': (['train'], 'invalid choice'),
    'no match': (['list', 'vit*'], 'csa_resnet50'),
    'near miss of list': (['list', 'csa_resnett50'], 'did you mean csa_resnet50'),
    'unknown tag of timm': (['info', 'resnet18.x'], 'resnet18.a1_in1k'),
    'any weights without network': (['predict', 'photo.png', '--model', 'resnet18'], '--model csa_resnet20_cifar'),
    'advice in options': (['predict', 'photo.png', '--model', 'resnet18'], '(--checkpoint PATH)'),
    'no folder to evaluate': (['evaluate', 'absent', '--model', 'csa_resnet20_cifar'], 'does not exist'),
    'nothing to evaluate': (['evaluate', 'bare', '--model', 'csa_resnet20_cifar'], 'no folders'),
    'no split': (['evaluate', '.', '--split', 'val', '--model', 'csa_resnet20_cifar'], "no folder 'val'"),
    'other classes': (['evaluate', '.', '--model', 'csa_resnet20_cifar'], 'No class of the model has the name'),
    'near miss': (['info', 'csa_resnet5'], 'csa_resnet50'),
    'unknown tag': (['info', 'csa_resnet20_cifar.in1k'], 'csa_resnet20_cifar.cifar10'),
    'predict without network': (['predict', 'photo.png'], '--model csa_resnet20_cifar'),
    'unknown model': (['predict', 'photo.png', '--model', 'csa_resnt50'], 'csa_resnet50'),
    'tag of predict': (['predict', 'photo.png', '--model', 'csa_resnet20_cifar.x'], 'cifar10'),
    'no weights': (['predict', 'photo.png', '--model', 'mbv2_ca_075'], 'No pretrained weights exist'),
    'no image': (['predict', 'absent.png', '--model', 'csa_resnet20_cifar'], 'absent.png'),
    'not an image': (['predict', 'text.png', '--model', 'csa_resnet20_cifar'], 'text.png'),
    'cut image': (['predict', 'cut.png', '--model', 'csa_resnet20_cifar'], 'cut.png'),
    'no checkpoint': (['predict', 'photo.png', '--model', 'mbv2_ca', '--checkpoint', 'absent.pth'], 'absent.pth'),
    'broken checkpoint': (['predict', 'photo.png', '--model', 'mbv2_ca', '--checkpoint', 'text.png'], 'Cannot read'),
    'classes': (['predict', 'photo.png', '--model', 'mbv2_ca_050', '--checkpoint', 'four.pth'], '--num-classes 4'),
    'classes without checkpoint': (
        ['predict', 'photo.png', '--model', 'mbv2_ca', '--num-classes', '3'],
        '--checkpoint',
    ),
    'random head': (
        ['predict', 'photo.png', '--model', 'mbv2_ca', '--checkpoint', 'houqb.pth', '--num-classes', '3'],
        'no classifier',
    ),
    'empty folder': (['predict', 'photo.png', '--model', 'local-dir:bare'], 'bare'),
    'a folder without its prefix': (['predict', 'photo.png', '--model', 'empty'], 'local-dir:empty'),
    'empty config': (['predict', 'photo.png', '--model', 'local-dir:empty'], 'config.json'),
    'bad output': (['predict', 'photo.png', '-o', 'out.txt'], '.csv or .json'),
    'no folder of the output': (['predict', 'photo.png', '-o', 'absent/out.csv'], 'is not a directory'),
    'folder without images': (['predict', 'bare', '--model', 'csa_resnet20_cifar'], 'no images'),
    'no match of a wildcard': (['predict', '*.webp', '--model', 'csa_resnet20_cifar'], '*.webp'),
    'unknown recipe': (['recipe', 'imagenet'], 'csa_resnet_in1k'),
    'recipe exists': (['recipe', 'finetune', '-o', 'photo.png'], 'exists'),
    'recipe without a name': (['recipe', '-o', 'x.yaml'], 'needs the name'),
    'output is a directory': (['predict', 'photo.png', '-o', 'bare.csv'], 'is a directory'),
    'export of a broken run': (['export', 'broken', 'out'], 'does not contain the options'),
    'export of no run': (['export', 'bare', 'out'], 'no args.yaml'),
    'no device': (['predict', 'photo.png', '--model', 'csa_resnet20_cifar', '--device', 'tpu7'], 'tpu7'),
    'top 0': (['predict', 'photo.png', '--model', 'csa_resnet20_cifar', '--topk', '0'], '--topk'),
    'no script': (['run', 'absent.py'], 'absent.py'),
}


@pytest.mark.parametrize('case', BAD_COMMANDS)
def test_bad_input_is_one_clear_message(case, photo, tmp_path):
    args, message = BAD_COMMANDS[case]
    (tmp_path / 'text.png').write_text('no image')
    (tmp_path / 'cut.png').write_bytes(photo.read_bytes()[:200])
    if case == 'classes':
        torch.save(timm.create_model('mbv2_ca_050', num_classes=4).state_dict(), tmp_path / 'four.pth')
    (tmp_path / 'bare').mkdir()
    (tmp_path / 'bare.csv').mkdir()
    (tmp_path / 'broken').mkdir()
    for name in ('args.yaml', 'model_best.pth.tar'):
        (tmp_path / 'broken' / name).touch()
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'empty' / 'config.json').write_text('{}')
    if case == 'random head':
        torch.save(authors_state_dict(load_model_case('houqb_mbv2_ca')), tmp_path / 'houqb.pth')
    process = cli(*args, cwd=tmp_path, check=False)
    assert process.returncode == 2, process.stderr
    assert 'Traceback' not in process.stderr
    assert 'pretrained_cfg_overlay' not in process.stderr
    assert message in process.stderr
    assert process.stdout == ''


SCRIPT = """
import sys, timm, helper_beside_the_script
model = timm.create_model('mbv2_ca', num_classes=2)
print(__name__, sys.argv, type(model).__name__)
sys.exit(5 if 'fail' in sys.argv else 0)
"""


@pytest.mark.slow
def test_run_a_script(tmp_path):
    (tmp_path / 'scripts').mkdir()
    (tmp_path / 'scripts' / 'tool.py').write_text(SCRIPT)
    (tmp_path / 'scripts' / 'helper_beside_the_script.py').touch()
    out = command('run', 'scripts/tool.py', '--model', 'x', '-b', '2', cwd=tmp_path).stdout
    assert out == "__main__ ['scripts/tool.py', '--model', 'x', '-b', '2'] AttnMobileNetV2\n"
    assert command('run', 'scripts/tool.py', 'fail', cwd=tmp_path, check=False).returncode == 5
    out = command('run', 'scripts/tool.py', '--model', 'x', '--dataset', '', '--split=', cwd=tmp_path).stdout
    assert "'--dataset', '', '--split='" in out


def test_a_broken_pipe_that_is_not_the_outputs_is_an_error(monkeypatch, capsys):
    def fails(args):
        raise BrokenPipeError(32, 'Broken pipe')

    monkeypatch.setattr(zoo, 'list_models', fails)
    assert main(['list']) == 2
    assert 'Broken pipe' in capsys.readouterr().err


def test_links_that_form_loops_are_walked_once(photo, tmp_path):
    for name in 'abcdefgh':
        (tmp_path / 'all' / name).mkdir(parents=True)
        shutil.copy(photo, tmp_path / 'all' / name / '1.png')
    for name in 'abcdefgh':
        for other in 'abcdefgh':
            (tmp_path / 'all' / name / f'to_{other}').symlink_to(tmp_path / 'all' / other)
    expected = [str(tmp_path / 'all' / name / '1.png') for name in 'abcdefgh']
    assert find_images([str(tmp_path / 'all')]) == expected
    assert find_images([str(tmp_path / 'all' / '**' / '*.png')]) == expected
    with pytest.raises(FolderError, match='is a link to a folder that it lies in'):
        open_folder(tmp_path / 'all')


def test_an_unknown_tag_is_no_failed_download():
    with pytest.raises(RuntimeError, match='bogus') as error:
        load_classifier('mbv2_ca.bogus')
    assert not isinstance(error.value, DownloadError)


def test_a_config_cannot_ask_for_half_of_the_weights(tmp_path):
    model = saved_model(tmp_path / 'mine', model_args=dict(pretrained_strict=False))
    half = dict(list(model.state_dict().items())[:40])
    save_file(half, tmp_path / 'mine' / 'model.safetensors')
    with pytest.raises(ValueError, match='pretrained_strict=False'):
        timm.create_model(f'local-dir:{tmp_path / "mine"}', pretrained=True)


@pytest.mark.slow
def test_run_under_torchrun(tmp_path):
    (tmp_path / 'ddp.py').write_text("""
import timm, torch
torch.distributed.init_process_group('gloo')
model = torch.nn.parallel.DistributedDataParallel(timm.create_model('csa_resnet20_cifar'))
model(torch.randn(4, 3, 32, 32)).sum().backward()
total = torch.ones(())
torch.distributed.all_reduce(total)
open(f'rank{torch.distributed.get_rank()}', 'w').write(str(int(total)))
torch.distributed.destroy_process_group()
""")
    torchrun = ['-m', 'torch.distributed.run', '--nproc_per_node=2', '--standalone']
    python(*torchrun, '-m', 'timm_attn', 'run', 'ddp.py', cwd=tmp_path, env={'PYTHONPATH': str(ROOT)})
    assert [(tmp_path / f'rank{i}').read_text() for i in range(2)] == ['2', '2']
