"""SSDLite320 against numbers of the authors' code."""

import json
import zlib
from collections import OrderedDict

import numpy as np
import pytest
import torch
from golden import DATA, authors_state_dict, rule_image, rule_weight
from timm.models import load_checkpoint
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou, nms

from timm_attn import dense

CASES = sorted(path.stem for path in (DATA / 'dense').glob('qibin_ssdlite320_*.json'))
BACKBONES = {'mbv2': 'mobilenetv2_100', 'mobilenext': 'mobilenext'}


@pytest.fixture(scope='module', params=CASES)
def case(request):
    """Numbers, the detector with the authors' weights, its raw outputs, and the maps."""
    numbers = json.loads((DATA / 'dense' / f'{request.param}.json').read_text())
    _, _, network, variant = request.param.split('_')
    model = dense.ssdlite320(BACKBONES[network], variant=variant)
    model.load_state_dict(authors_state_dict(numbers))
    model.eval()
    with torch.no_grad():
        maps = model.backbone(rule_image(tuple(numbers['input'])))
        return numbers, model, model.head(list(maps.values())), maps


def close(actual, expected, tolerance=1e-5):
    expected = np.asarray(expected)
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def test_parameters(case):
    numbers, model, *_ = case
    parts = dict(backbone=model.backbone, extras=model.backbone.extras, head=model.head)
    for name, part in parts.items():
        assert sum(p.numel() for p in part.parameters()) == numbers[f'params_{name}']
    assert sum(p.numel() for p in model.parameters()) == numbers['params']


def test_maps(case):
    numbers, _, _, maps = case
    assert [list(m.shape[1:]) for m in maps.values()] == numbers['feature_shapes']
    close([[m[i].double().norm().item() for m in maps.values()] for i in range(2)], numbers['feature_norm'])


def test_raw_outputs(case):
    numbers, _, outputs, _ = case
    for ours, name in (('cls_logits', 'cls'), ('bbox_regression', 'box')):
        out = outputs[ours]
        assert list(out.shape) == numbers[f'{name}_shape']
        close(out.flatten(1)[:, :32], numbers[name])
        close(out.flatten(1)[:, -32:], numbers[f'{name}_last'], 3e-5)
        close([out[i].double().norm().item() for i in range(2)], numbers[f'{name}_norm'])


def default_boxes(model, maps):
    """As the authors give them: centre and size, over that of the image."""
    images = ImageList(torch.zeros(1, 3, 320, 320), [(320, 320)])
    (corners,) = model.anchor_generator(images, list(maps.values()))
    low, high = corners.double().view(-1, 2, 2).unbind(1)
    return torch.cat([(low + high) / 2, high - low], 1) / 320


def test_default_boxes(case):
    numbers, model, _, maps = case
    boxes, expected = default_boxes(model, maps), numbers['priors']
    assert list(boxes.shape) == expected['shape']
    per_cell = model.anchor_generator.num_anchors_per_location()
    assert [n * m.shape[2] * m.shape[3] for n, m in zip(per_cell, maps.values(), strict=True)] == expected['per_level']
    close(boxes[:6], expected['first'], 1e-6)
    close(boxes[-6:], expected['last'], 1e-6)
    close(boxes.sum(0), expected['sum'], 1e-7)
    close(boxes.square().sum(0), expected['sum_sq'], 1e-7)


def test_default_boxes_one_by_one(case):
    numbers, model, _, maps = case
    grid = model.anchor_generator._grid_default_boxes([list(m.shape[-2:]) for m in maps.values()], [320, 320])
    rounded = np.rint(grid.double().numpy() * 1e5).astype('<i4')
    assert zlib.crc32(rounded.tobytes()) == numbers['priors']['crc32_round_1e5']


def test_losses(case):
    numbers, model, outputs, maps = case
    expected = numbers['loss_case']
    targets = [
        dict(boxes=320 * torch.tensor(t['boxes_xyxy_over_size']), labels=torch.tensor(t['labels']))
        for t in expected['targets']
    ]
    images = ImageList(torch.zeros(2, 3, 320, 320), [(320, 320)] * 2)
    anchors = model.anchor_generator(images, list(maps.values()))
    matched = [model.proposal_matcher(box_iou(t['boxes'], a)) for t, a in zip(targets, anchors, strict=True)]
    assert [int((m >= 0).sum()) for m in matched] == expected['positives']
    assert [int((m >= 0).nonzero()[0]) for m in matched] == expected['first_positive']
    labels = [t['labels'][m[m >= 0]].sum().item() for t, m in zip(targets, matched, strict=True)]
    assert labels == expected['label_sum']
    losses = model.compute_loss(targets, outputs, anchors, matched)
    close(losses['bbox_regression'].item(), expected['reg_loss'])
    close(losses['classification'].item(), expected['cls_loss'])


def suppress(scores, boxes, threshold, overlap):
    """Detections as the authors define them, class by class: (score, label, box), the best 100."""
    kept = []
    for label in range(scores.shape[1]):
        mine = scores[:, label] > threshold
        score, box = scores[mine, label], boxes[mine]
        kept += [(score[i].item(), label + 1, box[i]) for i in nms(box, score, overlap)[:100]]
    return sorted(kept, key=lambda found: -found[0])[:100]


@pytest.mark.slow
def test_detections(case):
    numbers, model, outputs, maps = case
    images = ImageList(torch.zeros(2, 3, 320, 320), [(320, 320)] * 2)
    anchors = model.anchor_generator(images, list(maps.values()))
    detections = model.postprocess_detections(outputs, anchors, images.image_sizes)
    test = numbers['test']
    for i, found in enumerate(detections):
        logits = outputs['cls_logits'][i]
        # the last of the sigmoids never has an example, and stands for no class
        scores = logits.sigmoid()[:, :-1] if model.focal else logits.softmax(-1)[:, 1:]
        centres = default_boxes(model, maps)
        offsets = outputs['bbox_regression'][i].double()
        middle = centres[:, :2] + offsets[:, :2] * 0.1 * centres[:, 2:]
        size = centres[:, 2:] * (offsets[:, 2:] * 0.2).exp()
        boxes = 320 * torch.cat([middle - size / 2, middle + size / 2], 1).float()
        expected = suppress(scores, boxes, test['CONFIDENCE_THRESHOLD'], test['NMS_THRESHOLD'])
        assert len(expected) == test['MAX_PER_IMAGE']
        close(found['scores'], [score for score, _, _ in expected], 1e-6)
        ours, theirs = ({(int(label), *map(round, box)) for label, box in pairs} for pairs in (
            [(label, box.tolist()) for label, box in zip(found['labels'], found['boxes'], strict=True)],
            [(label, box.clamp(0, 320).tolist()) for _, label, box in expected],
        ))  # fmt: skip
        assert len(ours & theirs) >= 98  # rounding decides between equal scores
    for found, expected in zip(detections, numbers['detections'], strict=False):
        n = len(expected['labels'])
        assert len(found['labels']) == expected['n']
        assert found['labels'][:n].tolist() == expected['labels']
        close(found['scores'][:n], expected['scores'], 1e-6)
        inside = np.clip(expected['boxes'], 0, 320)  # clipped afterwards
        np.testing.assert_allclose(found['boxes'][:n].numpy(), inside, atol=1e-3)


def test_candidates(case):
    """Boxes and classes above the threshold, before any is suppressed."""
    numbers, model, outputs, _ = case
    logits = outputs['cls_logits']
    scores = logits.sigmoid() if model.focal else logits.softmax(-1)[..., 1:]
    found = [int((s > model.score_thresh).sum()) for s in scores]
    assert found == pytest.approx(numbers['candidates'], abs=3)  # rounding, for scores at the threshold


def test_the_thresholds_are_the_authors(case):
    numbers, model, *_ = case
    assert model.nms_thresh == numbers['test']['NMS_THRESHOLD']
    assert model.score_thresh == numbers['test']['CONFIDENCE_THRESHOLD']
    assert model.detections_per_img == numbers['test']['MAX_PER_IMAGE']


def test_wrong_keys_are_refused():
    numbers = json.loads((DATA / 'dense' / f'{CASES[0]}.json').read_text())
    state_dict = authors_state_dict(numbers)
    del state_dict['box_head.predictor.cls_headers.5.bias']
    with pytest.raises(RuntimeError, match=r'head\.classification_head\.module_list\.5\.bias'):
        dense.ssdlite320('mobilenetv2_100').load_state_dict(state_dict)


# github.com/Andrew-Qibin/ssdlite-pytorch-mobilenext, ssd/modeling/backbone/se_mbv2.py: names of the layers of a block
AUTHORS_BLOCK = {'conv_pw': '0', 'bn1': '1', 'conv_dw': '3', 'bn2': '4', 'se': '6.conv', 'conv_pwl': '7', 'bn3': '8'}


def test_the_authors_file_with_squeeze_and_excitation():
    """Its keys are known from the code alone: shapes and names, not values."""
    model = dense.ssdlite320('mbv2_se')
    body = [b for stage in model.backbone.body.model.blocks for b in stage]
    widths = [tuple(block.conv_pw.weight.shape[:2]) for block in model.backbone.extras]
    assert widths == [(256, 1280), (128, 512), (128, 256), (64, 256)]
    assert [block.se.fc1.out_channels for block in model.backbone.extras] == [10, 5, 5, 2]
    own = model.state_dict()
    theirs = OrderedDict()
    for key, value in own.items():
        new = key
        if key.startswith('backbone.extras.') or '.blocks.' in key:
            if key.startswith('backbone.extras.'):
                prefix, rest = f'backbone.extras.{key.split(".")[2]}', key.split('.', 3)[3]
                first = False
            else:
                stage, index, rest = key.split('.blocks.')[1].split('.', 2)
                number = body.index(model.backbone.body.model.blocks[int(stage)][int(index)])
                prefix, first = f'backbone.features.{number + 1}', number == 0
            layer, _, inside = rest.partition('.')
            layer = {'conv_dw': '0', 'bn1': '1', 'conv_pw': '3', 'bn2': '4'}[layer] if first else AUTHORS_BLOCK[layer]
            inside = inside.replace('fc1', '0').replace('fc2', '2')
            new = f'{prefix}.conv.{layer}.{inside}'
        for ours, name in (
            ('conv_stem', 'features.0.0'),
            ('bn1', 'features.0.1'),
            ('conv_head', 'conv.0'),
            ('bn2', 'conv.1'),
        ):
            if key.startswith(f'backbone.body.model.{ours}.'):
                new = f'backbone.{name}.{key.rpartition(".")[2]}'
        if key.startswith('head.'):
            _, head, _, level, rest = key.split('.', 4)
            kind = 'cls' if head.startswith('class') else 'reg'
            new = f'box_head.predictor.{kind}_headers.{level}.{"conv." if level != "5" else ""}{rest}'
        theirs[new] = torch.randn_like(value) if value.is_floating_point() else value
    assert len(theirs) == len(own)
    assert not set(theirs) & set(own)
    model.load_state_dict(theirs)
    for (_, given), loaded in zip(theirs.items(), model.state_dict().values(), strict=True):
        assert torch.equal(given, loaded)


@pytest.mark.parametrize('wrap', [lambda sd: sd, lambda sd: {'model': sd, 'optimizer': {}, 'iteration': 1}])
def test_the_authors_checkpoint_files(wrap, tmp_path):
    numbers = json.loads((DATA / 'dense' / f'{CASES[0]}.json').read_text())
    torch.save(wrap(authors_state_dict(numbers)), tmp_path / 'model_final.pth')
    model = dense.ssdlite320('mobilenetv2_100', variant='coco')
    load_checkpoint(model, str(tmp_path / 'model_final.pth'))
    bias = rule_weight('box_head.predictor.cls_headers.5.bias', [324])
    assert torch.equal(model.head.classification_head.module_list[5].bias, bias)
