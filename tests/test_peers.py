"""The attentions that CSA-Net compares itself with: formulas, arguments, and where they stand in a ResNet."""

import math
from functools import partial

import pytest
import timm
import torch
from golden import load_module_case
from safetensors.torch import save_file
from timm.models import create_model
from torch import nn

from timm_attn.layers import BAM, CSA, ECA, FCA, GALA, GCT, GatedCT, GlobalContext, GSoP, attention_of, cbam
from timm_attn.layers.fca import TOP_FREQUENCIES, dct_table
from timm_attn.layers.gsop import channel_covariance
from timm_attn.weights import CheckpointError

NO_WARM_START = ('bam', 'gala', 'gct', 'gsop')


def test_gala_equals_its_formula():
    layer = GALA(32).double()
    x = torch.randn(3, 32, 5, 4).double()
    y = layer(x)
    fc1, fc2, conv1, conv2 = (m.weight[:, :, 0, 0] for m in (layer.fc1, layer.fc2, layer.conv1, layer.conv2))
    g = (x.mean((2, 3)) @ fc1.T + layer.fc1.bias).relu() @ fc2.T + layer.fc2.bias
    for i in range(5):
        for j in range(4):
            pixel = x[:, :, i, j]
            s = (pixel @ conv1.T + layer.conv1.bias).relu() @ conv2.T + layer.conv2.bias  # (B, 1)
            gate = torch.tanh(layer.sum_weight * (g + s) + layer.product_weight * (g * s))
            torch.testing.assert_close(y[:, :, i, j], pixel * gate)


@pytest.mark.parametrize('learn_c', [False, True])
def test_gct_equals_its_formula(learn_c):
    layer = GCT(24, learn_c=learn_c).double()
    c = 2.0
    if learn_c:
        nn.init.constant_(layer.theta, 0.3)
        c = 3 / (1 + math.exp(-0.3)) + 1
    x = torch.randn(3, 24, 5, 4).double()
    s = x.mean((2, 3))
    z = (s - s.mean(1, keepdim=True)) / (s.std(1, correction=0, keepdim=True) + 1e-5)
    expected = x * torch.exp(-(z**2) / (2 * c**2))[:, :, None, None]
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.float()(x.float() * 1e20), expected.float() * 1e20, rtol=1e-4, atol=1e16)


@pytest.mark.parametrize('value', [0.0, 0.1, -3.7, 1e4, 1e30])
def test_gct_keeps_channels_whose_means_agree(value):
    x = torch.full((2, 48, 9, 7), value)
    assert torch.equal(GCT(48)(x), x)


def test_gated_ct_of_any_magnitude():
    layer = GatedCT(16).double()
    for p in layer.parameters():
        nn.init.normal_(p)
    x = torch.randn(2, 16, 6, 5).double()
    x[:, 3] = 0
    norm = layer.alpha.flatten() * (x.square().sum((2, 3)) + 1e-5).sqrt()
    rms = (norm.square().mean(1, keepdim=True) + 1e-5).sqrt()
    gate = 1 + torch.tanh(layer.gamma.flatten() * norm / rms + layer.beta.flatten())
    torch.testing.assert_close(layer(x), x * gate[:, :, None, None])
    large = layer.float()(x.float() * 1e25)
    torch.testing.assert_close(large / 1e25, (x * gate[:, :, None, None]).float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('case', ['fca_top16_c32_7x7_in14x10', 'fca_top16_c64_14x14'])
def test_tables_of_cosines_are_the_authors(case):
    args, tensors = load_module_case(case)
    layer = FCA(**args['arguments'])
    theirs = tensors['state/dct_layer.weight']
    ours = layer.table.repeat_interleave(len(theirs) // 16, dim=0)
    torch.testing.assert_close(ours, theirs, rtol=2e-7, atol=1e-9)  # but for rounding
    assert not any('table' in key for key in layer.state_dict())


def test_bases_of_cosines_are_orthonormal():
    table = dct_table([(u, v) for u in range(7) for v in range(7)], 7).flatten(1)
    torch.testing.assert_close(table @ table.T, torch.eye(49, dtype=torch.float64))
    assert len(set(TOP_FREQUENCIES)) == 16


def test_frequencies_divide_the_channels():
    number = {c: FCA(c).table.shape[0] for c in (64, 16, 24, 20, 8, 7, 17, 1)}
    assert number == {64: 16, 16: 16, 24: 12, 20: 10, 8: 8, 7: 7, 17: 1, 1: 1}
    assert FCA(12, freq=[(0, 0), (6, 1)], size=14).table.shape == (2, 14, 14)
    assert torch.equal(FCA(12, freq='top2', size=14).table, dct_table([(0, 0), (0, 2)], 14).float())


def test_fca_of_one_frequency_is_squeeze_and_excitation():
    layer = FCA(32, freq='top1').double()
    x = torch.randn(2, 32, 7, 7).double()
    gate = layer.fc2(layer.fc1(7 * x.mean((2, 3))).relu()).sigmoid()
    torch.testing.assert_close(layer(x), x * gate[:, :, None, None])


def test_eca_kernel_follows_the_channels():
    assert [ECA(c).conv.kernel_size[0] for c in (8, 64, 256, 512, 1024, 2048)] == [3, 3, 5, 5, 5, 7]
    assert ECA(256, kernel_size=3).conv.weight.shape == (1, 1, 3)


def test_covariance_of_channels():
    x = torch.randn(2, 24, 5, 4) + 3
    expected = torch.stack([torch.cov(image.flatten(1), correction=0) for image in x.double()])
    torch.testing.assert_close(channel_covariance(x).double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(channel_covariance(x.double()), expected)
    with torch.autocast('cpu', torch.bfloat16):
        torch.testing.assert_close(channel_covariance(x).double(), expected, rtol=1e-4, atol=1e-5)
        scripted = torch.jit.script(channel_covariance)
        torch.testing.assert_close(scripted(x).double(), expected, rtol=1e-4, atol=1e-5)
    assert channel_covariance(60000 * torch.ones(1, 4, 2, 2).triu().half()).isfinite().all()
    assert not channel_covariance(x[:, :, :1, :1]).any()  # a single position


def test_published_cbam():
    layer = cbam(256, rd_ratio=1 / 16, bn_momentum=0.01)
    assert layer.channel.fc1.out_channels == 16
    assert layer.channel.fc1.bias is not None
    assert layer.spatial.conv.bn.momentum == 0.01
    assert cbam(256).spatial.conv.bn.momentum == 0.1


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: ECA(64, kernel_size=4), 'kernel_size=4 must be an odd number'),
        (lambda: ECA(64, kernel_size=-1), 'kernel_size=-1 must be an odd number'),
        (lambda: GCT(64, c=0), 'c=0 must be positive'),
        (lambda: FCA(24, freq='top16'), 'channels=24 is not a multiple of 16'),
        (lambda: FCA(64, freq='top17'), 'top1 to top16'),
        (lambda: FCA(64, freq='low16'), 'top1 to top16'),
        (lambda: FCA(64, freq=[(0, 7)]), 'from 0 to 6'),
        (lambda: FCA(64, freq=[]), 'from 0 to 6'),
        (lambda: FCA(64, size=6), 'size=6 must be 7 or more'),
        (lambda: create_model('gsop_resnet50', block=timm.models.resnet.BasicBlock), 'BasicBlock is none'),
        (lambda: create_model('gsop_resnet50', avg_down=True), 'leave out avg_down'),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def layers_by_stage(name, **kwargs):
    model = create_model(name, device='meta', **kwargs)
    stages = (model.layer1, model.layer2, model.layer3, model.layer4)
    return [[m for m in stage.modules() if attention_of(m)] for stage in stages]


def test_places():
    for depth, third in ((50, 6), (101, 23)):
        for attention in ('eca', 'cbam', 'fca', 'gct', 'gala'):
            assert [len(layers) for layers in layers_by_stage(f'{attention}_resnet{depth}')] == [3, 4, third, 3]
        assert [len(layers) for layers in layers_by_stage(f'gsop_resnet{depth}')] == [1, 1, 1, 1]
        assert [len(layers) for layers in layers_by_stage(f'bam_resnet{depth}')] == [1, 1, 1, 0]


def test_arguments_by_stage():
    assert [layers[0].conv.kernel_size[0] for layers in layers_by_stage('eca_resnet101')] == [3, 5, 5, 7]
    assert [layers[0].size for layers in layers_by_stage('fca_resnet50')] == [56, 28, 14, 7]
    assert [layers[0].reduce.stride[0] for layers in layers_by_stage('gsop_resnet50')] == [2, 1, 1, 1]
    gates = [layer.spatial for layers in layers_by_stage('cbam_resnet50') for layer in layers]
    assert {gate.conv.bn.momentum for gate in gates} == {0.01}


def test_attention_of_the_last_block_alone():
    model = create_model('gsop_resnet50', device='meta')
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        assert [block.se is not None for block in stage] == [False] * (len(stage) - 1) + [True]


def test_bam_leaves_the_blocks_their_numbers():
    model = create_model('bam_resnet50', device='meta')
    plain = create_model('resnet50', device='meta').state_dict()
    assert {key for key in model.state_dict() if '.bam.' not in key} == plain.keys()
    assert [name for name, _ in model.layer1.named_children()] == ['0', '1', '2', 'bam']


@pytest.mark.parametrize(('output_stride', 'dilation'), [(32, 1), (16, 1), (8, 2)])
def test_gsop_keeps_the_resolution_of_its_last_stage(output_stride, dilation):
    model = create_model('gsop_resnet50', output_stride=output_stride, device='meta')
    assert {block.conv2.dilation[0] for block in model.layer4} == {dilation}
    assert model.feature_info[-1]['reduction'] == min(output_stride, 16)


@pytest.mark.parametrize('attention', ['bam', 'eca'])
def test_another_attention_or_none(attention):
    block_args = dict(attn_layer=partial(CSA, rd_ratio=1 / 8))
    stages = layers_by_stage(f'{attention}_resnet50', block_args=block_args)
    layers = [layer for stage in stages for layer in stage]
    assert layers
    assert all(isinstance(layer, CSA) for layer in layers)
    model = create_model(f'{attention}_resnet50', block_args=dict(attn_layer=None), device='meta')
    assert model.state_dict().keys() == create_model('resnet50', device='meta').state_dict().keys()


@pytest.mark.parametrize('attention', NO_WARM_START)
def test_why_there_is_no_warm_start(attention):
    with pytest.raises(RuntimeError, match=rf"No pretrained weights exist for .*timm_attn.attach\(.*, '{attention}'\)"):
        create_model(f'{attention}_resnet50', pretrained=True)


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    model = create_model('resnet18').eval()
    path = tmp_path_factory.mktemp('plain') / 'resnet18.safetensors'
    save_file(model.state_dict(), path)
    return model, dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))


@pytest.mark.parametrize('attn_layer', [BAM, GALA, partial(GCT, learn_c=True)])
def test_what_no_weights_make_an_identity_has_no_warm_start(attn_layer, plain):
    with pytest.raises(CheckpointError, match='no warm start'):
        create_model('csa_resnet18', block_args=dict(attn_layer=attn_layer), **plain[1])


@pytest.mark.parametrize('attn_layer', [GlobalContext, GatedCT, GSoP, FCA, ECA])
def test_the_others_start_warm_in_any_place(attn_layer, plain):
    backbone, from_file = plain
    model = create_model('csa_resnet18', block_args=dict(attn_layer=attn_layer), **from_file).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), backbone(x))


@pytest.mark.parametrize('name', ['eca', 'cbam', 'bam', 'fca', 'gct', 'gsop', 'gala'])
def test_our_own_keys_stay(name):
    model = create_model(f'{name}_resnet50', device='meta')
    assert all(model.rename_key(key) == key for key in model.state_dict())
    converted = model.convert_state_dict(model.state_dict())
    assert converted.keys() == model.state_dict().keys()
