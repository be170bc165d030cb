"""The contract of every registered model, with timm and with its users. A new model is covered once registered."""

import copy
import pickle
import re

import pytest
import timm
import torch
from costs import EXHAUSTIVE, SLOW
from golden import MODEL_CASES, authors_state_dict, load_model_case, model_arguments, rule_image
from packaging.version import Version
from safetensors.torch import load_file, save_file
from timm.layers.coord_attn import CoordAttn
from timm.models import get_pretrained_cfg, group_parameters
from timm.optim import create_optimizer_v2

from timm_attn.layers import CSA, FCA, SCSA
from timm_attn.models import zoo_models
from timm_attn.models.staged import StagedNet
from timm_attn.weights.warm_start import attention_keys

MODELS = zoo_models()
BACKBONES = [m for m in MODELS if not m.endswith('_cifar')]  # made for ImageNet: total stride 32
OLD_TIMM = Version(timm.__version__) < Version('1.0.31')
each_model = pytest.mark.parametrize('name', MODELS)

# Exact where the authors' code or checkpoint gives the number, else as the papers report it
PARAMETERS = {
    'csa_resnet50': 26_257_432,
    'scsa_resnet50': 25_617_448,
    'scsa_resnet101': 44_679_208,
    'eca_resnet50': 25_557_112,
    'eca_resnet101': 44_549_325,
    'cbam_resnet50': 28_089_624,
    'cbam_resnet101': 49_330_172,
    'bam_resnet50': 25_915_099,
    'bam_resnet101': 44_907_227,
    'fca_resnet50': 28_071_976,
    'fca_resnet101': 49_292_328,
    'gct_resnet50': 25_557_032,
    'gct_resnet101': 44_549_160,
    'gsop_resnet50': 28_285_224,
    'gsop_resnet101': 47_277_352,
    'mbv2_ca': 3_950_648,
    'mbv2_ca_075': 2_891_631,
    'mbv2_ca_050': 2_095_568,
    'mbv2_scsa': 3_619_048,
    'mobilenext': 3_535_416,
}
REPORTED_MILLIONS = {
    'csa_resnet101': 45.2,
    'gala_resnet50': 29.4,
    'mbv2_se': 3.89,
    'mbv2_cbam': 3.89,
    'resnet20_cifar': 0.27,
}


def image(name, batch=2, size=None, **kwargs):
    channels, *default = get_pretrained_cfg(name).input_size
    return torch.randn(batch, channels, *(size or default), **kwargs)


def small_image(name, batch=2):
    return image(name, batch, (32, 32) if name.endswith('_cifar') else (64, 64))


def close(got, expected, tolerance=1e-5):
    """Equal relative to the largest value: an absolute tolerance would pass anything on a small scale."""
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


def wake_up(model):
    """Move away from initial values, whose zeros and ones would hide mistakes."""
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith('running_var'):
                value.uniform_(0.5, 1.5)
            elif value.is_floating_point():
                value.add_(torch.randn_like(value) * 0.02)
    return model


def test_the_zoo_is_complete():
    names = {
        *(f'{p}_resnet{d}' for p in ('csa', 'scsa') for d in (18, 34, 50, 101)),
        *('mbv2_ca', 'mbv2_ca_075', 'mbv2_ca_050', 'mbv2_se', 'mbv2_cbam', 'mbv2_scsa'),
        *('mobilenext', 'mobilenext_se', 'mobilenext_ca'),
        *(f'{p}_resnet{d}' for p in ('eca', 'cbam', 'bam', 'fca', 'gct', 'gsop', 'gala') for d in (50, 101)),
        *(f'{p}resnet20_cifar' for p in ('', 'se_', 'cbam_', 'ca_', 'csa_', 'scsa_')),
    }
    assert names <= set(MODELS)


@pytest.mark.counts
@pytest.mark.parametrize(('name', 'params'), PARAMETERS.items())
def test_parameter_count(name, params):
    model = timm.create_model(name, device='meta')
    assert sum(p.numel() for p in model.parameters()) == params


@pytest.mark.counts
@pytest.mark.parametrize(('name', 'millions'), REPORTED_MILLIONS.items())
def test_parameter_count_rounds_to_the_reported(name, millions):
    model = timm.create_model(name, device='meta')
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, len(str(millions).split('.')[1])) == millions


@pytest.mark.parametrize('through', ['pretrained', 'checkpoint_path'])
@pytest.mark.parametrize('case_name', [pytest.param(c, marks=[pytest.mark.slow] * ('101' in c)) for c in MODEL_CASES])
def test_authors_numbers(case_name, through, tmp_path):
    case = load_model_case(case_name)
    name, model_args = case['model'], model_arguments(case)
    dtype = getattr(torch, case.get('dtype', 'float32'))
    path = str(tmp_path / 'authors.pth')
    torch.save(authors_state_dict(case), path)
    if through == 'pretrained':
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=path), **model_args)
    else:
        model = timm.create_model(name, checkpoint_path=path, **model_args)
    assert sum(p.numel() for p in model.parameters()) == case['params']

    x = rule_image(case['input']).to(dtype)
    model.eval().to(dtype)
    for module in model.modules():
        if isinstance(module, FCA):  # the authors' table of cosines is rounded to float32, whatever the type
            module.table.copy_(module.table.float())
    with torch.no_grad():
        if 'backbone' in case['note']:
            stages = model.forward_intermediates(x, intermediates_only=True)[1:]
            out = torch.cat([stage.mean((2, 3)) for stage in stages], dim=1)
        else:
            out = model(x)
    assert list(out.shape) == case['out_shape']
    torch.testing.assert_close(out[:, :32], torch.tensor(case['out'], dtype=dtype), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(out.norm(dim=1), torch.tensor(case['out_norm'], dtype=dtype), rtol=1e-3, atol=0)


# torch has no fast kernels of float16 for CPUs
@pytest.mark.parametrize('autocast', [None, torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
@each_model
def test_finite_at_initialisation(name, autocast):
    model = timm.create_model(name, num_classes=5)
    x = small_image(name)
    with torch.autocast('cpu', autocast or torch.bfloat16, enabled=autocast is not None):
        out = model.train()(x)
        assert out.isfinite().all()
        out.float().square().mean().backward()
        assert model.eval()(x).isfinite().all()
    for key, p in model.named_parameters():
        assert p.grad is not None, key
        assert p.grad.isfinite().all(), key


@pytest.mark.parametrize('value', [0.0, 0.7])
@each_model
def test_finite_on_constant_images(name, value):
    model = timm.create_model(name, num_classes=5)
    x = torch.full_like(small_image(name), value).requires_grad_()
    out = model.train()(x)
    out.square().mean().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert model.eval()(x).isfinite().all()


@each_model
def test_input_sizes(name):
    model = timm.create_model(name).eval()
    with torch.inference_mode():
        for size in [(32, 32), (64, 64), (96, 96), (161, 161), (224, 224), (256, 192)]:
            assert model(image(name, 1, size)).isfinite().all(), size


@each_model
def test_an_image_does_not_depend_on_its_batch(name):
    model = wake_up(timm.create_model(name)).eval()
    x = small_image(name, 5)
    with torch.inference_mode():
        together = model(x)
        alone = torch.cat([model(one) for one in x.split(1)])
    close(alone, together, 1e-4)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
@each_model
def test_dtype(name, dtype):
    model = timm.create_model(name, dtype=dtype).eval()
    assert {t.dtype for t in model.state_dict().values() if t.is_floating_point()} == {dtype}
    out = model(small_image(name).to(dtype))
    assert out.dtype == dtype
    assert out.isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@each_model
def test_on_cuda(name):
    model = wake_up(timm.create_model(name)).eval()
    x = small_image(name)
    expected = model(x)
    model, x = model.cuda(), x.cuda()
    close(model(x).cpu(), expected, 1e-2)  # TF32 convolutions
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast('cuda', dtype):
            out = model.train()(x)
        out.float().square().mean().backward()
        assert out.isfinite().all()
    assert {p.device.type for p in timm.create_model(name, device='cuda').parameters()} == {'cuda'}


@each_model
def test_copies_and_formats_compute_the_same(name, tmp_path):
    model = wake_up(timm.create_model(name)).eval()
    x = small_image(name)
    with torch.inference_mode():
        expected = model(x)
        assert torch.equal(copy.deepcopy(model)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)

        save_file(model.state_dict(), tmp_path / 'model.safetensors')
        again = timm.create_model(name, checkpoint_path=str(tmp_path / 'model.safetensors')).eval()
        for key, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[key], value), key
        assert load_file(tmp_path / 'model.safetensors').keys() == model.state_dict().keys()
        assert torch.equal(again(x), expected)

        model.to(memory_format=torch.channels_last)
        out = model(x.contiguous(memory_format=torch.channels_last))
        close(out, expected, 1e-4)


@each_model
def test_save_and_load_as_local_dir(name, tmp_path):
    model = wake_up(timm.create_model(name, num_classes=3)).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    x = small_image(name)
    with torch.inference_mode():
        assert torch.equal(again(x), model(x))


@each_model
def test_heads(name):
    x = small_image(name)
    model = wake_up(timm.create_model(name, num_classes=7, in_chans=3, global_pool='max', drop_rate=0.1)).eval()
    with torch.inference_mode():
        features = model.forward_features(x)
        pooled = model.forward_head(features, pre_logits=True)
        assert features.shape[:2] == (2, model.num_features)
        assert pooled.shape == (2, model.head_hidden_size)
        assert model(x).shape == (2, 7)
        close(pooled, features.amax((2, 3)))
        kept = () if isinstance(model, StagedNet) or not OLD_TIMM else ('max',)
        model.reset_classifier(5, *kept)
        close(model.forward_head(features, pre_logits=True), pooled)
        assert model(x).shape == (2, 5)
        model.reset_classifier(0, *kept)
        close(model(x), pooled)
        model.reset_classifier(0, '')
        close(model(x), features)
        one_channel = timm.create_model(name, in_chans=1).eval()
        assert one_channel(x[:, :1]).isfinite().all()


@each_model
def test_features_only(name):
    x = small_image(name)
    whole = wake_up(timm.create_model(name)).eval()
    backbone = timm.create_model(name, features_only=True).eval()
    result = backbone.load_state_dict({k.replace('stages.', 'stages_').replace('blocks.', 'blocks_'): v
                                       for k, v in whole.state_dict().items()}, strict=False)  # fmt: skip
    assert not result.missing_keys
    with torch.inference_mode():
        final, maps = whole.forward_intermediates(x)
        close(final, whole.forward_features(x))
        for expected, got, chs, stride in zip(
            maps, backbone(x), backbone.feature_info.channels(), backbone.feature_info.reduction(), strict=True
        ):
            close(got, expected)
            assert got.shape[1:] == (chs, x.shape[2] // stride, x.shape[3] // stride)
        two = timm.create_model(name, features_only=True, out_indices=(1, -1)).eval()
        assert [f.shape for f in two(x)] == [maps[1].shape, maps[-1].shape]


@pytest.mark.parametrize('output_stride', [8, 16, 32])
@each_model
def test_output_stride(name, output_stride):
    backbone = timm.create_model(name, features_only=True, output_stride=output_stride).eval()
    x = small_image(name)
    total = min(output_stride, 4 if name.endswith('_cifar') else 16 if name.startswith('gsop') else 32)
    assert backbone.feature_info.reduction()[-1] == total
    assert backbone(x)[-1].shape[2:] == (x.shape[2] // total, x.shape[3] // total)
    # dilation does not change the weights
    whole = timm.create_model(name, output_stride=output_stride, device='meta')
    assert whole.state_dict().keys() == timm.create_model(name, device='meta').state_dict().keys()


@pytest.mark.parametrize('features_only', [False, True])
@pytest.mark.parametrize('name', [m for m in MODELS if m not in SLOW | EXHAUSTIVE])
def test_gradient_checkpointing_changes_nothing(name, features_only):
    if features_only and 'resnet' in name and name in BACKBONES and OLD_TIMM:
        pytest.skip("the feature extractors of older timm's ResNets fail at this by themselves")
    x = small_image(name)
    grads = []
    for enable in (False, True):
        torch.manual_seed(0)
        model = timm.create_model(name, features_only=features_only).train()
        model.set_grad_checkpointing(enable)
        out = model(x)
        sum(o.square().mean() for o in (out if features_only else [out])).backward()
        grads.append({k: p.grad for k, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for key, grad in grads[0].items():
        torch.testing.assert_close(grads[1][key], grad, rtol=1e-3, atol=1e-5, msg=lambda m, key=key: f'{key}: {m}')


@each_model
def test_for_optimisers(name):
    model = timm.create_model(name, device='meta')
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        assert groups.keys() == {k for k, _ in model.named_parameters()}
        assert len(set(groups.values())) > 3
    assert set(model.no_weight_decay()) <= {k for k, _ in model.named_parameters()}
    # where the learning rate falls with depth, it stays whole for the attention, as for the classifier
    groups = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    attention = attention_keys(model) & groups.keys()
    assert all(groups[key] == max(groups.values()) for key in attention)
    others = {key: group for key, group in groups.items() if key not in attention}
    assert [key for key, group in others.items() if group == max(groups.values())][-2:] == list(others)[-2:]
    assert len(set(others.values())) > 5


@each_model
def test_parts_can_be_trained_alone(name):
    free = timm.create_model(name, num_classes=3)
    attention = attention_keys(free)
    if not attention:
        with pytest.raises(ValueError, match='no attention'):
            timm.create_model(name, trainable='attention')
    model = timm.create_model(name, num_classes=3, trainable='attention,head' if attention else ['head'])
    head = free.pretrained_cfg['classifier']
    parts = attention | {f'{head}.weight', f'{head}.bias'}
    assert {k for k, p in model.named_parameters() if p.requires_grad} == parts & dict(free.named_parameters()).keys()
    model.load_state_dict(wake_up(free).state_dict())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    images = small_image(name, 4)
    torch.testing.assert_close(model.eval()(images), free.eval()(images), rtol=1e-4, atol=1e-4)
    optimizer = create_optimizer_v2(model, 'sgd', lr=0.1)
    torch.nn.functional.cross_entropy(model.train()(images), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert changed <= parts
    free.load_state_dict(model.state_dict())  # the same weights, where all of it can be trained


def test_unknown_parts_are_refused():
    for trainable in ('neck', '', 'attention, head', []):
        with pytest.raises(ValueError, match="must be one of 'attention', 'head', 'attention,head'"):
            timm.create_model('csa_resnet18', trainable=trainable)
    features = timm.create_model('csa_resnet18', features_only=True, trainable='attention')
    assert {k.split('.')[-3] for k, p in features.named_parameters() if p.requires_grad} == {'se'}


@each_model
def test_drop_path(name):
    model = timm.create_model(name, drop_path_rate=0.5).train()
    assert any(isinstance(m, timm.layers.DropPath) and m.drop_prob for m in model.modules())
    model(small_image(name)).sum().backward()


@each_model
def test_unknown_argument_is_refused(name):
    with pytest.raises(TypeError, match='not_an_argument'):
        timm.create_model(name, not_an_argument=1, device='meta')


@each_model
def test_every_kind_of_parameter_gets_a_gradient(name):
    model = wake_up(timm.create_model(name, num_classes=3)).train()
    torch.nn.functional.cross_entropy(model(small_image(name, 4)), torch.tensor([0, 1, 2, 0])).backward()
    # Of one kind, the copies in some blocks may get none: all hidden units of a narrow gate may be dead there.
    kinds = {}
    for key, p in model.named_parameters():
        kind = re.sub(r'\d+', 'N', key)
        kinds[kind] = kinds.get(kind, False) or bool(p.grad.any())
    assert [kind for kind, reached in kinds.items() if not reached] == []


def test_csa_blocks():
    count = {}
    for blocks in ('last', 'all'):
        model = timm.create_model('csa_resnet50', csa_blocks=blocks, device='meta')
        count[blocks] = sum(b.se is not None for layer in (1, 2, 3, 4) for b in getattr(model, f'layer{layer}'))
    assert count == {'last': 4, 'all': 16}
    with pytest.raises(ValueError, match='last, all'):
        timm.create_model('csa_resnet50', csa_blocks='first', device='meta')


@pytest.mark.parametrize('attn_layer', ['eca', timm.layers.EcaModule])
@pytest.mark.parametrize('name', ['csa_resnet18', 'scsa_resnet18', 'mbv2_ca', 'mobilenext_ca', 'csa_resnet20_cifar'])
def test_another_attention(name, attn_layer):
    where = dict(attn_layer=attn_layer) if name.startswith('m') else dict(block_args=dict(attn_layer=attn_layer))
    model = timm.create_model(name, num_classes=2, **where)
    assert any(isinstance(m, timm.layers.EcaModule) for m in model.modules())
    assert not any(isinstance(m, CSA | SCSA | CoordAttn) for m in model.modules())
    model(small_image(name)).sum().backward()


@pytest.mark.parametrize('name', ['csa_resnet18', 'scsa_resnet18', 'se_resnet20_cifar', 'csa_resnet20_cifar'])
def test_no_attention(name):
    model = timm.create_model(name, block_args=dict(attn_layer=None))
    plain = timm.create_model('resnet18' if name.endswith('18') else 'resnet20_cifar')
    model.load_state_dict(plain.state_dict())
    x = small_image(name)
    assert torch.equal(model.eval()(x), plain.eval()(x))


@pytest.mark.parametrize('name', ['csa_resnet18', 'mbv2_ca', 'mobilenext', 'resnet20_cifar'])
def test_another_norm(name):
    model = timm.create_model(name, norm_layer='groupnorm1', act_layer='gelu')
    body = [m for key, m in model.named_modules() if '.se.' not in key]  # coordinate attention has its own norm
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in body)
    assert model(small_image(name)).isfinite().all()


@pytest.mark.parametrize('name', ['mobilenext', 'resnet20_cifar'])
def test_dilation_computes_the_strided_output_more_densely(name):
    # true of networks in which no layer sees the whole map
    strided = wake_up(timm.create_model(name)).eval()
    output_stride = 8 if name == 'mobilenext' else 1
    dense = timm.create_model(name, output_stride=output_stride).eval()
    dense.load_state_dict(strided.state_dict())
    x = small_image(name)
    with torch.inference_mode():
        expected = strided.forward_features(x)
        got = dense.forward_features(x)
        step = got.shape[-1] // expected.shape[-1]
        assert step == 4
        close(got[:, :, ::step, ::step], expected)


@pytest.mark.parametrize('name', ['mobilenext', 'resnet20_cifar'])
def test_wrong_output_stride(name):
    with pytest.raises(ValueError, match='output_stride=7'):
        timm.create_model(name, output_stride=7)
