"""Other libraries take the models: transformers, torchvision, converters; and `timm-attn export --format`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import release
import timm
import torch
import yaml
from test_export import SMALLEST
from test_models import MODELS, close, small_image, wake_up
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from timm_attn import export_formats, optimize
from timm_attn.cli import main
from timm_attn.cli.export import FORMATS
from timm_attn.train.export import export_model
from timm_attn.weights import weights

# one a kind of attention, and the plain network
SMALL = [name for name in MODELS if name.endswith('resnet20_cifar')]
PACKAGES = {'onnx': 'onnxruntime', 'openvino': 'openvino', 'torch-export': 'torch'}
SUFFIXES = {'onnx': '.onnx', 'openvino': '.xml', 'torch-export': '.pt2'}

every_small_model = pytest.mark.parametrize('name', SMALL)
every_format = pytest.mark.parametrize(
    'kind', [pytest.param(kind, marks=[pytest.mark.slow] * (kind != 'torch-export')) for kind in PACKAGES]
)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def small(name, **kwargs):
    return wake_up(timm.create_model(name, **kwargs)).eval()


def run_of_train_py():
    """The output folder of a training run, with a network for three classes in images of one channel."""
    model = small('csa_resnet20_cifar', num_classes=3, in_chans=1)
    Path('run').mkdir()
    args = dict(model='csa_resnet20_cifar', num_classes=3, in_chans=1, mean=[0.5], std=[0.25], dataset='torch/x')
    Path('run/args.yaml').write_text(yaml.safe_dump(args))
    torch.save(dict(state_dict=model.state_dict()), 'run/model_best.pth.tar')
    Path('labels.txt').write_text('bird\nfish\ncat\n')
    return model


def written_by_export():
    model = run_of_train_py()
    assert main(['export', 'run', 'folder', '--labels', 'labels.txt']) == 0
    return model, ['bird', 'fish', 'cat']


def written_by_release():
    weight = weights()['csa_resnet20_cifar.cifar10']
    release.build(weight, Path('out'))
    shutil.copytree(f'out/{weight.name}', 'folder')
    model = timm.create_model(weight.name, pretrained=True).eval()
    return model, model.pretrained_cfg['label_names']


def written_from_a_model():
    model = small('mbv2_ca_050', num_classes=2)
    model.pretrained_cfg['label_names'] = ['daisy', 'tulip']
    export_model(model, 'folder')
    return model, ['daisy', 'tulip']


@pytest.mark.parametrize('write', [written_by_export, written_by_release, written_from_a_model])
def test_a_folder_loads_in_timm_and_in_transformers(write):
    model, labels = write()
    config = json.loads(Path('folder/config.json').read_text())
    assert 'num_classes' not in config.get('model_args', {})
    assert config['label_names'] == list(labels)
    x = torch.randn(2, model.conv_stem.in_channels, 32, 32)
    with torch.no_grad():
        expected = model(x)
        again = timm.create_model('local-dir:folder', pretrained=True).eval()
        assert torch.equal(again(x), expected)
        assert list(again.pretrained_cfg['label_names']) == list(labels)

        transformers = pytest.importorskip('transformers')
        theirs = transformers.AutoModelForImageClassification.from_pretrained('folder').eval()
        close(theirs(x).logits, expected)
    assert list(theirs.config.id2label.values()) == list(labels)
    if x.shape[1] == 3:
        from PIL import Image

        (best, *_) = transformers.pipeline('image-classification', 'folder')(Image.new('RGB', (40, 40)))
        assert best['label'] in labels


def test_an_older_folder_stays_until_the_new_one_is_complete(monkeypatch):
    model = small('resnet20_cifar')
    export_model(model, 'folder')
    before = Path('folder/model.safetensors').read_bytes()
    monkeypatch.setattr(timm, 'create_model', lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_model(wake_up(model), 'folder')
    assert Path('folder/model.safetensors').read_bytes() == before
    assert os.listdir() == ['folder']


@pytest.mark.parametrize('name', MODELS)
def test_torchvision_extracts_features(name):
    model = timm.create_model(name, device='meta').eval()
    get_graph_node_names(model)
    if name not in SMALLEST.values() and name not in SMALL:
        return
    model = small(name)
    levels = {info['module']: f'level{i}' for i, info in enumerate(model.feature_info) if info['module'] != 'act1'}
    extractor = create_feature_extractor(model, levels)
    x = small_image(name)
    with torch.no_grad():
        got = extractor(x)
        expected = model.forward_intermediates(x, intermediates_only=True)
    for level, value in got.items():
        close(value, expected[int(level.removeprefix('level'))])
    extractor.train()(x)[level].sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in extractor.parameters())


def test_formats_of_the_command_line():
    assert ('hub', *export_formats.FORMATS) == FORMATS
    assert {name: kind.suffix for name, kind in export_formats.FORMATS.items()} == SUFFIXES


def facts_of(kind, path):
    if kind == 'onnx':
        import onnxruntime

        texts = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
        return {key: json.loads(value) for key, value in texts.items()}
    if kind == 'openvino':
        import openvino

        info = openvino.Core().read_model(path).get_rt_info()['timm']
        return {key: json.loads(value.value) for key, value in info.items()}
    extra = {'config.json': ''}
    torch.export.load(path, extra_files=extra)
    return json.loads(extra['config.json'])


@every_format
def test_a_run_becomes_a_file(kind, capsys):
    pytest.importorskip(PACKAGES[kind])
    model, path = run_of_train_py(), f'mine{SUFFIXES[kind]}'
    assert main(['export', 'run', path, '--format', kind, '--labels', 'labels.txt']) == 0
    assert capsys.readouterr().out == f'{path}: 3 classes, with names\n'
    assert facts_of(kind, path) == dict(
        architecture='csa_resnet20_cifar', num_classes=3, label_names=['bird', 'fish', 'cat'], input_size=[1, 32, 32],
        interpolation='bilinear', crop_pct=1.0, crop_mode='center', mean=[0.5], std=[0.25],
    )  # fmt: skip
    files = {path, *(['mine.bin'] if kind == 'openvino' else [])}
    assert {*os.listdir()} == {'run', 'labels.txt', *files}
    assert {os.stat(file).st_mode for file in files} == {os.stat('labels.txt').st_mode}
    for batch in (1, 5):
        x = torch.randn(batch, 1, 32, 32)
        with torch.no_grad():
            close(export_formats.FORMATS[kind].run(Path(path), x), model(x), tolerance=1e-4)


@every_format
def test_a_model_becomes_a_file(kind):
    pytest.importorskip(PACKAGES[kind])
    path = f'mine{SUFFIXES[kind]}'
    assert main(['export', 'csa_resnet20_cifar', path, '--format', kind]) == 0
    assert facts_of(kind, path)['label_names'][3] == 'cat'


@pytest.mark.slow
def test_an_exported_program_needs_only_torch():
    assert main(['export', 'csa_resnet20_cifar', 'mine.pt2', '--format', 'torch-export']) == 0
    code = (
        "import sys, torch; print(torch.export.load('mine.pt2').module()(torch.zeros(1, 3, 32, 32)).shape);"
        "assert 'timm_attn' not in sys.modules"
    )
    assert 'Size([1, 10])' in subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout


def test_export_refuses(capsys):
    run_of_train_py()
    Path('two.txt').write_text('b\ng\n')
    Path('there.onnx').touch()
    Path('there.bin').touch()
    export_model(small('resnet20_cifar'), 'folder')
    before = sorted(os.listdir())
    for args, message in (
        (('run', 'mine.txt', '--format', 'onnx'), 'must end in .onnx'),
        (('run', 'mine', '--format', 'torch-export'), 'must end in .pt2'),
        (('run', 'there.onnx', '--format', 'onnx'), 'exists'),
        (('run', 'there.xml', '--format', 'openvino'), 'there.bin exists'),
        (('run', 'absent/mine.pt2', '--format', 'torch-export'), 'not a directory'),
        (('run', 'mine.pt2', '--format', 'torch-export', '--labels', 'two.txt'), '2 names for 3 classes'),
        (('run', 'mine.pt2', '--format', 'torch-export', '--checkpoint', 'absent'), 'no checkpoint absent'),
        (('resnet20_cifar', 'mine.pt2', '--format', 'torch-export', '--checkpoint', 'last'), 'is no folder'),
        (('resnet20_cifar', 'mine', '--labels', 'two.txt'), '2 names for 10 classes'),
        (('resnet20_cifa', 'mine'), 'did you mean'),
        (('absent/run', 'mine'), 'no folder'),
        (('folder', 'mine'), 'local-dir:folder'),
        (('local-dir:absent', 'mine'), 'absent'),
    ):
        assert main(['export', *args]) == 2, args
        assert message in capsys.readouterr().err, args
    assert sorted(os.listdir()) == before


def test_missing_packages_are_named(monkeypatch, capsys):
    monkeypatch.setattr(export_formats.importlib.util, 'find_spec', lambda name: None)
    assert main(['export', 'csa_resnet20_cifar', 'mine.xml', '--format', 'openvino']) == 2
    assert 'pip install openvino' in capsys.readouterr().err


def test_a_file_with_other_logits_is_not_written(monkeypatch, capsys):
    for run, message in (
        (lambda path, images: torch.zeros(len(images), 10), 'other logits'),
        (lambda path, images: torch.zeros(len(images), 9), 'other logits'),
        (lambda path, images: torch.full((len(images), 10), torch.nan), 'other logits'),
        (lambda path, images: path.absent, 'cannot be written'),
    ):
        kind = export_formats.Format('.pt2', (), lambda *args: args[-1].touch(), run)
        monkeypatch.setitem(export_formats.FORMATS, 'torch-export', kind)
        assert main(['export', 'csa_resnet20_cifar', 'mine.pt2', '--format', 'torch-export']) == 2
        assert message in capsys.readouterr().err
        assert os.listdir() == []


# Converters of other libraries, whose files none of ours writes.


@pytest.fixture
def traced_with_gradients(request):
    with torch.set_grad_enabled(request.param):
        yield


with_and_without_gradients = pytest.mark.parametrize('traced_with_gradients', [False, True], indirect=True)


def exported(model, x):
    batch = torch.export.Dim('batch', min=1, max=64)
    return torch.export.export(optimize(model, portable=True), (x,), dynamic_shapes=({0: batch},))


@pytest.mark.slow
@with_and_without_gradients
@pytest.mark.parametrize('dynamo', [True, False])
@pytest.mark.heavy
@every_small_model
def test_onnx(name, dynamo, traced_with_gradients):
    onnxruntime = pytest.importorskip('onnxruntime')
    model, x = small(name), torch.randn(3, 3, 32, 32)
    if dynamo:
        batch = torch.export.Dim('batch', min=1, max=64)
        options = dict(dynamic_shapes=({0: batch},), external_data=False, verbose=False)
    else:
        options = dict(dynamic_axes={'x': [0]})
    torch.onnx.export(model, (x,), 'model.onnx', dynamo=dynamo, input_names=['x'], **options)
    session = onnxruntime.InferenceSession('model.onnx')
    for n in (1, 3):
        (got,) = session.run(None, {'x': x[:n].numpy()})
        close(torch.from_numpy(got), model(x[:n]).detach(), tolerance=1e-4)


@pytest.mark.slow
@with_and_without_gradients
@pytest.mark.parametrize('source', ['module', 'trace', 'program'])
@pytest.mark.heavy
@every_small_model
def test_openvino(name, source, traced_with_gradients):
    openvino = pytest.importorskip('openvino')
    model, x = small(name), torch.randn(3, 3, 32, 32)
    if source == 'program':
        converted = openvino.convert_model(exported(model, x))
    else:
        converted = openvino.convert_model(model if source == 'module' else torch.jit.trace(model, x), example_input=x)
    compiled = openvino.compile_model(converted, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    for n in (1, 3):
        close(torch.from_numpy(compiled(x[:n].numpy())[0]), model(x[:n]).detach(), tolerance=1e-4)


@pytest.mark.slow
@with_and_without_gradients
@pytest.mark.parametrize('source', ['trace', 'program'])
@pytest.mark.heavy
@every_small_model
def test_coreml(name, source, traced_with_gradients):
    """Conversion alone: only Apple's systems can run the result."""
    coremltools = pytest.importorskip('coremltools')
    model, x = small(name), torch.randn(1, 3, 32, 32)
    if source == 'trace':
        inputs = [coremltools.TensorType(name='images', shape=x.shape)]
        converted = coremltools.convert(torch.jit.trace(model, x), inputs=inputs, convert_to='mlprogram')
    else:
        program = torch.export.export(optimize(model, portable=True), (x,)).run_decompositions({})
        converted = coremltools.convert(program, convert_to='mlprogram')
    (output,) = converted.get_spec().description.output
    assert output.type.multiArrayType.ByteSize() > 0


@pytest.mark.slow
def test_aot_inductor():
    if not shutil.which('g++'):
        pytest.skip('needs a C++ compiler')
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    model, x = small('csa_resnet20_cifar'), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        aoti_compile_and_package(exported(model, x), package_path=str(Path('model.pt2').absolute()))
        compiled = aoti_load_package(str(Path('model.pt2').absolute()))
        for n in (1, 3):
            close(compiled(x[:n]), model(x[:n]), tolerance=1e-4)


@pytest.mark.parametrize(
    'name', ['tresnet_m', 'csatv2', 'resnet18', 'vit_tiny_patch16_224', 'naflexvit_base_patch16_gap']
)
def test_images_of_timms_models_keep_their_channels(name):
    """The first convolution is not that of the image everywhere, and some networks have none."""
    with torch.device('meta'):
        model = timm.create_model(name)
    assert export_formats.image_config(model)['input_size'][0] == 3
    assert len(export_formats.image_config(model)['mean']) == 3


def test_the_format_follows_the_ending(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(['export', 'csa_resnet20_cifar', 'mine.pt2']) == 0
    assert Path('mine.pt2').is_file()
    assert main(['export', 'csa_resnet20_cifar', 'other.pt2', '--format', 'hub']) == 2
    assert 'writes a folder' in capsys.readouterr().err
    assert main(['export', 'csa_resnet20_cifar', 'mine', '--labels', 'absent.txt']) == 2
    assert '--labels absent.txt' in capsys.readouterr().err
