"""Detectors and segmenters as users build them: every name of the zoo, odd targets, files, exports."""

import copy
import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.layers import FrozenBatchNormAct2d
from torch import nn
from torchvision.models.detection import (
    fasterrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn,
    retinanet_resnet50_fpn,
)
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d

from timm_attn import dense
from timm_attn.dense.data import DetectionDataset, collate, eval_transforms, read_coco
from timm_attn.dense.features import FeatureMaps
from timm_attn.models.builder import zoo_models
from timm_attn.weights import CheckpointError

FROZEN = FrozenBatchNormAct2d | FrozenBatchNorm2d  # timm's, with and without an activation
IMAGENET = [name for name in zoo_models() if not name.endswith('_cifar')]
SMALL = dict(min_size=64, max_size=128)
NUM_CLASSES = 5


def count(model):
    return sum(p.numel() for p in model.parameters())


PARAMETERS = [  # with 80 classes and background; counted from the authors' configurations
    ('fasterrcnn', 'resnet50', {}, 81, 41_757_156),
    ('fasterrcnn', 'resnet50', {}, 91, 41_808_406),
    ('fasterrcnn', 'csa_resnet50', {}, 81, 42_457_556),
    ('fasterrcnn', 'csa_resnet50', {}, 91, 42_508_806),
    ('fasterrcnn', 'csa_resnet50', dict(backbone_args=dict(csa_blocks='all')), 81, 44_288_148),
    ('fasterrcnn', 'csa_resnet50', dict(backbone_args=dict(csa_blocks='all')), 91, 44_339_398),
    ('fasterrcnn', 'scsa_resnet50', {}, 81, 41_817_572),
    ('fasterrcnn', 'scsa_resnet50', {}, 91, 41_868_822),
    ('maskrcnn', 'resnet50', {}, 81, 44_400_693),
    ('maskrcnn', 'resnet50', {}, 91, 44_454_513),
    ('maskrcnn', 'csa_resnet50', {}, 81, 45_101_093),
    ('maskrcnn', 'csa_resnet50', {}, 91, 45_154_913),
    ('maskrcnn', 'csa_resnet50', dict(backbone_args=dict(csa_blocks='all')), 81, 46_931_685),
    ('maskrcnn', 'csa_resnet50', dict(backbone_args=dict(csa_blocks='all')), 91, 46_985_505),
    ('maskrcnn', 'scsa_resnet50', {}, 81, 44_461_109),
    ('maskrcnn', 'scsa_resnet50', {}, 91, 44_514_929),
    ('ssdlite320', 'mobilenetv2_100', dict(variant='coco'), None, 4_304_138),
    ('ssdlite320', 'mobilenetv2_100', dict(variant='voc'), None, 3_425_988),
    ('ssdlite320', 'mobilenext', dict(variant='coco'), None, 4_539_418),
    ('ssdlite320', 'mobilenext', dict(variant='voc'), None, 3_476_308),
    ('ssdlite320', 'mbv2_se', {}, None, 4_574_728),
    ('ssdlite320', 'mbv2_se', dict(attn_in_extras=False), None, 4_687_474),
    ('ssdlite320', 'mbv2_cbam', {}, None, 4_703_072),
    ('ssdlite320', 'mbv2_ca', {}, None, 4_769_978),
    ('ssdlite320', 'mbv2_ca', dict(attn_in_extras=False), None, 4_749_914),
    ('deeplabv3', 'mobilenetv2_100', {}, None, 4_523_541),
    ('deeplabv3', 'mobilenetv2_100', dict(output_stride=8), None, 4_523_541),
    ('deeplabv3', 'mobilenetv2_100', dict(head='torchvision'), None, 5_113_877),
    ('deeplabv3', 'mbv2_se', {}, 21, 4_906_877),
    ('deeplabv3', 'mbv2_cbam', {}, 21, 4_908_477),
    ('deeplabv3', 'mbv2_ca', {}, 21, 4_969_317),
    ('deeplabv3', 'mbv2_ca', dict(head='torchvision'), 21, 5_559_653),
]  # fmt: skip


@pytest.mark.parametrize(('builder', 'backbone', 'args', 'num_classes', 'expected'), PARAMETERS)
def test_parameters(builder, backbone, args, num_classes, expected):
    with torch.device('meta') if builder == 'deeplabv3' else torch.device('cpu'):
        assert count(getattr(dense, builder)(backbone, num_classes, **args)) == expected


@pytest.mark.parametrize(
    ('ours', 'theirs'),
    [
        (dense.fasterrcnn, fasterrcnn_resnet50_fpn),
        (dense.maskrcnn, maskrcnn_resnet50_fpn),
        (dense.retinanet, retinanet_resnet50_fpn),
    ],
)
def test_resnet50_is_torchvisions(ours, theirs):
    """The same parameters outside of the backbone, by name and shape, and the same number inside."""
    own = ours('resnet50')
    other = theirs(weights=None, weights_backbone=None)
    assert isinstance(own, type(other))
    shapes = [{k: v.shape for k, v in m.state_dict().items() if '.body.' not in k} for m in (own, other)]
    assert shapes[0] == shapes[1]
    assert count(own) == count(other)


def odd_targets(masks=False):
    """Images of two sizes; a box that fills one, one at the border, and no object at all."""
    images = [torch.rand(3, 96, 128), torch.rand(3, 120, 100), torch.rand(3, 96, 96)]
    boxes = [[[0.0, 0.0, 128.0, 96.0], [10.0, 20.0, 60.0, 70.0]], [[99.0, 110.0, 100.0, 120.0]], []]
    targets = []
    for image, b in zip(images, boxes, strict=True):
        target = dict(boxes=torch.tensor(b).view(-1, 4), labels=torch.randint(1, NUM_CLASSES, (len(b),)))
        if masks:
            target['masks'] = torch.zeros(len(b), *image.shape[1:], dtype=torch.uint8)
            for mask, (x1, y1, x2, y2) in zip(target['masks'], b, strict=True):
                mask[int(y1) : int(y2), int(x1) : int(x2)] = 1
        targets.append(target)
    return images, targets


def check_detector(model, masks=False):
    images, targets = odd_targets(masks)
    losses = model.train()(images, targets)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    gradients = {key: p.grad for key, p in model.named_parameters() if p.requires_grad}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    model.eval()
    with torch.no_grad():
        detections = model(images)
    for image, found in zip(images, detections, strict=True):
        height, width = image.shape[1:]
        n = len(found['boxes'])
        assert found['scores'].shape == found['labels'].shape == (n,)
        assert ((found['labels'] > 0) & (found['labels'] < NUM_CLASSES)).all()
        assert (found['boxes'] >= 0).all()
        assert (found['boxes'] <= torch.tensor([width, height] * 2) + 0.01).all()
        if masks:
            assert found['masks'].shape == (n, 1, height, width)
    return losses


def check_segmenter(model):
    images, labels = torch.rand(2, 3, 96, 128), torch.randint(0, NUM_CLASSES, (2, 96, 128))
    labels[0, :50] = 255
    out = model.train()(images)['out']
    assert out.shape == (2, NUM_CLASSES, 96, 128)
    nn.functional.cross_entropy(out, labels, ignore_index=255).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        assert model.eval()(images[:1])['out'].isfinite().all()


def in_papers(name):
    """Heads that the paper of a backbone used it in, the quickest first."""
    if name.startswith('csa_'):
        return ['fasterrcnn', 'maskrcnn']
    if name.startswith('scsa_'):
        return ['retinanet', 'fasterrcnn']
    return ['ssdlite320', 'deeplabv3']


BUILDERS = ['fasterrcnn', 'maskrcnn', 'retinanet', 'ssdlite320', 'deeplabv3']
QUICK = {('csa_resnet18', 'maskrcnn'), ('mbv2_ca', 'deeplabv3'), ('mobilenext_ca', 'deeplabv3')}


def cost(name, builder):
    return [] if builder == in_papers(name)[0] or (name, builder) in QUICK else [pytest.mark.slow]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ('name', 'builder'),
    [
        pytest.param(name, builder, marks=cost(name, builder))
        for name in IMAGENET
        for builder in BUILDERS
        if builder in in_papers(name) or not name.endswith('101')
    ],
)
def test_every_backbone_in_every_head(name, builder):
    build_and_check(name, builder)


def build_and_check(name, builder):
    if builder == 'deeplabv3':
        check_segmenter(dense.deeplabv3(name, NUM_CLASSES))
    else:
        args = {} if builder == 'ssdlite320' else SMALL
        check_detector(getattr(dense, builder)(name, NUM_CLASSES, **args), masks=builder == 'maskrcnn')


def skip_without_maps(*names):
    """Older versions of timm have no ``forward_intermediates`` in every family."""
    for name in names:
        if not hasattr(timm.create_model(name, device='meta'), 'forward_intermediates'):
            pytest.skip(f'{name} has no forward_intermediates in timm {timm.__version__}')


@pytest.mark.slow
@pytest.mark.parametrize('name', ['regnety_002', 'mobilenetv3_small_050', 'densenet121', 'convnext_atto'])
def test_other_models_of_timm(name):
    """Those whose last map has a layer of its own, too; what they do not use has no gradient to wait for."""
    skip_without_maps(name)
    check_detector(dense.fasterrcnn(name, NUM_CLASSES, **SMALL))
    check_detector(dense.ssdlite320(name, NUM_CLASSES, variant='voc'))


@pytest.mark.parametrize('variant', ['coco', 'voc'])
def test_ssdlite_without_any_object(variant):
    model = dense.ssdlite320('mbv2_ca_050', NUM_CLASSES, variant=variant).train()
    nothing = dict(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    losses = model([torch.rand(3, 100, 100)] * 2, [nothing] * 2)
    assert all(loss.isfinite() for loss in losses.values())
    assert losses['bbox_regression'] == 0


@pytest.mark.parametrize('builder', ['ssdlite320', 'fasterrcnn'])
def test_an_image_with_nothing_but_a_crowd(builder, tmp_path):
    """Training sees it as an image without objects."""
    crowd = dict(id=1, image_id=1, category_id=4, bbox=[2, 3, 40, 30], area=1200, iscrowd=1, segmentation=[])
    one = dict(crowd, id=2, image_id=2, iscrowd=0)
    images = [dict(id=i, file_name=f'{i}.png', width=64, height=48) for i in (1, 2)]
    for image in images:
        Image.effect_noise((64, 48), 90).convert('RGB').save(tmp_path / image['file_name'])
    content = dict(images=images, annotations=[crowd, one], categories=[dict(id=4, name='cat')])
    (tmp_path / 'instances.json').write_text(json.dumps(content))
    data = DetectionDataset(
        read_coco(tmp_path / 'instances.json', tmp_path), train=True, transforms=eval_transforms(), drop_empty=False
    )
    images, targets = collate([data[0], data[1]])
    assert [len(t['boxes']) for t in targets] == [0, 1]
    args = {} if builder == 'ssdlite320' else SMALL
    losses = getattr(dense, builder)('mbv2_ca_050', classes=data.classes, **args).train()(images, targets)
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize('variant', ['coco', 'voc'])
def test_ssdlite_under_autocast(variant):
    """Default boxes and the suppression of one class by another need more than bfloat16."""
    model = dense.ssdlite320('mbv2_ca_050', NUM_CLASSES, variant=variant, score_thresh=0.0).eval()
    images = [torch.rand(3, 320, 320)]
    with torch.no_grad():
        (expected,) = model(images)
        with torch.autocast('cpu', torch.bfloat16):
            (found,) = model(images)
    assert found['boxes'].dtype == found['scores'].dtype == torch.float32
    x = torch.rand(1, 3, 320, 320)
    maps = [m.bfloat16() for m in model.backbone(x).values()]
    boxes = [model.anchor_generator(ImageList(x, [(320, 320)]), m)[0] for m in (maps, [m.float() for m in maps])]
    assert torch.equal(*boxes)
    assert len(expected['boxes']) == len(found['boxes']) == 100


@pytest.mark.slow
@pytest.mark.parametrize('variant', ['coco', 'voc'])
def test_ssdlite_learns_a_box(variant):
    """Labels, boxes and scores fit together: a picture learned by heart is found again."""
    model = dense.ssdlite320('mobilenetv2_050', 4, variant=variant).train()
    images = [torch.rand(3, 320, 320) * 0.1 for _ in range(2)]
    targets = []
    for i, image in enumerate(images):
        x, y = (40, 60) if i else (150, 120)
        image[i, y : y + 120, x : x + 120] += 0.8
        targets.append(dict(boxes=torch.tensor([[x, y, x + 120.0, y + 120.0]]), labels=torch.tensor([3 - i])))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(50):
        optimizer.zero_grad()
        sum(model(images, targets).values()).backward()
        optimizer.step()
    model.eval()
    for module in model.modules():  # two images are too few for statistics of their own
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    with torch.no_grad():
        for found, target in zip(model(images), targets, strict=True):
            assert found['labels'][0] == target['labels'][0]
            assert (found['boxes'][0] - target['boxes'][0]).abs().max() < 30


def test_ssdlite_normalization():
    """The authors' mean for networks trained with ImageNet's, otherwise the network's own."""
    assert dense.ssdlite320('mobilenetv2_100').transform.image_mean == [123 / 255, 117 / 255, 104 / 255]
    own = timm.create_model('mobilenetv2_100')
    own.pretrained_cfg = dict(own.pretrained_cfg, mean=(0.5, 0.5, 0.5), std=(0.4, 0.4, 0.4))
    assert dense.ssdlite320(own).transform.image_mean == [0.5] * 3
    other = timm.create_model('resnet18')
    other.pretrained_cfg = own.pretrained_cfg
    assert dense.fasterrcnn(other, 2).transform.image_std == [0.4] * 3
    assert dense.fasterrcnn('resnet18', 2, image_mean=[0.0] * 3).transform.image_mean == [0.0] * 3


# Feature maps


@pytest.mark.parametrize('name', ['csa_resnet18', 'mbv2_ca_050', 'mobilenext', 'regnety_002'])
def test_maps_are_those_of_timm(name):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    x = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        final, levels = model.forward_intermediates(x)
        by_stride = dict(zip((level['reduction'] for level in model.feature_info), levels, strict=True))
        for strides in ((4, 8, 16, 32), (8, 32), (16,)):
            maps = FeatureMaps(copy.deepcopy(model), strides).eval()
            for stride, channels, m in zip(strides, maps.out_channels, maps(x).values(), strict=True):
                assert torch.equal(m, by_stride[stride])
                assert m.shape[1] == channels
        maps = FeatureMaps(copy.deepcopy(model), (16, 32), final=True, names=('a', 'b')).eval()
        out = maps(x)
        assert list(out) == ['a', 'b']
        assert torch.equal(out['a'], by_stride[16])
        assert torch.equal(out['b'], final)
        assert maps.out_channels == [out['a'].shape[1], out['b'].shape[1]]


def test_the_final_map_is_behind_the_last_convolution():
    maps = FeatureMaps(timm.create_model('mobilenetv2_100'), (16, 32), final=True)
    assert maps.out_channels == [96, 1280]
    assert FeatureMaps(timm.create_model('mobilenetv2_100'), (16, 32)).out_channels == [96, 320]


def test_other_shapes_of_timm():
    """Networks with their own size, a map with channels last, and stages that share layers."""
    skip_without_maps('inception_v3')
    assert dense.ssdlite320('inception_v3', 2).backbone.out_channels[:2] == [768, 2048]
    with pytest.raises(ValueError, match=r'The final map of swin_tiny.* has the shape .*, not \(B, C, H, W\)'):
        dense.ssdlite320('swin_tiny_patch4_window7_224', 2)
    model = dense.retinanet('hrnet_w18_small', NUM_CLASSES, **SMALL)
    check_detector(model)


def trained(maps):
    return {key.split('.')[1] for key, p in maps.named_parameters() if p.requires_grad}


def test_trainable_layers():
    """As torchvision counts them, for a ResNet: the last n of stem and four stages."""
    stages = ['conv1', 'bn1', 'layer1', 'layer2', 'layer3', 'layer4']
    for n, frozen in enumerate([6, 5, 4, 3, 2, 0]):
        maps = FeatureMaps(timm.create_model('csa_resnet18'), trainable_layers=n)
        assert trained(maps) == set(stages[frozen:])
    maps = FeatureMaps(timm.create_model('mobilenetv2_100'), (16, 32), final=True, trainable_layers=1)
    assert {key for key, p in maps.named_parameters() if not p.requires_grad} == {
        key for key, _ in maps.named_parameters() if key.startswith(('model.conv_stem', 'model.bn1')) or
        any(key.startswith(f'model.blocks.{i}.') for i in range(5))
    }  # fmt: skip
    for n in (-1, 6):
        with pytest.raises(ValueError, match=r'trainable_layers=.*0\.\.5'):
            FeatureMaps(timm.create_model('resnet18'), trainable_layers=n)


def test_trainable_layers_of_a_network_whose_levels_are_activations():
    skip_without_maps('vgg11_bn')
    maps = FeatureMaps(timm.create_model('vgg11_bn'), (8, 16, 32), trainable_layers=2)
    frozen = {key.split('.')[2] for key, p in maps.named_parameters() if not p.requires_grad}
    assert frozen == {'0', '1', '4', '5', '8', '9', '11', '12', '15', '16', '18', '19'}  # up to features.20, a pooling


def test_frozen_stages_get_no_gradient_and_keep_their_statistics():
    maps = FeatureMaps(timm.create_model('resnet18'), trainable_layers=3)
    before = copy.deepcopy(maps.state_dict())
    sum(m.square().mean() for m in maps(torch.randn(2, 3, 64, 64)).values()).backward()
    after = maps.state_dict()
    changed = {key.split('.')[1] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {'layer2', 'layer3', 'layer4'}
    assert all((p.grad is not None) == p.requires_grad for p in maps.parameters())


@pytest.mark.parametrize('batch_norm', ['train', 'eval', 'frozen'])
def test_batch_norm(batch_norm):
    maps = FeatureMaps(timm.create_model('resnet18'), batch_norm=batch_norm)
    before = copy.deepcopy(maps.state_dict())
    sum(m.square().mean() for m in maps(torch.randn(2, 3, 64, 64)).values()).backward()
    statistics = [key for key in before if 'running' in key]
    assert statistics
    changed = [not torch.equal(before[key], maps.state_dict()[key]) for key in statistics]
    assert all(changed) if batch_norm == 'train' else not any(changed)
    norms = [m for m in maps.modules() if isinstance(m, nn.BatchNorm2d | FROZEN)]
    assert len(norms) == 20
    gradients = [getattr(m.weight, 'grad', None) is not None for m in norms]
    assert not any(gradients) if batch_norm == 'frozen' else all(gradients)
    maps.eval().train()
    assert all(m.training == (batch_norm != 'eval') for m in norms)


def test_defaults_follow_the_weights(monkeypatch):
    """Random weights are trained whole; pretrained ones keep their norms and first stages, as in torchvision."""
    model = dense.fasterrcnn('resnet18', 2)
    assert all(p.requires_grad for p in model.parameters())
    asked = []
    create = timm.create_model

    def without_weights(name, pretrained=False, **kwargs):
        asked.append(pretrained)
        return create(name, **kwargs)

    monkeypatch.setattr(timm, 'create_model', without_weights)
    model = dense.fasterrcnn('resnet18', 2, pretrained_backbone=True)
    assert asked == [True]
    assert trained(model.backbone.body) == {'layer2', 'layer3', 'layer4'}
    assert any(isinstance(m, FROZEN) for m in model.modules())
    model = dense.fasterrcnn('resnet18', 2, pretrained_backbone=True, trainable_layers=5, batch_norm='eval')
    assert all(p.requires_grad for p in model.parameters())
    with pytest.warns(UserWarning, match='trainable_layers=1 has no effect'):
        model = dense.fasterrcnn('resnet18', 2, trainable_layers=1)
    assert all(p.requires_grad for p in model.parameters())


# Errors


@pytest.mark.parametrize('builder', BUILDERS)
def test_small_networks_have_no_map(builder):
    with pytest.raises(ValueError, match=r'csa_resnet20_cifar has no feature map of stride .*; it has: 1, 2, 4'):
        getattr(dense, builder)('csa_resnet20_cifar')


def target(boxes=((1.0, 2.0, 30.0, 40.0),), labels=(1,), **fields):
    return dict(boxes=torch.tensor(boxes), labels=torch.tensor(labels), **fields)


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (target(labels=(5,)), r'image 1 of the batch has the label 5; labels must be in 1\.\.4'),
        (target(labels=(0,)), r'the label 0; .*0 is the background'),
        (target(labels=(77,), image_id=139), r'\(image_id 139\) has the label 77'),
        (target(labels=(1, 2)), 'a label for each of its 1 boxes'),
        (target(labels=(1.0,)), 'must be int64, not float32'),
        (['boxes'], "must be a dict with 'boxes' and 'labels', not list"),
        (target(boxes=((10.0, 10.0, 1600.0, 60.0),)), r'outside of its 64 x 64 pixels: \(10, 10, 1600, 60\)'),
        (target(masks=torch.ones(2, 64, 64)), r'masks .* must have the shape \(N, H, W\) \(1, 64, 64\)'),
        (target(masks=torch.ones(1, 60, 64)), 'masks .* must have the shape'),
        (target(masks=torch.full((1, 64, 64), 255, dtype=torch.uint8)), 'must be 0 or 1, but contain 255'),
        (
            target(boxes=((5.0, 5.0, 5.0, 9.0),), image_id=torch.tensor(7)),
            r'image_id 7\) has a box without area: \(5, 5',
        ),
        (target(boxes=((float('nan'), 5.0, 9.0, 9.0),)), 'not finite'),
        (dict(labels=torch.tensor([1])), r"must have 'boxes' of shape \(N, 4\)"),
    ],
)
@pytest.mark.parametrize('builder', ['fasterrcnn', 'ssdlite320'])
def test_wrong_targets(builder, wrong, message):
    model = getattr(dense, builder)('mbv2_ca_050', NUM_CLASSES).train()
    with pytest.raises(ValueError, match=message):
        model([torch.rand(3, 64, 64)] * 2, [target(), wrong])
    with pytest.raises(ValueError, match=message):
        model(targets=[target(), wrong], images=[torch.rand(3, 64, 64)] * 2)


@pytest.mark.parametrize(
    ('image', 'message'),
    [
        (torch.rand(4, 64, 64), r'Image 1 of the batch must be a tensor \(3, H, W\), not \(4, 64, 64\)'),
        (torch.rand(64, 64, 3), 'must be a tensor'),
        (torch.rand(1, 64, 64), 'must be a tensor'),
        (np.zeros((3, 64, 64)), r'not \(3, 64, 64\)|must be a tensor'),
    ],
)
def test_wrong_images(image, message):
    model = dense.ssdlite320('mbv2_ca_050', NUM_CLASSES).eval()
    with pytest.raises(ValueError, match=message):
        model([torch.rand(3, 64, 64), image])


def test_images_that_are_not_in_0_to_1():
    model = dense.retinanet('mbv2_ca_050', NUM_CLASSES).train()
    with pytest.raises(ValueError, match=r'image 1 of the batch has values up to 255: images must be in 0\.\.1'):
        model([torch.rand(3, 64, 64), torch.full((3, 64, 64), 255.0)], [target(), target()])


def test_other_channels():
    args = dict(backbone_args=dict(in_chans=1), image_mean=[0.5], image_std=[0.2])
    for builder in (dense.retinanet, dense.ssdlite320):
        model = builder('mbv2_ca_050', NUM_CLASSES, **args).eval()
        model([torch.rand(1, 64, 64)])


def test_training_needs_targets():
    model = dense.retinanet('mbv2_ca_050', NUM_CLASSES).train()
    with pytest.raises(ValueError, match=r'needs targets; for predictions call model\.eval'):
        model([torch.rand(3, 64, 64)])
    with pytest.raises(ValueError, match='2 images and 1 targets'):
        model([torch.rand(3, 64, 64)] * 2, [target()])


def test_a_batch_of_one():
    model = dense.ssdlite320('mbv2_ca_050', NUM_CLASSES).train()
    with pytest.raises(ValueError, match=r'Cannot train on a batch of one image.*drop_last=True'):
        model([torch.rand(3, 64, 64)], [target()])
    model = dense.deeplabv3('mbv2_ca_050', NUM_CLASSES).train()
    with pytest.raises(ValueError, match=r'Cannot train on a batch of one image.*drop_last=True'):
        model(torch.rand(1, 3, 64, 64))
    with pytest.raises(ValueError, match='Cannot train on a batch of one image'):
        model(x=torch.rand(1, 3, 64, 64))
    model.classifier.eval()
    assert model(torch.rand(1, 3, 64, 64))['out'].shape == (1, NUM_CLASSES, 64, 64)
    check_detector(dense.fasterrcnn('mbv2_ca_050', NUM_CLASSES, **SMALL))


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: dense.fasterrcnn('resnet18', 1), 'at least 2, since the background'),
        (lambda: dense.fasterrcnn('resnet18', 3, classes=['a']), 'with the background it is 2'),
        (lambda: dense.fasterrcnn('resnet18', classes='cat'), 'must be a list of names'),
        (lambda: dense.fasterrcnn('resnet18', classes=['a', 'a']), 'must be unique'),
        (lambda: dense.fasterrcnn('resnet18', classes=['__background__', 'a']), 'without background'),
        (lambda: dense.fasterrcnn('resnet18', ['a', 'b']), 'Names go to classes='),
        (lambda: dense.fasterrcnn('resnet18', 2, backbone_args=dict(in_chans=1)), 'pass image_mean and image_std'),
        (lambda: dense.fasterrcnn('resnet18', 2, backbone_args=dict(pretrained=True)), 'Pass pretrained_backbone'),
        (lambda: dense.fasterrcnn(timm.create_model('resnet18', features_only=True)), 'without features_only'),
        (lambda: dense.fasterrcnn('resnet18', classes=[]), 'must be a list of names'),
        (lambda: dense.deeplabv3('resnet18', 3, classes=['a']), 'does not go with 1 names'),
        (lambda: dense.ssdlite320('resnet18', variant='lvis'), "must be one of 'coco', 'voc'"),
        (lambda: dense.ssdlite320('resnet18', attn_in_extras=True), 'needs a backbone with an attention'),
        (lambda: dense.deeplabv3('resnet18', output_stride=32), 'must be 8 or 16'),
        (lambda: dense.deeplabv3('resnet18', head='aspp'), "must be 'compact' or 'torchvision'"),
        (lambda: dense.deeplabv3('vgg11'), 'vgg11 cannot be built with output_stride=16'),
        (lambda: dense.deeplabv3(timm.create_model('resnet18')), 'create it with output_stride=16'),
        (lambda: dense.fasterrcnn(timm.create_model('resnet18'), pretrained_backbone=True), 'go with the name'),
        (lambda: dense.fasterrcnn(timm.create_model('resnet18'), batch_norm='sync'), "must be one of 'train'"),
        (lambda: dense.fasterrcnn('csa_resnet5'), r"Unknown model 'csa_resnet5'\. Did you mean csa_resnet50"),
        (lambda: dense.fasterrcnn(18), 'must be the name of a timm model or a model, not int'),
        (lambda: FeatureMaps(nn.Identity()), 'Identity has no forward_intermediates'),
    ],
)  # fmt: skip
def test_wrong_values(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize('builder', BUILDERS)
def test_misspelt_arguments(builder):
    with pytest.raises(TypeError, match='pretraned_backbone'):
        getattr(dense, builder)('resnet18', pretraned_backbone=True)


@pytest.mark.parametrize(
    ('builder', 'name', 'message'),
    [
        ('fasterrcnn', 'trainable_backbone_layers', "Did you mean 'trainable_layers'"),
        ('retinanet', 'weights_backbone', "Did you mean 'pretrained_backbone'"),
        ('ssdlite320', 'pretrained', "Did you mean 'pretrained_backbone'"),
        ('ssdlite320', 'size', "'size' is set by the builder"),
        ('ssdlite320', 'topk_candidates', 'is set by the builder'),
        ('ssdlite320', 'positive_fraction', 'is set by the builder'),
        ('fasterrcnn', 'box_predictor', 'is set by the builder'),
    ],
)
def test_arguments_of_others(builder, name, message):
    with pytest.raises(TypeError, match=message):
        getattr(dense, builder)('resnet18', **{name: 3})


def test_the_nearest_argument_is_named():
    with pytest.raises(TypeError, match=r"Unknown argument 'box_nms_tresh'\. Did you mean 'box_nms_thresh'"):
        dense.fasterrcnn('resnet18', box_nms_tresh=0.3)


# Files


@pytest.mark.parametrize(
    'build',
    [
        lambda: dense.ssdlite320('mbv2_ca_050', variant='voc', classes=['WBC', 'RBC']),
        lambda: dense.fasterrcnn('mbv2_ca_050', classes=['WBC', 'RBC'], min_size=64, max_size=128),
        lambda: dense.deeplabv3('mbv2_ca_050', classes=['sky', 'Straße'], output_stride=8, head='torchvision'),
        lambda: dense.retinanet('mbv2_ca_050', 3, batch_norm='frozen', **SMALL),
        lambda: dense.maskrcnn('resnet10t', 3, backbone_args=dict(in_chans=3, act_layer='silu'), **SMALL),
    ],
)
def test_save_and_load(build, tmp_path):
    model = build().eval()
    path = tmp_path / 'model.safetensors'
    dense.save(model, path)
    loaded = dense.load(path)
    assert type(loaded) is type(model)
    assert loaded.classes == model.classes
    assert not loaded.training
    own, other = model.state_dict(), loaded.state_dict()
    assert own.keys() == other.keys()
    assert all(torch.equal(own[key], other[key]) for key in own)
    x = torch.rand(1, 3, 96, 80)
    with torch.no_grad():
        if 'deeplab' in model.recipe['builder']:
            assert torch.equal(model(x)['out'], loaded(x)['out'])
        else:
            (a,), (b,) = model(list(x)), loaded(list(x))
            assert all(torch.equal(a[key], b[key]) for key in a)
    dense.save(loaded, path)  # again, over the first
    assert dense.load(path).classes == model.classes
    assert [p.name for p in tmp_path.iterdir()] == ['model.safetensors']
    (tmp_path / 'new').touch()
    assert path.stat().st_mode == (tmp_path / 'new').stat().st_mode  # not for its owner alone


@pytest.mark.parametrize('builder', ['fasterrcnn', 'deeplabv3'])
def test_a_file_of_pretrained_weights_is_built_without_a_network(builder, monkeypatch, tmp_path):
    create = timm.create_model

    def without_weights(name, pretrained=False, **kwargs):
        return create(name, **kwargs)

    monkeypatch.setattr(timm, 'create_model', without_weights)
    model = getattr(dense, builder)('resnet10t', 2, pretrained_backbone=True)
    dense.save(model, tmp_path / 'model.safetensors')
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        loaded = dense.load(tmp_path / 'model.safetensors')
    frozen = [[isinstance(m, FROZEN) for m in network.modules()] for network in (model, loaded)]
    assert frozen[0] == frozen[1]
    assert any(frozen[1]) == (builder == 'fasterrcnn')


def test_a_file_keeps_what_follows_from_the_backbone(tmp_path):
    """Normalization, frozen stages, and names that were set later."""
    path = tmp_path / 'model.safetensors'
    backbone = timm.create_model('resnet10t')
    backbone.pretrained_cfg = dict(backbone.pretrained_cfg, mean=(0.5, 0.5, 0.5), std=(0.4, 0.4, 0.4))
    model = dense.fasterrcnn(backbone, 3, trainable_layers=2, batch_norm='eval')
    model.rpn.requires_grad_(False)
    model.classes = ['a', 'b']
    dense.save(model, path)
    loaded = dense.load(path, backbone=timm.create_model('resnet10t'))
    assert loaded.transform.image_mean == [0.5] * 3
    assert loaded.transform.image_std == [0.4] * 3
    assert loaded.classes == ['a', 'b']
    frozen = [{key for key, p in m.named_parameters() if not p.requires_grad} for m in (model, loaded)]
    assert frozen[0] == frozen[1]
    assert any('rpn' in key for key in frozen[0])
    assert any('layer2' in key for key in frozen[0])
    training = [[m.training for m in network.train().backbone.modules()] for network in (model, loaded)]
    assert training[0] == training[1]
    segmenter = dense.deeplabv3('mbv2_ca_050', 2)
    segmenter.backbone.mean = (0.1, 0.2, 0.3)
    dense.save(segmenter, path)
    assert dense.load(path).backbone.mean == (0.1, 0.2, 0.3)


def test_weights_of_a_backbone_are_in_the_file(tmp_path):
    """A file that names other files to read would be refused: neither is written."""
    weights = tmp_path / 'weights.safetensors'
    save_file(timm.create_model('mbv2_ca_050').state_dict(), weights)
    args = dict(pretrained_cfg_overlay=dict(file=str(weights)))
    model = dense.ssdlite320('mbv2_ca_050', 3, pretrained_backbone=True, backbone_args=args)
    dense.save(model, tmp_path / 'model.safetensors')
    weights.unlink()
    loaded = dense.load(tmp_path / 'model.safetensors')
    assert torch.equal(loaded.backbone.body.model.conv_stem.weight, model.backbone.body.model.conv_stem.weight)
    with pytest.raises(ValueError, match=r"no folder '.*nowhere'"):
        dense.save(model, tmp_path / 'nowhere' / 'model.safetensors')


def test_a_module_as_backbone(tmp_path):
    path = tmp_path / 'model.safetensors'
    dense.save(dense.fasterrcnn(timm.create_model('mbv2_ca_050'), 2), path)
    with pytest.raises(ValueError, match='not built on the name of a network: pass its backbone'):
        dense.load(path)
    assert count(dense.load(path, backbone=timm.create_model('mbv2_ca_050')))
    dense.save(dense.fasterrcnn('mbv2_ca_050', 2), path)
    with pytest.raises(ValueError, match="built on 'mbv2_ca_050'; pass no backbone"):
        dense.load(path, backbone=timm.create_model('mbv2_ca_050'))


def test_what_a_file_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match=r'was not made by a builder of timm_attn\.dense'):
        dense.save(timm.create_model('mbv2_ca_050'), tmp_path / 'a.safetensors')
    dense.save(dense.fasterrcnn('mbv2_ca_050', 2, box_roi_pool=None), tmp_path / 'b.safetensors')
    model = dense.fasterrcnn('mbv2_ca_050', 2, backbone_args=dict(act_layer=nn.ReLU))
    with pytest.raises(ValueError, match='given backbone_args=dict, which a file cannot hold'):
        dense.save(model, tmp_path / 'b.safetensors')
    assert dense.load(tmp_path / 'b.safetensors').recipe['args']['num_classes'] == 2


def broken(recipe, **changes):
    return {**recipe, 'args': {**recipe['args'], **changes}}


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda r: None, r'was not written by timm_attn\.dense\.save'),
        (lambda r: '{', 'metadata .* are damaged'),
        (lambda r: '[' * 100_000, 'metadata .* are damaged'),
        (lambda r: dict(r, builder=['a']), 'metadata .* are damaged'),
        (lambda r: dict(r, mean='abc'), 'metadata .* are damaged'),
        (lambda r: dict(r, std=[0, 1, 1]), 'mean and std'),
        (lambda r: dict(r, mean=[float('nan')] * 3), 'mean and std'),
        (lambda r: broken(r, backbone_args=dict(output_stride=5)), 'cannot be built'),
        (lambda r: broken(r, backbone_args=dict(act_layer='nope')), 'cannot be built'),
        (lambda r: [1], 'metadata .* are damaged'),
        (lambda r: dict(r, args=3), 'metadata .* are damaged'),
        (lambda r: dict(r, builder='system'), "holds a 'system'; known are: fasterrcnn"),
        (lambda r: broken(r, backbone='hf-hub:someone/else'), 'is not the name of a model'),
        (lambda r: broken(r, backbone=['resnet18']), 'is not the name of a model'),
        (lambda r: broken(r, backbone='resnet7'), 'cannot be built: Unknown model'),
        (lambda r: broken(r, backbone_args=dict(checkpoint_path='/etc/passwd')), 'sets checkpoint_path .* refused'),
        (lambda r: broken(r, backbone_args=dict(pretrained_cfg_overlay={})), 'refused'),
        (lambda r: broken(r, num_classes='2'), 'cannot be built'),
        (lambda r: broken(r, num_classes=7), 'tensors .* of another shape'),
        (lambda r: broken(r, colour='red'), 'cannot be built'),
        (lambda r: broken(r, classes=[1, 2]), 'must be a list of names'),
    ],
)
def test_hostile_files(change, message, tmp_path):
    path = tmp_path / 'model.safetensors'
    dense.save(dense.ssdlite320('mbv2_ca_050', 3), path)
    with safe_open(path, 'pt') as file:
        changed = change(json.loads(file.metadata()['timm_attn']))
    metadata = None if changed is None else {'timm_attn': changed if isinstance(changed, str) else json.dumps(changed)}
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(CheckpointError, match=message):
        dense.load(path)


def test_unreadable_files(tmp_path):
    path = tmp_path / 'model.safetensors'
    with pytest.raises(CheckpointError, match='There is no file'):
        dense.load(path)
    path.write_bytes(b'\x00' * 100)
    with pytest.raises(CheckpointError, match='as a safetensors file'):
        dense.load(path)
    model = dense.ssdlite320('mbv2_ca_050', 3)
    with torch.no_grad():
        model.head.regression_head.module_list[5].bias[0] = float('nan')
    dense.save(model, path)
    with pytest.raises(CheckpointError, match='not finite'):
        dense.load(path)


# Export


def test_onnx_of_a_whole_ssdlite(tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    torch.manual_seed(1)
    model = dense.ssdlite320('mbv2_ca', NUM_CLASSES, variant='voc').eval()
    images = [torch.rand(3, 320, 320)]
    path = str(tmp_path / 'model.onnx')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of tracing: the sizes are those of the example
        torch.onnx.export(model, (images,), path, dynamo=False, output_names=['boxes', 'scores', 'labels'])
    with torch.no_grad():
        (expected,) = model(images)
    assert len(expected['boxes'])
    session = onnxruntime.InferenceSession(path)
    for other in (images[0], torch.rand(3, 320, 320)):
        with torch.no_grad():
            (expected,) = model([other])
        found = session.run(None, {session.get_inputs()[0].name: other.numpy()})
        boxes, scores, labels = map(torch.from_numpy, found)
        assert len(boxes) == len(expected['boxes'])
        torch.testing.assert_close(scores, expected['scores'], rtol=0, atol=1e-5)
        for box, label in zip(
            expected['boxes'], expected['labels'], strict=True
        ):  # in any order where scores are equal
            assert (boxes[labels == label] - box).abs().amax(1).min() < 1e-2


class Raw(nn.Module):
    """A detector up to its raw outputs."""

    def __init__(self, model):
        super().__init__()
        self.backbone, self.head = model.backbone, model.head

    def forward(self, x):
        outputs = self.head(list(self.backbone(x).values()))
        return outputs['cls_logits'], outputs['bbox_regression']


@pytest.mark.parametrize('name', ['mbv2_ca_050', pytest.param('mobilenext_ca', marks=pytest.mark.slow)])
def test_export_of_the_raw_ssdlite(name):
    model = Raw(dense.ssdlite320(name, NUM_CLASSES)).eval()
    x = torch.rand(2, 3, 320, 320)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim('batch', min=1, max=64)},))
    with torch.no_grad():
        for ours, exported in zip(model(x[:1]), program.module()(x[:1]), strict=True):
            torch.testing.assert_close(ours, exported)


def test_export_of_deeplabv3():
    model = dense.deeplabv3('mbv2_ca_050', NUM_CLASSES).eval()
    x = torch.rand(2, 3, 96, 128)
    program = torch.export.export(model, (x,))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x)['out'], model(x)['out'])


def test_segmentation_models_pytorch():
    """Its decoders take the zoo by ``tu-``: UPerNet, FPN, Unet."""
    smp = pytest.importorskip('segmentation_models_pytorch')
    for decoder, name in ((smp.UPerNet, 'scsa_resnet18'), (smp.FPN, 'csa_resnet18'), (smp.Unet, 'mbv2_ca_050')):
        model = decoder(f'tu-{name}', encoder_weights=None, classes=NUM_CLASSES)
        out = model(torch.rand(2, 3, 64, 64))
        assert out.shape == (2, NUM_CLASSES, 64, 64)
        out.square().mean().backward()


def test_the_core_imports_without_the_extra():
    """Builders and files need none of it."""
    code = (
        'import sys\n'
        'for name in ("torchmetrics", "faster_coco_eval", "pycocotools", "segmentation_models_pytorch"):\n'
        '    sys.modules[name] = None\n'
        'import timm_attn\n'
        'assert "timm_attn.dense" not in sys.modules\n'
        'from timm_attn import dense\n'
        'dense.ssdlite320("mbv2_ca_050", 2)\n'
        'import timm_attn.dense.data, timm_attn.dense.metrics\n'
        'try:\n'
        '    import torch\n'
        '    metric = timm_attn.dense.metrics.DetectionMetric(["a"])\n'
        '    one = dict(boxes=torch.tensor([[0.0, 0.0, 9.0, 9.0]]), labels=torch.tensor([1]), image_id=3)\n'
        '    metric.update([dict(one, scores=torch.ones(1))], [one])\n'
        '    metric.compute()\n'
        'except ImportError as e:\n'
        '    assert "timm-attn[dense]" in str(e), e\n'
        'else:\n'
        '    raise AssertionError\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize('builder', ['fasterrcnn', 'retinanet'])
def test_boxes_are_precise_in_mixed_precision(builder):
    model = getattr(dense, builder)('resnet10t', 3, min_size=96, max_size=1400).eval()
    images = [torch.rand(3, 96, 1400)]
    anchors = []
    generator = model.rpn.anchor_generator if builder == 'fasterrcnn' else model.anchor_generator
    generator.register_forward_hook(lambda module, args, output: anchors.extend(output))
    with torch.no_grad():
        model(images)
        with torch.autocast('cpu', torch.bfloat16):
            model(images)
    exact, mixed = anchors
    assert torch.equal(exact, mixed)
    targets = [dict(boxes=torch.tensor([[1101.0, 10, 1199, 80]]), labels=torch.tensor([1]))]
    with torch.autocast('cpu', torch.bfloat16):
        losses = model.train()(images, targets)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
