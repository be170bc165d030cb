"""The weights inside the package."""

import re
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from timm.data import create_dataset, create_loader, resolve_data_config

from timm_attn.models import zoo_models

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / 'shared' / 'data'
BUNDLED = [n for n in zoo_models(include_tags=True) if timm.models.get_pretrained_cfg(n).file]


def test_there_is_a_bundled_weight():
    assert 'csa_resnet20_cifar.cifar10' in BUNDLED


@pytest.mark.parametrize('name', BUNDLED)
def test_bundled_weight_loads_without_network(name, monkeypatch):
    import socket

    monkeypatch.setattr(socket.socket, 'connect', lambda *a: pytest.fail('the network was touched'))
    arch, _, tag = name.partition('.')
    models = [
        timm.create_model(name, pretrained=True),
        timm.create_model(arch, pretrained=True),
        timm.create_model(arch, pretrained=True, pretrained_cfg=tag),
    ]
    for key, value in models[0].state_dict().items():
        assert value.isfinite().all(), key
        assert all(torch.equal(m.state_dict()[key], value) for m in models), key
    assert len(models[0].pretrained_cfg['label_names']) == models[0].num_classes
    adapted = timm.create_model(name, pretrained=True, num_classes=3, in_chans=1)
    assert adapted(torch.randn(2, 1, 32, 32)).shape == (2, 3)
    timm.create_model(name, pretrained=True, features_only=True)
    with pytest.raises(RuntimeError, match='missing'):
        models[0].load_state_dict({})


@pytest.mark.slow
@pytest.mark.parametrize('name', [n for n in BUNDLED if n.endswith('.cifar10')])
def test_accuracy_is_the_one_in_the_readme(name, tmp_path):
    if not (DATA / 'cifar10.zip').exists():
        pytest.skip(f'CIFAR-10 is not at {DATA / "cifar10.zip"}')
    with zipfile.ZipFile(DATA / 'cifar10.zip') as archive:
        archive.extractall(tmp_path, [n for n in archive.namelist() if '/test/' in n])
    model = timm.create_model(name, pretrained=True).eval()
    dataset = create_dataset('', root=tmp_path / 'cifar10', split='test', class_map='')
    assert len(dataset) == 10_000
    assert tuple(dataset.reader.class_to_idx) == tuple(model.pretrained_cfg['label_names'])
    config = resolve_data_config(model=model)
    loader = create_loader(
        dataset, batch_size=250, is_training=False, use_prefetcher=False, num_workers=2, device=torch.device('cpu'),
        **{k: config[k] for k in ('input_size', 'interpolation', 'mean', 'std', 'crop_pct')},
    )  # fmt: skip
    with torch.inference_mode():
        correct = sum(int((model(x).argmax(1) == y).sum()) for x, y in loader)
    claimed = re.search(r'as JPEG\) is ([\d.]+) %', (ROOT / 'README.md').read_text().replace('\n', ' '))
    # another CPU may round a handful of images to the other side
    assert correct / 100 == pytest.approx(float(claimed[1]), abs=0.05)
