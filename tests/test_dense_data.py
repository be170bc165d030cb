import contextlib
import copy
import json
import os
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn, maskrcnn_resnet50_fpn
from torchvision.models.detection.ssdlite import ssdlite320_mobilenet_v3_large

from timm_attn.dense.data import (
    DetectionDataset,
    InvalidDatasetError,
    InvalidRecord,
    MaskCoding,
    SegmentationDataset,
    check,
    collate,
    eval_transforms,
    rcnn_transforms,
    read_coco,
    read_image_masks,
    read_lines,
    read_voc,
    segmentation_transforms,
    ssd_transforms,
)

DATA = Path(__file__).parents[2] / 'shared' / 'data'
SQUARE = [2, 2, 8, 2, 8, 8, 2, 8]  # 6 x 6 pixels
CROWD = {'size': [30, 40], 'counts': [0, 60, 1140]}  # the first two columns, by columns


@pytest.fixture
def unpacked(tmp_path):
    def unpack(name):
        archive = DATA / f'{name}.zip'
        if not archive.exists():
            pytest.skip(f'needs {archive}')
        with zipfile.ZipFile(archive) as files:
            files.extractall(tmp_path)
        return tmp_path / name

    return unpack


def photo(path, size=(40, 30), **options):
    """An image of random pixels: (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def coco():
    """Three images: two objects and a crowd, nothing, one object; ids of categories with holes, and not in order."""

    def annotation(id, image_id, category_id, bbox, **more):
        segmentation = more.pop('segmentation', [SQUARE])
        area = more.pop('area', 36.0)
        return dict(id=id, image_id=image_id, category_id=category_id, bbox=bbox, area=area, iscrowd=0) | dict(
            more, segmentation=segmentation
        )

    return {
        'images': [dict(id=i, file_name=f'{i}.png', width=40, height=30) for i in (7, 5, 900)],
        'annotations': [
            annotation(1, 7, 90, [2, 2, 6, 6]),
            annotation(2, 7, 3, [10.5, 4.25, 20, 20], area=55.5, segmentation=[SQUARE, [20, 5, 24, 5, 24, 9]]),
            annotation(3, 7, 3, [0, 0, 2, 30], iscrowd=1, segmentation=CROWD),
            annotation(4, 900, 44, [2, 2, 6, 6]),
        ],
        'categories': [dict(id=90, name='fish'), dict(id=3, name='dog'), dict(id=44, name='cat')],
    }


def write_coco(folder, content):
    for name in ('7.png', '5.png', '900.png'):
        photo(folder / 'images' / name)
    file = folder / 'annotations.json'
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file, folder / 'images'


def voc_object(name='RBC', box=(1, 2, 11, 22), extra=''):
    corners = ''.join(f'<{tag}>{v}</{tag}>' for tag, v in zip(('xmin', 'ymin', 'xmax', 'ymax'), box, strict=True))
    return f'<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>'


def voc_file(*objects, size='<size><width>40</width><height>30</height></size>'):
    return f'<annotation><filename>/home/x/other.bmp</filename>{size}{"".join(objects)}</annotation>'


def write_voc(folder, files, splits=None):
    for name, text in files.items():
        photo(folder / 'JPEGImages' / f'{name}.jpg')
        (folder / 'Annotations').mkdir(exist_ok=True)
        (folder / 'Annotations' / f'{name}.xml').write_text(text)
    for name, stems in (splits or {}).items():
        (folder / 'ImageSets' / 'Main').mkdir(parents=True, exist_ok=True)
        (folder / 'ImageSets' / 'Main' / f'{name}.txt').write_text('\n'.join(stems) + '\n')
    return folder


VOC = {
    'a': voc_file(voc_object(), voc_object('WBC', (5.5, 5, 40, 30), '<difficult>1</difficult>')),
    'b': voc_file(),
    'c': voc_file(voc_object('Platelets'), voc_object('Platelets', extra='<difficult>0</difficult>')),
}


def write_masks(folder, masks, mode='L'):
    for name, values in masks.items():
        photo(folder / 'images' / f'{name}.jpg')
        (folder / 'masks').mkdir(exist_ok=True)
        image = Image.fromarray(np.array(values))
        if mode == 'P':
            image.putpalette([255 - i // 3 for i in range(768)])
        image.save(folder / 'masks' / f'{name}.png')
    return folder / 'images', folder / 'masks'


def mask_of(dtype=np.uint8):
    mask = np.zeros((30, 40), dtype=dtype)
    mask[:10], mask[20:] = 1, 255
    return mask


def targets(annotations, **options):
    return [target for _, target in DetectionDataset(annotations, **options)]


# ---------------------------------------------------------------------------------------------------------------- COCO


def test_coco_targets_have_the_types_and_shapes_that_detectors_take(tmp_path):
    annotations = read_coco(*write_coco(tmp_path, coco()), masks=True)
    assert annotations.classes == ('dog', 'cat', 'fish')
    assert annotations.category_ids == (3, 44, 90)
    dataset = DetectionDataset(annotations, train=False)
    image, target = dataset[0]
    assert isinstance(image, tv_tensors.Image)
    assert image.dtype == torch.uint8
    assert torch.equal(image, torch.tensor(photo(tmp_path / 'same.png')).permute(2, 0, 1))
    assert isinstance(target['boxes'], tv_tensors.BoundingBoxes)
    assert target['boxes'].canvas_size == (30, 40)
    assert target['boxes'].dtype == target['area'].dtype == torch.float32
    assert target['boxes'].tolist() == [[2, 2, 8, 8], [10.5, 4.25, 30.5, 24.25], [0, 0, 2, 30]]
    assert target['labels'].tolist() == [3, 1, 1]
    assert target['area'].tolist() == [36, 55.5, 36]
    assert target['iscrowd'].tolist() == [0, 0, 1]
    assert target['difficult'].tolist() == [0, 0, 0]
    assert {target[key].dtype for key in ('labels', 'iscrowd', 'difficult')} == {torch.int64}
    assert target['image_id'] == 7
    assert isinstance(target['masks'], tv_tensors.Mask)
    assert target['masks'].dtype == torch.uint8
    assert target['masks'].sum((1, 2)).tolist()[::2] == [36, 60]
    assert target['masks'][0, 2:8, 2:8].all()
    assert target['masks'][2, :, :2].all()


def test_coco_image_without_objects_has_empty_tensors_of_the_same_shapes(tmp_path):
    target = targets(read_coco(*write_coco(tmp_path, coco()), masks=True), train=False)[1]
    shapes = {key: tuple(value.shape) for key, value in target.items() if key != 'image_id'}
    vectors = dict.fromkeys(('labels', 'area', 'iscrowd', 'difficult'), (0,))
    assert shapes == {'boxes': (0, 4), 'masks': (0, 30, 40), **vectors}
    assert target['boxes'].dtype == torch.float32
    assert target['labels'].dtype == torch.int64


def test_training_leaves_out_crowds_and_images_without_objects(tmp_path):
    annotations = read_coco(*write_coco(tmp_path, coco()))
    train = targets(annotations, train=True)
    assert [t['image_id'] for t in train] == [7, 900]
    assert train[0]['labels'].tolist() == [3, 1]
    assert 'masks' not in train[0]
    assert [t['image_id'] for t in targets(annotations, train=True, drop_empty=False)] == [7, 5, 900]


def test_an_image_with_nothing_but_a_crowd_is_empty_in_training(tmp_path):
    content = coco()
    content['annotations'][3]['iscrowd'] = 1
    assert [t['image_id'] for t in targets(read_coco(*write_coco(tmp_path, content)), train=True)] == [7]


def test_compressed_codes_are_the_same_mask_as_counts(tmp_path):
    from faster_coco_eval.core import mask

    content = coco()
    content['annotations'][2]['segmentation'] = {
        'size': [30, 40],
        'counts': mask.frPyObjects(CROWD, 30, 40)['counts'].decode(),
    }
    target = targets(read_coco(*write_coco(tmp_path, content), masks=True), train=False)[0]
    assert target['masks'][2].nonzero()[:, 1].unique().tolist() == [0, 1]


def test_classes_of_the_training_set_decide_the_labels_of_another(tmp_path):
    annotations = read_coco(*write_coco(tmp_path, coco()), classes=['fish', 'cow', 'cat', 'dog'])
    assert annotations.classes == ('fish', 'cow', 'cat', 'dog')
    assert (annotations.category_ids[0], *annotations.category_ids[2:]) == (90, 44, 3)
    assert annotations.category_ids[1] > 90  # the file has no cow
    assert targets(annotations, train=False)[0]['labels'].tolist() == [1, 4, 4]


def test_a_category_with_the_id_zero_is_one_like_others(tmp_path):
    content = coco()
    content['categories'][1]['id'] = 0
    for annotation in content['annotations']:
        annotation['category_id'] = {3: 0}.get(annotation['category_id'], annotation['category_id'])
    file, images = write_coco(tmp_path, content)
    assert read_coco(file, images).category_ids == (0, 44, 90)
    assert read_coco(file, images, classes=['cat', 'dog', 'fish']).category_ids == (44, 0, 90)


def test_area_is_that_of_the_box_where_the_file_has_none(tmp_path):
    content = coco()
    del content['annotations'][1]['area'], content['annotations'][1]['iscrowd']
    target = targets(read_coco(*write_coco(tmp_path, content)), train=False)[0]
    assert target['area'].tolist() == [36, 400, 36]
    assert target['iscrowd'].tolist() == [0, 0, 1]


def test_size_is_read_from_the_image_where_the_file_has_none(tmp_path):
    content = coco()
    del content['images'][0]['width'], content['images'][0]['height']
    assert read_coco(*write_coco(tmp_path, content)).records[0].size == (30, 40)


def test_a_polygon_of_many_points_is_drawn(tmp_path):
    angles = np.linspace(0, 2 * np.pi, 100_000, endpoint=False)
    content = coco()
    content['annotations'][0]['segmentation'] = [
        np.stack([20 + 10 * np.cos(angles), 15 + 10 * np.sin(angles)], 1).ravel().tolist()
    ]
    mask = targets(read_coco(*write_coco(tmp_path, content), masks=True), train=False)[0]['masks'][0]
    assert mask.sum().item() == pytest.approx(np.pi * 100, rel=0.1)


def test_boxes_may_leave_the_image_by_a_rounding_error_and_are_clipped_in_training(tmp_path):
    content = coco()
    content['annotations'][0]['bbox'] = [2, 2, 38.4, 6]
    annotations = read_coco(*write_coco(tmp_path, content))
    assert not annotations.defects
    torch.manual_seed(1)
    dataset = DetectionDataset(annotations, train=True, transforms=rcnn_transforms())
    boxes = torch.cat([dataset[0][1]['boxes'] for _ in range(8)])
    assert len(boxes) == 16
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 40


def change(**values):
    """A change of the first annotation, which has one of two objects that are no crowd in its image."""
    return lambda content: content['annotations'][0].update(values)


def change_image(**values):
    """A change of the first image, which has three of four objects."""
    return lambda content: content['images'][0].update(values)


NAN, INF = float('nan'), float('inf')
DEFECTS_OF_OBJECTS = {
    'no width': ('zero-size box', change(bbox=[2, 2, 0, 6])),
    'negative height': ('zero-size box', change(bbox=[2, 2, 6, -6])),
    'no width in float32': ('zero-size box', change(bbox=[30.0, 2, 1e-7, 6])),
    'right of the image': ('box outside the image', change(bbox=[30, 2, 12, 6])),
    'left of the image': ('box outside the image', change(bbox=[-3, 2, 12, 6])),
    'unknown category': ('unknown category', change(category_id=4)),
    'category in text': ('invalid field', change(category_id='90')),
    'box in text': ('invalid field', change(bbox=['2', '2', '6', '6'])),
    'box of null': ('invalid field', change(bbox=[2, 2, None, 6])),
    'box of booleans': ('invalid field', change(bbox=[True, 2, 6, 6])),
    'box of three': ('invalid field', change(bbox=[2, 2, 6])),
    'no box': ('invalid field', change(bbox=None)),
    'NaN': ('invalid number', change(bbox=[2, 2, NAN, 6])),
    'infinity': ('invalid number', change(bbox=[2, INF, 6, 6])),
    'huge': ('invalid number', change(bbox=[2, 2, 10**400, 6])),
    'negative area': ('invalid number', change(area=-1)),
    'area in text': ('invalid field', change(area='36')),
    'iscrowd': ('invalid field', change(iscrowd='yes')),
    'unknown image': ('annotations of an unknown image', change(image_id=8)),
    'image in text': ('invalid field', change(image_id='7')),
    'image of NaN': ('invalid field', change(image_id=NAN)),
    'annotation twice': ('duplicate id', change(id=2)),
    'huge id': ('invalid field', change(id=2**70)),
    'no segmentation': ('invalid segmentation', change(segmentation=None)),
    'no polygon': ('invalid segmentation', change(segmentation=[])),
    'two points': ('invalid segmentation', change(segmentation=[[1, 1, 5, 5]])),
    'odd numbers': ('invalid segmentation', change(segmentation=[[*SQUARE, 3]])),
    'polygon of null': ('invalid segmentation', change(segmentation=[[None] * 6])),
    'polygon of text': ('invalid segmentation', change(segmentation=[['1'] * 6])),
    'polygon of NaN': ('invalid segmentation', change(segmentation=[[NAN] * 6])),
    'polygon far away': ('invalid segmentation', change(segmentation=[[1, 1, 1e8, 1, 1e8, 1e8]])),
    'polygon of huge numbers': ('invalid segmentation', change(segmentation=[[10**400] * 6])),
    'polygon not in a list': ('invalid segmentation', change(segmentation=SQUARE)),
    'code of another size': ('invalid segmentation', change(segmentation={'size': [40, 30], 'counts': [1200]})),
    'code too short': ('invalid segmentation', change(segmentation={'size': [30, 40], 'counts': [5, 5]})),
    'code too long': ('invalid segmentation', change(segmentation={'size': [30, 40], 'counts': [5, 10**9]})),
    'code negative': ('invalid segmentation', change(segmentation={'size': [30, 40], 'counts': [-5, 1205]})),
    'code of text': ('invalid segmentation', change(segmentation={'size': [30, 40], 'counts': ['a']})),
    'code damaged': ('invalid segmentation', change(segmentation={'size': [30, 40], 'counts': 'oooooooooooooooooo'})),
    'code not ASCII': ('invalid segmentation', change(segmentation={'size': [30, 40], 'counts': 'ü'})),
    'code missing': ('invalid segmentation', change(segmentation={})),
}
DEFECTS_OF_COCO_IMAGES = {
    'above the folder': ('path outside the folder', change_image(file_name='../../etc/passwd')),
    'above, after a folder': ('path outside the folder', change_image(file_name='a/../../b.png')),
    'absolute': ('path outside the folder', change_image(file_name='/etc/passwd')),
    'above, of Windows': ('path outside the folder', change_image(file_name='..\\secret.png')),
    'a drive of Windows': ('path outside the folder', change_image(file_name='C:\\secret.png')),
    'the folder': ('path outside the folder', change_image(file_name='.')),
    'name of a number': ('invalid field', change_image(file_name=7)),
    'empty name': ('invalid field', change_image(file_name='')),
    'zero byte': ('invalid field', change_image(file_name='7\0.png')),
    'width of zero': ('wrong image size', change_image(width=0)),
    'width of half a pixel': ('wrong image size', change_image(width=40.5)),
    'width in text': ('invalid field', change_image(width='40')),
    'width of NaN': ('invalid number', change_image(width=NAN)),
    'a bomb': ('wrong image size', change_image(width=10**6, height=10**6)),
}


@pytest.mark.parametrize('case', DEFECTS_OF_OBJECTS | DEFECTS_OF_COCO_IMAGES)
def test_defects_of_coco_are_found_when_reading(tmp_path, case):
    kind, spoil = (DEFECTS_OF_OBJECTS | DEFECTS_OF_COCO_IMAGES)[case]
    content = coco()
    spoil(content)
    file, images = write_coco(tmp_path, content)
    annotations = read_coco(file, images, masks=True)
    assert [(d.kind, d.file) for d in annotations.defects] == [(kind, str(file))]
    with pytest.raises(InvalidDatasetError, match='skip_invalid=True') as error:
        DetectionDataset(annotations, train=False)
    assert str(annotations.defects[0]) in str(error.value)
    assert pickle.loads(pickle.dumps(error.value)).defects == annotations.defects

    dataset = DetectionDataset(annotations, train=False, skip_invalid=True)
    assert dataset.skipped == {kind: 1}
    left = len(dataset), sum(len(target['labels']) for _, target in dataset)
    assert left == ((3, 3) if case in DEFECTS_OF_OBJECTS else (2, 1))


def test_an_image_that_is_there_twice_keeps_the_objects_of_the_first(tmp_path):
    content = coco()
    content['images'].append(dict(content['images'][0], file_name='5.png', width=1))
    annotations = read_coco(*write_coco(tmp_path, content))
    assert [(d.kind, d.record) for d in annotations.defects] == [('duplicate id', 'images[3] (id 7)')]
    assert [t['image_id'] for t in targets(annotations, train=True, skip_invalid=True)] == [7, 900]


def test_an_empty_list_of_annotations_is_a_defect(tmp_path):
    annotations = read_coco(*write_coco(tmp_path, dict(coco(), annotations=[])))
    assert [d.kind for d in annotations.defects] == ['no objects']


def test_defects_name_the_record(tmp_path):
    content = coco()
    content['annotations'][1]['bbox'] = [2, 2, 0, 6]
    (defect,) = read_coco(*write_coco(tmp_path, content)).defects
    assert defect.record == 'annotations[1] (id 2)'


UNREADABLE_COCO = {
    'empty': ('', 'is empty'),
    'cut off': ('{"images": [\n  {"id": 1},\n  {"id"', 'line 3, column'),
    'no JSON': ('<annotation/>', 'line 1, column 1'),
    'a list': ('[]', 'categories'),
    'nothing': ('{}', 'images'),
    'no categories': ('{"images": [{"id": 1}], "annotations": []}', 'categories is missing'),
    'no images': ('{"images": [], "annotations": [], "categories": []}', 'has no images'),
    'nested': ('[' * 100_000, 'nested too deeply'),
    'huge number': ('{"images": ' + '9' * 5000 + '}', 'Cannot read'),
    'numbers': ('{"images": [5], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', r'images\[0\] must be'),
    'category in text': ('{"images": [{}], "annotations": [], "categories": [{"id": "1", "name": "a"}]}', 'id must be'),
    'no name': ('{"images": [{}], "annotations": [], "categories": [{"id": 1}]}', 'names of its categories'),
}


@pytest.mark.parametrize('case', UNREADABLE_COCO)
def test_a_file_that_cannot_be_read_is_named(tmp_path, case):
    text, message = UNREADABLE_COCO[case]
    file, images = write_coco(tmp_path, text)
    with pytest.raises(ValueError, match=message) as error:
        read_coco(file, images)
    assert str(file) in str(error.value)


@pytest.mark.parametrize('same', [dict(id=3, name='cow'), dict(id=4, name='dog')])
def test_categories_must_be_unique(tmp_path, same):
    content = coco()
    content['categories'].append(same)
    with pytest.raises(ValueError, match=r'two categories have the id 3|dog.* is there twice'):
        read_coco(*write_coco(tmp_path, content))


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(ValueError, match='Cannot read'):
        read_coco(tmp_path / 'none.json', tmp_path)
    (tmp_path / 'binary.json').write_bytes(b'\xff\xfe\x00{')
    with pytest.raises(ValueError, match='Cannot read'):
        read_coco(tmp_path / 'binary.json', tmp_path)


def test_random_values_in_random_places_end_in_a_defect_or_a_clear_error(tmp_path):
    """Fuzzing: no other error leaves the reader, and what is left can be loaded."""
    rng = np.random.default_rng(0)
    values = [
        None,
        True,
        -1,
        0,
        1e999,
        NAN,
        10**30,
        '',
        'text',
        [],
        [1],
        {},
        {'a': 1},
        [[]],
        0.5,
        [None] * 4,
        'é\n\x1b',
    ]

    def places(value, path=()):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*path, key)
            if isinstance(inner, dict | list):
                yield from places(inner, (*path, key))

    original = coco()
    file, images = write_coco(tmp_path, original)
    every = list(places(original))
    errors = 0
    for _ in range(400):
        content = copy.deepcopy(original)
        for i in rng.choice(len(every), rng.integers(1, 4)):
            at = content
            with contextlib.suppress(LookupError, TypeError):  # a place within one that was replaced
                for key in every[i][:-1]:
                    at = at[key]
                at[every[i][-1]] = values[rng.integers(len(values))]
        file.write_text(json.dumps(content))
        try:
            annotations = read_coco(file, images, masks=True)
            dataset = DetectionDataset(check(annotations, quick=True).valid, train=False)
        except ValueError as e:
            assert str(file) in str(e)  # noqa: PT017
            errors += 1
            continue
        for _, target in dataset:
            assert target['boxes'].isfinite().all()
            assert ((target['labels'] >= 1) & (target['labels'] <= len(dataset.classes))).all()
    assert 0 < errors < 300


# ----------------------------------------------------------------------------------------------------------------- VOC


def test_voc_reads_classes_of_its_own_and_keeps_the_numbers_of_boxes(tmp_path):
    annotations = read_voc(write_voc(tmp_path, VOC))
    assert annotations.classes == ('Platelets', 'RBC', 'WBC')
    assert annotations.category_ids == (1, 2, 3)
    first, second, third = targets(annotations, train=False)
    assert first['boxes'].tolist() == [[1, 2, 11, 22], [5.5, 5, 40, 30]]
    assert first['labels'].tolist() == [2, 3]
    assert first['area'].tolist() == [200, 862.5]
    assert first['difficult'].tolist() == [0, 1]
    assert first['iscrowd'].tolist() == [0, 0]
    assert second['boxes'].shape == (0, 4)
    assert third['labels'].tolist() == [1, 1]
    assert [t['image_id'] for t in (first, second, third)] == [0, 1, 2]


def test_training_leaves_out_difficult_objects_unless_asked(tmp_path):
    annotations = read_voc(write_voc(tmp_path, VOC))
    assert [t['labels'].tolist() for t in targets(annotations, train=True)] == [[2], [1, 1]]
    kept = targets(annotations, train=True, drop_difficult=False)
    assert [t['difficult'].tolist() for t in kept] == [[0, 1], [0, 0]]


def test_voc_splits_and_classes_of_the_training_set(tmp_path):
    folder = write_voc(tmp_path, VOC, {'train': ['a', 'b'], 'val': ['c']})
    train = read_voc(folder, 'train')
    assert train.classes == ('RBC', 'WBC')
    val = read_voc(folder, 'val', classes=['Platelets', *train.classes])
    assert val.classes == ('Platelets', 'RBC', 'WBC')
    assert [Path(record.image).name for record in val.records] == ['c.jpg']
    with pytest.raises(ValueError, match=r"no split 'test'.*there are: train, val"):
        read_voc(folder, 'test')


def test_ids_of_images_do_not_move_when_a_defect_is_left_out(tmp_path):
    annotations = read_voc(write_voc(tmp_path, VOC | {'a': '<annotation>'}))
    assert [record.image_id for record in annotations.records] == [1, 2]


@pytest.mark.parametrize('size', ['', '<size><width>0</width><height>0</height></size>', '<size/>'])
def test_voc_size_is_read_from_the_image_where_the_file_has_none(tmp_path, size):
    annotations = read_voc(write_voc(tmp_path, {'a': voc_file(voc_object(), size=size)}))
    assert annotations.records[0].size == (30, 40)


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;&b;">]>' + voc_file(voc_object('&c;'))
FOREIGN = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>' + voc_file(voc_object('&b;'))
DEFECTS_OF_VOC = {
    'zero size': ('zero-size box', voc_file(voc_object(box=(5, 5, 5, 9)))),
    'swapped': ('zero-size box', voc_file(voc_object(box=(9, 5, 5, 9)))),
    'outside': ('box outside the image', voc_file(voc_object(box=(9, 5, 50, 9)))),
    'no number': ('invalid field', voc_file(voc_object(box=(9, 5, 'x', 9)))),
    'empty': ('invalid field', voc_file(voc_object(box=(9, 5, '', 9)))),
    'NaN': ('invalid number', voc_file(voc_object(box=(9, 5, 'nan', 9)))),
    'infinity': ('invalid number', voc_file(voc_object(box=(9, 5, '1e999', 9)))),
    'no box': ('invalid field', voc_file('<object><name>RBC</name></object>')),
    'no name': ('invalid field', voc_file(voc_object(' '))),
    'difficult': ('invalid field', voc_file(voc_object(extra='<difficult>yes</difficult>'))),
    'size': ('invalid field', voc_file(size='<size><width>x</width><height>30</height></size>')),
    'empty file': ('broken file', ''),
    'cut off': ('broken file', '<annotation>\n<object>'),
    'another document': ('broken file', '<html/>'),
    'encoding': ('broken file', '<?xml version="1.0" encoding="klingon"?>' + voc_file()),
    'entity bomb': ('broken file', BOMB),
    'foreign file': ('broken file', FOREIGN),
    'foreign document': ('broken file', '<!DOCTYPE a SYSTEM "http://localhost/x.dtd">' + voc_file()),
}


@pytest.mark.parametrize('case', DEFECTS_OF_VOC)
def test_defects_of_voc_are_found_when_reading(tmp_path, case):
    kind, text = DEFECTS_OF_VOC[case]
    annotations = read_voc(write_voc(tmp_path, {'bad': text, 'good': VOC['a']}))
    (defect,) = annotations.defects
    assert defect.kind == kind
    assert defect.file == str(tmp_path / 'Annotations' / 'bad.xml')
    whole = kind == 'broken file' or case == 'size'
    assert defect.record.startswith('' if whole else 'object 1')
    dataset = DetectionDataset(annotations, train=False, skip_invalid=True)
    assert len(dataset) == (1 if whole else 2)
    assert dataset[-1][1]['labels'].tolist() == [1, 2]


def test_a_broken_xml_names_the_line(tmp_path):
    (defect,) = read_voc(write_voc(tmp_path, {'a': '<annotation>\n<object>\n</annotation>', 'c': VOC['c']})).defects
    assert 'line 3, column 3' in str(defect)


def test_files_that_a_split_names_and_that_are_missing(tmp_path):
    folder = write_voc(tmp_path, VOC, {'train': ['a', 'b', 'c', 'd', '../../etc/passwd', 'a']})
    (folder / 'JPEGImages' / 'b.jpg').unlink()
    photo(folder / 'JPEGImages' / 'c.png')
    annotations = read_voc(folder, 'train')
    kinds = sorted((d.kind, Path(d.file).name) for d in annotations.defects)
    assert kinds == [
        ('duplicate id', 'c.xml'),
        ('duplicate id', 'train.txt'),
        ('missing file', 'd.xml'),
        ('missing file', 'passwd.xml'),
        ('missing image', 'b.xml'),
    ]
    assert len(annotations.records) == 1


def test_voc_unknown_names_and_no_names(tmp_path):
    folder = write_voc(tmp_path, VOC)
    annotations = read_voc(folder, classes=['RBC', 'WBC'])
    assert {d.kind for d in annotations.defects} == {'unknown category'}
    assert 'object 1 (Platelets)' in str(annotations.defects[0])
    for wrong in ('RBC', [], ['a', 'a'], [1]):
        with pytest.raises(ValueError, match='classes must be'):
            read_voc(folder, classes=wrong)
    empty = write_voc(tmp_path / 'empty', {'a': voc_file()})
    with pytest.raises(ValueError, match='no objects'):
        read_voc(empty)
    assert read_voc(empty, classes=['RBC']).defects[0].kind == 'no objects'


@pytest.mark.parametrize('missing', ['Annotations', 'JPEGImages'])
def test_a_folder_that_is_missing_or_empty_is_named(tmp_path, missing):
    folder = write_voc(tmp_path, VOC)
    for path in (folder / missing).iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=f'no files.*{missing}'):
        read_voc(folder)
    (folder / missing).rmdir()
    with pytest.raises(ValueError, match=f'{missing}.*does not exist'):
        read_voc(folder)


# ---------------------------------------------------------------------------------------------------- images and masks


@pytest.mark.parametrize(('mode', 'dtype'), [('L', np.uint8), ('P', np.uint8), ('I;16', np.uint16)])
def test_masks_of_every_coding_have_class_ids(tmp_path, mode, dtype):
    folders = write_masks(tmp_path, {'a': mask_of(dtype), 'b': mask_of(dtype)}, mode)
    annotations = read_image_masks(*folders, classes=['road', 'sky'])
    assert not check(annotations).defects
    dataset = SegmentationDataset(annotations)
    image, mask = dataset[1]
    assert isinstance(image, tv_tensors.Image)
    assert isinstance(mask, tv_tensors.Mask)
    assert mask.dtype == torch.int64
    assert torch.equal(mask, torch.from_numpy(mask_of(np.int64)))
    assert (dataset.classes, dataset.ignore_index, len(dataset)) == (('road', 'sky'), 255, 2)


def test_values_of_masks_may_mean_other_classes(tmp_path):
    mask = mask_of(np.uint16)
    mask[mask == 255] = 40_000
    folders = write_masks(tmp_path, {'a': mask})
    annotations = read_image_masks(*folders, ['road'], ignore_index=-100, values={0: -100, 1: 0, 40_000: 0})
    (_, ids) = SegmentationDataset(annotations)[0]
    assert ids[:, 0].tolist() == [0] * 10 + [-100] * 10 + [0] * 10


def test_only_the_images_of_a_split_are_read(tmp_path):
    folders = write_masks(tmp_path, {'a': mask_of(), 'b': mask_of()})
    photo(tmp_path / 'images' / 'without.jpg')
    (tmp_path / 'val.txt').write_text('b\n\n')
    annotations = read_image_masks(*folders, ['road', 'sky'], split=tmp_path / 'val.txt')
    assert [Path(record.mask).name for record in annotations.records] == ['b.png']
    assert not annotations.defects


def test_names_of_classes_come_from_a_file(tmp_path):
    (tmp_path / 'names.txt').write_text('\ufeffroad\n\n sky \n', encoding='utf-8')
    assert read_lines(tmp_path / 'names.txt') == ['road', 'sky']
    with pytest.raises(ValueError, match='Cannot read'):
        read_lines(tmp_path / 'none.txt')


def test_ignore_index_and_values_must_fit_the_classes():
    with pytest.raises(ValueError, match='ignore_index 1 is one of the classes 0 to 1'):
        MaskCoding(2, ignore_index=1)
    for values in ({0: 2}, {-1: 0}, {70_000: 0}):
        with pytest.raises(ValueError, match='is not allowed'):
            MaskCoding(2, values=values)


def unknown_value(folder):
    write_masks(folder, {'a': np.full((30, 40), 2, dtype=np.uint8)})


def value_of_32_bits(folder, value):
    Image.fromarray(np.full((30, 40), value, dtype=np.int32)).save(folder / 'masks' / 'a.tif')
    (folder / 'masks' / 'a.png').unlink()


def other_size(folder):
    write_masks(folder, {'a': mask_of()[:, :20]})


def colours(folder):
    photo(folder / 'masks' / 'a.png')


DEFECTS_OF_MASKS = {
    'unknown value': ('unknown mask value', unknown_value),
    'negative value': ('unknown mask value', lambda folder: value_of_32_bits(folder, 1 - 2**16)),
    'huge value': ('unknown mask value', lambda folder: value_of_32_bits(folder, 2**16)),
    'other size': ('wrong mask size', other_size),
    'colours': ('unreadable mask', colours),
    'no image': ('unreadable mask', lambda folder: (folder / 'masks' / 'a.png').write_bytes(b'no image')),
    'cut off': ('unreadable mask', lambda folder: os.truncate(folder / 'masks' / 'a.png', 60)),
    'image cut off': ('unreadable image', lambda folder: os.truncate(folder / 'images' / 'a.jpg', 700)),
    'no mask': ('missing file', lambda folder: (folder / 'masks' / 'a.png').unlink()),
    'mask without image': ('missing image', lambda folder: (folder / 'images' / 'a.jpg').unlink()),
    'two images': ('duplicate id', lambda folder: photo(folder / 'images' / 'a.png') is None),
}


@pytest.mark.parametrize('case', DEFECTS_OF_MASKS)
def test_defects_of_masks_are_found_by_the_check(tmp_path, case):
    kind, spoil = DEFECTS_OF_MASKS[case]
    folders = write_masks(tmp_path, {'a': mask_of(), 'b': mask_of()})
    spoil(tmp_path)
    annotations = read_image_masks(*folders, classes=['road', 'sky'])
    report = check(annotations)
    assert [d.kind for d in report.defects] == [kind]
    assert report.counts == {kind: 1}
    assert len(SegmentationDataset(report.valid)) == 1
    if not annotations.defects:
        with pytest.raises(InvalidRecord, match=kind):
            SegmentationDataset(annotations)[0]


# --------------------------------------------------------------------------------------------------------------- check


def fifo(path):
    path.unlink()
    os.mkfifo(path)


DEFECTS_OF_IMAGES = {
    'missing': ('missing image', lambda path: path.unlink(), True),
    'no image': ('unreadable image', lambda path: path.write_bytes(b'no image'), True),
    'empty': ('unreadable image', lambda path: path.write_bytes(b''), True),
    'other size': ('wrong image size', lambda path: photo(path, (41, 30)), True),
    'sides swapped': ('wrong image size', lambda path: photo(path, (30, 40)), True),
    'cut off': ('unreadable image', lambda path: os.truncate(path, 1000), False),
    'a pipe': ('unreadable image', fifo, True),
    'a folder': ('unreadable image', lambda path: (path.unlink(), path.mkdir()), True),
}


@pytest.mark.parametrize('case', DEFECTS_OF_IMAGES)
def test_defects_of_images_are_found_by_the_check(tmp_path, case):
    kind, spoil, in_header = DEFECTS_OF_IMAGES[case]
    if spoil is fifo and not hasattr(os, 'mkfifo'):
        pytest.skip('no named pipes on this system')
    file, images = write_coco(tmp_path, coco())
    spoil(images / '7.png')
    annotations = read_coco(file, images)
    assert not annotations.defects
    report = check(annotations)
    (defect,) = report.defects
    assert (defect.kind, defect.file) == (kind, str(images / '7.png'))
    assert [record.image_id for record in report.valid.records] == [5, 900]
    assert bool(check(annotations, quick=True).defects) == in_header
    with pytest.raises(InvalidRecord, match=kind) as error:
        DetectionDataset(annotations, train=False)[0]
    message = str(pickle.loads(pickle.dumps(error.value)))  # as a worker hands it on
    assert '7.png' in message
    assert 'dense.data.check' in message


def test_the_report_lists_every_defect_on_a_line_of_its_own(tmp_path):
    content = coco()
    content['annotations'][0]['bbox'] = [2, 2, 0, 6]
    content['annotations'][1]['category_id'] = 1000
    content['images'][1]['file_name'] = 'evil\x1b[31m\n.png'
    report = check(read_coco(*write_coco(tmp_path, content)))
    assert report.counts == {'zero-size box': 1, 'unknown category': 1, 'missing image': 1}
    lines = str(report).split('\n')
    assert len(lines) == 4
    assert '2 valid images with 2 objects, 3 classes' in lines[0]
    assert '\x1b' not in str(report)
    assert r'evil\x1b[31m\n.png' in lines[3]
    assert not check(report.valid).defects


def test_check_shows_no_progress_without_a_terminal(tmp_path, capfd):
    check(read_coco(*write_coco(tmp_path, coco())))
    assert capfd.readouterr() == ('', '')


def test_a_long_list_of_defects_is_cut_in_the_error(tmp_path):
    content = coco()
    for annotation in content['annotations'] * 2:
        annotation['bbox'] = [2, 2, 0, 6]
    content['annotations'] += [dict(a, id=a['id'] + 10) for a in content['annotations']]
    with pytest.raises(InvalidDatasetError) as error:
        DetectionDataset(read_coco(*write_coco(tmp_path, content)), train=True)
    assert '8 x zero-size box' in str(error.value)
    assert 'and 3 more' in str(error.value)


def test_nothing_left_is_an_error(tmp_path):
    content = coco()
    for annotation in content['annotations']:
        annotation['iscrowd'] = 1
    annotations = read_coco(*write_coco(tmp_path, content))
    assert len(DetectionDataset(annotations, train=False)) == 3
    with pytest.raises(ValueError, match='no object to train on'):
        DetectionDataset(annotations, train=True)


def test_the_wrong_data_set_for_annotations_is_an_error(tmp_path):
    with pytest.raises(ValueError, match='use DetectionDataset'):
        SegmentationDataset(read_coco(*write_coco(tmp_path, coco())))
    folders = write_masks(tmp_path / 'masks', {'a': mask_of()})
    with pytest.raises(ValueError, match='use SegmentationDataset'):
        DetectionDataset(read_image_masks(*folders, classes=['a', 'b']), train=True)


# ---------------------------------------------------------------------------------------------------- EXIF orientation


def rotated(path, orientation, size=(40, 30)):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return photo(path, size, exif=exif)


@pytest.mark.parametrize('suffix', ['png', 'tif'])
@pytest.mark.parametrize('orientation', [5, 6, 7, 8])
def test_the_annotated_size_tells_in_which_frame_boxes_are(tmp_path, orientation, suffix):
    content = coco()
    content['images'][0]['file_name'] = f'rotated.{suffix}'
    file, images = write_coco(tmp_path, content)
    stored = torch.from_numpy(rotated(images / f'rotated.{suffix}', orientation)).permute(2, 0, 1)
    assert not check(read_coco(file, images)).defects
    assert torch.equal(DetectionDataset(read_coco(file, images), train=False)[0][0], stored)

    content['images'][0].update(width=30, height=40)
    content['annotations'] = content['annotations'][:1] + content['annotations'][3:]
    file.write_text(json.dumps(content))
    assert not check(read_coco(file, images)).defects
    upright = DetectionDataset(read_coco(file, images), train=False)[0][0]
    turned = {5: stored.mT, 6: stored.rot90(-1, (1, 2)), 7: stored.rot90(2, (1, 2)).mT, 8: stored.rot90(1, (1, 2))}
    assert torch.equal(upright, turned[orientation])


@pytest.mark.parametrize(('orientation', 'size'), [(3, (40, 30)), (6, (30, 30)), (2, (40, 30))])
def test_an_orientation_that_the_size_does_not_tell_is_a_defect(tmp_path, orientation, size):
    content = coco()
    content['images'][0].update(width=size[0], height=size[1])
    content['annotations'] = content['annotations'][:1]
    file, images = write_coco(tmp_path, content)
    rotated(images / '7.png', orientation, size)
    annotations = read_coco(file, images)
    for quick in (False, True):
        assert check(annotations, quick=quick).counts == {'unclear orientation': 1}
    with pytest.raises(InvalidRecord, match='unclear orientation'):
        DetectionDataset(annotations, train=True)[0]


def test_an_orientation_without_an_annotated_size_is_a_defect(tmp_path):
    folder = write_voc(tmp_path, {'a': voc_file(voc_object(), size=''), 'b': VOC['a']})
    rotated(folder / 'JPEGImages' / 'a.jpg', 6)
    assert [d.kind for d in read_voc(folder).defects] == ['unclear orientation']


def test_the_size_of_a_mask_tells_in_which_frame_it_was_drawn(tmp_path):
    folders = write_masks(tmp_path, {'a': mask_of(), 'b': mask_of().T})
    for name in 'ab':
        rotated(tmp_path / 'images' / f'{name}.jpg', 6)
    annotations = read_image_masks(*folders, classes=['road', 'sky'])
    assert not check(annotations).defects
    assert not check(annotations, quick=True).defects
    shapes = [(tuple(image.shape[1:]), tuple(mask.shape)) for image, mask in SegmentationDataset(annotations)]
    assert shapes == [((30, 40), (30, 40)), ((40, 30), (40, 30))]


# ---------------------------------------------------------------------------------------------------------- transforms


def test_ssd_transforms_keep_boxes_masks_and_all_fields_together(tmp_path):
    content = coco()
    content['annotations'][1].update(bbox=[20, 10, 16, 16], segmentation=[[20, 10, 36, 10, 36, 26, 20, 26]])
    annotations = read_coco(*write_coco(tmp_path, content), masks=True)
    dataset = DetectionDataset(annotations, train=True, transforms=ssd_transforms())
    lengths = set()
    for _ in range(60):
        image, target = dataset[0]
        assert type(image) is torch.Tensor
        assert image.dtype == torch.float32
        assert image.min() >= 0
        assert image.max() <= 1
        count = len(target['boxes'])
        lengths.add(count)
        assert {len(target[key]) for key in ('labels', 'area', 'iscrowd', 'difficult', 'masks')} == {count}
        assert target['masks'].shape[1:] == image.shape[1:]
        area_of = {3: 36.0, 1: 55.5}
        for box, label, area, mask in zip(*(target[k] for k in ('boxes', 'labels', 'area', 'masks')), strict=True):
            assert area.item() == area_of[label.item()]
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert torch.allclose(box, torch.stack(edges).float(), atol=1)
    assert lengths >= {1, 2}


def test_ssd_transforms_take_an_image_without_objects(tmp_path):
    annotations = read_coco(*write_coco(tmp_path, coco()), masks=True)
    dataset = DetectionDataset(annotations, train=True, transforms=ssd_transforms(), drop_empty=False)
    for _ in range(10):
        image, target = dataset[1]
        assert target['boxes'].shape == (0, 4)
        assert target['masks'].shape == (0, *image.shape[1:])


def test_ssd_transforms_fill_the_canvas_with_the_mean(tmp_path):
    annotations = read_coco(*write_coco(tmp_path, coco()))
    dataset = DetectionDataset(annotations, train=True, transforms=ssd_transforms(mean=(0.2, 0.4, 0.6)))
    color = torch.tensor([0.2, 0.4, 0.6])[:, None, None]
    assert any(((dataset[0][0] - color).abs() < 1e-6).all(0).float().mean() > 0.5 for _ in range(20))


def test_segmentation_transforms_give_crops_and_fill_with_the_ignored_class(tmp_path):
    mask = mask_of()
    mask[mask == 255] = 0
    annotations = read_image_masks(*write_masks(tmp_path, {'a': mask}), classes=['road', 'sky'], ignore_index=11)
    transforms = segmentation_transforms(64, ignore_index=11, mean=(0.4, 0.4, 0.4), std=(0.5, 0.5, 0.5))
    dataset = SegmentationDataset(annotations, transforms)
    values = set()
    for _ in range(20):
        image, target = dataset[0]
        assert image.shape == (3, 64, 64)
        assert target.shape == (64, 64)
        assert target.dtype == torch.int64
        values |= set(target.unique().tolist())
        assert image[:, target == 11].abs().sum() < 1e-6 + 0.01 * (target == 11).sum()
    assert values == {0, 1, 11}


def test_eval_transforms_normalise_where_asked(tmp_path):
    file, images = write_coco(tmp_path, coco())
    raw = DetectionDataset(read_coco(file, images), train=False)[0][0]
    image, target = DetectionDataset(read_coco(file, images), train=False, transforms=eval_transforms())[0]
    assert torch.allclose(image, raw / 255)
    assert target['boxes'].shape == (3, 4)
    normalised, _ = eval_transforms((0.5, 0.4, 0.3), (0.1, 0.2, 0.5))(raw, None)
    mean, std = torch.tensor([0.5, 0.4, 0.3])[:, None, None], torch.tensor([0.1, 0.2, 0.5])[:, None, None]
    assert torch.allclose(normalised, (raw / 255 - mean) / std, atol=1e-6)


# ----------------------------------------------------------------------------------------------------------- real data


def as_coco(folder, masks=True):
    return {
        split: read_coco(folder / 'annotations' / f'instances_{split}2017.json', folder / f'{split}2017', masks=masks)
        for split in ('train', 'val')
    }


@pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')  # of pycocotools
def test_masks_areas_and_boxes_of_coco_are_those_of_pycocotools(unpacked):
    pycocotools = pytest.importorskip('pycocotools.coco')
    folder = unpacked('tiny_coco')
    objects = 0
    for split, annotations in as_coco(folder).items():
        with contextlib.redirect_stdout(None):
            judge = pycocotools.COCO(folder / 'annotations' / f'instances_{split}2017.json')
        assert not check(annotations).defects
        dataset = DetectionDataset(annotations, train=False)
        assert len(dataset) == 50
        assert list(dataset.category_ids) == sorted(judge.getCatIds())
        assert list(dataset.classes) == [c['name'] for c in judge.loadCats(sorted(judge.getCatIds()))]
        for _, target in dataset:
            theirs = judge.loadAnns(judge.getAnnIds(target['image_id']))
            objects += len(theirs)
            assert len(theirs) == len(target['masks'])
            for i, annotation in enumerate(theirs):
                assert np.array_equal(judge.annToMask(annotation), target['masks'][i].numpy())
                assert target['area'][i].item() == np.float32(annotation['area'])
                x, y, width, height = annotation['bbox']
                assert np.array_equal(target['boxes'][i], np.float32([x, y, x + width, y + height]))
                assert dataset.category_ids[target['labels'][i] - 1] == annotation['category_id']
                assert target['iscrowd'][i] == annotation['iscrowd']
    assert objects == 852


@pytest.mark.skipif(sys.platform == 'win32', reason='workers start slowly')
@pytest.mark.parametrize('context', ['fork', pytest.param('spawn', marks=pytest.mark.slow)])
def test_workers_load_the_same_as_the_main_process(unpacked, context):
    annotations = as_coco(unpacked('tiny_coco'))['val']
    dataset = DetectionDataset(annotations, train=False, transforms=eval_transforms())
    loader = DataLoader(dataset, 8, num_workers=2, collate_fn=collate, multiprocessing_context=context)
    seen = [target for _, batch in loader for target in batch]
    assert [t['image_id'] for t in seen] == [record.image_id for record in annotations.records]
    for i in (0, 49):
        expected = dataset[i][1]
        assert all(torch.equal(seen[i][k], expected[k]) for k in expected if k != 'image_id')


@pytest.mark.slow
@pytest.mark.parametrize('build', [ssdlite320_mobilenet_v3_large, fasterrcnn_mobilenet_v3_large_320_fpn])
def test_box_detectors_of_torchvision_train_on_the_targets(unpacked, build):
    transforms = ssd_transforms() if build is ssdlite320_mobilenet_v3_large else rcnn_transforms()
    train = DetectionDataset(as_coco(unpacked('tiny_coco'), masks=False)['train'], train=True, transforms=transforms)
    images, target = collate([train[i] for i in range(4)])
    losses = build(weights=None, weights_backbone=None, num_classes=81)(images, target)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.slow
def test_mask_detectors_of_torchvision_train_on_the_targets(unpacked):
    train = DetectionDataset(as_coco(unpacked('tiny_coco'))['train'], train=True, transforms=rcnn_transforms())
    images, target = collate([train[i] for i in range(2)])
    model = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=81, min_size=128, max_size=192)
    losses = model(images, target)
    assert losses['loss_mask'].isfinite()


def test_bccd_has_two_boxes_without_an_area(unpacked):
    folder = unpacked('bccd')
    everything = read_voc(folder)
    assert everything.classes == ('Platelets', 'RBC', 'WBC')
    report = check(everything)
    assert [(Path(d.file).stem, d.kind) for d in report.defects] == [
        ('BloodImage_00338', 'zero-size box'),
        ('BloodImage_00343', 'zero-size box'),
    ]
    assert '364 valid images with 4886 objects, 3 classes' in str(report)
    with pytest.raises(InvalidDatasetError, match='BloodImage_00338'):
        DetectionDataset(everything, train=True)
    sizes = {}
    for split in ('train', 'val', 'test'):
        annotations = read_voc(folder, split, classes=everything.classes)
        sizes[split] = len(DetectionDataset(annotations, train=False, skip_invalid=True))
    assert sizes == {'train': 205, 'val': 87, 'test': 72}


def test_camvid_is_read_with_its_ignored_class(unpacked):
    names = ['sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car', 'pedestrian', 'bicyclist']
    folder = unpacked('camvid')
    sizes = {}
    for split in ('train', 'val', 'test'):
        folders = folder / split / 'images', folder / split / 'masks'
        report = check(read_image_masks(*folders, names, ignore_index=11), quick=split != 'val')
        assert not report.defects
        sizes[split] = len(SegmentationDataset(report.valid))
    assert sizes == {'train': 367, 'val': 101, 'test': 233}
    _, mask = SegmentationDataset(report.valid)[0]
    assert mask.shape == (270, 360)
    assert set(mask.unique().tolist()) <= set(range(12))
    wrong = check(read_image_masks(*folders, names))  # 11 is neither a class nor ignored then
    assert set(wrong.counts) == {'unknown mask value'}


def test_the_extra_is_only_needed_for_masks(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'faster_coco_eval', None)
    monkeypatch.setitem(sys.modules, 'faster_coco_eval.core.mask', None)
    file, images = write_coco(tmp_path, coco())
    assert len(DetectionDataset(read_coco(file, images), train=True)) == 2
    with pytest.raises(ImportError, match=r'timm-attn\[dense\]'):
        read_coco(file, images, masks=True)


def test_ids_of_classes_that_a_file_lacks_are_no_categories(tmp_path):
    content = coco()
    content['annotations'][0]['category_id'] = 94  # of no category; the class bird, which the file lacks, has it
    report = read_coco(*write_coco(tmp_path, content), classes=['fish', 'dog', 'cat', 'bird'])
    assert report.category_ids == (90, 3, 44, 94)
    assert [defect.kind for defect in report.defects] == ['unknown category']


@pytest.mark.parametrize('project', ['sea', 'fish'])
def test_project_of_roboflow_is_no_class(tmp_path, project):
    content = coco()
    for category in content['categories']:
        category['supercategory'] = project
    content['categories'].append(dict(id=0, name=project, supercategory='none'))
    assert read_coco(*write_coco(tmp_path, content)).classes == ('dog', 'cat', 'fish')
