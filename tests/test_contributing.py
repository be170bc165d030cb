"""The guide's example: an attention in three files passes every property, and everything by name knows it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / 'docs' / 'contributing.md').read_text()
FILES = dict(re.findall(r'<!-- file: (\S+) -->\n```python\n(.*?)```', GUIDE, re.S))
GOLDEN = next(block for block in re.findall(r'```python\n(.*?)```', GUIDE, re.S) if 'save_file(tensors' in block)


@pytest.fixture(scope='module')
def python(tmp_path_factory):
    """Function that runs Python in a copy of the repository with the three files in it; returns what it printed."""
    folder = tmp_path_factory.mktemp('checkout')
    for name in ('timm_attn', 'tests', 'scripts'):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('hubconf.py', 'pyproject.toml'):
        shutil.copy(ROOT / name, folder)
    env = {k: v for k, v in os.environ.items() if not k.startswith('PYTEST')}
    env |= dict(PYTHONPATH=str(folder), OMP_NUM_THREADS='1')

    def run(*args):
        done = subprocess.run([sys.executable, *args], cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
        return done.stdout

    before = {path for path in folder.rglob('*') if path.is_file()}
    for name, text in FILES.items():
        (folder / name).write_text(text)
    run('-c', GOLDEN)
    after = {path for path in folder.rglob('*') if path.is_file() and '__pycache__' not in path.parts}
    assert len(after - before) == 3
    return run


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_passes_every_property(python):
    files = ('layers', 'models', 'warm_start', 'export', 'fold_batch_norm', 'package')
    out = python('-m', 'pytest', '-q', '-n', '0', '-k', 'toy', *(f'tests/test_{name}.py' for name in files))
    passed = int(re.search(r'(\d+) passed', out)[1])
    assert passed > 60
    assert 'failed' not in out


@pytest.mark.slow
def test_everything_by_name_knows_it(python):
    listed = python('-m', 'timm_attn', 'list', 'toy*')
    assert listed.splitlines()[1].split()[::4] == ['toy_resnet18', 'warm_a1_in1k']
    assert 'warm_a1_in1k' in python('-m', 'timm_attn', 'info', 'toy_resnet18')
    python('scripts/measure_weights.py', '--only', 'toy*')
    manifest = python('-c', 'import timm_attn.weights as w; print(*w.weights().values(), sep="\\n")').splitlines()
    assert 'toy_resnet18.warm_a1_in1k' in manifest[-1]
    assert "license='apache-2.0', paper='arXiv:0000.00000'" in manifest[-1]
    code = "import torch; print(torch.hub.load('.', 'toy_resnet18', source='local', num_classes=3).num_classes)"
    assert python('-c', code).strip() == '3'
    small = ('--kind', 'inference', '--turns', '1', '--no-layers', '--batch-size', '1', '--size', '64')
    measured = python('scripts/benchmark.py', '--models', 'toy*', *small)
    assert measured.count('toy_resnet18') == 2
    assert 'resnet18 ' in measured
