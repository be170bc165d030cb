"""``timm_attn.explain`` and its commands: maps, curves, fields and the pointing game, against what is computed here."""

import copy
import csv
import re
from collections import Counter

import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from test_package import cli
from torch import nn

import timm_attn
import timm_attn.extras
from timm_attn.explain import (
    METHODS,
    Mosaic,
    centred_gaussian,
    centred_squares,
    choose_mosaics,
    class_activation_maps,
    descriptor_curves,
    explain,
    find_samples,
    grid_pointing_game,
    load_batches,
    randomised,
    receptive_field,
    similarity,
)
from timm_attn.explain.classes import class_index
from timm_attn.explain.curves import smooth, standardized_means
from timm_attn.explain.pointing import energy_shares, score
from timm_attn.layers import csa_descriptor
from timm_attn.models import zoo_models
from timm_attn.predict import classify

needs_grad_cam = pytest.mark.skipif(
    bool(timm_attn.extras.missing_packages('pytorch_grad_cam')), reason='needs the package grad-cam'
)
MODELS = ('resnet20_cifar', 'se_resnet20_cifar', 'csa_resnet20_cifar', 'scsa_resnet20_cifar')


def pretrained(name):
    return timm.create_model(name, pretrained=True).eval()


def state(model):
    """What a look at a model must not change."""
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in model.modules()]
    return dict(
        modes=[m.training for m in model.modules()],
        requires_grad=[p.requires_grad for p in model.parameters()],
        grads=[(p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()],
        checkpointing=[getattr(m, 'grad_checkpointing', None) for m in model.modules()],
        hooks=hooks,
        slots=[sorted(vars(m)) + sorted(m._modules) for m in model.modules()],
        values={key: value.clone() for key, value in model.state_dict().items()},
    )


def same_state(model, before):
    after = state(model)
    assert all(torch.equal(after['values'][key], value) for key, value in before.pop('values').items())
    for (now, values), (grad, kept) in zip(after['grads'], before.pop('grads'), strict=True):
        assert now is grad
        assert grad is None or torch.equal(values, kept)
    assert {key: after[key] for key in before} == before


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Drawings in folders named after what resnet20_cifar takes them for, so that it is right on them."""
    folder = tmp_path_factory.mktemp('explain')
    generator = torch.Generator().manual_seed(0)
    paths = []
    for i in range(48):
        colours = [tuple(c) for c in torch.randint(0, 256, (4, 3), generator=generator).tolist()]
        image = Image.new('RGB', (40, 40), colours[0])
        draw = ImageDraw.Draw(image)
        for colour in colours[1:]:
            x, y, w, h = torch.randint(4, 24, (4,), generator=generator).tolist()
            (draw.ellipse, draw.rectangle)[i % 2]((x, y, x + w, y + h), fill=colour)
        paths.append(folder / f'{i:02}.png')
        image.save(paths[-1])
    model = pretrained('resnet20_cifar')
    for answer in list(classify(model, list(map(str, paths)), lambda i: model.pretrained_cfg['label_names'][i], 1)):
        name = answer['image']
        target = folder / 'data' / answer['classes'][0]['label']
        target.mkdir(parents=True, exist_ok=True)
        (folder / name).rename(target / name.rsplit('/', 1)[1])
    assert len(list((folder / 'data').iterdir())) >= 4
    return folder


@pytest.fixture
def samples(data):
    return find_samples(data / 'data')


def images(count=3, size=32):
    return torch.randn(count, 3, size, size)


# Maps


@needs_grad_cam
@pytest.mark.parametrize('name', MODELS)
def test_map_is_that_of_the_paper(name):
    """Grad-CAM, equations 1 and 2: channels weighted by their mean gradient, and what speaks for the class."""
    model, x = pretrained(name), images()
    kept = []
    handle = model.stages[2].register_forward_hook(lambda module, args, output: kept.append(output))
    logits = model(x)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[:, 7].sum(), kept[0])
    cam = (gradient.mean(dim=(2, 3), keepdim=True) * kept[0]).sum(1).relu().detach()
    cam = cam - cam.amin(dim=(1, 2), keepdim=True)
    cam = F.interpolate((cam / cam.amax(dim=(1, 2), keepdim=True))[:, None], size=(32, 32), mode='bilinear')[:, 0]
    cam = cam - cam.amin(dim=(1, 2), keepdim=True)
    maps, targets = class_activation_maps(model, x, [7, 7, 7])
    assert targets == [7, 7, 7]
    torch.testing.assert_close(maps, cam / cam.amax(dim=(1, 2), keepdim=True), atol=1e-4, rtol=0)


@needs_grad_cam
@pytest.mark.parametrize('method', METHODS)
def test_methods(method):
    """Each gives maps from 0 to 1 that depend on the image alone, and on the class if the method knows it."""
    model, x = pretrained('csa_resnet20_cifar'), images()
    before = state(model)
    maps, targets = class_activation_maps(model, x, [0, 1, 2], method)
    same_state(model, before)
    assert maps.shape == (3, 32, 32)
    assert maps.min() >= 0
    torch.testing.assert_close(maps.amax(dim=(1, 2)), torch.ones(3))
    alone, _ = class_activation_maps(model, x[2:], targets[2:], method)
    torch.testing.assert_close(alone[0], maps[2], atol=1e-4, rtol=0)
    other, _ = class_activation_maps(model, x, [5, 6, 7], method)
    assert torch.equal(other, maps) == (method == 'eigencam')


@needs_grad_cam
def test_default_class_is_the_predicted_one():
    model, x = pretrained('se_resnet20_cifar'), images(5)
    with torch.no_grad():
        predicted = model(x).argmax(1).tolist()
    maps, targets = class_activation_maps(model, x)
    assert targets == predicted
    assert torch.equal(maps, class_activation_maps(model, x, predicted)[0])


def _training(model):
    model.train()
    model(images()).sum().backward()
    return model


VARIANTS = dict(
    training=lambda: _training(timm.create_model('csa_resnet20_cifar')),
    attached=lambda: timm_attn.attach(pretrained('resnet20_cifar'), 'csa', start='fresh'),
    follows=lambda: timm_attn.attach(pretrained('se_resnet20_cifar'), 'eca'),
    channels_last=lambda: pretrained('scsa_resnet20_cifar').to(memory_format=torch.channels_last),
    frozen=lambda: timm.create_model('csa_resnet20_cifar', pretrained=True, trainable='attention'),
    double=lambda: pretrained('csa_resnet20_cifar').double(),
    checkpointing=lambda: _checkpointing(timm.create_model('csa_resnet20_cifar')),
)


def _checkpointing(model):
    model.set_grad_checkpointing()
    return model.train()


@needs_grad_cam
@pytest.mark.parametrize('variant', VARIANTS)
def test_model_is_left_as_it_was(variant):
    model, x = VARIANTS[variant](), images()
    before = state(model)
    with torch.no_grad():  # as in the code of a caller who evaluates
        maps, targets = class_activation_maps(model, x)
    field = receptive_field(model, [x])
    same_state(model, before)
    assert (maps.amax(dim=(1, 2)) > 0.99).all()
    assert field.shape == (32, 32)
    plain = copy.deepcopy(model).eval().float().to(memory_format=torch.contiguous_format).requires_grad_(True)
    torch.testing.assert_close(maps, class_activation_maps(plain, x, targets)[0], atol=1e-3, rtol=0)


@needs_grad_cam
@pytest.mark.parametrize('method', ['gradcam', 'eigencam', 'scorecam'])
def test_bfloat16(method):
    model, x = pretrained('csa_resnet20_cifar'), images()
    maps, targets = class_activation_maps(model, x, method=method)
    low, _ = class_activation_maps(model.bfloat16(), x, targets, method)
    assert F.cosine_similarity(maps.flatten(1), low.flatten(1)).min() > 0.9


@needs_grad_cam
def test_sheet_of_a_model_in_training(samples):
    """Explained as in evaluation, and left in training with its statistics."""
    paths = [path for path, _ in samples[:3]]
    expected = [found.predicted for _, found in explain(pretrained('csa_resnet20_cifar'), paths)]
    model = pretrained('csa_resnet20_cifar').train()
    before = state(model)
    found = [one for _, one in explain(model, paths)]
    same_state(model, before)
    assert [one.predicted[0] for one in found] == [one.label for one in found] == [label for label, _ in expected]
    assert [one.probability for one in found] == pytest.approx([p for _, p in expected], abs=1e-4)
    half = [one.label for _, one in explain(model.bfloat16(), paths)]
    assert len(half) == 3


@needs_grad_cam
def test_layer_that_a_later_one_overwrites():
    """The block adds its shortcut to the output of its last norm in place."""
    model, x = pretrained('resnet20_cifar'), images()
    kept = []
    model.stages[2][2].bn2.register_forward_hook(lambda module, args, output: kept.append(output.detach().clone()))
    maps, _ = class_activation_maps(model, x, method='eigencam', layer='stages.2.2.bn2')
    flat = kept[-1].flatten(2)
    centred = (flat - flat.mean(dim=2, keepdim=True)).transpose(1, 2)
    axis = torch.linalg.svd(centred).Vh[:, 0]
    signed = (centred @ axis[:, :, None]).view(-1, 1, 8, 8)
    found = []
    for sign in (1, -1):  # that of a singular vector is arbitrary
        small = (sign * signed).relu()
        large = F.interpolate(small, size=(32, 32), mode='bilinear')[:, 0]
        found.append(F.cosine_similarity(large.flatten(1), maps.flatten(1)))
    assert torch.stack(found).amax(0).min() > 0.99


@needs_grad_cam
def test_errors_of_maps():
    model, x = timm.create_model('resnet20_cifar'), images(2)
    with pytest.raises(ValueError, match=r"no layer 'stages\.2\.5'; there are: .*stages\.2\.2"):
        class_activation_maps(model, x, layer='stages.2.5')
    with pytest.raises(ValueError, match=r"Unknown method 'grad'; it must be one of gradcam, gradcam\+\+"):
        class_activation_maps(model, x, method='grad')
    for layer in ('global_pool', 'classifier'):
        with pytest.raises(ValueError, match=r'no map \(B, C, H, W\) but \(2, \d+\): name a layer before pooling'):
            class_activation_maps(model, x, layer=layer)
    with pytest.raises(ValueError, match='There is no class 10; the model has the classes 0 to 9'):
        class_activation_maps(model, x, [0, 10])
    with pytest.raises(ValueError, match='1 targets for 2 images'):
        class_activation_maps(model, x, [0])
    with pytest.raises(ValueError, match='single position'):
        class_activation_maps(model, images(1, 4))
    with pytest.raises(ValueError, match='does not classify'):
        class_activation_maps(timm.create_model('resnet20_cifar', num_classes=0), x)
    with pytest.raises(ValueError, match='does not tell its last map'):
        class_activation_maps(nn.Sequential(nn.Conv2d(3, 3, 1)), x)
    vit = timm.create_model('vit_tiny_patch16_224', img_size=32, num_classes=10)
    for look in (class_activation_maps, lambda model, x: receptive_field(model, [x])):
        with pytest.raises(ValueError, match=r'no map \(B, C, H, W\) but \(., 5, 192\)'):
            look(vit, x)
    assert not any(len(m._forward_hooks) for m in [*model.modules(), *vit.modules()])


@pytest.mark.slow
@needs_grad_cam
@pytest.mark.parametrize('name', zoo_models())
def test_every_model(name):
    model = timm.create_model(name)
    side = model.pretrained_cfg['input_size'][-1]
    x = images(2, 112 if side > 112 else side)
    before = state(model)
    maps, targets = class_activation_maps(model, x)
    alone, _ = class_activation_maps(model, x[1:], targets[1:])
    field = receptive_field(model, [x])
    same_state(model, before)
    torch.testing.assert_close(alone[0], maps[1], atol=1e-3, rtol=0)
    assert maps.isfinite().all()
    assert field.sum() > 0


# Curves


@pytest.mark.parametrize('name', ['csa_resnet20_cifar', 'se_resnet20_cifar'])
def test_curves_are_those_of_the_forward_pass(name, samples):
    """Against sums over single images, with the layer's own parts called by hand."""
    model = pretrained(name)
    before = state(model)
    curves = descriptor_curves(model, samples, batch_size=7)
    same_state(model, before)
    layers = [stage[2].se for stage in model.stages]
    kept = []
    handles = [
        layer.register_forward_hook(lambda layer, args, output: kept.append((args[0].clone(), output.clone())))
        for layer in layers
    ]
    values = {key: [] for key in 'zqp'}
    with torch.no_grad():
        for _, x in load_batches(model, [path for path, _ in samples], 1):
            kept.clear()
            model(x)
            of_stages = {key: [] for key in 'zqp'}
            for layer, (map_, output) in zip(layers, kept, strict=True):
                q = csa_descriptor(map_)
                squeezed = q if name.startswith('csa') else map_.mean((2, 3), keepdim=True)
                p = layer.gate(layer.fc2(layer.act(layer.fc1(squeezed)))).flatten(1)
                torch.testing.assert_close(output, map_ * p[:, :, None, None])
                means = map_.mean((2, 3))
                z = (means - means.mean()) / means.std()
                for key, value in (('z', z), ('q', q), ('p', p)):
                    of_stages[key].append(value[0].double())
            for key, rows in of_stages.items():
                values[key].append(rows)
    for handle in handles:
        handle.remove()
    for stage, one in enumerate(curves):
        assert (one.stage, one.place, one.kind) == (stage, f'stages.{stage}.2.se', name.split('_')[0])
        assert one.images == tuple(Counter(label for _, label in samples)[label] for label in one.classes)
        for k, label in enumerate(one.classes):
            for key in 'zqp':
                rows = [v[stage] for v, (_, of_image) in zip(values[key], samples, strict=True) if of_image == label]
                torch.testing.assert_close(getattr(one, key)[k], torch.stack(rows).mean(0), atol=2e-4, rtol=0)


@pytest.mark.parametrize('name', ['csa_resnet20_cifar', 'scsa_resnet20_cifar'])
def test_curves_do_not_depend_on_the_batch(name, samples):
    model = pretrained(name)
    for a, b in zip(descriptor_curves(model, samples, 5), descriptor_curves(model, samples, 48), strict=True):
        for key in 'zqp':
            one, other = getattr(a, key), getattr(b, key)
            if one is None:
                assert (key, other) == ('p', None)
            else:
                torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_curves_of_a_plain_network(samples):
    """Where an attention would stand: behind the last norm, before the shortcut is added in place."""
    model = pretrained('resnet20_cifar')
    kept = []
    model.stages[1][2].bn2.register_forward_hook(lambda module, args, output: kept.append(output.clone()))
    before = state(model)
    one = descriptor_curves(model, samples[:1])[1]
    same_state(model, before)
    assert (one.place, one.kind, one.p) == ('stages.1.2.se', 'slot', None)
    torch.testing.assert_close(one.q[0], csa_descriptor(kept[-1])[0].double())
    torch.testing.assert_close(one.z[0], standardized_means(kept[-1])[0])
    assert list(one.correlations()) == ['z~q']


PLACES = dict(
    mbv2_se=('blocks.6.0.se', 'se', True),
    mobilenext=('stages.7', 'end', False),
    scsa_resnet18=('layer4.1.attn', 'scsa', False),
    resnet18=('layer4.1.se', 'slot', False),
)


@pytest.mark.parametrize('name', PLACES)
def test_places(name, samples):
    last = descriptor_curves(timm.create_model(name), samples[:2])[-1]
    assert (last.place, last.kind, last.p is not None) == PLACES[name]


def test_place_of_an_attached_attention(samples):
    model = timm_attn.attach(pretrained('se_resnet20_cifar'), 'csa', start='fresh')
    last = descriptor_curves(model, samples[:2])[-1]
    assert (last.place, last.kind) == ('stages.2.2.se.attached', 'csa')
    with pytest.raises(ValueError, match='no stages with maps'):
        descriptor_curves(timm.create_model('vit_tiny_patch16_224'), samples[:2])


def test_correlations_and_smoothing(samples):
    one = descriptor_curves(pretrained('csa_resnet20_cifar'), samples)[2]
    scipy_stats = pytest.importorskip('scipy.stats')
    overall, of_classes = one.correlations()['q~p']
    counts = torch.tensor(one.images, dtype=torch.float64)
    means = [(counts[:, None] * side).sum(0) / counts.sum() for side in (one.q, one.p)]
    assert overall == pytest.approx(scipy_stats.spearmanr(*means).statistic)
    assert of_classes == pytest.approx(
        [scipy_stats.spearmanr(*rows).statistic for rows in zip(one.q, one.p, strict=True)]
    )
    torch.testing.assert_close(smooth(torch.tensor([0.0, 1.0, 1.0])), torch.tensor([0.0, 0.3, 0.51]))


def test_constant_channels_have_no_descriptor():
    assert not standardized_means(torch.ones(2, 5, 3, 3)).any()


# Fields


def test_field_of_a_box():
    """A 5 x 5 box filter: the gradient is the same in the box, and zero outside of it."""
    model = nn.Sequential(nn.Conv2d(3, 2, 5, padding=2, bias=False))
    nn.init.constant_(model[0].weight, -0.5)
    field = receptive_field(model, [images(2, 11), images(1, 11)], layer='0')
    expected = torch.zeros(11, 11, dtype=torch.float64)
    expected[3:8, 3:8] = 3 * 2 * 0.5
    torch.testing.assert_close(field, expected)
    # 9 of 25 pixels are less than a half
    assert centred_squares(field, (0.3, 0.5, 1)) == [(0.3, 3, 9 / 121), (0.5, 5, 25 / 121), (1, 5, 25 / 121)]
    assert centred_squares(torch.ones(4, 6), (1,)) == [(1, 6, 1.0)]
    with pytest.raises(ValueError, match='no images'):
        receptive_field(model, [], layer='0')


def test_field_is_centred_where_the_map_looks():
    """With stride 2 the central position of a 3 x 3 map looks at pixel 2 of 6, not at pixel 3."""
    model = nn.Sequential(nn.Conv2d(3, 1, 3, stride=2, padding=1, bias=False))
    nn.init.constant_(model[0].weight, 1.0)
    field = receptive_field(model, [images(1, 6)], layer='0')
    assert field[1:4, 1:4].all()
    assert centred_squares(field, (0.1, 1)) == [(0.1, 1, 1 / 36), (1, 3, 9 / 36)]


def test_deeper_layers_see_more():
    model, x = pretrained('resnet20_cifar'), images(8)
    areas = [centred_squares(receptive_field(model, [x], f'stages.{i}'), (0.9,))[0][2] for i in range(3)]
    assert areas[0] < areas[1] < areas[2]
    batched = receptive_field(model, x.split(3))
    torch.testing.assert_close(batched, receptive_field(model, [x]), rtol=1e-3, atol=1e-6)


# The game


def test_energy():
    cells = torch.zeros(4, 8, 8)
    for i, cell in enumerate(cells):
        cell[i // 2 * 4 : i // 2 * 4 + 4, i % 2 * 4 : i % 2 * 4 + 4] = 1
    mosaic = Mosaic(('a', 'b', 'c', 'd'), (0, 1, 2, 3))
    assert energy_shares(cells).tolist() == [1, 1, 1, 1]
    assert energy_shares(cells.flip(0)).tolist() == [0, 0, 0, 0]
    assert energy_shares(torch.ones(4, 8, 8)).tolist() == [0.25] * 4
    assert energy_shares(centred_gaussian(8, 8).expand(4, 8, 8)).tolist() == pytest.approx([0.25] * 4)
    game = score([mosaic, mosaic], [energy_shares(cells), energy_shares(torch.ones(4, 8, 8))])
    assert (game.share, game.maps, game.empty) == (0.625, 8, 0)
    assert game.std_error == pytest.approx(0.375)
    cells[0] = 0
    assert score([mosaic], [energy_shares(cells)]).empty == 1
    nothing = score([mosaic], [energy_shares(torch.zeros(4, 8, 8))])
    assert (nothing.maps, nothing.empty) == (0, 4)
    assert nothing.share != nothing.share


@needs_grad_cam
def test_game(samples):
    model = pretrained('resnet20_cifar')
    names = model.pretrained_cfg['label_names']
    labelled = [(path, names.index(label)) for path, label in samples]
    before = state(model)
    game = grid_pointing_game(model, labelled, mosaics=6)
    same_state(model, before)
    assert game == grid_pointing_game(model, labelled, mosaics=6)
    assert game.mosaics != grid_pointing_game(model, labelled, mosaics=6, seed=1).mosaics
    assert game.maps + game.empty == 24
    assert all(len(set(mosaic.classes)) == 4 for mosaic in game.mosaics)
    assert game.share > 0.33  # drawings are harder than photographs
    other = randomised(model)
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True) if a.ndim > 1)
    chance = grid_pointing_game(other, mosaics=game.mosaics)
    assert chance.share < game.share


class ByColour(nn.Module):
    """A network that sees red, green, blue and yellow, each pixel by itself."""

    num_classes = 4
    feature_info = [dict(num_chs=4, reduction=1, module='act')]
    pretrained_cfg = dict(input_size=(3, 16, 16), mean=(0, 0, 0), std=(1, 1, 1), crop_pct=1.0, fixed_input_size=False)

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 4, 1), nn.ReLU()
        with torch.no_grad():
            self.conv.weight.copy_(
                torch.tensor([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1.0]])[:, :, None, None]
            )
            self.conv.bias.copy_(torch.tensor([0, 0, 0, -1.0]))

    def forward(self, x):
        return 10 * self.act(self.conv(x)).mean(dim=(2, 3))


@needs_grad_cam
def test_game_of_a_network_that_is_understood(tmp_path):
    labelled = []
    for index, colour in enumerate(('red', 'lime', 'blue', 'yellow')):
        labelled.append((str(tmp_path / f'{colour}.png'), index))
        Image.new('RGB', (24, 20), colour).save(labelled[-1][0])
    model = ByColour()
    game = grid_pointing_game(model, labelled, mosaics=3)
    assert (game.share, game.maps, game.std_error) == (pytest.approx(1), 12, pytest.approx(0))
    turned = [Mosaic(m.paths, m.classes[1:] + m.classes[:1]) for m in game.mosaics]
    assert grid_pointing_game(model, mosaics=turned).share == pytest.approx(0)
    with torch.no_grad():  # only yellow has evidence for anything
        model.conv.weight[:3] = model.conv.bias[:3] = -1
    with pytest.raises(ValueError, match='None of the maps has any energy'):
        grid_pointing_game(model, mosaics=[Mosaic(game.mosaics[0].paths, (0, 1, 2, 0))])
    model.pretrained_cfg = dict(model.pretrained_cfg, fixed_input_size=True)
    with pytest.raises(ValueError, match='images of one size only'):
        grid_pointing_game(model, mosaics=turned)


def test_mosaics_are_of_the_most_confident_images_that_are_right(samples):
    model = pretrained('resnet20_cifar')
    names = model.pretrained_cfg['label_names']
    labelled = [(path, names.index(label)) for path, label in samples]
    wrong = labelled[0][0]
    labelled[0] = (wrong, (labelled[0][1] + 1) % 10)
    confidence = {
        answer['image']: answer['classes'][0]['probability']
        for answer in classify(model, [p for p, _ in labelled], str, 1)
    }
    (first,) = choose_mosaics(model, labelled, 1)
    for path, index in zip(first.paths, first.classes, strict=True):
        assert confidence[path] == max(confidence[p] for p, i in labelled if i == index and p != wrong)
    used = {path for mosaic in choose_mosaics(model, labelled, 40) for path in mosaic.paths}
    assert wrong not in used
    with pytest.raises(ValueError, match='4 classes that the model classifies correctly; there are 1'):
        choose_mosaics(model, [pair for pair in labelled if pair[1] == labelled[-1][1]], 1)


def test_randomised_copies():
    """All weights are others, frozen norms and attached layers included; the seed decides."""
    model = timm_attn.attach(timm.create_model('resnet20_cifar'), 'csa', start='fresh')
    rng = torch.get_rng_state()
    a, b, c = (randomised(model, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), rng)
    x = images(2)
    assert torch.equal(a.eval()(x), b.eval()(x))
    assert not torch.equal(a(x), c.eval()(x))
    drawn = [(key, p, q) for (key, p), q in zip(model.named_parameters(), a.parameters(), strict=True) if p.ndim > 1]
    assert any('.se.' in key for key, _, _ in drawn)
    assert not any(torch.equal(p, q) for _, p, q in drawn)
    frozen = timm.create_model('csa_resnet20_cifar', pretrained=True, trainable='attention')
    other = randomised(frozen).state_dict()
    assert not any(torch.equal(other[key], value) for key, value in frozen.state_dict().items() if 'running' in key)


def test_similarity():
    pytest.importorskip('scipy')
    maps = torch.rand(3, 6, 6)
    torch.testing.assert_close(similarity(maps, maps.square()), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(similarity(maps, -maps), -torch.ones(3, dtype=torch.float64))
    assert similarity(maps, torch.ones(3, 6, 6)).isnan().all()


# Commands


@needs_grad_cam
def test_explain(data, monkeypatch):
    names = [str(path) for path in sorted((data / 'data').rglob('*.png'))[:3]]
    done = cli('explain', *names, '--model', *MODELS[:2], '-o', 'one.png', cwd=data)
    with Image.open(data / 'one.png') as sheet:
        width, _ = sheet.size
        assert len(sheet.getcolors(10**6)) > 1000
    asked = cli('explain', *names, '--model', MODELS[0], '--class', 'Frog', '--method', 'layercam', cwd=data)
    with Image.open(data / 'explain.png') as sheet:
        assert sheet.width < width
    predicted = cli('predict', *names, '--model', MODELS[0], '--topk', '10', cwd=data).stdout
    first = re.findall(r'png\n *([\d.]+) %  (\w+)', predicted)
    of_explain = re.findall(r'  resnet20_cifar.cifar10: (\w+), ([\d.]+) %', done.stdout)
    assert [(label, float(p)) for label, p in of_explain] == [(n, round(float(p), 1)) for p, n in first]
    frogs = [round(float(p), 1) for p in re.findall(r'([\d.]+) %  frog', predicted)]
    assert [float(p) for p in re.findall(r'asked: frog, ([\d.]+) %; predicted: \w+', asked.stdout)] == frogs
    assert 'one.png: 3 images' in done.stdout
    monkeypatch.setattr('timm_attn.explain.sheet.MOST_ROWS', 2)
    done = cli('explain', *names, '--model', MODELS[0], '-o', 'page.png', cwd=data)
    assert 'page.png: 2 images' in done.stdout
    assert 'page-2.png: 1 image\n' in done.stdout
    assert (data / 'page-2.png').exists()


@needs_grad_cam
def test_models_with_other_inputs_and_classes(data, tmp_path):
    other = timm.create_model('mbv2_se', num_classes=3)
    timm.models.save_for_hf(other, tmp_path / 'mine', model_config=dict(label_names=['ant', 'bee', 'cow']))
    name = str(next((data / 'data').rglob('*.png')))
    done = cli('explain', name, '--model', MODELS[0], 'local-dir:mine', cwd=tmp_path)
    assert re.search(r'local-dir:mine: (ant|bee|cow), ', done.stdout)
    options = dict(cwd=tmp_path, check=False)
    both = ['--model', MODELS[0], 'local-dir:mine']
    done = cli('explain', name, *both, '--class', 'beee', **options)  # neither has it
    assert done.returncode == 2
    assert done.stderr.count('left out') == 2
    assert done.stderr.splitlines()[-1] == 'error: none of these models can be looked into'
    (tmp_path / 'explain.png').unlink()
    done = cli('explain', name, *both, '--class', 'bee', **options)  # one has it, which is drawn
    assert done.returncode == 2
    assert 'left out: resnet20_cifar: ' in done.stderr
    assert 'asked: bee' in done.stdout
    assert (tmp_path / 'explain.png').exists()
    vit = timm.create_model('vit_tiny_patch16_224', img_size=32, num_classes=2)
    timm.models.save_for_hf(
        vit, tmp_path / 'vit', model_config=dict(label_names=['ant', 'bee'], input_size=(3, 32, 32))
    )
    for command in (['explain', name], ['receptive-field', name]):
        done = cli(*command, '--model', 'local-dir:vit', **options)
        assert done.returncode == 2
        assert 'no map (B, C, H, W)' in done.stderr.splitlines()[-1]


@needs_grad_cam
def test_curves_field_and_pointing(data):
    pytest.importorskip('matplotlib')
    folder = data / 'data'
    done = cli('curves', 'data', '--model', *MODELS, '--csv', 'curves.csv', '--per-class', '3', cwd=data)
    assert re.search(r'2  stages\.2\.2\.se \(csa\) +64 +-?\d\.\d\d \(-?\d', done.stdout)
    with open(data / 'curves.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    classes = sorted(path.name for path in folder.iterdir())
    assert {row['model'].split('.')[0] for row in rows} == {*MODELS}
    (of_one,) = [
        [row for row in rows if row['model'].startswith('csa_') and row['stage'] == '1' and row['class'] == name]
        for name in classes[:1]
    ]
    by_rank = sorted(of_one, key=lambda row: int(row['rank']))
    assert [int(row['rank']) for row in by_rank] == list(range(32))
    assert [float(row['q']) for row in by_rank] == sorted(float(row['q']) for row in of_one)
    assert all(row['p'] == '' for row in rows if row['model'].startswith('scsa_'))
    some = cli('curves', 'data', '--model', MODELS[0], '--classes', classes[0], classes[2], cwd=data)
    assert 'of 2 classes' in some.stdout
    done = cli('receptive-field', 'data', '--model', *MODELS[:2], '--most', '6', cwd=data)
    assert len(re.findall(r'(50|90|99) % in a square of \d+ pixels', done.stdout)) == 6
    assert '6 of 48 images' in done.stderr
    done = cli('pointing', 'data', '--model', MODELS[0], '--mosaics', '3', cwd=data)
    shares = [float(share) for share in re.findall(r'^ *([\d.]+) %', done.stdout, re.M)]
    assert shares[0] == 25
    assert shares[1] > 33
    assert len(shares) == 3
    for name in ('curves.png', 'field.png'):
        with Image.open(data / name) as image:
            assert len(image.convert('RGB').getcolors(10**6)) > 100
    assert not list(data.glob('*.part'))


@needs_grad_cam
def test_errors_are_one_line(data, tmp_path, monkeypatch):
    pytest.importorskip('matplotlib')
    name = str(next((data / 'data').rglob('*.png')))
    (tmp_path / 'bad.png').write_text('no image')
    cases = {
        ('explain', 'bad.png'): "Cannot read 'bad.png' as an image",
        ('explain', 'gone.png'): "There is no image 'gone.png'",
        ('explain', name, '--class', 'frogg'): "no class 'frogg'; did you mean: frog",
        ('explain', name, '--class', '10'): 'no class 10: its classes are 0 to 9',
        ('explain', name, '--method', 'magic'): '--method magic is unknown; it must be one of gradcam',
        ('explain', name, '--layer', 'stages.9'): "has no layer 'stages.9'",
        ('explain', name, '-o', 'sheet.jpg'): 'the name must end in .png',
        ('explain', name, '-o', 'gone/sheet.png'): 'gone is not a directory',
        ('explain', name, '-o', name): 'is one of the images and would be replaced',
        ('receptive-field', name, '-o', name): 'is one of the images and would be replaced',
        ('curves', 'gone'): "'gone' does not exist",
        ('curves', str(data / 'data'), '--classes', 'zebra'): "has no folder 'zebra'",
        ('curves', str(data / 'data'), '--classes', '0'): 'at least 1, or their names',
        ('pointing', str(tmp_path)): 'it needs one folder of images for each class',
        ('receptive-field', name, '--layer', 'classifier'): 'name a layer before pooling',
    }
    for words, message in cases.items():
        done = cli(*words, '--model', MODELS[0], cwd=tmp_path, check=False)
        assert done.returncode == 2, words
        assert message in done.stderr.splitlines()[-1], (words, done.stderr)
        assert done.stderr.count('error: ') == 1
    done = cli('explain', name, '--model', 'resnet20_cifa', cwd=tmp_path, check=False)
    assert 'did you mean resnet20_cifar' in done.stderr
    done = cli('explain', name, 'bad.png', '--model', *MODELS[:2], cwd=tmp_path, check=False)
    assert done.returncode == 2  # it was named, but the other one is drawn
    assert done.stderr.count('left out') == 1
    assert (tmp_path / 'explain.png').exists()
    before = (tmp_path / 'explain.png').read_bytes()

    def full(self, file, *args, **kwargs):
        file.write_bytes(b'begun')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('PIL.Image.Image.save', full)
    monkeypatch.setattr('matplotlib.figure.Figure.savefig', full)
    (tmp_path / 'field.png').write_text('an earlier one')
    for command in ('explain', 'receptive-field'):
        done = cli(command, name, '--model', MODELS[0], cwd=tmp_path, check=False)
        assert done.returncode == 2
        assert 'No space left' in done.stderr.splitlines()[-1]
    assert (tmp_path / 'explain.png').read_bytes() == before
    assert (tmp_path / 'field.png').read_text() == 'an earlier one'
    assert {path.name for path in tmp_path.iterdir()} == {'bad.png', 'explain.png', 'field.png'}


def test_missing_packages(data, tmp_path, monkeypatch):
    monkeypatch.setattr(timm_attn.extras, 'find_spec', lambda package: None)
    needs = dict(explain='grad-cam', curves='matplotlib, scipy', pointing='grad-cam, scipy')
    for command, packages in {**needs, 'receptive-field': 'matplotlib'}.items():
        done = cli(command, str(data / 'data'), '--model', MODELS[0], cwd=tmp_path, check=False)
        assert (done.returncode, done.stdout) == (2, '')
        assert done.stderr == f'error: {command} needs {packages}: pip install "timm-attn[explain]"\n'


def test_class_by_name():
    model = timm.create_model('resnet18')
    assert class_index(model, 'goldfish') == class_index(model, 'n01443537') == class_index(model, '1') == 1
    assert class_index(model, 'Goldfish, Carassius auratus') == 1
    with pytest.raises(ValueError, match=r'several classes of the model; use the index: 134 .*517'):
        class_index(model, 'crane')
