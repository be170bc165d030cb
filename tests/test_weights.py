"""The manifest, all that is rendered from it, and the weights inside the package."""

import dataclasses
import json
import re
import zipfile
from pathlib import Path

import cards
import measure_weights
import pytest
import render
import timm
import torch
from timm.models import get_pretrained_cfg

from timm_attn.models import zoo_models
from timm_attn.train.log import read_summary
from timm_attn.weights import Weight, manifest, torch_version, weights
from timm_attn.weights.manifest import MANIFEST
from timm_attn.weights.torch_version import check_torch

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / 'shared' / 'data'
TRAINED = [w for w in weights().values() if w.kind == 'trained']
CIFAR = [n for n in zoo_models() if n.endswith('resnet20_cifar')]

each = pytest.mark.parametrize('weight', weights().values(), ids=lambda w: w.name)
each_trained = pytest.mark.parametrize('weight', TRAINED, ids=lambda w: w.name)


@pytest.mark.parametrize(
    ('version', 'is_safe'),
    [('2.4.1', False), ('2.9.1+cu128', False), ('2.10.0', True), ('2.10.0a0+nv25.12', True), ('3.0.0', True)],
)
def test_torch_that_reads_weights_unsafely_is_refused(version, is_safe, monkeypatch):
    monkeypatch.setattr(torch, '__version__', version)
    if is_safe:
        check_torch()
    else:
        with pytest.raises(ImportError, match=r'needs torch 2\.10.* this is torch 2\.\d.*run code.*pip install'):
            check_torch()


def test_the_floor_is_the_one_that_pip_is_told():
    oldest = '.'.join(map(str, torch_version._OLDEST))
    assert f'"torch>={oldest}"' in (ROOT / 'pyproject.toml').read_text()


def test_every_model_and_every_tag_has_a_row():
    assert {w.arch for w in weights().values()} == set(zoo_models())
    assert set(weights()) == set(zoo_models(include_tags=True))
    assert {w.name for w in weights().values() if w.kind != 'untrained'} == set(zoo_models(pretrained=True))
    assert {w.arch for w in TRAINED} == set(CIFAR)


def test_default_weights():
    defaults = {n: get_pretrained_cfg(n).tag for n in zoo_models()}
    assert defaults['mbv2_ca'] == defaults['mobilenext'] == 'houqb_in1k'
    assert defaults['csa_resnet50'] == defaults['scsa_resnet50'] == 'warm_a1_in1k'
    assert defaults['csa_resnet101'] == defaults['scsa_resnet101'] == 'warm_a1h_in1k'
    assert all(defaults[n] == 'cifar10' for n in CIFAR)
    for weight in weights().values():
        if weight.kind == 'warm_start':
            assert weight.tag == f'warm_{weight.base_weight.partition(".")[2]}'
    assert all(f'mbv2_{a}.warm_ra_in1k' in weights() for a in ('ca', 'se', 'cbam', 'scsa'))


@each
def test_what_the_manifest_claims_is_recomputed(weight):
    assert measure_weights.measure_cost(weight) == {k: getattr(weight, k) for k in ('params', 'gmacs', 'activations')}
    cfg = get_pretrained_cfg(weight.name)
    assert (cfg.license, cfg.paper_ids) == (weight.license, weight.paper)
    assert tuple(cfg.input_size) == weight.input_size
    if weight.file:
        assert measure_weights.measure_file(weight.file) == dict(file_size=weight.file_size, sha256=weight.sha256)
    if weight.kind != 'untrained':
        assert weight.license_url
        assert weight.dataset in cards.DATASETS
        assert weight.top1
        assert weight.copyright or weight.license != 'mit'
    for path in (weight.recipe, weight.log):
        assert path is None or (ROOT / path).is_file()


def test_weights_that_are_compared_were_trained_alike():
    (recipe,) = {w.recipe for w in TRAINED if w.arch == 'resnet20_cifar'}
    assert {w.arch for w in TRAINED if w.recipe == recipe} == set(CIFAR)


@each_trained
def test_the_log_is_of_the_run_that_ships(weight):
    assert weight.top1.measured
    last = read_summary(ROOT / weight.log)[-1]
    # the log has the accuracy on images that were held out
    assert last['eval_top1'] == pytest.approx(weight.top1.value, abs=3)


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        (dict(top1=99.0), TypeError, 'top1'),
        (dict(kind='found'), ValueError, 'found'),
        (dict(base_weight=None), ValueError, 'base_weight'),
        (dict(kind='authors'), ValueError, 'url'),
        ('again', ValueError, 'twice'),
    ],
)
def test_a_wrong_row_is_refused(change, error, message, tmp_path, monkeypatch):
    row = json.loads(MANIFEST.read_text())[0]
    rows = [row, row] if change == 'again' else [{**row, **change}]
    (tmp_path / 'manifest.json').write_text(json.dumps(rows))
    monkeypatch.setattr(manifest, 'MANIFEST', tmp_path / 'manifest.json')
    with pytest.raises(error, match=message):
        weights.__wrapped__()


def test_the_manifest_round_trips(tmp_path, monkeypatch):
    monkeypatch.setattr(measure_weights, 'MANIFEST', tmp_path / 'manifest.json')
    measure_weights.write_manifest(list(weights().values()))
    assert (tmp_path / 'manifest.json').read_text() == MANIFEST.read_text()


def test_cards_are_what_the_manifest_renders():
    stale = [str(path.relative_to(ROOT)) for path in render.stale_files()]
    assert not stale, 'run python scripts/render.py'
    assert not render.stale_plots()


@each
def test_cards_are_read_by_the_hub(weight):
    if weight.kind == 'untrained':
        return
    from huggingface_hub import ModelCard

    text = cards.render_card(weight)
    card = ModelCard(text)
    assert card.data.to_dict()['library_name'] == 'timm'
    assert card.data.license == weight.license
    results = card.data.eval_results or []
    assert [r.metric_value for r in results] == [m.value for m in weight.metrics if m.measured]
    first = card.text.strip().splitlines()[2]
    assert ('exact identity' in first) == (weight.kind == 'warm_start')
    assert 'import timm_attn' in card.text
    for section in ('Details', 'Usage', 'How it was made', 'Limitations', 'Citation'):
        assert f'\n## {section}\n' in card.text
    if weight.license == 'mit':
        assert weight.copyright in card.text
        assert 'Permission is hereby granted' in card.text


@each_trained
def test_code_in_the_cards_runs(weight, tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new('RGB', (40, 50), 'red').save('image.png')
    scope = {}
    code = re.findall(r'```python\n(.*?)```', cards.render_card(weight), re.S)
    assert len(code) == 3
    for block in code:
        exec(block, scope)
    assert scope['top5_classes'].shape == (1, 5)
    assert scope['embedding'].shape == (1, 64)


def test_check_notices_a_changed_card(monkeypatch):
    name = 'csa_resnet50.warm_a1_in1k'
    changed = dataclasses.replace(weights()[name], params=1)
    monkeypatch.setitem(weights(), name, changed)
    stale = {path.name for path in render.stale_files()}
    assert {f'{name}.md', 'README.md'} <= stale


@each_trained
def test_bundled_weight_loads_without_network(weight, monkeypatch):
    import socket

    monkeypatch.setattr(socket.socket, 'connect', lambda *a: pytest.fail('the network was touched'))
    models = [
        timm.create_model(weight.name, pretrained=True),
        timm.create_model(weight.arch, pretrained=True, pretrained_cfg=weight.tag),
    ]
    if get_pretrained_cfg(weight.arch).tag == weight.tag:
        models.append(timm.create_model(weight.arch, pretrained=True))
    for key, value in models[0].state_dict().items():
        assert value.isfinite().all(), key
        assert all(torch.equal(m.state_dict()[key], value) for m in models), key
    assert len(models[0].pretrained_cfg['label_names']) == models[0].num_classes
    adapted = timm.create_model(weight.name, pretrained=True, num_classes=3, in_chans=1)
    assert adapted(torch.randn(2, 1, 32, 32)).shape == (2, 3)
    timm.create_model(weight.name, pretrained=True, features_only=True)
    with pytest.raises(RuntimeError, match='missing'):
        models[0].load_state_dict({})


def test_sizes_in_the_package():
    files = {p.name: p.stat().st_size for p in manifest.FILES.glob('*.safetensors')}
    assert files == {w.file: w.file_size for w in TRAINED}
    assert sum(files.values()) < 10e6


def test_a_row_states_its_origin():
    rows = weights()
    assert rows['mobilenext_ca.warm_houqb_in1k'].origin == rows['mobilenext.houqb_in1k'].url
    assert rows['csa_resnet50.warm_a1_in1k'].origin == 'https://huggingface.co/timm/resnet50.a1_in1k'
    assert all(isinstance(w, Weight) for w in rows.values())


@pytest.fixture(scope='session')
def cifar10(tmp_path_factory):
    if not (DATA / 'cifar10.zip').exists():
        pytest.skip(f'CIFAR-10 is not at {DATA / "cifar10.zip"}')
    folder = tmp_path_factory.mktemp('data')
    with zipfile.ZipFile(DATA / 'cifar10.zip') as archive:
        archive.extractall(folder, [n for n in archive.namelist() if '/test/' in n])
    return folder / 'cifar10'


@pytest.mark.slow
@each_trained
def test_accuracy_is_the_one_in_the_manifest(weight, cifar10):
    top1 = measure_weights.measure_top1(timm.create_model(weight.name, pretrained=True), cifar10)
    # another CPU may round a handful of images to the other side
    assert top1 == pytest.approx(weight.top1.value, abs=0.05)


@pytest.mark.slow
def test_accuracy_is_measured_with_the_right_classes(cifar10, tmp_path):
    model = timm.create_model('csa_resnet20_cifar', pretrained=True)
    (tmp_path / 'test').mkdir()
    (tmp_path / 'test' / 'cat').symlink_to(cifar10 / 'test' / 'cat')
    with pytest.raises(ValueError, match='not the classes'):
        measure_weights.measure_top1(model, tmp_path)
