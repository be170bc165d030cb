import contextlib
import io
import json
import random
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torchvision import tv_tensors

from timm_attn.dense.metrics import DetectionMetric, SegmentationMetric

ROOT = Path(__file__).parents[1]
CLASSES = ['cat', 'dog', 'bird', 'fish']  # the random sets hold no fish
CATEGORY_IDS = [3, 17, 44, 90]


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def found(box, labels, scores=None, **more):
    scores = torch.tensor([0.9 - 0.1 * i for i in range(len(box))]) if scores is None else torch.as_tensor(scores)
    return {'boxes': boxes(*box), 'labels': torch.tensor(labels, dtype=torch.int64), 'scores': scores, **more}


def truth(image_id, box, labels, **more):
    return {'image_id': image_id, 'boxes': boxes(*box), 'labels': torch.tensor(labels, dtype=torch.int64), **more}


def ellipses(box, height, width):
    """Masks (N, H, W) of ellipses in boxes."""
    x1, y1, x2, y2 = (v[:, None, None] for v in box.unbind(1))
    y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    return ((x - (x1 + x2) / 2) / (x2 - x1)) ** 2 + ((y - (y1 + y2) / 2) / (y2 - y1)) ** 2 <= 0.25


def random_set(seed, height=200, width=240, images=12):
    """Predictions and targets with tied scores, crowds, objects of all sizes, images without objects or detections."""
    torch.manual_seed(seed)

    def random_boxes(n):
        size = torch.rand(n, 2) ** 2 * torch.tensor([width - 4, height - 4]) + 2  # from tiny to almost all
        corner = torch.rand(n, 2) * (torch.tensor([width, height]) - size)
        return torch.cat([corner, corner + size], dim=1)

    predictions, targets = [], []
    for i in torch.randperm(100)[:images].tolist():
        n = 0 if torch.rand(()) < 0.2 else int(torch.randint(1, 6, ()))
        box, labels = random_boxes(n), torch.randint(1, 4, (n,))
        masks = ellipses(box, height, width)
        target = {'image_id': i, 'boxes': box, 'labels': labels, 'area': masks.sum((1, 2)).float()}
        targets.append(target | {'iscrowd': (torch.rand(n) < 0.15).long(), 'masks': masks.to(torch.uint8)})

        copies = torch.randint(0, 4, (n,))
        near = box.repeat_interleave(copies, 0)
        near = near + torch.randn_like(near) * 0.07 * (near[:, 2:] - near[:, :2]).repeat(1, 2)
        other = random_boxes(int(torch.randint(0, 4, ())))
        near = torch.cat([near[(near[:, 2:] > near[:, :2] + 1).all(1)], other])
        m = 0 if torch.rand(()) < 0.15 else len(near)
        labels = torch.cat([labels.repeat_interleave(copies), torch.ones(99, dtype=torch.int64)])[:m]
        labels = torch.where(torch.rand(m) < 0.2, torch.randint(1, 4, (m,)), labels)
        prediction = {'boxes': near[:m], 'labels': labels, 'scores': torch.randint(1, 8, (m,)) / 8}
        predictions.append(prediction | {'masks': ellipses(near[:m], height, width)[:, None] * 0.8})
    return predictions, targets


def evaluated(predictions, targets, classes=CLASSES, **options):
    metric = DetectionMetric(classes, **options)
    metric.update(predictions, targets)
    return metric


def test_perfect_empty_and_absent():
    targets = [truth(1, [[0, 0, 20, 20], [50, 50, 90, 120]], [1, 2]), truth(2, [], [])]
    perfect = [found([[0, 0, 20, 20], [50, 50, 90, 120]], [1, 2]), found([], [])]
    nothing = [found([], []), found([], [])]
    numbers = evaluated(perfect, targets).compute()
    assert (numbers['images'], numbers['objects']) == (2, 2)
    assert [numbers[key] for key in ('AP', 'AP50', 'AP75', 'APs', 'APm', 'AR1', 'AR10', 'AR100')] == [1.0] * 8
    assert numbers['APl'] is None
    assert numbers['AP_per_class'] == {'cat': 1.0, 'dog': 1.0, 'bird': None, 'fish': None}

    numbers = evaluated(nothing, targets).compute()
    assert (numbers['AP'], numbers['AR100'], numbers['APl']) == (0.0, 0.0, None)
    assert numbers['AP_per_class'] == {'cat': 0.0, 'dog': 0.0, 'bird': None, 'fish': None}

    for predictions in (perfect, nothing):
        numbers = evaluated(predictions, [truth(1, [], []), truth(2, [], [])]).compute()
        assert {numbers[key] for key in numbers if key.startswith(('AP', 'AR')) and key != 'AP_per_class'} == {None}
        assert set(numbers['AP_per_class'].values()) == {None}
        assert evaluated(predictions, [truth(1, [], []), truth(2, [], [])]).compute_voc()['mAP_voc07'] is None
    assert evaluated([], []).compute()['AP'] is None
    assert DetectionMetric(CLASSES, masks=True).compute()['mask_AP'] is None


def coco_eval(metric, iou_type, annotations=None):
    """The numbers of pycocotools on the files that a metric writes, or on another file of annotations."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = json.loads(json.dumps(annotations or metric.coco_annotations()))
        coco.createIndex()
        results = coco.loadRes(json.loads(json.dumps(metric.coco_results(masks=iou_type == 'segm'))))
        judge = COCOeval(coco, results, iou_type)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    numbers = dict(zip(('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl', 'AR1', 'AR10', 'AR100'), judge.stats, strict=False))
    of_class = judge.eval['precision'][:, :, :, 0, -1].mean(axis=(0, 1))
    assert judge.params.catIds == metric.category_ids
    return numbers | dict(zip(metric.classes, of_class, strict=True))


def assert_equals_coco_eval(metric, iou_type, annotations=None):
    ours, prefix = metric.compute(), 'mask_' if iou_type == 'segm' else ''
    ours = {key.removeprefix(prefix): value for key, value in ours.items() if key.startswith(prefix)}
    ours |= ours['AP_per_class']
    for name, value in coco_eval(metric, iou_type, annotations).items():
        assert ours[name] == (None if value == -1 else pytest.approx(value, abs=1e-6)), name
    return ours


@pytest.mark.parametrize('seed', range(30))
def test_equals_pycocotools(seed):
    metric = evaluated(*random_set(seed), masks=True, category_ids=CATEGORY_IDS)
    box, mask = (assert_equals_coco_eval(metric, iou_type) for iou_type in ('bbox', 'segm'))
    assert 0 < box['AP'] < 1
    assert 0 < mask['AP'] < 1
    assert box['fish'] is None


@pytest.mark.filterwarnings('ignore:__array__')  # pycocotools with numpy 2
def test_equals_pycocotools_on_the_file_of_coco(tmp_path):
    """Polygons, crowds, areas of masks, 80 classes whose ids have holes; every third object is found exactly."""
    archive = ROOT.parent / 'shared' / 'data' / 'tiny_coco.zip'
    if not archive.exists():
        pytest.skip(f'needs {archive}')
    from pycocotools.coco import COCO

    with zipfile.ZipFile(archive) as file:
        path = file.extract('tiny_coco/annotations/instances_val2017.json', tmp_path)
    coco = COCO(path)
    ids = coco.getCatIds()
    metric = DetectionMetric([c['name'] for c in coco.loadCats(ids)], masks=True, category_ids=ids)
    for image_id, image in coco.imgs.items():
        objects = coco.imgToAnns[image_id]
        masks = torch.zeros(len(objects), image['height'], image['width'], dtype=torch.uint8)
        for mask, annotation in zip(masks, objects, strict=True):
            mask.copy_(torch.from_numpy(coco.annToMask(annotation)))
        box = torch.tensor([o['bbox'] for o in objects], dtype=torch.float64).reshape(-1, 4)
        box[:, 2:] += box[:, :2]
        labels = torch.tensor([ids.index(o['category_id']) + 1 for o in objects], dtype=torch.int64)
        target = {'image_id': image_id, 'boxes': box, 'labels': labels, 'masks': masks}
        target['area'] = torch.tensor([o['area'] for o in objects], dtype=torch.float64)
        target['iscrowd'] = torch.tensor([o['iscrowd'] for o in objects], dtype=torch.int64)

        shift = (torch.arange(len(objects)) % 3)[:, None] * (box[:, 2:] - box[:, :2]) * 0.1
        moved = masks.clone()
        for mask, (x, y) in zip(moved, shift.int().tolist(), strict=True):
            mask.copy_(mask.roll((y, x), (0, 1)))
        prediction = {'boxes': box + shift.repeat(1, 2), 'labels': labels, 'masks': moved[:, None].float()}
        metric.update([prediction | {'scores': torch.rand(len(objects)).mul(10).round() / 10}], [target])
    for iou_type in ('bbox', 'segm'):
        numbers = assert_equals_coco_eval(metric, iou_type, coco.dataset)
        assert 0 < numbers['AP'] < 1
        assert numbers['AP_per_class'].keys() == set(metric.classes)


def test_missing_and_zero_area():
    predictions, targets = random_set(0)
    targets = [{key: value for key, value in target.items() if key not in ('area', 'iscrowd')} for target in targets]
    metric = evaluated(predictions, targets)
    assert_equals_coco_eval(metric, 'bbox')
    for annotation in metric.coco_annotations()['annotations']:
        assert annotation['area'] == annotation['bbox'][2] * annotation['bbox'][3]
        assert annotation['iscrowd'] == 0
    for target in targets:
        target['area'] = torch.zeros(len(target['labels']))
    numbers = assert_equals_coco_eval(evaluated(predictions, targets), 'bbox')
    assert numbers['APs'] is not None
    assert numbers['APl'] is None


def test_files_keep_ids_and_names():
    predictions, targets = [found([[1, 2, 4, 8]], [2])], [truth(139, [[1.1, 2, 4, 8]], [4])]
    metric = evaluated(predictions, targets, category_ids=CATEGORY_IDS)
    (result,) = metric.coco_results()
    assert result == {'image_id': 139, 'category_id': 17, 'bbox': [1, 2, 3, 6], 'score': float(torch.tensor(0.9))}
    content = metric.coco_annotations({139: '000139.jpg'})
    assert content['images'] == [{'id': 139, 'file_name': '000139.jpg'}]
    assert content['categories'][3] == {'id': 90, 'name': 'fish'}
    assert content['annotations'][0]['category_id'] == 90
    assert torch.tensor(json.loads(json.dumps(content))['annotations'][0]['bbox'][0]) == targets[0]['boxes'][0, 0]


def test_masks_are_those_that_were_given():
    from faster_coco_eval.core import mask as rle

    predictions, targets = random_set(1)
    metric = evaluated(predictions, targets, masks=True)
    of_image = {target['image_id']: (p, target) for p, target in zip(predictions, targets, strict=True)}
    for records, which in ((metric.coco_results(masks=True), 0), (metric.coco_annotations()['annotations'], 1)):
        for image_id, given in of_image.items():
            stored = [rle.decode(r['segmentation']) for r in records if r['image_id'] == image_id]
            masks = given[which]['masks'].reshape(-1, 200, 240) > 0.5
            assert len(stored) == len(masks)
            assert all(np.array_equal(a, b) for a, b in zip(stored, masks.numpy(), strict=True))


def test_order_of_images_and_batches_does_not_matter():
    predictions, targets = random_set(3)
    expected = None
    for seed in range(4):
        order = random.Random(seed).sample(range(len(targets)), len(targets))
        metric = DetectionMetric(CLASSES)
        for i in range(0, len(order), 1 + seed):
            batch = order[i : i + 1 + seed]
            metric.update([predictions[k] for k in batch], [targets[k] for k in batch])
        numbers = metric.compute(), metric.compute_voc(), metric.coco_results(), metric.coco_annotations()
        expected = expected or numbers
        assert numbers == expected


def test_an_image_counts_once():
    predictions, targets = random_set(4)
    metric = evaluated(predictions, targets)
    expected = metric.compute()
    target = max(targets, key=lambda target: len(target['labels']))
    metric.update([predictions[targets.index(target)]], [target])
    assert metric.compute() == expected
    with pytest.raises(ValueError, match=rf'image {target["image_id"]} was added before, .* Call reset\(\)'):
        metric.update([found([], [])], [target])
    changed = target | {'boxes': target['boxes'] + 1}
    with pytest.raises(ValueError, match=f"Two different images have the id {changed['image_id']}: .* an 'image_id'"):
        metric.update([found([], []), found([], [])], [truth(1000, [], []), changed])
    assert metric.compute() == expected  # nothing of the batch
    metric.reset()
    assert metric.compute()['images'] == 0


def test_tensors_of_torchvision():
    box = tv_tensors.BoundingBoxes([[0.0, 0, 16, 16]], format='XYXY', canvas_size=(20, 30))
    mask = tv_tensors.Mask(torch.ones(1, 20, 30, dtype=torch.uint8))
    target = truth(torch.tensor([7]), [], [1]) | {'boxes': box, 'masks': mask}
    prediction = found([], [1], torch.tensor([0.5], dtype=torch.bfloat16, requires_grad=True).exp())
    prediction |= {
        'boxes': torch.tensor([[0, 0, 16, 16]], dtype=torch.float16),
        'masks': torch.full((1, 1, 20, 30), 0.6),
    }
    numbers = evaluated([prediction], [target], masks=True).compute()
    assert (numbers['AP'], numbers['mask_AP']) == (1.0, 1.0)


def test_the_metric_keeps_copies():
    box = torch.tensor([[0.0, 0, 10, 10]], dtype=torch.float64)
    metric = evaluated([found([[0, 0, 10, 10]], [1]) | {'boxes': box}], [truth(1, [[0, 0, 10, 10]], [1])])
    box += 100
    assert metric.compute()['AP'] == 1.0


GOOD = found([[0, 0, 10, 10]], [1]), truth(7, [[0, 0, 10, 10]], [1])


@pytest.mark.parametrize(
    ('prediction', 'target', 'message'),
    [
        ({'boxes': boxes([0, 0, float('nan'), 10])}, {}, "'boxes' of the prediction of image 7 .* not finite"),
        ({'scores': torch.tensor([float('nan')])}, {}, "'scores' of the prediction of image 7 .* not finite"),
        ({'scores': torch.tensor([0.5, 0.5])}, {}, r"'scores' .* shape \(1,\), one for each box, not \(2,\)"),
        ({'boxes': boxes([20, 20, 10, 10])}, {}, r'\(x1, y1, x2, y2\)'),
        ({'boxes': torch.zeros(4)}, {}, r'shape \(N, 4\), not \(4,\)'),
        ({'labels': torch.tensor([0])}, {}, 'contains 0; the labels of 4 classes are 1 to 4, and 0 is the background'),
        ({'labels': torch.tensor([5])}, {}, 'contains 5'),
        ({'labels': torch.tensor([1.0])}, {}, 'must be whole numbers'),
        ({'labels': [1]}, {}, "needs the tensor 'labels'; it is a list"),
        ({}, {'labels': torch.tensor([-1])}, "'labels' of the target of image 7 contains -1"),
        ({}, {'boxes': boxes([0, 0, float('inf'), 10])}, "'boxes' of the target of image 7 .* not finite"),
        ({}, {'area': torch.tensor([1.0, 2.0])}, "'area' of the target of image 7"),
        ({}, {'iscrowd': torch.zeros(3)}, "'iscrowd' of the target of image 7"),
        ({}, {'image_id': None}, "'image_id', the whole number"),
        ({}, {'image_id': 'a.jpg'}, "got 'a.jpg'"),
        ({}, {'image_id': torch.tensor(1.5)}, "'image_id', the whole number"),
    ],
)
def test_wrong_input(prediction, target, message):
    with pytest.raises(ValueError, match=message):
        evaluated([GOOD[0] | prediction], [GOOD[1] | target])


def test_wrong_batches_masks_and_arguments():
    with pytest.raises(ValueError, match='got 1 and 2'):
        evaluated([GOOD[0]], [GOOD[1]] * 2)
    with pytest.raises(ValueError, match="The prediction of image 7 needs the tensor 'scores'; it has: boxes, labels"):
        evaluated([{key: value for key, value in GOOD[0].items() if key != 'scores'}], [GOOD[1]])
    with pytest.raises(ValueError, match="needs the tensor 'masks'"):
        evaluated([GOOD[0]], [GOOD[1]], masks=True)
    masks = torch.ones(1, 20, 30)
    with pytest.raises(ValueError, match='20 x 31 pixels and those of its target 20 x 30'):
        evaluated([GOOD[0] | {'masks': torch.ones(1, 1, 20, 31)}], [GOOD[1] | {'masks': masks}], masks=True)
    with pytest.raises(ValueError, match=r"'masks' .* shape \(1, H, W\) or"):
        evaluated([GOOD[0] | {'masks': torch.ones(2, 1, 20, 30)}], [GOOD[1] | {'masks': masks}], masks=True)
    with pytest.raises(ValueError, match='keeps no masks'):
        evaluated([GOOD[0]], [GOOD[1]]).coco_results(masks=True)
    with pytest.raises(ValueError, match="must be unique; 'cat' is there twice"):
        DetectionMetric(['cat', 'dog', 'cat'])
    with pytest.raises(ValueError, match='must be a list of names; got'):
        DetectionMetric([])
    with pytest.raises(ValueError, match='needs 2 different numbers'):
        DetectionMetric(['cat', 'dog'], category_ids=[1, 1])
    with pytest.raises(ValueError, match='voc07'):
        DetectionMetric(['cat']).compute_voc('voc12')


@pytest.mark.parametrize('module', ['torchmetrics', 'faster_coco_eval'])
def test_without_the_extra(module, monkeypatch):
    for name in [name for name in sys.modules if name.partition('.')[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    metric = evaluated([GOOD[0]], [GOOD[1]])
    assert metric.compute_voc()['mAP_voc07'] == pytest.approx(1)
    masks = {'masks': torch.ones(1, 20, 30)}
    with pytest.raises(ImportError, match=rf'{module.replace("_", "-")}: pip install "timm-attn\[dense\]"'):
        evaluated([GOOD[0] | masks], [GOOD[1] | masks], masks=True).compute()


# VOC


def voc_case(seed):
    """Predictions and targets of a set in the manner of VOC; scores differ, since the order of ties is not defined."""
    rng = random.Random(seed)

    def box():
        largest = rng.choice((12, 120))  # of small boxes, the pixel that VOC adds matters
        w, h = rng.randrange(2, largest), rng.randrange(2, largest)
        x, y = rng.randrange(1, 300 - w), rng.randrange(1, 300 - h)
        return [x, y, x + w, y + h]

    classes = rng.randrange(2, 6)
    predictions, targets = [], []
    for i in range(rng.randrange(4, 25)):
        objects = [(box(), rng.randrange(1, classes + 1), rng.random() < 0.25) for _ in range(rng.randrange(0, 6))]
        detections = [(box(), rng.randrange(1, classes + 1)) for _ in range(rng.randrange(0, 3))]
        for near, label, _ in objects:
            for _ in range(rng.randrange(0, 4)):
                w, h = near[2] - near[0], near[3] - near[1]
                moved = [
                    x + (rng.randrange(-24, 25) * side) // 20 / 4 for x, side in zip(near, [w, h, w, h], strict=True)
                ]
                detections.append((moved, label if rng.random() < 0.85 else rng.randrange(1, classes + 1)))
        rng.shuffle(detections)
        predictions.append(
            found([d[0] for d in detections], [d[1] for d in detections], [rng.random() for _ in detections])
        )
        difficult = torch.tensor([o[2] for o in objects], dtype=torch.int64)
        targets.append(truth(i, [o[0] for o in objects], [o[1] for o in objects], difficult=difficult))
    return predictions, targets, classes + 1  # the last class has no objects


@pytest.mark.parametrize('case', json.loads((ROOT / 'tests/data/dense/voc_map.json').read_text())['cases'], ids=str)
def test_voc_equals_the_evaluator_of_ssdlite(case):
    predictions, targets, num_classes = voc_case(case['seed'])
    classes = [f'class {i}' for i in range(num_classes)]
    metric = evaluated(predictions, targets, classes)
    for rule in ('voc07', 'voc10'):
        numbers = metric.compute_voc(rule)
        assert list(numbers[f'AP_{rule}_per_class']) == classes
        for ours, theirs in zip(numbers[f'AP_{rule}_per_class'].values(), case[rule]['ap'], strict=True):
            assert ours == (None if theirs is None else pytest.approx(theirs, abs=2e-9))
        assert numbers[f'mAP_{rule}'] == pytest.approx(case[rule]['map'], abs=2e-9)
    assert metric.compute()['AP50'] != pytest.approx(metric.compute_voc()['mAP_voc07'], abs=1e-3)


def test_voc_by_hand():
    objects = [[0, 0, 9, 9], [20, 20, 29, 29], [50, 50, 59, 59]]

    def of_cat(detections, scores, **more):
        metric = evaluated([found(detections, [1] * len(scores), scores)], [truth(1, objects, [1, 1, 1], **more)])
        return [metric.compute_voc(rule)[f'AP_{rule}_per_class']['cat'] for rule in ('voc07', 'voc10')]

    assert of_cat(objects, [0.9, 0.8, 0.7]) == pytest.approx([1, 1])
    assert of_cat(objects[:1] * 2 + objects[1:], [0.9, 0.8, 0.7, 0.6]) == pytest.approx(
        [(4 + 7 * 0.75) / 11, (1 + 1.5) / 3]
    )
    # of 10 x 10 pixels, 10 x 5 have an IoU of 0.5 with their last row counted, and 0.44 without
    assert of_cat([[0, 0, 9, 4]], [0.9]) == pytest.approx([4 / 11, 1 / 3])
    for key in ('difficult', 'iscrowd'):
        ignored = {key: torch.tensor([1, 0, 0])}
        assert of_cat(objects[:1] * 2 + objects[1:], [0.9, 0.8, 0.7, 0.6], **ignored) == pytest.approx([1, 1])
        assert of_cat(objects[1:], [0.7, 0.6], **ignored) == pytest.approx([1, 1])
    assert of_cat(objects[:1], [0.9], difficult=torch.ones(3)) == [None, None]
    # of equal scores, the first is the best
    assert of_cat([[90, 90, 99, 99], *objects], [0.5] * 4) == pytest.approx([0.75, 0.75])
    miss = [90, 90, 99, 99]
    detections = [box for found_object in objects for box in (found_object, miss)] + [miss] * 60
    assert of_cat(detections, [0.5, 0.4] * 33) == pytest.approx([1, 1])  # a sort that is not stable mixes them


# several processes


def numbers_and_files(metric):
    numbers = metric.compute()
    return numbers, metric.compute_voc(), metric.coco_annotations(), metric.coco_results(masks=metric.masks)


def work(rank, folder, masks):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    predictions, targets = random_set(5)
    results = {}
    for split in (6, 3, 0, -4):  # even, uneven, nothing for the first; images 8 to 11 in both
        metric = DetectionMetric(CLASSES, masks)
        mine = slice(0, max(split, 0) or 12 * (split < 0)) if rank == 0 else slice(split, None)
        metric.update(predictions[mine], targets[mine])
        if split == 6:
            with pytest.raises(RuntimeError, match=r'Call gather\(\) in all of them first'):
                metric.coco_results()
        results[split] = numbers_and_files(metric)
        assert metric.compute() == results[split][0]  # a second time, too
    torch.save(results, f'{folder}/{rank}.pt')

    metric = DetectionMetric(CLASSES)
    metric.update([found([], [])], [truth(7, [[0, 0, 10 + rank, 10]], [1])])
    with pytest.raises(ValueError, match='Two different images have the id 7'):
        metric.compute()

    metric = SegmentationMetric(CLASSES)
    if rank == 0:
        metric.update(*segmentation_case())
    torch.save((metric.compute(), metric.compute()), f'{folder}/{rank}-segmentation.pt')
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes(tmp_path):
    mp.spawn(work, (str(tmp_path), True), nprocs=2)
    expected = numbers_and_files(evaluated(*random_set(5), masks=True))
    for rank in (0, 1):
        results = torch.load(tmp_path / f'{rank}.pt')
        assert list(results) == [6, 3, 0, -4]
        for numbers in results.values():
            assert numbers == expected
        metric = SegmentationMetric(CLASSES)
        metric.update(*segmentation_case())
        assert torch.load(tmp_path / f'{rank}-segmentation.pt') == (metric.compute(), metric.compute())


# segmentation


def segmentation_case(num_classes=4, ignore_index=255):
    torch.manual_seed(1)
    logits = torch.randn(3, num_classes, 9, 11)
    logits[:, 3] = -10
    masks = torch.randint(0, num_classes - 1, (3, 9, 11))
    masks[torch.rand(masks.shape) < 0.2] = ignore_index
    return logits, masks


@pytest.mark.parametrize('ignore_index', [255, 4, -1])
def test_segmentation_equals_loops(ignore_index):
    logits, masks = segmentation_case(ignore_index=ignore_index)
    masks[masks == 2] = 0  # 2 is predicted, but does not occur; 3 neither
    metric = SegmentationMetric(CLASSES, ignore_index)
    for i in range(3):
        metric.update(logits[i : i + 1], masks[i : i + 1].to(torch.int16))
    numbers = metric.compute()

    true, predicted = masks.numpy().ravel(), logits.argmax(1).numpy().ravel()
    true, predicted = true[true != ignore_index], predicted[true != ignore_index]
    iou, recall = {}, []
    for k, name in enumerate(CLASSES):
        union = sum(t == k or p == k for t, p in zip(true, predicted, strict=True))
        both = sum(t == k and p == k for t, p in zip(true, predicted, strict=True))
        iou[name] = both / union if union else None
        if (true == k).any():
            recall.append(both / (true == k).sum())
    assert numbers['IoU_per_class'] == iou
    assert iou['bird'] == 0
    assert iou['fish'] is None
    assert numbers['mIoU'] == pytest.approx(sum(iou[name] for name in CLASSES[:3]) / 3)
    assert numbers['class_accuracy'] == pytest.approx(np.mean(recall))
    assert numbers['pixel_accuracy'] == (true == predicted).mean()
    assert numbers['pixels'] == len(true)

    of_classes = SegmentationMetric(CLASSES, ignore_index)
    of_classes.update(logits.argmax(1).to(torch.uint8), masks)
    assert of_classes.compute() == numbers
    metric.reset()
    assert metric.compute() == dict.fromkeys(('mIoU', 'pixel_accuracy', 'class_accuracy')) | {
        'IoU_per_class': dict.fromkeys(CLASSES),
        'pixels': 0,
    }


def test_segmentation_equals_torchmetrics():
    from torchmetrics.classification import MulticlassJaccardIndex

    logits, masks = segmentation_case()
    metric = SegmentationMetric(CLASSES)
    metric.update(logits, masks)
    judge = MulticlassJaccardIndex(4, ignore_index=255)
    assert metric.compute()['mIoU'] == pytest.approx(judge(logits, masks).item(), abs=1e-6)  # leaves out fish, too


@pytest.mark.parametrize(
    ('predictions', 'masks', 'message'),
    [
        (torch.full((1, 2, 2), 255), torch.zeros(1, 2, 2).long(), 'predictions contain 255; the 4 .* It is ignored in'),
        (torch.full((1, 2, 2), 4), torch.zeros(1, 2, 2).long(), 'predictions contain 4; the 4 classes are 0 to 3.$'),
        (torch.full((1, 2, 2), -1), torch.full((1, 2, 2), 255), 'predictions contain -1'),
        (torch.zeros(1, 4, 2, 2), torch.full((1, 2, 2), 254), 'masks contain 254'),
        (torch.zeros(1, 4, 2, 2), torch.full((1, 2, 2), -1), 'masks contain -1'),
        (torch.full((1, 4, 2, 2), float('nan')), torch.zeros(1, 2, 2).long(), 'NaN'),
        (torch.zeros(1, 5, 2, 2), torch.zeros(1, 2, 2).long(), '5 channels; 4 classes need 4'),
        (torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 4).long(), r'\(1, 2, 2\) and the masks \(1, 4, 4\). Resize the'),
        (torch.zeros(1, 2, 2), torch.zeros(1, 2, 2).long(), 'logits of shape'),
        (torch.zeros(1, 4, 2, 2), torch.zeros(1, 2, 2), 'masks must be whole numbers'),
    ],
)
def test_wrong_segmentation(predictions, masks, message):
    metric = SegmentationMetric(CLASSES)
    with pytest.raises(ValueError, match=message):
        metric.update(predictions, masks)
    assert metric.compute()['pixels'] == 0


def test_ignored_value_is_no_class():
    with pytest.raises(ValueError, match="ignore_index=3 is the class 'fish'"):
        SegmentationMetric(CLASSES, ignore_index=3)
