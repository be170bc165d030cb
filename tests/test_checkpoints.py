"""Checkpoints of the authors' code bases, in every wrapping; and files that must not load."""

import logging
import pickle
import traceback

import pytest
import timm
import torch
from golden import authors_state_dict, load_model_case
from safetensors import SafetensorError
from safetensors.torch import save_file

from timm_attn.models.csa_resnet import CsaResNet
from timm_attn.weights import CheckpointError


def state_of(name, **kwargs):
    torch.manual_seed(1)
    return timm.create_model(name, **kwargs).state_dict()


def load_file(name, path, **kwargs):
    overlay = dict(file=str(path), **kwargs.pop('overlay', {}))
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)


@pytest.fixture(scope='module')
def houqb(tmp_path_factory):
    path = tmp_path_factory.mktemp('houqb') / 'mbv2_ca.pth'
    torch.save(authors_state_dict(load_model_case('houqb_mbv2_ca')), path)
    return path


@pytest.fixture(scope='module')
def mmdet(tmp_path_factory):
    path = tmp_path_factory.mktemp('mmdet') / 'csa.pth'
    torch.save(authors_state_dict(load_model_case('mmdet_csa_resnet50_last')), path)
    return path


WRAPPINGS = {
    'state_dict': lambda sd: dict(state_dict=sd, epoch=3),
    'model': lambda sd: dict(model=sd),
    'ema': lambda sd: dict(state_dict={k: torch.zeros_like(v) for k, v in sd.items()}, state_dict_ema=sd),
    'ddp': lambda sd: dict(state_dict={f'module.{k}': v for k, v in sd.items()}),
    'compiled': lambda sd: {f'_orig_mod.{k}': v for k, v in sd.items()},
}


@pytest.mark.parametrize('wrapping', WRAPPINGS)
def test_wrappings(wrapping, tmp_path):
    case = load_model_case('zhou_mobilenext_100')
    state_dict = authors_state_dict(case)
    wrapped = WRAPPINGS[wrapping](state_dict)
    torch.save(wrapped, tmp_path / 'mnext.pth.tar')
    expected = timm.create_model('mobilenext')
    expected.load_state_dict(state_dict)
    for model in (
        timm.create_model('mobilenext', checkpoint_path=str(tmp_path / 'mnext.pth.tar')),
        load_file('mobilenext', tmp_path / 'mnext.pth.tar'),
    ):
        for key, value in expected.state_dict().items():
            assert torch.equal(model.state_dict()[key], value), key


def test_mmpretrain_mobilenetv2_with_scsa(tmp_path):
    """The layout of mmpretrain's MobileNetV2: ConvModules inside ``layerN.M.conv``."""
    names = {'conv_dw': '{d}.conv', 'conv_pw': '{p}.conv', 'conv_pwl': '3.conv', 'se': '{a}'}
    theirs = {}
    state_dict = state_of('mbv2_scsa')
    for key, value in state_dict.items():
        parts = key.split('.')
        if parts[0] == 'blocks':
            stage, block, layer, rest = int(parts[1]), parts[2], parts[3], '.'.join(parts[4:])
            index = dict(d=0, p=2, a=1) if stage == 0 else dict(d=1, p=0, a=2)
            bn = {'bn1': '0.bn', 'bn2': '2.bn' if stage == 0 else '1.bn', 'bn3': '3.bn'}
            for i, dwc in enumerate(('local_dwc', 'global_dwc_s', 'global_dwc_m', 'global_dwc_l')):
                rest = rest.replace(f'dwc.{i}', dwc)
            middle = bn.get(layer) or names[layer].format(**index)
            theirs[f'backbone.layer{stage + 1}.{block}.conv.{middle}.{rest}'] = value
        else:
            start = {'conv_stem': 'backbone.conv1.conv', 'bn1': 'backbone.conv1.bn', 'conv_head': 'backbone.conv2.conv',
                     'bn2': 'backbone.conv2.bn', 'classifier': 'head.fc'}[parts[0]]  # fmt: skip
            theirs['.'.join([start, *parts[1:]])] = value
    torch.save(dict(state_dict=theirs, meta=dict(epoch=1)), tmp_path / 'mm.pth')
    model = load_file('mbv2_scsa', tmp_path / 'mm.pth')
    for key, value in state_dict.items():
        assert torch.equal(model.state_dict()[key], value), key


def test_own_classes(houqb, caplog):
    for how in (dict(checkpoint_path=str(houqb)), dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(houqb)))):
        model = timm.create_model('mbv2_ca', num_classes=7, **how)
        assert model.classifier.weight.shape == (7, 1280)
        assert model.conv_stem.weight.std() > 0.1  # loaded: the fresh stem has another scale
        assert timm.create_model('mbv2_ca', num_classes=0, **how)(torch.randn(1, 3, 64, 64)).shape == (1, 1280)
    with caplog.at_level(logging.WARNING):
        timm.create_model('mbv2_ca', num_classes=7, checkpoint_path=str(houqb))
    assert 'starts fresh' in caplog.text


def test_own_channels(houqb):
    model = load_file('mbv2_ca', houqb, in_chans=1)
    three = load_file('mbv2_ca', houqb)
    torch.testing.assert_close(model.conv_stem.weight, three.conv_stem.weight.sum(1, keepdim=True))


def test_head_of_a_fine_tuned_checkpoint_is_kept(tmp_path):
    state_dict = state_of('csa_resnet18', num_classes=7)
    save_file(state_dict, tmp_path / 'tuned.safetensors')
    for model in (
        timm.create_model('csa_resnet18', num_classes=7, checkpoint_path=str(tmp_path / 'tuned.safetensors')),
        load_file('csa_resnet18', tmp_path / 'tuned.safetensors', overlay=dict(num_classes=7)),
    ):
        assert torch.equal(model.fc.weight, state_dict['fc.weight'])


def test_features_from_a_classifier_and_from_a_backbone(houqb, mmdet):
    maps = load_file('mbv2_ca', houqb, features_only=True)(torch.randn(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == [16, 24, 32, 96, 320]
    maps = load_file('csa_resnet50', mmdet, features_only=True, out_indices=(2, 3, 4))(torch.randn(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == [512, 1024, 2048]


def test_backbone_of_a_detector(mmdet, tmp_path):
    backbone = torch.load(mmdet)
    detector = {f'backbone.{k}': v for k, v in backbone.items()}
    detector |= {'semantic_head.x': torch.zeros(1), 'data_preprocessor.mean': torch.zeros(3)}
    detector |= {'neck.lateral_convs.0.conv.weight': torch.zeros(1), 'bbox_head.fc_cls.weight': torch.zeros(1)}
    torch.save(dict(state_dict=detector, meta={}), tmp_path / 'detector.pth')
    model = load_file('csa_resnet50', tmp_path / 'detector.pth', num_classes=0)
    assert torch.equal(model.layer4[2].se.fc1.weight, backbone['layer4.2.csa_att.mlp_D.1.weight'])


@pytest.mark.parametrize('through', ['pretrained', 'checkpoint_path'])
def test_checkpoints_that_do_not_fit(through, mmdet, tmp_path):
    def load(name, state_dict, **kwargs):
        save_file(state_dict, tmp_path / 'file.safetensors')
        if through == 'pretrained':
            return load_file(name, tmp_path / 'file.safetensors', **kwargs)
        return timm.create_model(name, checkpoint_path=str(tmp_path / 'file.safetensors'), **kwargs)

    good = state_of('csa_resnet18')
    missing = {k: v for k, v in good.items() if k != 'layer1.0.conv1.weight'}
    with pytest.raises(CheckpointError, match=r'csa_resnet18.* 1 missing \(layer1\.0\.conv1\.weight\)'):
        load('csa_resnet18', missing)
    with pytest.raises(CheckpointError, match=r'1 unexpected \(extra\)'):
        load('csa_resnet18', good | {'extra': torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r'layer2\.0\.conv1\.weight: 2x2 in the checkpoint, 128x64x3x3'):
        load('csa_resnet18', good | {'layer2.0.conv1.weight': torch.zeros(2, 2)})
    with pytest.raises(CheckpointError, match='another architecture'):
        load('csa_resnet18', state_of('mobilenext'))
    with pytest.raises(CheckpointError, match=r"csa_blocks='all'"):
        load('csa_resnet18', state_of('csa_resnet18', csa_blocks='all'))
    with pytest.raises(CheckpointError, match='num_classes=7'):
        load('csa_resnet18', state_of('csa_resnet18', num_classes=7))
    with pytest.raises(CheckpointError, match='holds no classifier'):
        load('csa_resnet50', torch.load(mmdet))
    # timm turns its own check off when the number of classes differs; ours stays on
    with pytest.raises(CheckpointError, match='1 missing'):
        load('csa_resnet18', missing, num_classes=7 if through == 'pretrained' else 1000)


def test_advice():
    plain = timm.create_model('resnet18').state_dict()
    with pytest.raises(CheckpointError, match='plain backbone'):
        timm.create_model('csa_resnet18').load_state_dict(plain)
    with pytest.raises(CheckpointError, match='leaves out'):
        timm.create_model('csa_resnet18', num_classes=0).load_state_dict(state_of('csa_resnet18'))
    good = state_of('csa_resnet18')
    for broken in (torch.tensor(1.0), torch.zeros(0)):
        with pytest.raises(CheckpointError, match='another shape'):
            timm.create_model('csa_resnet18').load_state_dict(good | {'fc.weight': broken})


def test_classes_of_our_own_checkpoint_are_never_dropped_silently(tmp_path):
    state_dict = state_of('csa_resnet18', num_classes=7)
    for name, content in dict(plain=state_dict, wrapped=dict(state_dict=state_dict)).items():
        torch.save(content, tmp_path / name)
        with pytest.raises(CheckpointError, match='num_classes=7'):
            timm.create_model('csa_resnet18', num_classes=12, checkpoint_path=str(tmp_path / name))


def test_torch_habits(houqb):
    theirs = torch.load(houqb)
    expected = timm.create_model('mbv2_ca', checkpoint_path=str(houqb)).state_dict()
    # as part of another module
    outer = torch.nn.Sequential(timm.create_model('mbv2_ca'))
    outer.load_state_dict({f'0.{key}': value for key, value in theirs.items()})
    assert all(torch.equal(outer[0].state_dict()[key], value) for key, value in expected.items())
    # without the counters that torch added to batch norm later
    model = timm.create_model('mbv2_ca')
    model.load_state_dict({k: v for k, v in expected.items() if not k.endswith('num_batches_tracked')})
    # pre-hooks see and may change the state dict first
    model._register_load_state_dict_pre_hook(lambda state_dict, *args: state_dict.pop('surplus'))
    model.load_state_dict({**expected, 'surplus': torch.zeros(1)})
    # a class called directly has no pretrained_cfg
    model = CsaResNet(timm.models.resnet.BasicBlock, (1, 1, 1, 1))
    model.load_state_dict(model.state_dict())
    with pytest.raises(CheckpointError, match='CsaResNet'):
        model.load_state_dict({})


def test_not_strict(tmp_path):
    state_dict = state_of('csa_resnet18')
    del state_dict['layer1.0.conv1.weight']
    save_file(state_dict, tmp_path / 'part.safetensors')
    model = load_file('csa_resnet18', tmp_path / 'part.safetensors', pretrained_strict=False)
    assert torch.equal(model.fc.weight, state_dict['fc.weight'])


def test_torch_semantics_without_strict():
    model = timm.create_model('csa_resnet18')
    result = model.load_state_dict({'fc.bias': torch.ones(1000), 'extra': torch.zeros(1)}, strict=False)
    assert result.unexpected_keys == ['extra']
    assert 'fc.weight' in result.missing_keys
    assert model.fc.bias.eq(1).all()


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return eval, (f'open({str(self.path)!r}, "w")',)


@pytest.mark.parametrize(
    ('content', 'suffix'),
    [('cut', '.safetensors'), ('cut', '.pth'), ('empty', '.pth'), ('noise', '.safetensors'), ('code', '.pth')],
)
def test_unreadable_files(content, suffix, tmp_path):
    path = tmp_path / f'weights{suffix}'
    if content == 'code':
        path.write_bytes(pickle.dumps({'state_dict': RunsCode(tmp_path / 'code_was_run')}))
    elif content == 'noise':
        path.write_bytes(bytes(range(256)) * 40)
    elif content == 'empty':
        path.touch()
    else:
        state_dict = state_of('csa_resnet20_cifar')
        torch.save(state_dict, path) if suffix == '.pth' else save_file(state_dict, path)
        path.write_bytes(path.read_bytes()[:-5000])
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match='Cannot read the checkpoint') as e:
        load_file('csa_resnet20_cifar', path)
    assert str(path) in str(e.value)
    assert path.read_bytes() == before
    with pytest.raises((RuntimeError, EOFError, SafetensorError)):  # timm's own reader; it must refuse, too
        timm.create_model('csa_resnet20_cifar', checkpoint_path=str(path))
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_reason_of_an_unreadable_file_is_ours(tmp_path):
    """torch and timm advise to load with weights_only=False what they have just refused."""
    torch.save({'a': RunsCode(tmp_path / 'code_was_run')}, tmp_path / 'code.pth')
    with pytest.raises(CheckpointError, match=r'could run code, which is refused \(it refers to builtins\.eval\)') as e:
        load_file('csa_resnet20_cifar', tmp_path / 'code.pth')
    assert 'weights_only' not in ''.join(traceback.format_exception(e.value)).replace('weights_only=True)', '')


def test_values_that_are_no_weights(tmp_path):
    good = state_of('csa_resnet20_cifar')
    for wrong, message in (
        (torch.full_like(good['classifier.weight'], float('nan')), r'not finite, in 1 tensors \(classifier\.weight\)'),
        (good['classifier.weight'].to(torch.complex64), 'not dense floating point'),
        (good['classifier.weight'].to_sparse(), 'not dense floating point'),
    ):
        torch.save({**good, 'classifier.weight': wrong}, tmp_path / 'w.pth')
        with pytest.raises(CheckpointError, match=message):
            load_file('csa_resnet20_cifar', tmp_path / 'w.pth')
    torch.save({**good, 'bn1.weight': good['bn1.weight'] / 0}, tmp_path / 'w.pth')
    loaded = load_file('csa_resnet20_cifar', tmp_path / 'w.pth', pretrained_strict=False)
    assert not loaded.bn1.weight.isfinite().all()
    torch.save({**good, 'classifier.weight': wrong.to_dense() / 0}, tmp_path / 'w.pth')
    load_file('csa_resnet20_cifar', tmp_path / 'w.pth', num_classes=3)  # the classifier is not taken


def test_a_stem_may_only_have_other_channels(tmp_path):
    save_file({**state_of('csa_resnet18'), 'conv1.weight': torch.zeros(64, 3, 5, 5)}, tmp_path / 'w.safetensors')
    with pytest.raises(CheckpointError, match=r'conv1\.weight: 64x3x5x5 in the checkpoint, 64x3x7x7 in the model'):
        load_file('csa_resnet18', tmp_path / 'w.safetensors')


def test_paths_that_are_not_files(tmp_path):
    with pytest.raises(CheckpointError, match='no checkpoint at'):
        load_file('csa_resnet18', tmp_path / 'absent.pth')
    with pytest.raises(CheckpointError, match='local-dir:'):
        load_file('csa_resnet18', tmp_path)


def test_unknown_tag_and_missing_weights():
    with pytest.raises(RuntimeError, match=r"Unknown tag 'imagenet' for csa_resnet20_cifar; it has: .*cifar10"):
        timm.create_model('csa_resnet20_cifar.imagenet', pretrained=True)
    with pytest.raises(RuntimeError, match=r'No pretrained weights exist for mbv2_ca_075.*mbv2_ca.houqb_in1k'):
        timm.create_model('mbv2_ca_075', pretrained=True)
    with pytest.raises(RuntimeError, match='Unknown model'):
        timm.create_model('csa_resnet99')
