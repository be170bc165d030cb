"""Attaching an attention to any CNN of timm: nothing changes at the start, and everything by name works."""

import copy
import io
import json
import pickle
import warnings
from functools import partial

import pytest
import timm
import torch
from packaging.version import Version
from timm.models import save_for_hf
from timm.models.resnet import BasicBlock, ResNet
from timm.optim import create_optimizer_v2
from torch import nn

import timm_attn
from timm_attn import attach
from timm_attn.layers import CSA, SCSA, get_attention, list_attentions
from timm_attn.layers.attach import AttachError, FromIdentity
from timm_attn.layers.places import find_stages
from timm_attn.models.attached import attached_names
from timm_attn.models.info import count_cost
from timm_attn.weights import CheckpointError

ATTENTIONS = list_attentions()

# A small one of each kind, by family
ARCHITECTURES = [
    *('resnet18', 'resnet26d', 'resnext26ts', 'seresnet18', 'ecaresnet26t', 'resnet10t'),  # ResNet
    *('res2net50_26w_4s', 'resnest14d', 'skresnet18', 'legacy_seresnet18', 'tresnet_m'),
    *('resnetv2_18', 'nf_regnet_b0', 'nf_resnet26', 'eca_nfnet_l0'),
    *('regnetx_002', 'regnety_002', 'regnetv_040'),
    *('efficientnet_lite0', 'efficientnet_b0', 'mobilenetv2_050', 'mnasnet_small', 'fbnetc_100', 'mixnet_s'),
    *('mobilenetv3_small_050', 'lcnet_050', 'tinynet_e', 'hardcorenas_a', 'mobilenetv4_conv_small_035'),
    *('repvgg_a0', 'mobileone_s0', 'gernet_s', 'resnet32ts', 'cs3darknet_s', 'cspresnet50', 'darknet17'),
    *('vovnet39a', 'ese_vovnet19b_dw', 'ghostnet_050', 'ghostnetv2_100', 'repghostnet_050', 'rexnet_100'),
    *('repvit_m0_9', 'hgnetv2_b0', 'hrnet_w18_small', 'lcnetv2_base', 'starnet_s1', 'fasternet_t0'),
    *('convnext_atto', 'convnextv2_atto', 'inception_next_atto', 'edgenext_xx_small'),
    *('densenet121', 'dla34', 'dpn48b', 'vgg11', 'vgg11_bn', 'inception_v3', 'xception41', 'convmixer_768_32'),
]  # fmt: skip
# One of each way in which a family is built; the others are tested slowly
QUICK = (
    'resnet18', 'resnetv2_18', 'regnety_002', 'mobilenetv3_small_050', 'repvgg_a0', 'cs3darknet_s', 'ese_vovnet19b_dw',
    'hrnet_w18_small', 'convnext_atto', 'densenet121',
)  # fmt: skip


def each_of(names):
    """Parametrisation over architectures; all but a few are slow."""
    return pytest.mark.parametrize(
        'name', [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in names]
    )


OLD_TIMM = Version(timm.__version__) < Version('1.0.31')  # does not note how a model was built
NEEDS_MULTIPLES = ('scsa',)  # of 4
NO_STAGES = ('hrnet_w18_small',)  # its stages are lists of maps; its blocks have slots
# One for each way in which an attention gets its place
MECHANISMS = {
    'empty slot': ('resnet18', dict(where='slot')),
    'slot behind SE': ('regnety_002', dict(where='slot')),
    'container': ('mobilenetv3_small_050', dict(where='stage')),
    'blocks of a stage': ('convnext_atto', dict(where='stage')),
    'children of a stage': ('regnetx_002', dict(where='stage')),
    'end of a module': ('cs3darknet_s', dict(where='stage')),
    'end of a dictionary': ('densenet121', dict(where='stage')),
}
each_mechanism = pytest.mark.parametrize(('name', 'how'), MECHANISMS.values(), ids=MECHANISMS)


def build(name, **kwargs):
    """A model with weights and statistics that are neither zeros nor ones."""
    torch.manual_seed(1)
    model = timm.create_model(name, **kwargs).eval()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith('running_var'):
                value.uniform_(0.5, 1.5)
            elif value.is_floating_point():
                value.add_(torch.randn_like(value) * 0.02)
    return model


def image(size=64, dtype=torch.float32):
    return torch.randn(2, 3, size, size, dtype=dtype)


def size_of(name):
    return 96 if name == 'inception_v3' else 64  # its stem has no padding


@torch.inference_mode()
def logits(model, x):
    return model.eval()(x)


def save(model, folder):
    save_for_hf(model, folder, safe_serialization=True, model_args=model.attached_args if OLD_TIMM else None)


class Double(nn.Module):
    """No attention: twice its input."""

    def __init__(self, channels, device=None, dtype=None):
        super().__init__()

    def forward(self, x):
        return 2 * x


def refusal(model, attention, where):
    """Attach an attention; the message if it is refused, else None."""
    try:
        attach(model, attention, where)
    except AttachError as e:
        return str(e)
    return None


def check_identity(name, pairs):
    model, x = build(name), image(size_of(name))
    expected, keys = logits(model, x), set(model.state_dict())
    has_stages = bool(find_stages(model))
    assert has_stages == (name not in NO_STAGES)
    attached = 0
    for attention, where in pairs:
        attended = copy.deepcopy(model)
        if message := refusal(attended, attention, where):
            # a width that the layer does not take, or no such place
            of_layer = 'cannot be built for' in message and attention in NEEDS_MULTIPLES
            of_place = where == 'slot' and 'have no slot' in message
            assert of_layer or of_place or f'has {attention!r} already' in message or not has_stages, message
            continue
        attached += 1
        assert torch.equal(logits(attended, x), expected), attention
        state = attended.state_dict()
        new = {f'{name}.{key}' for name in attended.attached_names for key in attended.get_submodule(name).state_dict()}
        assert state.keys() - new == keys
        attended.load_state_dict({**state, **model.state_dict()})
    assert attached


@each_of(ARCHITECTURES)
def test_not_a_logit_changes(name):
    """A few attentions on each architecture: one of each way to start."""
    check_identity(name, [('csa', 'stage'), ('cbam', 'slot'), ('gct', None), ('gc', None)])


@pytest.mark.exhaustive  # some twenty minutes
@pytest.mark.parametrize('where', ['slot', 'stage'])
@pytest.mark.parametrize('name', ARCHITECTURES)
def test_not_a_logit_changes_with_any_attention(name, where):
    if where == 'stage' and name in NO_STAGES:
        pytest.skip('no stages')
    if where == 'slot' and 'have no slot' in (refusal(build(name), 'csa', where) or ''):
        pytest.skip('no slots')
    check_identity(name, [(attention, where) for attention in ATTENTIONS])


@pytest.mark.parametrize('attention', ATTENTIONS)
def test_every_attention_learns_from_the_first_step(attention):
    model = attach(build('resnet18', num_classes=5), attention)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()(image()).square().mean().backward()
    for name in model.attached_names:
        attended = model.get_submodule(name)
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in attended.parameters()), name
        assert all(p.grad is None or p.grad.isfinite().all() for p in attended.parameters()), name
    optimizer.step()
    names = tuple(f'{name}.' for name in model.attached_names)
    after = model.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before if key.startswith(names))
    assert any(not torch.equal(before[key], after[key]) for key in before if not key.startswith(names))


@pytest.mark.parametrize('attention', ATTENTIONS)
def test_fresh_is_the_published_layer(attention):
    row = get_attention(attention)
    model = attach(build('resnet18'), attention, 'stage', start='fresh')
    torch.manual_seed(0)
    layer = model.layer1[-1]
    of_stage = {row.size_arg: 56} if row.size_arg else {}
    expected = row.layer(64, **row.attach_args, **of_stage)
    assert type(layer) is type(expected)
    expected.load_state_dict(layer.state_dict())
    x = torch.randn(2, 64, 8, 8)
    torch.testing.assert_close(layer.eval()(x), expected.eval()(x))
    identity = attach(build('resnet18'), attention, 'stage').layer1[-1].eval()
    assert torch.equal(identity(x), x)


@each_of([name for name in ARCHITECTURES if name not in NO_STAGES])
def test_a_stage_ends_where_its_features_are(name):
    """The map of the level is what leaves the attention, and what the next stage gets."""
    model, x = build(name), image(size_of(name))
    place = find_stages(model)[0]
    level = next(i for i, f in enumerate(model.feature_info) if f['module'] and place.owner.startswith(f['module']))
    with torch.inference_mode():
        plain = model.forward_intermediates(x, indices=[level], intermediates_only=True)[0]
        attach(model, Double, 'stage', start='fresh', stages=[0])
        attended = model.forward_intermediates(x, indices=[level], intermediates_only=True)[0]
    assert torch.equal(attended, 2 * plain)


def test_csa_on_resnet50_is_csa_resnet50():
    model = attach(timm.create_model('resnet50'), 'csa')
    zoo = timm.create_model('csa_resnet50')
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in zoo.state_dict().items()}
    costs = [count_cost(timm.create_model(*args, **kwargs, device='meta').eval(), (3, 224, 224)) for args, kwargs in (
        (('csa_resnet50',), {}), (('attached',), dict(backbone='resnet50', attention='csa')),
    )]  # fmt: skip
    assert costs[0] == costs[1]


@pytest.mark.parametrize(
    ('name', 'attention', 'where', 'names'),
    [
        ('resnet18', 'csa', 'slot', [f'layer{n}.1.se' for n in (1, 2, 3, 4)]),
        ('resnet18', 'scsa', 'stage', [f'layer{n}.2' for n in (1, 2, 3, 4)]),  # its place, the middle, has no slot
        ('resnet18', 'bam', 'stage', ['layer1.2', 'layer2.2', 'layer3.2']),
        ('resnet10t', 'se', 'slot', [f'layer{n}.0.se' for n in (1, 2, 3, 4)]),
        ('regnetx_002', 'csa', 'stage', [f's{n}.attached' for n in (1, 2, 3, 4)]),
        ('regnety_002', 'ca', 'slot', ['s1.b1.se.attached', 's2.b1.se.attached']),
        ('mobilenetv2_050', 'ca', 'slot', ['blocks.0.0.se', 'blocks.1.0.se']),
        ('repvgg_a0', 'csa', 'slot', ['stages.0.1.attn', 'stages.1.3.attn']),
        ('vgg11', 'csa', 'stage', ['features.1.attached', 'features.4.attached']),
    ],
)
def test_default_places(name, attention, where, names):
    model = attach(build(name), attention)
    assert model.attached_args['where'] == where
    assert list(model.attached_names)[: len(names)] == names
    blocks = 'last' if attention == 'csa' else 'all'
    assert where == 'stage' or model.attached_args['blocks'] == blocks


def test_blocks_and_stages():
    names = attach(build('resnet18'), 'csa', blocks='all').attached_names
    assert len(names) == 8
    names = attach(build('resnet18'), 'se', blocks='last', stages=(2, 3)).attached_names
    assert names == ('layer3.1.se', 'layer4.1.se')
    assert attach(build('resnet18'), 'eca', 'stage', stages=[-1]).attached_names == ('layer4.2',)


def test_a_layer_made_for_a_size_of_the_map_gets_that_of_its_stage(tmp_path):
    model = attach(build('resnet18'), 'fca')
    published = timm.create_model('fca_resnet50')
    assert [stage[-1].se.size for stage in (model.layer1, model.layer2, model.layer3, model.layer4)] == [56, 28, 14, 7]
    small = attach(timm.create_model('resnet20_cifar'), 'fca')
    assert [stage[-1].se.size for stage in small.stages] == [32, 16, 8]
    from_meta = timm.create_model('attached', backbone='resnet18', attention='fca', device='meta').to_empty(
        device='cpu'
    )
    from_meta.load_state_dict(model.state_dict())
    x = image()
    assert torch.equal(logits(from_meta, x), logits(model, x))
    assert published.layer1[0].se.size == 56
    model.pretrained_cfg['input_size'] = (3, 96, 96)  # as after training at that size
    save(model, tmp_path)
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
    assert again.layer1[0].se.size == 56
    assert attach(build('mobilenetv2_050'), 'fca', 'stage', size=9).blocks[0][-1].size == 9


def test_replacing_squeeze_and_excitation():
    model = attach(build('regnety_002'), 'csa', 'slot', replace=True)
    assert isinstance(model.s4.b7.se, CSA)
    kept = attach(build('regnety_002'), 'csa', 'slot')
    assert {'s4.b7.se.fc1.weight', 's4.b7.se.attached.fc1.weight'} <= set(kept.state_dict())


def test_arguments_classes_and_functions():
    model = attach(build('resnet18'), 'csa', mode='l2', rd_ratio=1 / 8)
    assert (model.layer1[1].se.mode, model.layer1[1].se.fc1.out_features) == ('l2', 8)
    assert model.attached_args['attention_args'] == dict(mode='l2', rd_ratio=1 / 8)
    x = image()
    registered = attach(build('resnet18'), partial(CSA, mode='l2'), rd_ratio=1 / 8)
    assert registered.attached_args['attention'] == 'csa'
    assert registered.attached_args['attention_args'] == dict(mode='l2', rd_ratio=1 / 8)
    for layer in (CSA, partial(CSA, mode='l2'), lambda channels, **kwargs: SCSA(channels, num_heads=2, **kwargs)):
        model = build('resnet18')
        expected = logits(model, x)
        assert torch.equal(logits(attach(model, layer), x), expected)


class Wide(nn.Conv2d):
    """A layer that nobody registered."""

    def __init__(self, channels, device=None, dtype=None):
        super().__init__(channels, channels, 3, padding=1, device=device, dtype=dtype)


def test_a_layer_without_a_gate_starts_behind_a_residual_weight():
    layer = attach(build('resnet18'), Wide).layer1[-1]
    assert isinstance(layer, FromIdentity)
    x = torch.randn(2, 64, 5, 5)
    assert torch.equal(layer(x), x)
    nn.init.ones_(layer.weight)
    torch.testing.assert_close(layer(x), layer.attn(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'how'),
    [
        pytest.param(*case, id=mechanism, marks=[pytest.mark.slow] * (mechanism != 'empty slot'))
        for mechanism, case in MECHANISMS.items()
    ],
)
def test_copies_and_scripts(name, how, tmp_path):
    model, x = attach(build(name), 'scsa', **how), image(96)
    with torch.no_grad():
        for p in model.parameters():  # away from the identity
            p.add_(0.02 * torch.randn_like(p))
    expected = logits(model, x)
    assert torch.equal(logits(copy.deepcopy(model), x), expected)
    assert torch.equal(logits(pickle.loads(pickle.dumps(model)), x), expected)
    close = dict(rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    torch.testing.assert_close(torch.jit.trace(model, x)(x), expected, **close)
    torch.testing.assert_close(torch.compile(model, backend='aot_eager', fullgraph=True)(x), expected, **close)
    channels_last = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(logits(channels_last, x.to(memory_format=torch.channels_last)), expected, **close)
    fast = timm_attn.optimize(model)
    torch.testing.assert_close(logits(fast, x), expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    program = torch.export.export(model, (x,))
    torch.testing.assert_close(program.module()(x), expected, **close)
    if name != 'densenet121':  # whose plain network is scripted, but whose blocks run all their children
        scripted = torch.jit.script(model)
        buffer = io.BytesIO()
        torch.jit.save(scripted, buffer)
        buffer.seek(0)
        torch.testing.assert_close(torch.jit.load(buffer)(x), expected, **close)


@pytest.mark.slow
@each_mechanism
def test_half_types_and_devices(name, how):
    for dtype in (torch.bfloat16, torch.float64):
        model = build(name, dtype=dtype)
        x = image(dtype=dtype)
        expected = logits(model, x)
        attach(model, 'csa', **how)
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert torch.equal(logits(model, x), expected)
    meta = attach(timm.create_model(name, device='meta'), 'cbam', **how)
    assert {p.device.type for p in meta.parameters()} == {'meta'}


@each_mechanism
def test_gradient_checkpointing(name, how):
    model, x = attach(build(name), 'csa', **how), image()
    if name == 'cs3darknet_s':
        pytest.skip('timm has none for this family')
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model.eval()(x).square().mean().backward()  # evaluation: dropout draws nothing
        grads.append({key: p.grad.clone() for key, p in model.named_parameters()})
    assert any(key.startswith(model.attached_names) for key in grads[0])
    for key, grad in grads[0].items():
        torch.testing.assert_close(grads[1][key], grad, msg=lambda m, key=key: f'{key}: {m}')


@each_mechanism
def test_by_name(name, how, tmp_path):
    arguments = dict(backbone=name, attention='scsa', **how)
    model = timm.create_model('attached', **arguments, num_classes=7, in_chans=1).eval()
    assert model.attached_args.items() >= arguments.items()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    x = image()[:, :1]
    expected = logits(model, x)
    save(model, tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    assert config['architecture'] == 'attached'
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
    assert torch.equal(logits(again, x), expected)
    assert again.attached_names == model.attached_names
    features = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, features_only=True).eval()
    maps = features(x)
    assert [m.shape[1] for m in maps] == features.feature_info.channels()
    wanted = model.forward_intermediates(x, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(maps, wanted, strict=True))
    three = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, num_classes=3)
    assert logits(three, x).shape == (2, 3)
    key = f'{model.attached_names[0]}.norm.weight'
    assert torch.equal(three.state_dict()[key], model.state_dict()[key])


def test_an_attached_model_saves_as_one_that_was_built_by_name(tmp_path):
    model = attach(build('resnet18'), 'eca', stages=(1, 2), kernel_size=5)
    with torch.no_grad():
        model.layer2[0].se.conv.weight.add_(0.3)
    x = image()
    save(model, tmp_path)
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
    assert torch.equal(logits(again, x), logits(model, x))
    assert again.attached_args == model.attached_args


def test_weights_of_the_plain_backbone(tmp_path):
    plain, x = build('resnet18'), image()
    torch.save(dict(state_dict=plain.state_dict()), tmp_path / 'plain.pth')
    options = dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'plain.pth')))
    model = timm.create_model('attached', backbone='resnet18', attention='scsa', **options)
    assert torch.equal(logits(model, x), logits(plain, x))
    new = timm.create_model('attached', backbone='resnet18', attention='scsa', num_classes=3, **options)
    assert torch.equal(new.layer1[0].conv1.weight, plain.layer1[0].conv1.weight)
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    assert all(key.startswith(model.attached_names) for key in missing)
    with pytest.raises(CheckpointError, match='does not fit'):
        timm.create_model('attached', backbone='resnet34', attention='csa', **options)
    from_attached = dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'attached.pth')))
    torch.save(model.state_dict(), tmp_path / 'attached.pth')
    with pytest.raises(CheckpointError, match='does not fit'):
        timm.create_model('attached', backbone='resnet18', attention='csa', **from_attached)


def test_pretrained_weights_inside_the_package():
    """The backbone's own default weights, through its own entrypoint."""
    model = timm.create_model('attached', backbone='resnet20_cifar', attention='csa', pretrained=True)
    plain = timm.create_model('resnet20_cifar', pretrained=True)
    x = image(32)
    assert torch.equal(logits(model, x), logits(plain, x))
    assert model.pretrained_cfg['mean'] == plain.pretrained_cfg['mean']
    new = timm.create_model(
        'attached', backbone='resnet20_cifar.cifar10', attention='csa', pretrained=True, num_classes=3
    )
    assert torch.equal(new.conv_stem.weight, plain.conv_stem.weight)


def test_freezing():
    model = timm.create_model('attached', backbone='regnety_002', attention='csa', trainable='attention,head')
    trained = {key for key, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert trained == {key for key, _ in model.named_parameters() if key.startswith((*model.attached_names, 'head.fc'))}
    features = timm.create_model(
        'attached', backbone='resnet18', attention='csa', trainable='attention', features_only=True
    )
    trained = {key for key, p in features.named_parameters() if p.requires_grad}
    assert trained
    assert trained == {k for k, _ in features.named_parameters() if k.startswith(tuple(attached_names(features)))}


def test_layer_decay_leaves_the_attention_its_full_rate():
    model = attach(build('resnet18'), 'csa')
    optimizer = create_optimizer_v2(model, opt='sgd', lr=1.0, layer_decay=0.5, weight_decay=0)
    scale = {id(p): group['lr_scale'] for group in optimizer.param_groups for p in group['params']}
    scales = {key: scale[id(p)] for key, p in model.named_parameters()}
    assert set(scales) == set(dict(model.named_parameters()))
    assert all((scales[key] == 1) == key.startswith((*model.attached_names, 'fc.')) for key in scales)
    assert scales['conv1.weight'] < scales['layer4.1.conv1.weight']


def test_the_state_of_the_model_stays_as_it_was():
    model = build('regnety_002').train()
    model.s1.eval()
    modes = {name: m.training for name, m in model.named_modules()}
    tensors = {k: v.clone() for k, v in model.state_dict().items()}
    random_state = torch.get_rng_state()
    attach(model, 'gct')  # which draws no initial values
    assert torch.equal(torch.get_rng_state(), random_state)
    assert {name: m.training for name, m in model.named_modules() if name in modes} == modes
    assert all(torch.equal(model.state_dict()[k], v) for k, v in tensors.items())


ERRORS = [
    ('resnet18', dict(attention='scs'), 'did you mean scsa'),
    ('resnet18', dict(attention='transformer'), 'must be one of'),
    ('resnet18', dict(attention='ba'), 'ba_resnet50'),
    ('resnet18', dict(attention='dia'), 'dia_resnet50'),
    ('resnet18', dict(attention='csa', where='middle'), "'slot', 'stage'"),
    ('resnet18', dict(attention='csa', blocks='first'), "'all', 'last'"),
    ('resnet18', dict(attention='csa', start='zero'), "'identity', 'fresh'"),
    ('resnet18', dict(attention='csa', stages=(4,)), '4 stages of ResNet, 0 to 3'),
    ('resnet18', dict(attention='csa', stages=()), '4 stages of ResNet, 0 to 3'),
    ('resnet18', dict(attention='csa', stages='last'), '-1 for the last stage'),
    ('resnet18', dict(attention='csa', gate_layer='sigmoid'), "start='fresh'"),
    ('resnet18', dict(attention='ca', has_skip=True), 'cannot start as an identity with has_skip=True'),
    ('rexnet_100', dict(attention='scsa'), 'multiple of 4'),
    ('vit_tiny_patch16_224', dict(attention='csa'), 'no stages'),
    ('swin_tiny_patch4_window7_224', dict(attention='csa'), 'no stages'),
    ('convnext_atto', dict(attention='csa', where='slot'), 'that have one: ResNet'),
    ('hrnet_w18_small', dict(attention='csa', where='stage'), 'that have them: ResNet'),
    ('csa_resnet18', dict(attention='csa'), 'already'),
    ('csa_resnet18', dict(attention='csa', where='stage', replace=True), 'already'),
    ('regnety_002', dict(attention='se'), 'already'),
    ('efficientnet_b0', dict(attention='se'), 'already'),
    ('ecaresnet26t', dict(attention='eca'), 'already'),
    ('resnet18', dict(attention=CSA(64)), 'Pass the class CSA'),
    ('resnet18', dict(attention=None), 'must be a name'),
    ('resnet18', dict(attention='csa', wher='slot'), 'unexpected keyword argument'),
    ('resnet18', dict(attention=lambda channels: nn.Identity()), 'device and dtype'),
    ('resnet18', dict(attention=lambda channels, **kwargs: nn.Conv2d(channels, 2 * channels, 1)), 'same shape'),
    ('halonet26t', dict(attention='csa', where='slot', stages=[-1]), 'no slot in stages'),
    ('levit_128s', dict(attention='csa'), 'no stages'),
]


@pytest.mark.parametrize(('name', 'arguments', 'message'), ERRORS)
def test_errors(name, arguments, message):
    model = timm.create_model(name)
    modules, text = [id(m) for m in model.modules()], repr(model)
    with pytest.raises(AttachError, match=message):
        attach(model, **arguments)
    assert [id(m) for m in model.modules()] == modules  # as it was
    assert repr(model) == text
    assert not any(m._forward_hooks for m in model.modules())
    assert not hasattr(model, 'attached_args')


def test_wrapped_models():
    model = timm.create_model('resnet10t')
    for wrapped in (torch.compile(model), nn.DataParallel(model), torch.jit.script(model)):
        with pytest.raises(AttachError, match='before it is compiled or wrapped'):
            attach(wrapped, 'csa')
    with pytest.raises(AttachError, match='feature extractor'):
        attach(timm.create_model('resnet10t', features_only=True), 'csa')
    with pytest.raises(AttachError, match='must be a model'):
        attach('resnet10t', 'csa')


@pytest.mark.parametrize('name', ['levit_conv_128s', 'efficientvit_m0', 'tiny_vit_5m_224'])
def test_nothing_is_left_of_the_search_for_places(name):
    """These cache what they compute from their parameters."""
    model, x = build(name), image(224)
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append(type(output)))
    with torch.no_grad():
        attach(model, 'csa')
        assert not seen
        y = model(x)
    assert type(y) is torch.Tensor
    assert torch.equal(y, logits(build(name), x))


@pytest.mark.parametrize('name', ['resnet18', 'mobilenetv2_050', 'regnetx_002'])
@pytest.mark.parametrize('where', ['slot', 'stage'])
def test_places_do_not_depend_on_dilation(name, where):
    names = attach(build(name), 'csa', where).attached_names
    assert attach(build(name, output_stride=8), 'csa', where).attached_names == names


def test_by_default_no_stage_is_left_out():
    assert attach(build('halonet26t'), 'csa').attached_names == tuple(f'stages.{n}.2' for n in range(4))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('attention', ATTENTIONS)
def test_not_a_logit_changes_under_autocast(attention, dtype):
    model, x = build('resnet10t'), image()
    with torch.autocast('cpu', dtype):
        expected = logits(model, x)
        assert torch.equal(logits(attach(model, attention), x), expected)


def test_the_tag_of_other_weights_is_not_part_of_the_name(tmp_path):
    plain = build('resnet18')
    plain.pretrained_cfg['tag'] = 'mine'
    model = attach(plain, 'csa')
    save(model, tmp_path)
    x = image()
    assert torch.equal(logits(timm.create_model(f'local-dir:{tmp_path}', pretrained=True), x), logits(model, x))


@pytest.mark.parametrize(
    ('attention', 'network'), [('se', 'seresnet50'), ('cbam', 'cbam_resnet50'), ('fca', 'fca_resnet50')]
)
def test_the_settings_are_those_of_the_papers(attention, network):
    model = attach(timm.create_model('resnet50', device='meta'), attention)
    published = timm.create_model(network, device='meta')
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in published.state_dict().items()
    }


def test_an_attention_twice():
    model = attach(build('resnet18'), 'csa')
    with pytest.raises(AttachError, match="has 'csa' attached already"):
        attach(model, 'csa')


def test_a_model_without_stages():
    with pytest.raises(AttachError, match='no stages'):
        attach(nn.Sequential(nn.Conv2d(3, 8, 3)), 'csa')
    model = attach(ResNet(BasicBlock, (1, 1, 1, 1)), 'csa')  # built without timm's factory
    assert model.attached_args['backbone'] is None


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(), 'names of a backbone and of an attention'),
        (dict(backbone='resnet18'), 'names of a backbone and of an attention'),
        (dict(backbone='resnet81', attention='csa'), 'did you mean'),
        (dict(backbone='attached', attention='csa'), 'Unknown backbone'),
        (dict(backbone='resnet18', attention='csaa'), 'did you mean'),
        (dict(backbone='resnet18', attention='csa', mode='l2'), 'go into attention_args'),
    ],
)
def test_errors_by_name(arguments, message):
    with pytest.raises(AttachError, match=message):
        timm.create_model('attached', **arguments)
    with pytest.raises(AttachError, match=r'belongs to the backbone, resnet18\.a1_in1k'):
        timm.create_model('attached.a1_in1k', backbone='resnet18', attention='csa')


def test_torch_hub():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        model = torch.hub.load('.', 'attached', source='local', backbone='resnet18', attention='csa', trust_repo=True)
    assert model.attached_args['attention'] == 'csa'
