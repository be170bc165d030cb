"""Folders and files for other libraries: odd names of classes, odd targets, arguments that do not belong together."""

import json
import os
import random
from pathlib import Path

import pytest
import timm
import torch
from torchvision.models.feature_extraction import create_feature_extractor

from timm_attn import export_formats
from timm_attn.cli import main
from timm_attn.layers import get_attention, list_attentions
from timm_attn.train.export import export_model

NAMES = ['', ' ', 'a b', 'ä', '猫', 'a"b', "a'b", 'a\\b', 'a\nb', '{}', 'null', '1', 'x' * 300, '🌼', '<b>', '--format']
SMALL = ['resnet20_cifar', 'se_resnet20_cifar', 'ca_resnet20_cifar', 'csa_resnet20_cifar', 'scsa_resnet20_cifar']


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_names_of_classes_survive(attack):
    """In a folder, whatever they are, with any number of classes and channels."""
    draw = random.Random(0)
    for i in range(60):
        names = [f'{draw.choice(NAMES)}{j}' for j in range(draw.randint(1, 40))]
        channels, model_name = draw.randint(1, 5), draw.choice(SMALL)
        with attack.case(f'{model_name}, {channels} channels, {names[:3]}'):
            model = timm.create_model(model_name, num_classes=len(names), in_chans=channels).eval()
            model.pretrained_cfg['label_names'] = names
            export_model(model, 'folder', dict(in_chans=channels))
            config = json.loads(Path('folder/config.json').read_text())
            assert config['label_names'] == names
            assert config['num_classes'] == len(names)
            assert 'num_classes' not in config.get('model_args', {})
            again = timm.create_model('local-dir:folder', pretrained=True).eval()
            x = torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(i))
            with torch.no_grad():
                assert torch.equal(again(x), model(x))
            assert list(again.pretrained_cfg['label_names']) == names
            facts = export_formats.describe_model(again)
            assert facts['label_names'] == names
            assert facts['input_size'][0] == len(facts['mean']) == len(facts['std']) == channels
            assert os.listdir() == ['folder']


def test_files_are_refused_without_a_trace(attack, capsys):
    """A target that is taken, has another ending or no folder; a source that is none: exit status 2 and one line."""
    for name in ('there.onnx', 'there.xml', 'there.bin', 'there.pt2', 'file', 'other.bin'):
        Path(name).write_text('mine')
    Path('folder.onnx').mkdir()
    Path('empty').mkdir()
    before = {path: path.read_bytes() if path.is_file() else None for path in Path().iterdir()}
    targets = {
        'onnx': ['there.onnx', 'folder.onnx', 'x', 'x.ONNX', 'x.onnx.txt', 'absent/x.onnx', 'file/x.onnx', '.onnx'],
        'openvino': ['there.xml', 'other.xml', 'x.onnx', 'x.bin', 'absent/x.xml', 'x'],
        'torch-export': ['there.pt2', 'x.pt', 'x.onnx', 'absent/x.pt2', '.', '..'],
        'hub': ['there.onnx', 'empty', '.', '..', 'file'],
    }
    sources = ['absent', 'empty', 'file', 'a/b/c', 'local-dir:', 'local-dir:empty', 'nowhere:x', 'resnet20_cifar.x']
    cases = [('csa_resnet20_cifar', out, kind) for kind, outs in targets.items() for out in outs]
    cases += [(source, f'new{end}', kind) for source in sources for kind, end in
              (('hub', ''), ('onnx', '.onnx'), ('torch-export', '.pt2'))]  # fmt: skip
    for source, out, kind in cases:
        with attack.case(f'{source!r} to {out!r} as {kind}'):
            assert main(['export', source, out, '--format', kind]) == 2
            captured = capsys.readouterr()
            assert captured.err.startswith('error: ')
            assert captured.err.count('\n') == 1
            assert captured.out == ''
            assert {path: path.read_bytes() if path.is_file() else None for path in Path().iterdir()} == before


def test_a_runtime_that_fails_leaves_nothing(attack, capsys, monkeypatch):
    errors = (ValueError('x'), TypeError(), KeyError('k'), ImportError('no'), RuntimeError('a\nb'), OSError(28, 'full'))
    for error in errors:
        for step in ('write', 'run'):

            def fail(*args, error=error):
                raise error

            def touch(*args):
                args[-1].touch()

            kind = export_formats.Format('.pt2', (), fail if step == 'write' else touch, fail)
            monkeypatch.setitem(export_formats.FORMATS, 'torch-export', kind)
            with attack.case(f'{step}: {error!r}'):
                assert main(['export', 'resnet20_cifar', 'x.pt2', '--format', 'torch-export']) == 2
                assert capsys.readouterr().err.count('\n') == 1
                assert os.listdir() == []


def test_torchvision_traces_every_attention(attack):
    """Alone, of any width, on maps of any size and layout."""
    draw = random.Random(0)
    for name in list_attentions():
        for channels in (8, 48, 64):
            layer = get_attention(name).layer(channels)
            with attack.case(f'{name}, {channels} channels: trace'):
                model = torch.nn.Sequential(layer, torch.nn.Flatten()).eval()
                extractor = create_feature_extractor(model, {'1': 'out'})
                for _ in range(8):
                    x = torch.randn(draw.randint(1, 3), channels, draw.randint(1, 20), draw.randint(1, 20))
                    if draw.random() < 0.5:
                        x = x.contiguous(memory_format=torch.channels_last)
                    with attack.case(f'{name}, {tuple(x.shape)}'), torch.no_grad():
                        torch.testing.assert_close(extractor(x)['out'], layer(x).flatten(1))
