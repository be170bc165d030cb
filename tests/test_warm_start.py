"""Warm starts: the plain backbone's function, bit for bit, and gradients in the attention from the first step."""

import logging
from functools import partial

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import resolve_data_config
from timm.layers import SEModule
from timm.layers.coord_attn import CoordAttn
from torch import nn

from timm_attn.layers import CSA, SCSA, attention_of
from timm_attn.models import zoo_models
from timm_attn.models.info import find_weight
from timm_attn.weights import CheckpointError, plain_backbone, weights
from timm_attn.weights.warm_start import attention_sites

WARM = [w for w in map(find_weight, zoo_models(pretrained=True)) if w.kind == 'warm_start']
DEEP = tuple(w.arch for w in WARM if w.arch.endswith(('_resnet34', '_resnet101')))
by_name = pytest.mark.parametrize(
    'weight', [pytest.param(w, id=w.name, marks=[pytest.mark.slow] * (w.arch in DEEP)) for w in WARM]
)


def plain(weight, **kwargs):
    """The plain backbone with random weights and statistics that hide nothing."""
    model = timm.create_model(weight.base_weight.partition('.')[0], **kwargs)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def warm(weight, state_dict, tmp_path, **kwargs):
    save_file(state_dict, tmp_path / 'plain.safetensors')
    overlay = dict(file=str(tmp_path / 'plain.safetensors'))
    return timm.create_model(weight.name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)


def identical(a, b):
    return torch.equal(a, b) and bool(a.isfinite().all()) and a.std() > 0


@by_name
def test_logits_are_those_of_the_plain_backbone(weight, tmp_path, caplog):
    backbone = plain(weight)
    with caplog.at_level(logging.INFO, 'timm_attn'):
        model = warm(weight, backbone.state_dict(), tmp_path)
    message = 'weights of the plain backbone; the attention starts as an exact identity.'
    assert f'{weight.arch}: {message}' in caplog.messages
    x = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        assert identical(model.eval()(x), backbone(x))
        sizes = [k for k, v in attention_output(model, x).items() if not v]
    assert not sizes  # each attention multiplies by its power of two, exactly

    channels_last = torch.randn(1, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert identical(model(channels_last), backbone(channels_last))


def attention_output(model, x):
    found = {}

    def note(name):
        def hook(module, args, out):
            out = out[0] if isinstance(out, tuple) else out  # beside it the state of an attention that blocks share
            ratio = (out / args[0])[args[0] != 0]
            found[name] = bool((ratio == ratio[0]).all()) and ratio[0].item() in (0.5, 0.25, 0.125)

        return hook

    hooks = [attn.register_forward_hook(note(name)) for name, attn, *_ in attention_sites(model)]
    model(x)
    for hook in hooks:
        hook.remove()
    assert len(found) == len(hooks) > 0
    return found


@by_name
def test_the_attention_learns_from_the_first_step(weight, tmp_path):
    model = warm(weight, plain(weight).state_dict(), tmp_path).train()
    x = torch.randn(4, 3, 64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nn.functional.cross_entropy(model(x), torch.arange(4)).backward()
    sites = list(attention_sites(model))
    assert sites
    for name, attn, *_ in sites:
        for key, parameter in attn.named_parameters():
            assert parameter.grad is not None, f'{name}.{key}'
            assert parameter.grad.isfinite().all(), f'{name}.{key}'
            if key.rpartition('.')[0] in attention_of(attn).zeroed:  # what precedes a zero layer has none yet
                assert parameter.grad.abs().max() > 0, f'{name}.{key}'
    optimizer.step()
    model.eval()
    with torch.no_grad():
        assert not any(attention_output(model, x[:1]).values())


@by_name
def test_adapted(weight, tmp_path):
    backbone = plain(weight)
    model = warm(weight, backbone.state_dict(), tmp_path, num_classes=7).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert identical(model.forward_features(x), backbone.forward_features(x))
        assert model(x).shape == (1, 7)
        # as timm's training script gives it with --pretrained-path
        again = dict(file=str(tmp_path / 'plain.safetensors'), num_classes=-1)
        model = timm.create_model(weight.arch, pretrained=True, pretrained_cfg_overlay=again, num_classes=7).eval()
        assert identical(model.forward_features(x), backbone.forward_features(x))

        one = warm(weight, backbone.state_dict(), tmp_path, in_chans=1).eval()
        save_file(backbone.state_dict(), tmp_path / 'base.safetensors')
        overlay = dict(file=str(tmp_path / 'base.safetensors'))
        grey = timm.create_model(
            weight.base_weight.partition('.')[0], pretrained=True, pretrained_cfg_overlay=overlay, in_chans=1
        ).eval()
        assert identical(one(x[:, :1]), grey(x[:, :1]))

        maps = warm(weight, backbone.state_dict(), tmp_path, features_only=True).eval()(x)
        expected = timm.create_model(
            weight.base_weight.partition('.')[0], pretrained=True, pretrained_cfg_overlay=overlay, features_only=True
        ).eval()(x)
        assert len(maps) == len(expected)
        assert all(identical(a, b) for a, b in zip(maps, expected, strict=True))


@pytest.mark.parametrize('weight', WARM, ids=lambda w: w.name)
def test_images_are_prepared_as_for_the_base_weight(weight):
    for test_size in (False, True):
        config, base = (
            resolve_data_config(pretrained_cfg=timm.models.get_pretrained_cfg(n).to_dict(), use_test_size=test_size)
            for n in (weight.name, weight.base_weight)
        )
        assert config == base


@pytest.mark.parametrize('name', [n for n in zoo_models('*_cifar') if plain_backbone(n) != n])
def test_small_networks_start_from_their_plain_one(name, tmp_path):
    backbone = timm.create_model(plain_backbone(name), pretrained=True).eval()
    save_file(backbone.state_dict(), tmp_path / 'plain.safetensors')
    overlay = dict(file=str(tmp_path / 'plain.safetensors'))
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert identical(model(x), backbone(x))


@pytest.mark.parametrize(('blocks', 'attn'), [('all', CSA), ('last', SEModule), ('all', CoordAttn)])
def test_other_places_and_layers(blocks, attn, tmp_path):
    weight = weights()['csa_resnet18.warm_a1_in1k']
    backbone = plain(weight)
    model = warm(weight, backbone.state_dict(), tmp_path, csa_blocks=blocks, block_args=dict(attn_layer=attn)).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert identical(model(x), backbone(x))


def test_what_cannot_be_an_identity_says_so(tmp_path):
    weight = weights()['csa_resnet18.warm_a1_in1k']
    state_dict = plain(weight).state_dict()
    with pytest.raises(CheckpointError, match='EcaModule'):
        warm(weight, state_dict, tmp_path, block_args=dict(attn_layer='eca'))
    scsa = weights()['scsa_resnet18.warm_a1_in1k']
    softmax = dict(attn_layer=partial(SCSA, gate_layer='softmax'))
    with pytest.raises(CheckpointError, match='gate at zero'):
        warm(scsa, state_dict, tmp_path, block_args=softmax)


def test_half_a_checkpoint_is_not_a_plain_backbone(tmp_path):
    weight = weights()['csa_resnet18.warm_a1_in1k']
    full = timm.create_model('csa_resnet18').state_dict()
    half = {k: v for k, v in full.items() if not k.startswith('layer4.1.se.')}
    with pytest.raises(CheckpointError, match=r'4 missing \(layer4\.1\.se\.fc1\.weight'):
        warm(weight, half, tmp_path)
    state_dict = plain(weight).state_dict()
    del state_dict['layer1.0.conv1.weight']
    with pytest.raises(CheckpointError, match=r'1 missing \(layer1\.0\.conv1\.weight\)'):
        warm(weight, state_dict, tmp_path)
    with pytest.raises(CheckpointError, match='another architecture'):
        warm(weight, timm.create_model('mobilenetv2_100').state_dict(), tmp_path)


def test_full_checkpoints_are_loaded_as_they_are(tmp_path):
    weight = weights()['csa_resnet18.warm_a1_in1k']
    full = timm.create_model('csa_resnet18').state_dict()
    model = warm(weight, full, tmp_path)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in full.items())
