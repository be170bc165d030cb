"""The benchmark's command, and what is rendered from its result."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import benchmark
import performance
import pytest
import timm
import torch

from timm_attn.models import zoo_models
from timm_attn.weights import plain_backbone

ROOT = Path(__file__).parent.parent


def run(*args):
    command = [sys.executable, str(ROOT / 'scripts' / 'benchmark.py'), *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_every_model_has_a_reference_and_is_measured():
    assert all(timm.is_model(plain_backbone(name)) for name in zoo_models())
    measured = {name for group in benchmark.groups(zoo_models(), references=True) for name in group}
    assert set(zoo_models()) <= measured
    assert {'resnet50', 'seresnet50', 'csa_resnet50, reference'} <= measured


@pytest.mark.slow
def test_command(tmp_path, monkeypatch):
    output = tmp_path / 'folder' / 'benchmark.json'
    args = ('--models', 'csa_resnet20_cifar', '--turns', '1', '--no-layers', '--output', str(output))
    half = ('--append', '--kind', 'inference', '--dtype', 'bfloat16', '--layout', 'channels_last')
    for more in ((), half, half):
        done = run(*args, *more)
        assert done.returncode == 0, done.stderr
    first, second = json.loads(output.read_text())  # what was measured again is dropped
    names = ['resnet20_cifar', 'csa_resnet20_cifar']
    folded = [n + benchmark.OPTIMIZED for n in names]
    assert [(r['model'], r['kind']) for r in first['models']] == [
        *((n, 'inference') for n in names + folded),
        *((n, 'training') for n in names),
    ]
    assert [(r['model'], r['dtype'], r['layout']) for r in second['models']] == [
        (n, 'bfloat16', 'channels_last') for n in names
    ]
    for row in first['models']:
        assert row['milliseconds'] > 0
        assert row['least'] <= row['ratio'] <= row['most']
        assert row['reference'] == 'resnet20_cifar'
        assert 1 < row['peak_mb'] < 5000
    monkeypatch.setattr(performance, 'RUNS', output)
    text = performance.section('')
    assert all(name in text for name in names + folded)
    assert first['machine']['date'] in text


@pytest.mark.slow
def test_ways_to_deploy(tmp_path, monkeypatch):
    output = tmp_path / 'benchmark.json'
    done = run(
        '--deploy', '--models', 'csa_resnet20_cifar', '--batch-size', '2', '--turns', '1', '--output', str(output)
    )
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(output.read_text())
    assert found['models'] == found['layers'] == []
    ways = [row['way'] for row in found['deploy'] if row['model'] == 'csa_resnet20_cifar']
    assert ways == [row['way'] for row in found['deploy'] if row['model'] == 'resnet20_cifar']
    assert {'eager', 'optimize()', 'optimize(), compile'} <= set(ways)
    assert all(package in ways for package in ('onnxruntime',) if importlib.util.find_spec(package))
    for row in found['deploy']:
        assert row['eager_ratio'] == 1 or row['way'] != 'eager'
        assert row['ratio'] == 1 or row['model'] != row['reference']
    monkeypatch.setattr(performance, 'RUNS', output)
    text = performance.section('')
    assert 'batches of 2 at 32 px' in text
    assert all(f'| csa_resnet20_cifar | {way} |' in text for way in ways)


def test_maps_of_zeros_are_refused():
    model = timm.create_model('csa_resnet20_cifar').eval()
    for name, weight in model.named_parameters():
        if name.endswith('bn2.weight'):
            torch.nn.init.zeros_(weight)
    with pytest.raises(AssertionError, match='nothing can be measured'):
        benchmark.require_signal(model, torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize('name', benchmark.layers_with_formula())
def test_layers_equal_their_reference_implementation(name):
    rows = benchmark.measure_layer(name, (2, 64, 14, 14), turns=1, device=torch.device('cpu'))
    assert [r['kind'] for r in rows] == ['inference', 'training']
    assert all(r['peak_mb'] > 0 and r['reference_peak_mb'] > 0 for r in rows)


def test_reference_layers_make_the_same_model():
    images = torch.randn(2, 3, 32, 32)
    here = benchmark.build('csa_resnet20_cifar', images)
    reference = benchmark.build('csa_resnet20_cifar' + benchmark.REFERENCE_LAYERS, images)
    with torch.no_grad():
        torch.testing.assert_close(here(images), reference(images), rtol=1e-3, atol=1e-3)
    assert any('forward' in vars(m) for m in reference.modules())


def test_wrong_arguments(tmp_path, monkeypatch, capsys):
    def error(*args):
        monkeypatch.setattr(sys, 'argv', ['benchmark.py', *args])
        with pytest.raises(SystemExit) as stop:
            benchmark.main()
        assert stop.value.code == 2
        return capsys.readouterr().err

    foreign = tmp_path / 'foreign.json'
    foreign.write_text('{"a": 1}')
    for args, message in (
        (('--models', 'vgg*'), 'timm-attn list'),
        (('--turns', '0'), '1 or more'),
        (('--deploy', '--device', 'meta'), 'leave --device out'),
        (('--output', str(tmp_path)), 'name another file'),
        (('--output', str(foreign), '--append'), 'name another file'),
    ):
        assert message in error(*args)
    assert foreign.read_text() == '{"a": 1}'
    if not torch.cuda.is_available():
        assert 'CUDA' in error('--device', 'cuda')
