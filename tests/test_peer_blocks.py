"""Attentions that are part of a block or a stage: parity with reference code, and robustness."""

import json
from functools import partial

import pytest
import timm
import torch
from golden import DATA
from safetensors import safe_open
from timm.models import create_model
from timm.models.resnet import BasicBlock
from torch import nn

from timm_attn.layers import get_attention, list_attentions
from timm_attn.layers.aa import AttentionAugmentedConv2d
from timm_attn.layers.ba import BridgeAttention
from timm_attn.layers.dia import DIA
from timm_attn.layers.sasa import SASA
from timm_attn.models.ba_resnet import BaBottleneck
from timm_attn.models.dia_resnet import DiaBottleneck, dia_stage
from timm_attn.timing import peak_memory
from timm_attn.weights.convert import substitute

PARTS = sorted(set(list_attentions(parts=True)) - set(list_attentions()))


def load_case(name):
    """Tensors of the reference: x, y, and by name the state, the gradients and the further inputs."""
    with safe_open(DATA / 'peer_blocks' / f'{name}.safetensors', 'pt') as f:
        args = {key: json.loads(value) for key, value in f.metadata().items()}
        return args, {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118


def parts_of(tensors, group, convert):
    """Tensors of a group, under our keys."""
    return dict(convert(k.removeprefix(group), v) for k, v in tensors.items() if k.startswith(group))


def renamed(rename):
    return lambda key, value: (rename(key), value)


def agree(y, module, inputs, tensors, convert):
    """Output, gradients of the inputs and of every parameter are those of the reference."""
    (y * torch.arange(y.numel(), dtype=torch.float32).cos().reshape(y.shape)).sum().backward()
    got = {'y': y.detach()} | {key: x.grad for key, x in inputs.items()}
    expected = {'y': tensors['y']} | {key: tensors[f'grad_{key}'] for key in inputs}
    got |= {f'grad of {key}': p.grad for key, p in module.named_parameters()}
    expected |= {f'grad of {k}': v for k, v in parts_of(tensors, 'grad/', convert).items()}
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        scale = value.abs().max().item()
        assert scale > 0, key
        torch.testing.assert_close(got[key], value, rtol=1e-4, atol=1e-4 * scale, msg=lambda m, key=key: f'{key}: {m}')


def test_bridge_attention_has_the_authors_numbers():
    args, tensors = load_case('ba_module_c256')
    convert = get_attention('ba').convert
    layer = BridgeAttention(args['cur_channel'], args['pre_channels']).eval()
    layer.load_state_dict(parts_of(tensors, 'state/', convert))
    inputs = {key: tensors[key].requires_grad_() for key in ('x', 'pre0', 'pre1')}
    own, *prev = inputs.values()
    y = layer.channel_gate(own, prev)
    torch.testing.assert_close(layer(own, prev), own * y)
    agree(y, layer, inputs, tensors, convert)


def test_block_with_bridge_attention_has_the_authors_numbers():
    args, tensors = load_case('ba_bottleneck_c64_14x14')

    def convert(key, value):
        if not key.startswith('ba.'):
            return key, value
        key, value = get_attention('ba').convert(key.removeprefix('ba.'), value)
        return f'ba.{key}', value

    block = BaBottleneck(args['inplanes'], args['planes']).eval()
    block.load_state_dict(parts_of(tensors, 'state/', convert))
    x = tensors['x'].requires_grad_()
    agree(block(x), block, {'x': x}, tensors, convert)


def test_dia_cell_has_the_authors_numbers():
    args, tensors = load_case('dia_cell_c64')

    def rename(key):
        return get_attention('dia').rename_key(key.removeprefix('lstm.'))

    cell = DIA(args['hidden_size']).eval()
    cell.load_state_dict(parts_of(tensors, 'state/', renamed(rename)))
    x = tensors['x'].requires_grad_()
    state, steps = None, []
    for q in x:
        y, state = cell(q[:, :, None, None], state)
        torch.testing.assert_close(y[:, :, 0, 0], q * state[0])
        steps.append(state[0])
    agree(torch.stack(steps), cell, {'x': x}, tensors, renamed(rename))


def test_stage_with_dia_has_the_authors_numbers():
    _, tensors = load_case('dia_stage_c64_14x14')

    def rename(key):
        of_cell = key.startswith('lstm.')
        key = key.removeprefix('lstm.').removeprefix('ModuleList.')
        return 'dia.' + get_attention('dia').rename_key(key) if of_cell else key

    stage = dia_stage(nn.Sequential(*(DiaBottleneck(64, 16) for _ in range(3))), DIA).eval()
    stage.load_state_dict(parts_of(tensors, 'state/', renamed(rename)))
    x = tensors['x'].requires_grad_()
    agree(stage(x), stage, {'x': x}, tensors, renamed(rename))


def test_augmented_convolution_has_the_numbers_of_a_corrected_replica():
    args, tensors = load_case('thirdparty_patched_aa_k1_c32_8x8')
    rename = substitute(
        (r'^conv_out\.', 'conv.'), (r'^qkv_conv\.', 'qkv.'), (r'^attn_out\.', 'proj.'), (r'^key_rel_', 'rel_')
    )
    layer = AttentionAugmentedConv2d(
        args['in_channels'],
        args['out_channels'],
        args['kernel_size'],
        num_heads=args['Nh'],
        dk=args['dk'],
        dv=args['dv'],
        feat_size=args['shape'],
        bias=True,
    )
    layer.load_state_dict(parts_of(tensors, 'state/', renamed(rename)))
    x = tensors['x'].requires_grad_()
    agree(layer(x), layer, {'x': x}, tensors, renamed(rename))


def test_stand_alone_attention_has_the_numbers_of_a_replica():
    args, tensors = load_case('thirdparty_sasa_h1_c32_7x9')

    def ours(group):
        given = parts_of(tensors, group, renamed(lambda key: key.replace('encoder.encoder.', '')))
        qkv = torch.cat([given.pop(f'{name}_conv.weight') for name in ('query', 'key', 'value')])
        return {'qkv.weight': qkv} | {key: table.flatten(1).t() for key, table in given.items()}

    layer = SASA(args['in_channels'], args['out_channels'], args['kernel_size'], num_heads=args['heads'])
    layer.load_state_dict(ours('state/'))
    tensors |= {f'grad/{key}': value for key, value in ours('grad/').items()}
    tensors = {k: v for k, v in tensors.items() if '_conv' not in k and 'encoder' not in k}
    x = tensors['x'].requires_grad_()
    agree(layer(x), layer, {'x': x}, tensors, renamed(str))


@pytest.mark.parametrize('feat_size', [(4, 3), (7, 6)])
def test_augmented_convolution_by_its_formula(feat_size):
    """Position by position, head by head, in the size of the tables and in another."""
    H, W, heads, d = 4, 3, 2, 3
    layer = AttentionAugmentedConv2d(5, 9, num_heads=heads, dk=heads * d, dv=4, feat_size=feat_size).double()
    x = torch.randn(1, 5, H, W).double()
    q, k, v = layer.qkv(x)[0].split([6, 6, 4])
    tables = []
    for table, length in ((layer.rel_h, H), (layer.rel_w, W)):
        at = torch.linspace(0, len(table) - 1, 2 * length - 1).double()  # the ends of both correspond
        low = at.floor().long().clamp(max=len(table) - 2)
        tables.append(table[low] + (at - low)[:, None] * (table[low + 1] - table[low]))
    expected = torch.zeros(4, H, W).double()
    for head in range(heads):
        qs, ks = slice(head * d, head * d + d), slice(head * 2, head * 2 + 2)
        for i in range(H):
            for j in range(W):
                logits = torch.stack(
                    [
                        q[qs, i, j] @ (k[qs, m, n] + tables[0][m - i + H - 1] + tables[1][n - j + W - 1]) / d**0.5
                        for m in range(H)
                        for n in range(W)
                    ]
                )
                expected[ks, i, j] = v[ks].flatten(1) @ logits.softmax(0)
    out = layer(x)[0]
    torch.testing.assert_close(out[:5], layer.conv(x)[0])
    torch.testing.assert_close(out[5:], layer.proj(expected[None])[0])


@pytest.mark.parametrize('dilation', [1, 2])
def test_stand_alone_attention_by_its_formula(dilation):
    """Pixel by pixel, with heads; a border of zeros that takes part."""
    H, W, heads, d = 4, 5, 2, 4
    layer = SASA(6, heads * d, kernel_size=3, dilation=dilation, num_heads=heads).double()
    x = torch.randn(1, 6, H, W).double()
    q, k, v = (t.unflatten(0, (heads, d)) for t in layer.qkv(x)[0].chunk(3))
    expected = torch.zeros(heads, d, H, W).double()
    for head in range(heads):
        for i in range(H):
            for j in range(W):
                logits, values = [], []
                for m in range(3):
                    for n in range(3):
                        row, column = i + dilation * (m - 1), j + dilation * (n - 1)
                        inside = 0 <= row < H and 0 <= column < W
                        key, value = (t[head, :, row, column] if inside else torch.zeros(d).double() for t in (k, v))
                        logits.append(q[head, :, i, j] @ (key + torch.cat([layer.rel_h[m], layer.rel_w[n]])))
                        values.append(value)
                expected[head, :, i, j] = torch.stack(logits).softmax(0) @ torch.stack(values)
    torch.testing.assert_close(layer(x)[0], expected.flatten(0, 1))


@pytest.mark.parametrize('layer', [AttentionAugmentedConv2d, SASA])
@pytest.mark.parametrize('size', [(1, 1), (2, 5), (14, 14), (15, 9)])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('dilation', [1, 2])
def test_shapes_are_those_of_the_convolution(layer, size, stride, dilation):
    conv = nn.Conv2d(16, 32, 3, stride, dilation, dilation)
    x = torch.randn(2, 16, *size)
    assert layer(16, 32, stride=stride, dilation=dilation)(x).shape == conv(x).shape


def test_pooled_attention_of_a_smooth_map_is_that_of_the_map():
    x = torch.randn(1, 16, 1, 1).expand(1, 16, 12, 12)
    layer = AttentionAugmentedConv2d(16)
    pooled = AttentionAugmentedConv2d(16, attn_stride=2)
    pooled.load_state_dict(layer.state_dict())
    torch.testing.assert_close(pooled(x), layer(x))


def test_stand_alone_attention_holds_sums_over_channels_only():
    """Far less than the windows of the keys, a value for each channel, as F.unfold would hold them."""
    layer = SASA(256)
    x = torch.randn(1, 256, 28, 28)
    windows = x.numel() * layer.kernel_size**2 * x.element_size()
    with torch.no_grad():
        assert 0 < peak_memory(lambda: layer(x), x.device) < windows / 2
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = layer(x)
    assert y.requires_grad
    assert 0 < sum(kept.values()) < windows / 4


class AlonePart(nn.Module):
    """A part as a map from (B, C, H, W) to itself, its other inputs made from the map."""

    def __init__(self, name, channels, **kwargs):
        super().__init__()
        self.name = name
        prev = dict(prev_channels=[channels, channels // 2]) if name == 'ba' else {}
        self.layer = get_attention(name).layer(channels, **prev, **kwargs)

    def forward(self, x):
        if self.name == 'ba':
            q = x.mean(dim=(2, 3), keepdim=True)
            return self.layer(x, [q, q[:, : q.shape[1] // 2]])
        if self.name == 'dia':
            x, state = self.layer(x)
            return self.layer(x, state)[0]
        return self.layer(x)


each_part = pytest.mark.parametrize('make', [partial(AlonePart, name) for name in PARTS], ids=PARTS)


def finite(layer, x):
    x.requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@each_part
@pytest.mark.parametrize('magnitude', [1e-30, 1e15, 1e20, 1e30])
def test_extreme_maps_are_finite(make, magnitude):
    finite(make(16).eval(), torch.randn(2, 16, 9, 8) * magnitude)


@each_part
@pytest.mark.parametrize('value', [0.0, 1.0, -3.7, 1e4])
def test_constant_maps_are_finite(make, value):
    finite(make(16), torch.full((2, 16, 9, 8), value))


@each_part
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_dtype_is_kept(make, dtype):
    layer = make(32, dtype=dtype).eval()
    assert {t.dtype for t in layer.state_dict().values() if t.is_floating_point()} == {dtype}
    y = layer(torch.randn(2, 32, 9, 8).to(dtype))
    assert y.dtype == dtype
    assert y.isfinite().all()


@each_part
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(make, dtype):
    layer = make(32).eval()
    x = torch.randn(2, 32, 9, 8)
    with torch.autocast('cpu', dtype):
        y = layer(x)
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)


@each_part
def test_device_of_the_parameters(make):
    assert {t.device.type for t in make(32, device='meta').state_dict().values()} == {'meta'}


@each_part
@pytest.mark.parametrize('size', [(1, 1), (2, 9), (6, 6), (7, 7), (13, 22), (28, 28)])
def test_map_sizes_and_layouts(make, size):
    layer = make(16).eval()
    x = torch.randn(3, 16, *size)
    y = layer(x)
    assert y.shape == x.shape
    torch.testing.assert_close(layer(x.contiguous(memory_format=torch.channels_last)), y)
    torch.testing.assert_close(layer(x.transpose(2, 3).contiguous().transpose(2, 3)), y)
    torch.testing.assert_close(torch.cat([layer(image[None]) for image in x]), y)
    assert layer(x[:0]).shape == (0, 16, *size)


@each_part
def test_input_is_not_changed(make):
    x = torch.randn(2, 16, 9, 9)
    before = x.clone()
    with torch.no_grad():
        make(16).eval()(x)
    assert torch.equal(x, before)


@each_part
def test_gradients_of_layers(make):
    layer = make(16).double().eval()
    assert torch.autograd.gradcheck(layer, (torch.randn(1, 16, 3, 4).double().requires_grad_(),))


@each_part
def test_function_transforms_and_higher_gradients(make):
    layer = make(16).double().eval()
    x, tangent = torch.randn(2, 2, 16, 5, 4).double()
    weight = torch.randn(2, 16, 5, 4).double()
    (grad,) = torch.autograd.grad((layer(y := x.clone().requires_grad_()) * weight).sum(), y, create_graph=True)
    assert torch.autograd.grad(grad.square().sum(), y)[0].isfinite().all()
    torch.testing.assert_close(torch.func.grad(lambda x: (layer(x) * weight).sum())(x), grad.detach())
    _, slope = torch.func.jvp(layer, (x,), (tangent,))
    torch.testing.assert_close((slope * weight).sum(), (grad * tangent).sum().detach())
    torch.testing.assert_close(torch.func.vmap(lambda a: layer(a[None])[0])(x), layer(x).detach())


@pytest.mark.slow
@each_part
def test_compiles_for_changing_sizes(make):
    layer = make(16).eval()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend='aot_eager')
    for size in ((2, 16, 14, 10), (3, 16, 9, 16), (5, 16, 12, 7)):
        x = torch.randn(size)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        torch.testing.assert_close(compiled(a), layer(b))
        compiled(a).square().sum().backward()
        layer(b).square().sum().backward()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


@each_part
def test_traces_and_scripts(make):
    layer = make(16).eval().layer
    state = (torch.rand(2, 16), torch.randn(2, 16))
    inputs = {'ba': ([torch.randn(2, 16, 1, 1), torch.randn(2, 8, 1, 1)],), 'dia': (state,)}.get(make.args[0], ())
    inputs = (torch.randn(2, 16, 9, 8), *inputs)
    for exported in (torch.jit.trace(layer, inputs), torch.jit.script(layer)):
        torch.testing.assert_close(exported(*inputs), layer(*inputs))


@pytest.mark.parametrize('name', PARTS)
def test_rows_are_complete(name):
    row = get_attention(name)
    layer = AlonePart(name, 32).layer
    assert isinstance(layer, row.layer_cls)
    assert row.paper.startswith('arXiv:')
    assert row.title
    assert row.placement
    assert row.part_of
    assert set(row.zeroed) <= {key for key, _ in layer.named_modules()}
    assert bool(row.zeroed) == bool(row.gates) == any(key.endswith('gate') for key, _ in layer.named_modules())
    assert all(row.rename_key(key) == key for key in layer.state_dict())


@pytest.mark.parametrize('name', [name for name in PARTS if get_attention(name).gates])
def test_zeroed_layers_leave_powers_of_two(name):
    row = get_attention(name)
    x = torch.randn(2, 16, 5, 4)
    for kwargs, factor in ((dict(), 0.5**row.gates), (dict(gate_layer=row.identity_gate), 1.0)):
        part = AlonePart(name, 16, **kwargs).eval()
        with torch.no_grad():
            for key, p in part.layer.named_parameters():
                if row.is_zeroed(key):
                    p.zero_()
        steps = 2 if name == 'dia' else 1
        assert torch.equal(part(x), x * factor**steps)


def test_bridge_attention_trains_on_two_images_or_more():
    layer = BridgeAttention(16, [8])
    x, prev = torch.randn(1, 16, 3, 3), [torch.randn(1, 8, 1, 1)]
    with pytest.raises(ValueError, match='two images or more; this batch has one'):
        layer(x, prev)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(BridgeAttention(16, [8]))  # counts the images of all processes
    with pytest.raises(ValueError, match='more than 1 value'):  # torch's own, as one process is alone
        synced(x, prev)
    timm.utils.freeze(layer)
    assert layer(x, prev).isfinite().all()


def test_the_head_alone_leaves_the_statistics_of_bridge_attention():
    model = create_model('ba_resnet18', num_classes=2, trainable='head').train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model(torch.randn(2, 3, 32, 32))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_dia_blocks_of_a_stage_share_the_cell_and_its_state():
    stage = dia_stage(nn.Sequential(*(DiaBottleneck(64, 16) for _ in range(3))), DIA).eval()
    assert sum(isinstance(m, DIA) for m in stage.modules()) == 1
    states = []
    stage.dia.register_forward_hook(lambda module, args, out: states.append((args[1], out[1])))
    x = torch.randn(2, 64, 5, 5)
    y = stage(x)
    assert [given is None for given, _ in states] == [True, False, False]
    assert all(given is kept for (given, _), (_, kept) in zip(states[1:], states, strict=False))
    assert torch.equal(stage(x), y)  # nothing is left from the batch before


def test_dia_checkpoints_each_block():
    calls = []
    stage = dia_stage(nn.Sequential(*(DiaBottleneck(64, 16) for _ in range(3))), DIA)
    stage.dia.register_forward_hook(lambda *args: calls.append(1))
    x = torch.randn(2, 64, 5, 5, requires_grad=True)
    for enable, expected in ((False, 3), (True, 6)):
        calls.clear()
        stage.grad_checkpointing = enable
        stage(x).sum().backward()
        assert len(calls) == expected


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: DIA(16, reduction=0), 'reduction=0 must be from 1'),
        (lambda: DIA(16, reduction=20), 'here 16'),
        (lambda: AttentionAugmentedConv2d(64, dk=12), 'dk=12 must be a multiple of num_heads=8'),
        (lambda: AttentionAugmentedConv2d(64, dv=0), 'dv=0 must be a multiple of num_heads=8'),
        (lambda: AttentionAugmentedConv2d(8), 'dv=8 must be less than out_channels=8'),
        (lambda: SASA(24), 'out_channels=24 must be a multiple of 16'),
        (lambda: SASA(16, kernel_size=4), 'kernel_size=4 must be odd'),
        (lambda: create_model('aa_resnet50', block=BasicBlock), 'bottlenecks'),
        (lambda: create_model('sasa_resnet50', cardinality=32, base_width=4), 'cardinality=32 must be 1'),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


PARAMETERS = {
    'ba_resnet50': 28_706_376,
    'ba_resnet101': 50_490_312,
    'dia_resnet50': 28_358_052,
    'dia_resnet101': 47_350_180,
    'aa_resnet50': 25_809_392,
    'aa_resnet101': 45_386_728,
    'sasa_resnet50': 18_015_504,
    'sasa_resnet101': 30_326_768,
}


@pytest.mark.parametrize(('name', 'params'), PARAMETERS.items())
def test_parameter_count(name, params):
    model = create_model(name, device='meta')
    assert sum(p.numel() for p in model.parameters()) == params


@pytest.mark.parametrize('name', ['aa_resnet50', 'sasa_resnet101'])
def test_no_plain_backbone_can_be_the_start(name):
    assert type(create_model(name, device='meta')).no_warm_start
    with pytest.raises(RuntimeError, match=r'No pretrained weights exist .* takes the place of'):
        create_model(name, pretrained=True)
