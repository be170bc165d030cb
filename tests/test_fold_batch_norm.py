"""The inference form of a model: as exact as the model, as ordinary, and careful about what it folds."""

import copy
import re
from functools import partial

import pytest
import timm
import torch
from costs import DEEP
from test_export import SMALLEST
from test_models import MODELS, close, small_image, wake_up
from timm.layers import convert_sync_batchnorm, freeze_batch_norm_2d
from timm.layers.std_conv import StdConv2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrizations

from timm_attn.fold_batch_norm import optimize

# In float64 what is left of a difference is a mistake; the float32 rounding of mobilenext alone is 2e-5 at this size.
exactly = partial(close, tolerance=1e-10)


def build(name, **kwargs):
    return wake_up(timm.create_model(name, **kwargs)).double().eval()


def norms(model):
    return [key for key, m in model.named_modules() if isinstance(m, _BatchNorm)]


# Norms that follow no convolution: those after attention in its place, and that of the rows of a covariance.
KEPT = {'aa': r'layer[2-4]\.\d+\.bn2$', 'sasa': r'layer\d\.\d+\.bn2$', 'gsop': r'\.row_bn$'}


def norms_to_keep(name, model):
    return [key for key in norms(model) if re.search(KEPT.get(name.partition('_')[0], '^$'), key)]


def optimized_and_compared(model, x, **kwargs):
    fast = optimize(model, **kwargs)
    assert type(fast) is type(model)
    with torch.no_grad():
        got, expected = fast(x), model(x)
    assert type(got) is type(expected)
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        got, expected = got.values(), expected.values()
    for g, e in [(got, expected)] if isinstance(expected, torch.Tensor) else zip(got, expected, strict=True):
        exactly(g, e)
    return fast


@pytest.mark.parametrize('name', MODELS)
def test_computes_the_same(name):
    model = build(name)
    before = copy.deepcopy(model)
    fast = optimized_and_compared(model, small_image(name).double())
    assert norms(model)
    assert norms(fast) == norms_to_keep(name, model)
    assert not any(p.requires_grad for p in fast.parameters())
    assert not any(m.training for m in fast.modules())

    torch.testing.assert_close(model.state_dict(), before.state_dict(), rtol=0, atol=0)
    assert all(p.requires_grad for p in model.parameters())
    for m, was in zip(model.modules(), before.modules(), strict=True):
        assert type(m) is type(was)
        assert m.training is was.training
        assert not m._forward_hooks
        assert not m._forward_pre_hooks


@pytest.mark.parametrize('name', ['resnet18', 'mobilenetv2_050', 'tf_efficientnet_b0', 'regnetx_002'])
def test_models_of_timm(name):
    model = build(name)
    assert not norms(optimized_and_compared(model, torch.randn(2, 3, 64, 64, dtype=torch.float64)))


@pytest.mark.parametrize('name', [m for m in MODELS if m not in DEEP])
def test_features_only(name):
    model = build(name, features_only=True, in_chans=1, output_stride=8)
    fast = optimized_and_compared(model, small_image(name)[:, :1, :32, :32].double())
    assert norms(fast) == norms_to_keep(name, model)
    assert fast.feature_info.channels() == model.feature_info.channels()


@pytest.mark.parametrize('feature_cls', ['dict', 'hook', 'getter'])
@pytest.mark.parametrize('name', SMALLEST.values())
def test_feature_extractors(name, feature_cls):
    model = build(name, features_only=True, feature_cls=feature_cls)
    assert norms(optimized_and_compared(model, small_image(name).double())) == norms_to_keep(name, model)


@pytest.mark.parametrize('name', SMALLEST.values())
def test_is_an_ordinary_model(name):
    x = small_image(name).double()
    model = build(name, num_classes=0)
    fast = optimized_and_compared(model, x)
    with torch.inference_mode():
        exactly(fast.forward_head(fast.forward_features(x), pre_logits=True), model(x))
        for got, expected in zip(*(m.forward_intermediates(x, intermediates_only=True) for m in (fast, model)),
                                 strict=True):  # fmt: skip
            exactly(got, expected)
        fast.reset_classifier(5)
        assert fast(x).shape == (2, 5)

        model.to(memory_format=torch.channels_last)
        fast = optimized_and_compared(model, x.contiguous(memory_format=torch.channels_last))
    for key, p in fast.named_parameters():
        if p.ndim == 4:
            assert p.is_contiguous(memory_format=torch.channels_last), key


@pytest.mark.heavy
@pytest.mark.parametrize('name', SMALLEST.values())
def test_ways_out_of_eager(name):
    model = build(name, exportable=True)
    x = small_image(name, 3).double()
    fast = optimize(model)
    batch = dict(dynamic_shapes=({0: torch.export.Dim('batch', min=1, max=64)},))
    with torch.no_grad():
        expected = model(x)
        exactly(torch.jit.script(fast)(x), expected)
        exactly(torch.export.export(fast, (x,), **batch).module()(x[:1]), expected[:1])
        exactly(torch.compile(fast, fullgraph=True, backend='aot_eager')(x), expected)


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize('name', SMALLEST.values())
def test_onnx(name, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    model = wake_up(timm.create_model(name, exportable=True)).eval()
    x = small_image(name)
    path = str(tmp_path / 'model.onnx')
    torch.onnx.export(optimize(model), (x,), path, dynamo=True, external_data=False)
    session = onnxruntime.InferenceSession(path)
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        close(torch.from_numpy(out), model(x), 1e-4)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_types(dtype):
    model = wake_up(timm.create_model('mbv2_ca_050', act_layer='prelu')).to(dtype).eval()
    x = small_image('mbv2_ca_050')
    fast, exact = optimize(model), optimize(copy.deepcopy(model).double())
    for key, value in exact.state_dict().items():
        got = fast.state_dict()[key]
        assert got.dtype == dtype
        # rounded once
        torch.testing.assert_close(got.double(), value, rtol=0.51 * torch.finfo(dtype).eps, atol=1e-7)
    with torch.no_grad():
        close(fast(x.to(dtype)).double(), exact(x.double()), 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize('convert', [convert_sync_batchnorm, freeze_batch_norm_2d])
def test_converted_norms(convert):
    model = convert(build('mbv2_cbam'))
    fast = optimized_and_compared(model, small_image('mbv2_cbam').double())
    assert not [m for m in fast.modules() if 'Norm' in type(m).__name__ and type(m).__name__ != 'ConvNormAct']


@pytest.mark.parametrize('name', SMALLEST.values())
def test_second_call_changes_nothing(name):
    fast = optimize(build(name))
    again = optimize(fast)
    assert again is not fast
    assert repr(again) == repr(fast)
    torch.testing.assert_close(again.state_dict(), fast.state_dict(), rtol=0, atol=0)


def test_training_mode_is_refused():
    model = timm.create_model('resnet20_cifar')
    with pytest.raises(ValueError, match=r'call model\.eval\(\) first'):
        optimize(model)
    model.eval().stages[0][0].bn1.train()
    with pytest.raises(ValueError, match=r'call model\.eval\(\) first'):
        optimize(model)


class Tiny(nn.Module):
    """One convolution and one norm, in the ways ``forward`` says."""

    def __init__(self, forward):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.how = forward

    def forward(self, x):
        return self.how(self, x)


def tiny(forward=lambda m, x: m.norm(m.conv(x))):
    return wake_up(Tiny(forward)).double().eval()


TINY_IMAGE = torch.linspace(-1, 1, 2 * 3 * 8 * 8, dtype=torch.float64).view(2, 3, 8, 8)


def shared_output(m, x):
    x = m.conv(x)
    return x + m.norm(x)


def changed_output(m, x):
    return m.norm(m.conv(x).relu_())


def returned_output(m, x):
    x = m.conv(x)
    return x, m.norm(x)


@pytest.mark.parametrize(
    'forward',
    [
        shared_output,
        changed_output,
        returned_output,
        lambda m, x: m.norm(m.conv(m.conv(x))),  # convolution called twice
        lambda m, x: m.norm(m.norm(m.conv(x))),  # norm called twice
        lambda m, x: m.norm(m.conv(x)) + nn.functional.conv2d(x, m.conv.weight, padding=1),  # weight used elsewhere
        lambda m, x: m.conv(m.norm(x)),  # the other way round
        lambda m, x: m.conv(x),  # norm not called
    ],
)
def test_other_uses_are_left_alone(forward):
    fast = optimized_and_compared(tiny(forward), TINY_IMAGE, input_size=(3, 8, 8))
    assert norms(fast) == ['norm']


def test_other_layers_are_left_alone():
    compare = partial(optimized_and_compared, x=TINY_IMAGE, input_size=(3, 8, 8))
    assert not norms(compare(tiny()))

    model = tiny()
    model.conv = wake_up(StdConv2d(3, 3, 3, padding=1)).double().eval()
    assert norms(compare(model))
    model = tiny()
    parametrizations.weight_norm(model.conv)
    assert norms(compare(model))
    model = tiny()
    model.norm = nn.BatchNorm2d(3, track_running_stats=False, dtype=torch.float64).eval()
    assert norms(compare(model))
    model = tiny()
    model.norm = nn.GroupNorm(1, 3, dtype=torch.float64).eval()
    assert isinstance(compare(model).norm, nn.GroupNorm)


def test_hooks_see_what_they_saw():
    for module, hook in [('conv', 'forward'), ('norm', 'forward'), ('norm', 'forward_pre')]:
        model, seen = tiny(), []
        register = getattr(getattr(model, module), f'register_{hook}_hook')
        register(lambda *args, seen=seen: seen.append(args[-1][0]))
        fast = optimized_and_compared(model, TINY_IMAGE, input_size=(3, 8, 8))
        exactly(*seen[-2:])
        assert bool(norms(fast)) is ((module, hook) != ('norm', 'forward'))


def test_a_norm_with_two_names():
    model = tiny(lambda m, x: m.alias[0](m.conv(x)))
    model.alias = nn.Sequential(model.norm)
    assert not norms(optimized_and_compared(model, TINY_IMAGE, input_size=(3, 8, 8)))


def test_input_size():
    model = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 1), nn.BatchNorm2d(4)).eval()
    with pytest.raises(ValueError, match='pass input_size'):
        optimize(model)
    assert not norms(optimize(model, input_size=(3, 8, 8)))
    optimize(nn.Sequential(nn.Conv2d(3, 3, 1)).eval())  # nothing to fold
