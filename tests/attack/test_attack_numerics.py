"""Every attention against its paper's formula in float64, values and gradients, over all magnitudes of float32.

Where float32 does not allow 1e-4 the tables say so; the results are finite in any case.
"""

import copy
import math
from concurrent.futures import ThreadPoolExecutor

import formulas
import pytest
import timm
import torch
from torch.nn.modules.batchnorm import _BatchNorm as _Norm

from timm_attn.layers import CSA, csa_descriptor, get_attention, list_attentions
from timm_attn.layers.csa import CSA_MODES
from timm_attn.models import zoo_models

TOLERANCE = 1e-4  # of the largest value
EXPONENTS = range(-30, 31)
CHANNELS, SIZE = 24, (14, 7)


def csa(layer, x):
    """CSA in any mode: local Moran's I, whose weights are constants for the gradient."""
    f = x.detach().flatten(2)
    if layer.mode == 'cosine':
        distance = near = 1.0
    else:
        distance = torch.linalg.vector_norm(f[:, :, None] - f[:, None], ord=1 if layer.mode == 'l1' else 2, dim=3)
        near = torch.exp(-distance / distance.mean((1, 2), keepdim=True))
    norm = torch.linalg.vector_norm(f, dim=2, keepdim=True)
    unit = f / torch.where(norm > 0, norm, 1.0)
    cosine = unit @ unit.transpose(1, 2)
    v = {'hybrid': near * cosine.clamp(min=0), 'cosine': cosine}.get(layer.mode, near)
    v = v * (1 - torch.eye(f.shape[1], dtype=f.dtype))
    z = standardize(x.mean((2, 3)))
    total = v.sum((1, 2), keepdim=True)
    moran = z * (v / total @ z.unsqueeze(2)).squeeze(2)
    return x * layer.fc2(layer.fc1(standardize(moran)).relu()).sigmoid()[:, :, None, None]


def standardize(x):
    x = x / x.detach().abs().amax(1, keepdim=True)  # float64 ends as well: 1e-30 ** 12 is zero
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)


def squeeze_excite(layer, x):
    return x * layer.fc2(layer.fc1(x.mean((2, 3), keepdim=True)).clamp(0, 6)).sigmoid()


def cbam(layer, x):
    def hidden(y):
        return layer.channel.fc2(layer.channel.fc1(y).relu())

    x = x * (hidden(x.mean((2, 3), keepdim=True)) + hidden(x.amax((2, 3), keepdim=True))).sigmoid()
    return x * layer.spatial.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()


FORMULAS = dict(csa=csa, se=squeeze_excite, cbam=cbam, scsa=formulas.scsa, ca=formulas.coord_attn)
LAYERS = {name: get_attention(name).layer for name in list_attentions()}
LAYERS |= {f'csa-{mode}': lambda channels, mode=mode: CSA(channels, mode=mode) for mode in CSA_MODES[1:]}


def build(name):
    """The layer and its formula, both with the same parameters, no statistics trivial."""
    torch.manual_seed(0)
    layer = LAYERS[name](CHANNELS).eval()
    for module in layer.modules():
        if isinstance(module, _Norm):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    for p in layer.parameters():
        if p.dim() == 1:
            torch.nn.init.normal_(p, 0.5, 0.5)
    return layer, copy.deepcopy(layer).double(), FORMULAS.get(name.partition('-')[0], lambda layer, x: layer(x))


def maps():
    """Maps of magnitude one."""
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(2, CHANNELS, *SIZE, generator=g)
    channels = torch.randn(2, CHANNELS, 1, 1, generator=g)
    return dict(
        noise=noise,
        offsets=0.3 * noise + channels,
        positive=(noise + channels).relu(),
        sparse=noise * (torch.rand(noise.shape, generator=g) < 0.05),
        duplicates=(noise[:, :6] + channels[:, :6]).repeat(1, 4, 1, 1) + torch.cat([channels[:, :1]] * CHANNELS, 1),
        dead_channels=torch.where(channels > 0.8, 0.0, noise),
        one_outlier=torch.cat([noise[:, :-1] / 1000, noise[:, -1:]], 1),
    )


MAPS = maps()

# Gates behind no norm saturate on larger maps: their gradient is exp(-y), and y, which is large, is rounded.
SATURATED = 30
NORMALIZED = ('csa', 'scsa')

# GSoP sees only how its reduced channels vary: of small maps float32 rounds that away beside the norm's bias, and with
# it the gradients of the layers before.
ROUNDED_AWAY = {'gsop': ('reduce.', 'bn.')}

# CSA compares the means of channels, and float32 rounds the mean of a channel as a whole, its offset included. Largest
# error of the descriptor, whose largest values are 4 to 10, for offsets of so many times the spread.
OFFSETS = {0: 1e-4, 1: 1e-3, 10: 2e-2, 100: 0.2}


def gradients(forward, layer, x, weight):
    x = x.clone().requires_grad_()
    y = forward(x)
    grads = torch.autograd.grad((y * weight).sum(), [x, *layer.parameters()], allow_unused=True)
    return dict(zip(['value', 'x', *dict(layer.named_parameters())], [y.detach(), *grads], strict=True))


def relative_error(actual, expected):
    scale = expected.abs().max().clamp_min(1e-36)  # below, float32 has no digits left
    return ((actual.double() - expected).abs().max() / scale).item()


@pytest.mark.parametrize('kind', MAPS)
@pytest.mark.parametrize('name', LAYERS)
def test_magnitudes(name, kind, attack):
    layer, exact_layer, formula = build(name)
    weight = torch.randn(MAPS[kind].shape, generator=torch.Generator().manual_seed(1))
    for exponent in EXPONENTS:
        x = MAPS[kind] * 10.0**exponent
        actual = gradients(layer, layer, x, weight)
        expected = gradients(lambda v: formula(exact_layer, v), exact_layer, x.double(), weight.double())
        for part, value in actual.items():
            if value is None:
                continue
            with attack.case(f'1e{exponent} {part}'):
                assert value.isfinite().all()
                if exponent < 0 and part.startswith(ROUNDED_AWAY.get(name, ())):
                    continue
                if part == 'value' or name.startswith(NORMALIZED) or x.abs().max() < SATURATED:
                    error = relative_error(value, expected[part])
                    assert error < TOLERANCE, f'{error:.1e}'


@pytest.mark.parametrize('mode', CSA_MODES)
def test_common_offset(mode, attack):
    for offset, tolerance in OFFSETS.items():
        for shape in [(64, 7, 7), (128, 14, 14), (256, 7, 7)]:
            for seed in range(5):
                g = torch.Generator().manual_seed(seed)
                x = torch.randn(1, *shape, generator=g) * torch.rand(1, shape[0], 1, 1, generator=g) + offset
                with attack.case(f'{offset} {shape} {seed}'):
                    error = (csa_descriptor(x, mode) - csa_descriptor(x.double(), mode)).abs().max()
                    assert error < tolerance, f'{error:.1e}'


@pytest.mark.parametrize('name', LAYERS)
def test_nothing_to_tell_apart(name, attack):
    """Constant, zero, equal channels, a single pixel: finite, in every floating type, with training statistics too."""
    layer, _, _ = build(name)
    one_channel = MAPS['noise'][:, :1].repeat(1, CHANNELS, 1, 1)
    pixel = torch.zeros(MAPS['noise'].shape).index_fill_(0, torch.tensor(0), 0.0)
    pixel[0, 3, 2, 1] = 1
    for kind, base in dict(zero=0 * one_channel, constant=1 + 0 * one_channel, equal=one_channel, pixel=pixel).items():
        for exponent in range(-45, 31):  # with denormal numbers
            for training in (False, True):
                if training and exponent > 15:  # torch's batch norm squares, and would keep an infinite variance
                    continue
                layer.train(training)
                x = (base * 10.0**exponent).requires_grad_()
                with attack.case(f'{kind} 1e{exponent} training={training}'):
                    y = layer(x)
                    grads = torch.autograd.grad(y.sum() * 1e-8, [x, *layer.parameters()], allow_unused=True)
                    assert all(g.isfinite().all() for g in [y, *grads] if g is not None)


@pytest.mark.parametrize('name', LAYERS)
def test_an_image_does_not_reach_another(name, attack):
    """NaN, infinity and extreme images beside a normal one: its result stays the same, bit for bit."""
    layer, _, _ = build(name)
    normal = MAPS['noise'][:1]
    poison = {
        'nan': torch.full_like(normal, math.nan),
        'one nan': torch.where(torch.arange(normal.numel()).view(normal.shape) == 77, math.nan, normal),
        'inf': torch.full_like(normal, math.inf),
        'mixed inf': normal.sign() * math.inf,
        'huge': normal * 1e37,
        'tiny': normal * 1e-37,
        'zero': normal * 0,
        'offset': normal + 1e4,
    }
    for layout in (torch.contiguous_format, torch.channels_last):
        for dtype in (torch.float32, torch.bfloat16):
            layer.to(dtype)
            for what, image in poison.items():
                for batch in ([normal, image], [image, normal], [image, normal, image, image, normal]):
                    x = torch.cat(batch).to(dtype).contiguous(memory_format=layout)
                    beside = torch.cat([normal if b is normal else normal * 0.5 for b in batch])
                    expected = layer(beside.to(dtype).contiguous(memory_format=layout))
                    where = [i for i, b in enumerate(batch) if b is normal]
                    with attack.case(f'{what} {dtype} {layout} {where}'), torch.no_grad():
                        assert torch.equal(layer(x)[where], expected[where])


@pytest.mark.parametrize('name', LAYERS)
def test_any_strides(name, attack):
    layer, _, _ = build(name)
    base = torch.randn(4, 48, 30, 28)
    views = dict(
        sliced=base[1:3, ::2, 2:16, 3:10],
        stepped=base[:2, 24:, ::2, ::3],
        transposed=base[:2, :24].transpose(2, 3),
        batch_last=base.permute(3, 1, 2, 0)[:, :24],
        channels_last_sliced=base.contiguous(memory_format=torch.channels_last)[:, 5:29, 1:],
        expanded=base[:1, :24, :1].expand(3, -1, 9, -1),
        expanded_channels=base[:2, :1].expand(-1, 24, -1, -1),
        one_pixel=base[:2, :24, :1, :1],
        one_row=base[:2, :24, 4:5],
    )
    for what, x in views.items():
        for grad in (False, True):
            with attack.case(f'{what} grad={grad}'), torch.set_grad_enabled(grad):
                copied, kept = x.contiguous().clone(), x.clone()
                torch.testing.assert_close(layer(x), layer(copied), rtol=1e-4, atol=1e-4)
                assert torch.equal(x, kept)  # not changed in place


@pytest.mark.parametrize('name', LAYERS)
def test_threads(name, attack):
    """One layer serves many threads at once, with maps of different sizes."""
    layer, _, _ = build(name)
    inputs = [torch.randn(1 + i % 3, CHANNELS, 3 + i % 9, 4 + i % 7) for i in range(64)]
    with torch.inference_mode():
        expected = [layer(x) for x in inputs]

    def run(x):
        with torch.inference_mode():  # its state belongs to a thread
            return layer(x)

    with ThreadPoolExecutor(8) as pool:
        for i, y in enumerate(pool.map(run, inputs)):
            with attack.case(f'{i}'):
                assert torch.equal(y, expected[i])


@pytest.mark.parametrize('model_name', [name for name in zoo_models() if '101' not in name])  # nothing new but depth
def test_last_norms_of_any_weight(model_name, attack):
    """Training starts from norms of weight zero and passes through the smallest numbers."""
    model = timm.create_model(model_name, num_classes=3).train()
    last = [m.bn3 if hasattr(m, 'bn3') else m.bn2 for m in model.modules() if isinstance(getattr(m, 'bn2', 0), _Norm)]
    x = torch.randn(2, 3, 32, 32)
    for weight in (0.0, 1e-38, 1e-20, 1e-13, 1e-12, 1e-6, 1e6):
        for norm in last:
            torch.nn.init.constant_(norm.weight, weight)
            torch.nn.init.zeros_(norm.bias)
        model.zero_grad()
        with attack.case(f'{weight}'):
            logits = model(x)
            torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
            assert logits.isfinite().all()
            assert all(p.grad.isfinite().all() for p in model.parameters())
