"""The attention layers: parity with the authors' code and with the papers' formulas, and robustness."""

import copy
import dataclasses
import io
import subprocess
import sys

import formulas
import pytest
import timm
import torch
from golden import MODULE_CASES, load_module_case
from timm.layers.coord_attn import CoordAttn as TimmCoordAttn
from timm.models import create_model
from torch import library

from timm_attn.kernels import csa_strips
from timm_attn.kernels.channel_attention import (
    channel_attention,
    channel_attention_backward,
    plain_channel_attention,
)
from timm_attn.kernels.csa import csa_neighbours, csa_neighbours_at_scale
from timm_attn.kernels.csa_plain import plain_neighbours
from timm_attn.layers import (
    CSA,
    SCSA,
    attention_of,
    cbam,
    coord_attn,
    csa_descriptor,
    get_attention,
    list_attentions,
    register_attention,
    squeeze_excite,
)
from timm_attn.layers.csa import CSA_MODES
from timm_attn.timing import peak_memory

ATTENTIONS = list_attentions()
each_attention = pytest.mark.parametrize('attn', [get_attention(name).layer for name in ATTENTIONS], ids=ATTENTIONS)


def in_our_keys(row, tensors, start):
    """Tensors of the authors' layer whose keys begin in ``start``, as ours."""
    theirs = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
    return dict(filter(None, (row.convert(*item) for item in theirs.items())))


@pytest.mark.parametrize('case', MODULE_CASES)
def test_authors_numbers(case):
    args, tensors = load_module_case(case)
    row = get_attention(args['attention'])
    layer = row.layer(**args['arguments'])
    layer.load_state_dict(in_our_keys(row, tensors, 'state/'))
    layer.eval()
    x = tensors['x'].requires_grad_()
    y = layer(x)
    (y * torch.arange(y.numel(), dtype=torch.float32).cos().reshape(y.shape)).sum().backward()

    tolerance = dict(rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(y, tensors['y'], **tolerance)
    torch.testing.assert_close(x.grad, tensors['grad_x'], **tolerance)
    grads = in_our_keys(row, tensors, 'grad/')
    grads |= {name: torch.zeros_like(layer.get_parameter(name)) for name in args.get('zero_gradients', ())}
    assert grads.keys() == dict(layer.named_parameters()).keys()
    for name, p in layer.named_parameters():
        torch.testing.assert_close(p.grad, grads[name], **tolerance, msg=lambda m, name=name: f'{name}: {m}')


def _textbook_descriptor(x, mode):
    """Moran's I by the paper's formula, float64, one image: the diagonal of z z^T W, with C x C x C work."""
    f = x.double().flatten(1)
    mean = f.mean(1)
    z = (mean - mean.mean()) / mean.std()
    dist = torch.linalg.vector_norm(f[:, None] - f[None], ord=1 if mode == 'l1' else 2, dim=2)
    near = torch.exp(-dist / dist.mean())
    cos = torch.nn.functional.cosine_similarity(f[:, None], f[None], dim=2)
    v = {'hybrid': near * cos.clamp(min=0), 'l2': near, 'l1': near, 'cosine': cos}[mode]
    v = v - torch.diag(v.diagonal())
    local = (z[:, None] * z[None] @ (v / v.sum())).diagonal()
    return (local - local.mean()) / local.std()


@pytest.mark.parametrize('mode', CSA_MODES)
@pytest.mark.parametrize('shape', [(24, 7, 5), (64, 3, 3), (40, 1, 1)])
def test_csa_equals_textbook(mode, shape):
    x = torch.randn(3, *shape) + torch.randn(3, shape[0], 1, 1)
    expected = torch.stack([_textbook_descriptor(image, mode) for image in x])
    torch.testing.assert_close(csa_descriptor(x.double(), mode), expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(csa_descriptor(x, mode).double(), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize('mode', CSA_MODES)
def test_csa_scale_does_not_matter(mode):
    x = torch.randn(2, 32, 6, 6).double()
    torch.testing.assert_close(csa_descriptor(x * 1e-12, mode), csa_descriptor(x, mode))
    torch.testing.assert_close(csa_descriptor(x.float() * 1e-12, mode), csa_descriptor(x.float(), mode))


@pytest.mark.parametrize('mode', CSA_MODES)
@pytest.mark.parametrize('magnitude', [1e-30, 1e-13, 1e-12, 1e18, 1e30])
def test_csa_of_any_magnitude(mode, magnitude):
    """Training from a norm of weight zero passes through the smallest numbers."""
    results = []
    for x in (torch.randn(1, 64, 7, 7), torch.zeros(1, 64, 7, 7)):
        small, exact = (x * magnitude).requires_grad_(), x.double().requires_grad_()
        q, expected = csa_descriptor(small, mode), csa_descriptor(exact, mode)
        (q**3).sum().backward()
        (expected**3).sum().backward()
        results += [(q, expected), (small.grad * magnitude, exact.grad)]
    for actual, expected in results:
        scale = expected.abs().max().item()
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize('mode', CSA_MODES)
@pytest.mark.parametrize('magnitude', [1e-200, 1e160])
def test_csa_of_any_magnitude_in_float64(mode, magnitude):
    x = torch.randn(2, 24, 3, 5).double()
    y = (x * magnitude).requires_grad_()
    x.requires_grad_()
    q, expected = csa_descriptor(y, mode), csa_descriptor(x, mode)
    torch.testing.assert_close(q, expected)
    (q**3).sum().backward()
    (expected**3).sum().backward()
    torch.testing.assert_close(y.grad * magnitude, x.grad)


@pytest.mark.parametrize('mode', ['hybrid', 'l2'])
def test_csa_of_channels_with_a_common_offset(mode):
    x = torch.randn(4, 64, 7, 7) + 300
    z = torch.randn(4, 64)
    expected, mean_dist = csa_neighbours(x.double(), z.double(), mode)
    sums, means = csa_neighbours(x, z, mode)
    torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(means.double(), mean_dist, rtol=1e-5, atol=0)
    torch.testing.assert_close(csa_neighbours_at_scale(x, z, means, mode).double(), expected, rtol=1e-5, atol=1e-5)
    beside_others = csa_neighbours(torch.cat([torch.randn(2, 64, 7, 7), x]), z[[0, 0, 0, 1, 2, 3]], mode)[0]
    assert torch.equal(beside_others[2:], sums)  # the choice is made for each image


@each_attention
@pytest.mark.parametrize('magnitude', [1e-30, 1e15, 1e20, 1e30])
def test_extreme_maps_are_finite(attn, magnitude):
    layer = attn(16).eval()
    x = (torch.randn(2, 16, 9, 8) * magnitude).requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_csa_gradient_holds_the_weights_constant():
    # Adding a constant to a whole channel moves its mean. With the weights v held constant, finite differences of
    # the formula give the gradient that the layer must have; gradcheck confirms the formula's own.
    x = torch.randn(2, 16, 3, 3).double()
    f = x.flatten(2)
    dist = torch.cdist(f, f)
    cos = torch.nn.functional.cosine_similarity(f[:, :, None], f[:, None], dim=3)
    v = torch.exp(-dist / dist.mean((1, 2), keepdim=True)) * cos.clamp(min=0)
    v = v - torch.diag_embed(v.diagonal(dim1=1, dim2=2))

    def descriptor(shift):
        z = x.mean((2, 3)) + shift
        z = (z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True)
        local = z * (v @ z.unsqueeze(-1)).squeeze(-1)
        return (local - local.mean(1, keepdim=True)) / local.std(1, keepdim=True)

    shift = torch.zeros(2, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(descriptor, (shift,))
    weight = torch.randn(2, 16).double()
    (expected,) = torch.autograd.grad((descriptor(shift) * weight).sum(), shift)
    x.requires_grad_()
    (grad,) = torch.autograd.grad((csa_descriptor(x) * weight).sum(), x)
    torch.testing.assert_close(grad.sum((2, 3)), expected)


@pytest.mark.parametrize('mode', CSA_MODES)
@pytest.mark.parametrize('value', [0.0, 1.0, -3.7, 1e-20, 1e4])
@pytest.mark.parametrize('size', [(1, 1), (7, 7), (31, 17)])
def test_csa_of_constant_map_is_neutral(mode, value, size):
    x = torch.full((2, 48, *size), value, requires_grad=True)
    assert torch.equal(csa_descriptor(x, mode), torch.zeros(2, 48))
    layer = CSA(48, mode=mode)
    layer(x).sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize('channels', [1, 2, 3])
def test_csa_of_few_channels(channels):
    x = torch.randn(2, channels, 4, 4, requires_grad=True)
    CSA(channels)(x).sum().backward()
    assert x.grad.isfinite().all()


def test_csa_does_not_overflow_float16():
    x = (200 * torch.randn(2, 64, 56, 56)).half()  # squared norms near 1e8, float16 ends at 65504
    torch.testing.assert_close(csa_descriptor(x), csa_descriptor(x.float()))
    with torch.autocast('cpu', torch.float16):
        torch.testing.assert_close(
            csa_descriptor(x.float()), csa_descriptor(x.float().double()).float(), rtol=1e-2, atol=1e-3
        )


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_csa_stays_in_float32_under_autocast(dtype):
    x = 50 * torch.randn(2, 64, 14, 14)
    expected = csa_descriptor(x)
    scripted = torch.jit.script(csa_descriptor)
    with torch.autocast('cpu', dtype):
        assert torch.equal(csa_descriptor(x), expected)
        torch.testing.assert_close(scripted(x), expected, rtol=1e-5, atol=1e-5)


@each_attention
@pytest.mark.parametrize('value', [0.0, 1.0, -3.7, 1e4])
def test_constant_maps_are_finite(attn, value):
    layer = attn(16)
    x = torch.full((2, 16, 9, 8), value, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_every_attention_has_a_golden_vector():
    tested = {load_module_case(case)[0]['attention'] for case in MODULE_CASES}
    of_timm = {name for name in ATTENTIONS if get_attention(name).layer_cls.__module__.startswith('timm.')} - tested
    assert of_timm == {'se'}  # timm's own layer, used as it is
    from_papers = {'gala'}  # no code that runs; tests/test_peers.py has the formula
    assert set(ATTENTIONS) - of_timm - from_papers == tested


def test_registry():
    row = get_attention('csa')
    assert attention_of(CSA(8)) is row
    assert attention_of(torch.nn.ReLU()) is None
    assert {'ca', 'cbam', 'csa', 'scsa', 'se'} <= set(ATTENTIONS)
    with pytest.raises(ValueError, match='did you mean'):
        get_attention('scs')
    with pytest.raises(ValueError, match='must be one of'):
        get_attention('transformer')
    assert register_attention(row) is row  # a file may be loaded again
    with pytest.raises(ValueError, match='registered already'):
        register_attention(dataclasses.replace(row, layer=SCSA))

    class Derived(CSA):
        pass

    assert attention_of(Derived(8)) is row


@pytest.mark.parametrize('name', ATTENTIONS)
def test_rows_are_complete(name):
    row = get_attention(name)
    layer = row.layer(32)
    assert isinstance(layer, row.layer_cls)
    gates = [key for key, _ in layer.named_modules() if key.endswith('gate')]
    assert not row.gates or (gates and row.zeroed)
    assert set(row.zeroed) <= {key for key, _ in layer.named_modules()} | {key for key, _ in layer.named_parameters()}
    assert set(row.slots) <= {'mid', 'out'}
    assert row.blocks in ('all', 'last')
    assert row.paper.startswith(('arXiv:', 'https://'))
    assert row.title
    assert row.placement
    assert row.formula is None or hasattr(formulas, row.formula)
    assert all(row.rename_key(key) == key for key in layer.state_dict())


@pytest.mark.parametrize('name', ATTENTIONS)
def test_identity_start(name):
    """What the row says of it: zeroed layers, and gates that are one at zero, leave every map as it is."""
    row = get_attention(name)
    layer = row.layer(32, **dict(gate_layer=row.identity_gate) if row.gates else {}).eval()
    x = torch.rand(2, 32, 9, 8)
    parameters = dict(layer.named_parameters())
    with torch.no_grad():
        for p in parameters.values():
            p.uniform_(0.1, 1)  # no hidden unit is dead
        assert not torch.equal(layer(x), x)
        for key, p in parameters.items():
            if row.is_zeroed(key):
                p.zero_()
    assert torch.equal(layer(x), x) == bool(row.zeroed)
    if row.zeroed:
        (layer(x) * torch.randn_like(x)).sum().backward()
        assert all(p.grad.any() for key, p in parameters.items() if row.is_zeroed(key))


@each_attention
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_dtype_is_kept(attn, dtype):
    layer = attn(32, dtype=dtype).eval()
    y = layer(torch.randn(2, 32, 9, 8).to(dtype))
    assert y.dtype == dtype
    assert y.isfinite().all()


@each_attention
@pytest.mark.parametrize('size', [(1, 1), (2, 9), (6, 6), (7, 7), (13, 22), (56, 56)])
def test_map_sizes_and_layouts(attn, size):
    layer = attn(20).eval()
    x = torch.randn(3, 20, *size)
    y = layer(x)
    assert y.shape == x.shape
    torch.testing.assert_close(layer(x.contiguous(memory_format=torch.channels_last)), y)
    torch.testing.assert_close(layer(x.transpose(2, 3).contiguous().transpose(2, 3)), y)
    torch.testing.assert_close(torch.cat([layer(image[None]) for image in x]), y)
    assert layer(x[:0]).shape == (0, 20, *size)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('shape', [(2, 64, 21, 16), (2, 512, 14, 14), (2, 1024, 7, 7)])
def test_scsa_equals_its_formula(shape, layout):
    """Small matrices, matrices in strips, and the series of a single position."""
    layer = SCSA(shape[1])
    x = torch.randn(shape).contiguous(memory_format=layout).requires_grad_()
    exact = copy.deepcopy(layer).double()
    double = x.detach().double().requires_grad_()
    y, expected = layer(x), formulas.scsa(exact, double)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
    for found, true in zip(
        gradients, torch.autograd.grad(expected.square().sum(), [double, *exact.parameters()]), strict=True
    ):
        torch.testing.assert_close(found.double(), true, rtol=1e-4, atol=1e-5 * true.abs().max().item())


@pytest.mark.parametrize('pool_type', ['avg', 'max', 'recombination'])
@pytest.mark.parametrize('size', [3, 7, 10, 21])
def test_scsa_pools(pool_type, size):
    x = torch.randn(2, 16, size, size, requires_grad=True)
    layer = SCSA(16, num_heads=2, pool_type=pool_type)
    layer(x).sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad is not None for p in layer.parameters())
    assert layer(x[:0]).shape == (0, 16, size, size)


def test_scsa_attention_dropout_acts_in_training_only():
    x = torch.randn(2, 16, 14, 14)
    layer = SCSA(16, attn_drop=0.5)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: CSA(64, mode='l3'), 'hybrid, l2, l1, cosine'),
        (lambda: SCSA(30), 'multiple of 4'),
        (lambda: SCSA(32, num_heads=5), 'num_heads=5'),
        (lambda: SCSA(32, pool_type='min'), 'avg, max, recombination'),
        (lambda: SCSA(32, window_size=0), 'window_size'),
        (lambda: SCSA(32, window_size=-1, pool_type='recombination'), 'window'),
        (lambda: SCSA(32, kernel_sizes=(3, 5, 7)), 'four odd'),
        (lambda: SCSA(32, kernel_sizes=(2, 3, 5, 7)), 'four odd'),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@each_attention
def test_as_attn_layer_of_any_timm_resnet(attn):
    model = create_model('resnet50', block_args=dict(attn_layer=attn), num_classes=5)
    assert sum(attention_of(m) is not None for m in model.modules()) == 16
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_published_layers_and_their_arguments():
    assert coord_attn(96).conv1.out_channels == 8
    assert coord_attn(960).conv1.out_channels == 30
    assert coord_attn(960, rd_channels=60, act_layer=torch.nn.ReLU).conv1.out_channels == 60
    assert coord_attn(96, rd_ratio=0.5, se_factor=1.0).conv1.out_channels == 48
    assert squeeze_excite(240).fc1.out_channels == cbam(240).channel.fc1.out_channels == 10
    assert squeeze_excite(240, rd_ratio=0.5).fc1.out_channels == cbam(240, rd_ratio=0.5).channel.fc1.out_channels == 120


def test_csa_hidden_width_follows_timm():
    assert CSA(256).fc1.out_features == 16
    assert CSA(256, rd_ratio=1 / 8).fc1.out_features == 32
    assert CSA(64, rd_divisor=8).fc1.out_features == 8
    assert CSA(64, rd_channels=3).fc1.out_features == 3
    assert timm.layers.create_attn(CSA, 64).fc1.out_features == 4


@pytest.mark.parametrize('mode', CSA_MODES)
@pytest.mark.parametrize('shape', [(3, 300, 3, 5), (7, 24, 4, 4), (2, 129, 1, 1), (1, 64, 112, 112)])
@pytest.mark.parametrize('strip', [None, (1000, 16)])
def test_csa_operator_equals_the_plain_formula(mode, shape, strip, monkeypatch):
    """More channels than rows of a strip, more images than are worked on at once, either layout, either pass."""
    if strip:
        monkeypatch.setitem(csa_strips._STRIP, 'cpu', strip)
    x = torch.randn(shape).double()
    z = torch.randn(shape[:2]).double()
    expected = plain_neighbours(x, z, mode)
    for layout in (torch.contiguous_format, torch.channels_last):
        sums, mean_dist = csa_neighbours(x.contiguous(memory_format=layout), z, mode)
        torch.testing.assert_close(sums, expected)
        torch.testing.assert_close(csa_neighbours_at_scale(x, z, mean_dist, mode), expected)
    assert torch.equal(csa_neighbours(x, z, mode)[0], csa_neighbours(x, z, mode)[0])


@pytest.mark.parametrize('mode', CSA_MODES)
def test_csa_operator_contract(mode):
    """PyTorch's own checks of an operator, and its gradient, the weights held constant, against finite differences."""
    x = torch.randn(2, 6, 3, 2).double()
    z = torch.randn(2, 6).double().requires_grad_()
    library.opcheck(csa_neighbours, (x, z, mode))
    library.opcheck(csa_neighbours_at_scale, (x, z, csa_neighbours(x, z, mode)[1], mode))
    assert torch.autograd.gradcheck(lambda z: csa_neighbours(x, z, mode)[0], (z,))
    assert torch.autograd.gradgradcheck(lambda z: csa_neighbours(x, z, mode)[0], (z,))


def queries_keys_values(batch, heads, positions, channels, dtype=torch.float32):
    return [torch.randn(batch, heads, n, channels, dtype=dtype).requires_grad_() for n in (positions, positions, 1)]


@pytest.mark.parametrize('shape', [(2, 1, 1, 40), (3, 2, 4, 24), (1, 1, 64, 8), (0, 1, 4, 8), (2, 2, 4, 1100)])
def test_channel_attention_equals_the_plain_formula(shape):
    tensors = queries_keys_values(*shape)
    values = [attend(*tensors, 0.3) for attend in (channel_attention, plain_channel_attention)]
    torch.testing.assert_close(*values)
    grads = [torch.autograd.grad(value.square().sum(), tensors) for value in values]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize('size', [0.0, 1e-20, 1.0, 5.0, 20.0, 30.0, 1e3])
def test_channel_attention_of_one_position(size):
    """Small exponents go another way than large ones; both are as accurate as float32 allows."""
    q, k, v = queries_keys_values(3, 1, 1, 400)
    tensors = [(q * size).detach().requires_grad_(), k, v]
    found = channel_attention(*tensors, 0.05)
    exact = plain_channel_attention(*(doubles := [t.detach().double().requires_grad_() for t in tensors]), 0.05)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)
    grad = torch.randn_like(exact)
    for ours, theirs in zip(
        torch.autograd.grad(found, tensors, grad.float()), torch.autograd.grad(exact, doubles, grad), strict=True
    ):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


def test_channel_attention_contract():
    """PyTorch's own checks of an operator, and its gradients against finite differences."""
    library.opcheck(channel_attention, (*queries_keys_values(2, 1, 1, 400), 0.05))
    tensors = queries_keys_values(2, 2, 3, 6, torch.float64)
    library.opcheck(channel_attention, (*tensors, 0.5))
    library.opcheck(channel_attention_backward, (torch.randn(2, 2, 1, 6).double(), *(t.detach() for t in tensors), 0.5))
    assert torch.autograd.gradcheck(lambda *qkv: channel_attention(*qkv, 0.5), tensors)
    assert torch.autograd.gradgradcheck(lambda *qkv: channel_attention(*qkv, 0.5), tensors)
    q, k, v = tensors  # some of them may be constant
    assert torch.autograd.gradgradcheck(lambda v: channel_attention(q.detach(), k.detach(), v, 0.5), (v,))
    assert torch.autograd.gradgradcheck(lambda k: channel_attention(q.detach(), k, v.detach(), 0.5), (k,))


def test_scsa_holds_no_matrices():
    """What is alive at once stays below one matrix between channels an image."""
    tensors = [t.detach() for t in queries_keys_values(16, 1, 4, 512)]
    assert 0 < peak_memory(lambda: channel_attention(*tensors, 0.1), torch.device('cpu')) < 8 * 512**2 * 4


def test_csa_holds_no_matrices():
    """What is alive at once stays far below one matrix between channels an image."""
    x = torch.randn(16, 512, 7, 7)
    assert 0 < peak_memory(lambda: csa_descriptor(x), x.device) < x.shape[0] * x.shape[1] ** 2 * 4


@each_attention
def test_scripts_are_saved_and_loaded(attn):
    layer = attn(24).eval()
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(layer), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    with torch.no_grad():
        for size in ((2, 24, 9, 8), (1, 24, 1, 5)):
            x = torch.randn(size)
            torch.testing.assert_close(loaded(x), layer(x), rtol=1e-4, atol=1e-5)


@each_attention
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_input_is_not_changed(attn, layout):
    """Not even without gradients, where products are taken in place."""
    x = torch.randn(2, 16, 9, 9).contiguous(memory_format=layout)
    before = x.clone()
    layer = attn(16).eval()
    with torch.no_grad():
        y = layer(x)
    assert torch.equal(x, before)
    torch.testing.assert_close(y, layer(x))


@pytest.mark.parametrize('attn', [name for name in ATTENTIONS if name != 'csa'])  # whose weights are held constant
def test_gradients_of_layers(attn):
    torch.manual_seed(0)
    layer = get_attention(attn).layer(8).double().eval()
    x = torch.randn(2, 8, 5, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))


@pytest.mark.parametrize(('channels', 'size'), [(24, (5, 8)), (24, (8, 8)), (24, (28, 1)), (512, (7, 7))])
@pytest.mark.parametrize('has_skip', [False, True])
def test_coord_attn_equals_that_of_timm(channels, size, has_skip):
    theirs = TimmCoordAttn(channels, bias=True, has_skip=has_skip)
    ours = coord_attn(channels, rd_channels=theirs.conv1.out_channels, has_skip=has_skip)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, channels, *size, requires_grad=True)
    for a, b in ((ours, theirs), (ours.eval(), theirs.eval())):
        torch.testing.assert_close(a(x), b(x))
        (grad,), (expected,) = (torch.autograd.grad(m(x).square().sum(), x) for m in (a, b))
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@each_attention
def test_compiles_for_changing_sizes(attn):
    layer = attn(24).eval()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend='aot_eager')
    for size in ((2, 24, 14, 10), (3, 24, 9, 16), (5, 24, 28, 7)):
        x, y = (torch.randn(size).requires_grad_() for _ in range(2))
        y.data.copy_(x.data)
        a, b = compiled(x), layer(y)
        torch.testing.assert_close(a, b)
        for out in (a, b):
            out.square().sum().backward()
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_one_step_in_two_processes(tmp_path):
    """DistributedDataParallel over two halves of a batch gives the gradients of the whole batch."""
    code = f"""
import copy, torch, torch.distributed as dist, torch.multiprocessing as mp
from timm_attn.layers import CSA, SCSA, coord_attn

def work(rank):
    dist.init_process_group('gloo', init_method='file://{tmp_path}/store', rank=rank, world_size=2)
    torch.manual_seed(0)
    layer = torch.nn.Sequential(CSA(16), SCSA(16), coord_attn(16)).eval()
    x = torch.randn(4, 16, 9, 9)
    alone = copy.deepcopy(layer)
    parallel = torch.nn.parallel.DistributedDataParallel(layer)
    parallel(x[rank::2]).square().mean().backward()
    alone(x).square().mean().backward()
    for (name, p), q in zip(layer.named_parameters(), alone.parameters()):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6, msg=lambda m: name + m)
    dist.destroy_process_group()

if __name__ == '__main__':
    mp.spawn(work, nprocs=2)
"""
    script = tmp_path / 'step.py'
    script.write_text(code)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@each_attention
def test_function_transforms_and_higher_gradients(attn):
    """torch.func, forward-mode gradients and gradients of gradients."""
    torch.manual_seed(0)
    layer = attn(64).double().eval()
    x, tangent = torch.randn(2, 2, 64, 5, 4).double()
    weight = torch.randn(2, 64, 5, 4).double()
    (grad,) = torch.autograd.grad((layer(y := x.clone().requires_grad_()) * weight).sum(), y, create_graph=True)
    assert torch.autograd.grad(grad.square().sum(), y)[0].isfinite().all()
    torch.testing.assert_close(torch.func.grad(lambda x: (layer(x) * weight).sum())(x), grad.detach())
    _, slope = torch.func.jvp(layer, (x,), (tangent,))
    torch.testing.assert_close((slope * weight).sum(), (grad * tangent).sum().detach())
    torch.testing.assert_close(torch.func.vmap(lambda a: layer(a[None])[0])(x), layer(x).detach())


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    ('backend', 'size'),
    [
        ('aot_eager', 7),
        pytest.param('aot_eager', 16, marks=pytest.mark.slow),
        pytest.param('aot_eager', 32, marks=pytest.mark.exhaustive),
        pytest.param('inductor', 16, marks=pytest.mark.exhaustive),
    ],
)
@each_attention
def test_compiled_layers_do_not_depend_on_strides(attn, backend, size, layout):
    """Tracing assumes other strides than those that arrive: the group norm of a channels_last map keeps its layout."""
    layer = attn(16)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    x = torch.randn(2, 16, size, size).contiguous(memory_format=layout).requires_grad_()
    for training in (True, False):
        layer.train(training)
        values = [f(x) for f in (compiled, layer)]
        torch.testing.assert_close(*values, rtol=1e-5, atol=1e-5)
        grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in values]
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('mode', ['hybrid', 'l2'])
def test_csa_of_equal_channels(mode):
    """The distance of equal channels is zero, although it is a difference of rounded numbers."""
    x = (torch.randn(2, 3, 7, 7) + 5).repeat(1, 60, 1, 1)
    x[:, 0] += 0.5
    z = torch.randn(2, 180)
    expected = plain_neighbours(x.double(), z.double(), mode)
    sums = csa_neighbours(x, z, mode)[0].double()
    torch.testing.assert_close(sums, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
