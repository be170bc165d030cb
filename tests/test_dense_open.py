"""Data sets by the layout of their folders, their check before training, and the batches of every process."""

import itertools
import json
import logging
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_dense_data import DATA, VOC, coco, photo, voc_file, voc_object, write_voc

from timm_attn.dense.data import (
    DetectionDataset,
    EpochBatches,
    SegmentationDataset,
    aspect_ratio_groups,
    check_pair,
    open_detection,
    open_segmentation,
    read_coco,
)
from timm_attn.dense.data.batches import share
from timm_attn.dense.data.open import DefectsError, limit, names

CAMVID = ('sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car', 'pedestrian', 'bicyclist')


def extract(name, folder, *kept):
    """Those files of a shared data set whose names have one of these parts."""
    archive = DATA / f'{name}.zip'
    if not archive.exists():
        pytest.skip(f'needs {archive}')
    with zipfile.ZipFile(archive) as files:
        files.extractall(folder, [n for n in files.namelist() if any(part in n for part in kept)])
    return folder / name


def write_json(file, images, content=None):
    """Annotations in COCO's format, and their images."""
    content = content or coco()
    for image in content['images']:
        photo(images / image['file_name'])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def voc(root):
    return write_voc(root, VOC, {'train': ['a', 'c'], 'val': ['a', 'b'], 'test': ['c']})


def coco_folder(root, train='train2017', val='val2017'):
    for split in (train, val):
        write_json(root / 'annotations' / f'instances_{split}.json', root / split)
    return root


def coco_images(root, train='train', val='val'):
    coco_folder(root, train, val)
    (root / 'images').mkdir()
    for split in (train, val):
        (root / split).rename(root / 'images' / split)


def roboflow(root, train='train', val='valid'):
    for split in (train, val):
        write_json(root / split / '_annotations.coco.json', root / split)
    return root


def pair(image, mask, values=(0, 1, 255)):
    """An image, and a mask with these values."""
    photo(image)
    mask.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(values, np.uint8), (30, 40))).save(mask)


def folders_of_splits(root, val='val'):
    for name, split in (('a', 'train'), ('b', 'train'), ('c', val)):
        pair(root / split / 'images' / f'{name}.jpg', root / split / 'masks' / f'{name}.png')
    return root


def splits_of_folders(root, val='val'):
    for name, split in (('a', 'train'), ('b', 'train'), ('c', val)):
        pair(root / 'images' / split / f'{name}.jpg', root / 'masks' / split / f'{name}.png')
    return root


def voc_masks(root):
    for name in 'abc':
        pair(root / 'JPEGImages' / f'{name}.jpg', root / 'SegmentationClass' / f'{name}.png', (0, 20, 255))
    for split, text in (('train', 'a\nb\n'), ('val', 'c\n')):
        path = root / 'ImageSets' / 'Segmentation' / f'{split}.txt'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def cityscapes(root, kind='labelIds', values=(7, 33, 0)):
    for name, split in (('aachen/aachen_0', 'train'), ('ulm/ulm_0', 'train'), ('bonn/bonn_0', 'val')):
        masks = root / 'gtFine' / split
        pair(root / 'leftImg8bit' / split / f'{name}_leftImg8bit.png', masks / f'{name}_gtFine_{kind}.png', values)
        photo(masks / f'{name}_gtFine_color.png')
    return root


def ids(annotations):
    """Class ids in all masks."""
    return {i for _, mask in SegmentationDataset(annotations) for i in mask.unique().tolist()}


# ----------------------------------------------------------------------------------------------------------- detection


def test_voc(tmp_path):
    train, val = open_detection(voc(tmp_path))
    assert train.classes == val.classes == ('Platelets', 'RBC', 'WBC')
    assert names(train) == ['JPEGImages/a.jpg', 'JPEGImages/c.jpg']
    assert names(val) == ['JPEGImages/a.jpg', 'JPEGImages/b.jpg']
    assert names(open_detection(tmp_path, train_split='test', val_split='train')[0]) == ['JPEGImages/c.jpg']


def test_voc_of_several_lists(tmp_path):
    for year in ('VOC2007', 'VOC2012'):
        voc(tmp_path / year)
    train, val = open_detection(tmp_path, 'VOC2012:train,VOC2007:val', 'VOC2007:test')
    assert names(train) == [f'VOC{n}.jpg' for n in ('2012/JPEGImages/a', '2012/JPEGImages/c', '2007/JPEGImages/a',
                                                    '2007/JPEGImages/b')]  # fmt: skip
    assert [record.image_id for record in train.records] == [0, 1, 2, 3]
    assert names(val) == ['VOC2007/JPEGImages/c.jpg']
    assert not train.defects + val.defects
    train, _ = open_detection(tmp_path / 'VOC2007', 'train,test', 'val')
    assert names(train) == ['JPEGImages/a.jpg', 'JPEGImages/c.jpg']
    assert [(d.kind, Path(d.file).name) for d in train.defects] == [('duplicate id', 'c.xml')]
    with pytest.raises(ValueError, match=r'such as VOC2007:test'):
        open_detection(tmp_path, 'VOC2007:train')


@pytest.mark.parametrize('masks', [False, True])
@pytest.mark.parametrize(
    ('write', 'train_split', 'val_split'),
    [
        (coco_folder, 'train2017', 'val2017'),
        (coco_folder, 'train', 'val'),
        (coco_images, 'train', 'val'),
        (roboflow, 'train', 'valid'),
    ],
)
def test_coco(tmp_path, write, train_split, val_split, masks):
    write(tmp_path, train_split, val_split)
    train, val = open_detection(tmp_path, masks=masks)
    assert train.classes == val.classes == ('dog', 'cat', 'fish')
    assert train.has_masks == val.has_masks == masks
    folder = 'images/' if write is coco_images else ''
    assert names(train) == [f'{folder}{train_split}/{i}.png' for i in (7, 5, 900)]
    assert names(val) == [f'{folder}{val_split}/{i}.png' for i in (7, 5, 900)]
    assert names(open_detection(tmp_path, train_split=val_split, val_split=train_split)[0]) == names(val)


def test_coco_of_four_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_json(Path('a.json'), Path('data', 'of train'))
    content = coco()
    content['categories'][0]['id'] = content['annotations'][0]['category_id'] = 1  # fish
    write_json(Path('b.json'), Path('data', 'of val'), content)
    files = ('a.json', 'data/of train', 'b.json', 'data/of val')
    train, val = open_detection(None, files=files)
    assert names(train)[0] == 'of train/7.png'
    assert names(val)[0] == 'of val/7.png'
    assert train.classes == val.classes == ('dog', 'cat', 'fish')
    assert train.records[0].objects.labels.tolist() == val.records[0].objects.labels.tolist() == [3, 1, 1]
    for more in (dict(folder='data'), dict(folder=None, train_split='train'), dict(folder=None, val_split='val')):
        with pytest.raises(ValueError, match='cannot be named beside files'):
            open_detection(**more, files=files)


def test_voc_has_no_masks(tmp_path):
    with pytest.raises(ValueError, match='boxes only'):
        open_detection(voc(tmp_path), masks=True)


# -------------------------------------------------------------------------------------------------------- segmentation


@pytest.mark.parametrize('write', [folders_of_splits, splits_of_folders])
@pytest.mark.parametrize('val_split', ['val', 'valid'])
def test_folders_of_images_and_masks(tmp_path, write, val_split):
    train, val = open_segmentation(write(tmp_path, val_split), ['road', 'sky'])
    folder = {folders_of_splits: '{}/images', splits_of_folders: 'images/{}'}[write]
    assert names(train) == [f'{folder.format("train")}/{n}.jpg' for n in 'ab']
    assert names(val) == [f'{folder.format(val_split)}/c.jpg']
    assert train.classes == val.classes == ('road', 'sky')
    assert ids(train) == ids(val) == {0, 1, 255}
    assert names(open_segmentation(tmp_path, ['road', 'sky'], train_split=val_split)[0]) == names(val)


def test_masks_of_voc(tmp_path):
    train, val = open_segmentation(voc_masks(tmp_path))
    assert names(train) == ['JPEGImages/a.jpg', 'JPEGImages/b.jpg']
    assert names(val) == ['JPEGImages/c.jpg']
    assert train.classes[:2] + train.classes[-1:] == ('background', 'aeroplane', 'tvmonitor')
    assert len(train.classes) == len(val.classes) == 21
    assert ids(train) == {0, 20, 255}
    assert open_segmentation(tmp_path, [f'class {i}' for i in range(30)])[0].classes[29] == 'class 29'


@pytest.mark.parametrize(('kind', 'values'), [('labelIds', (7, 33, 0, 9)), ('labelTrainIds', (0, 18, 255))])
def test_cityscapes(tmp_path, kind, values):
    train, val = open_segmentation(cityscapes(tmp_path, kind, values), ignore_index=100)
    assert names(train) == [f'leftImg8bit/train/{n}_0_leftImg8bit.png' for n in ('aachen/aachen', 'ulm/ulm')]
    assert [Path(r.mask).name for r in train.records] == [f'{n}_0_gtFine_{kind}.png' for n in ('aachen', 'ulm')]
    assert names(val) == ['leftImg8bit/val/bonn/bonn_0_leftImg8bit.png']
    assert not train.defects + val.defects
    assert (train.classes[0], train.classes[18], len(val.classes)) == ('road', 'bicycle', 19)
    assert ids(train) == ids(val) == {0, 18, 100}
    assert open_segmentation(tmp_path, [f'class {i}' for i in range(19)])[0].classes[18] == 'class 18'
    with pytest.raises(ValueError, match=r'has 19 classes, and 2 are named.*road, sidewalk'):
        open_segmentation(tmp_path, ['road', 'sky'])


def test_missing_names_of_classes_show_the_values_of_the_masks(tmp_path):
    folders_of_splits(tmp_path)
    with pytest.raises(ValueError, match=r'--classes FILE.*the values 0, 1, 255;.*--ignore-index \(255\)'):
        open_segmentation(tmp_path)
    pair(tmp_path / 'train/images/a.jpg', tmp_path / 'train/masks/a.png', range(100))
    with pytest.raises(ValueError, match=r'the values 0, 1, .*, 28, 29, \.\.\.;'):
        open_segmentation(tmp_path)
    for mask in (tmp_path / 'train' / 'masks').iterdir():
        mask.write_bytes(b'no image')
    with pytest.raises(ValueError, match='cannot be read'):
        open_segmentation(tmp_path)


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ('read', 'layouts'),
    [
        (open_detection, ['Annotations/*.xml', 'instances_<split>.json', '_annotations.coco.json', '--val-images']),
        (open_segmentation, ['<split>/images', 'images/<split>', 'SegmentationClass', 'leftImg8bit']),
    ],
)
def test_a_folder_in_no_layout_shows_the_layouts_and_what_is_there(tmp_path, read, layouts):
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'read\x1bme.txt').touch()
    with pytest.raises(ValueError, match='none of the layouts') as error:
        read(tmp_path)
    message = str(error.value)
    assert all(layout in message for layout in layouts)
    assert r'It has: photos/, read\x1bme.txt.' in message
    assert 'Did you mean' not in message
    with pytest.raises(ValueError, match='It has: nothing'):
        read(tmp_path / 'photos')
    for i in range(25):
        (tmp_path / 'photos' / f'{i:02}').mkdir()
    with pytest.raises(ValueError, match=r'18/, 19/, \.\.\.\.'):
        read(tmp_path / 'photos')
    with pytest.raises(ValueError, match='does not exist'):
        read(tmp_path / 'nowhere')
    with pytest.raises(ValueError, match='Name the folder'):
        read('')
    with pytest.raises(ValueError, match='is not a folder'):
        read(tmp_path / 'read\x1bme.txt')


LAYOUTS = {
    'VOC': (open_detection, voc, 'test, train, val'),
    'COCO': (open_detection, coco_folder, 'train2017, val2017'),
    'Roboflow': (open_detection, roboflow, 'train, valid'),
    'folders of splits': (open_segmentation, folders_of_splits, 'train, val'),
    'splits of folders': (open_segmentation, splits_of_folders, 'train, val'),
    'masks of VOC': (open_segmentation, voc_masks, 'train, val'),
    'Cityscapes': (open_segmentation, cityscapes, 'train, val'),
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_the_folder_above_is_pointed_down(tmp_path, layout):
    read, write, _ = LAYOUTS[layout]
    (tmp_path / 'above' / 'a').mkdir(parents=True)
    write(tmp_path / 'above' / 'data')
    with pytest.raises(ValueError, match='Did you mean') as error:
        read(tmp_path / 'above')
    assert repr(str(tmp_path / 'above' / 'data')) in str(error.value)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_an_unknown_split_shows_those_that_are_there(tmp_path, layout):
    read, write, there = LAYOUTS[layout]
    write(tmp_path)
    options = dict(classes=['road', 'sky']) if write in (folders_of_splits, splits_of_folders) else {}
    for split in ('train_split', 'val_split'):
        with pytest.raises(ValueError, match=f'no split .*{there}'):
            read(tmp_path, **options, **{split: 'holdout'})


@pytest.mark.parametrize(('layout', 'lost'), [('VOC', 'ImageSets/Main/val.txt'), ('Roboflow', 'valid'),
                                              ('folders of splits', 'val')])  # fmt: skip
def test_no_split_with_a_usual_name(tmp_path, layout, lost):
    read, write, _ = LAYOUTS[layout]
    (write(tmp_path) / lost).rename(tmp_path / lost.replace('val', 'holdout'))
    with pytest.raises(ValueError, match=r'no split val2017 or val or valid or validation.* --val-split: .*holdout'):
        read(tmp_path, **(dict(classes=['road', 'sky']) if read is open_segmentation else {}))


# --------------------------------------------------------------------------------------------------------------- check


def defects_of(train, val):
    """Kinds and files of the defects that the error lists, and both sets without them."""
    with pytest.raises(DefectsError) as error:
        check_pair(train, val, 'full', skip_invalid=False)
    listed = error.value.defects
    assert all(f'\n  {defect}\n' in str(error.value) for defect in listed)
    assert str(error.value).endswith('--skip-invalid.')
    *left, skipped = check_pair(train, val, 'full', skip_invalid=True)
    assert [*map(str, skipped)] == [*map(str, listed)]
    assert all(not part.defects for part in left)
    assert check_pair(*left, 'full', skip_invalid=False)[2] == []
    return sorted((defect.kind, Path(defect.file).name) for defect in listed), *left


def test_defects_of_coco(tmp_path):
    root = coco_folder(tmp_path)
    file = root / 'annotations' / 'instances_train2017.json'
    content = coco()
    content['annotations'][0]['bbox'] = [2, 2, 0, 6]
    content['annotations'][1]['bbox'] = [30, 2, 20, 6]
    file.write_text(json.dumps(content))
    content = coco()
    content['categories'].append(dict(id=91, name='cow'))
    content['annotations'][0]['category_id'] = 91
    (root / 'annotations' / 'instances_val2017.json').write_text(json.dumps(content))
    (root / 'train2017' / '5.png').unlink()
    photo(root / 'val2017' / '5.png', (20, 20))
    defects, train, val = defects_of(*open_detection(root))
    assert defects == [
        ('box outside the image', 'instances_train2017.json'),
        ('missing image', '5.png'),
        ('unknown category', 'instances_val2017.json'),
        ('wrong image size', '5.png'),
        ('zero-size box', 'instances_train2017.json'),
    ]
    assert names(train) == ['train2017/7.png', 'train2017/900.png']
    assert [len(record.objects) for record in train.records] == [1, 1]
    assert names(val) == ['val2017/7.png', 'val2017/900.png']
    assert [len(record.objects) for record in val.records] == [2, 1]


def test_defects_of_voc(tmp_path):
    files = {
        'a': voc_file(voc_object(), voc_object(box=(1, 2, 1, 22))),
        'b': voc_file(voc_object(box=(1, 2, 60, 22))),
        'c': voc_file(voc_object()),
        'd': voc_file(voc_object(), voc_object('cow')),
        'e': voc_file(voc_object()),
        'f': voc_file(voc_object()),
    }
    write_voc(tmp_path, files, {'train': 'abc', 'val': ['d', 'e', 'f', 'lost']})
    (tmp_path / 'JPEGImages' / 'c.jpg').unlink()
    os.truncate(tmp_path / 'JPEGImages' / 'e.jpg', 700)
    (tmp_path / 'Annotations' / 'f.xml').write_text('<annotation>')
    defects, train, val = defects_of(*open_detection(tmp_path))
    assert defects == [
        ('box outside the image', 'b.xml'),
        ('broken file', 'f.xml'),
        ('missing file', 'lost.xml'),
        ('missing image', 'c.xml'),
        ('unknown category', 'd.xml'),
        ('unreadable image', 'e.jpg'),
        ('zero-size box', 'a.xml'),
    ]
    assert names(train) == ['JPEGImages/a.jpg', 'JPEGImages/b.jpg']
    assert names(val) == ['JPEGImages/d.jpg']


def test_defects_of_masks(tmp_path):
    folders_of_splits(tmp_path)
    pair(tmp_path / 'train/images/d.jpg', tmp_path / 'train/masks/d.png', (0, 77))
    pair(tmp_path / 'train/images/e.jpg', tmp_path / 'train/masks/e.png')
    photo(tmp_path / 'train' / 'images' / 'e.jpg', (20, 20))
    pair(tmp_path / 'train/images/f.jpg', tmp_path / 'train/masks/f.png')
    os.truncate(tmp_path / 'train' / 'images' / 'f.jpg', 700)
    photo(tmp_path / 'val' / 'images' / 'g.jpg')
    pair(tmp_path / 'val/images/h.jpg', tmp_path / 'val/masks/h.png')
    (tmp_path / 'val' / 'images' / 'h.jpg').unlink()
    defects, train, val = defects_of(*open_segmentation(tmp_path, ['road', 'sky']))
    assert defects == [
        ('missing file', 'g.jpg'),
        ('missing image', 'images'),
        ('unknown mask value', 'd.png'),
        ('unreadable image', 'f.jpg'),
        ('wrong mask size', 'e.png'),
    ]
    assert names(train) == ['train/images/a.jpg', 'train/images/b.jpg']
    assert names(val) == ['val/images/c.jpg']


def test_levels_of_the_check(tmp_path):
    root = coco_folder(tmp_path)
    content = coco()
    content['annotations'][0]['bbox'] = [2, 2, 0, 6]
    (root / 'annotations' / 'instances_train2017.json').write_text(json.dumps(content))
    (root / 'train2017' / '5.png').unlink()
    os.truncate(root / 'val2017' / '5.png', 1000)
    sets = open_detection(root)
    found = {level: [d.kind for d in check_pair(*sets, level, True)[2]] for level in ('full', 'quick', 'none')}
    assert found == {
        'full': ['zero-size box', 'missing image', 'unreadable image'],
        'quick': ['zero-size box', 'missing image'],
        'none': ['zero-size box'],
    }
    train, val, _ = check_pair(*sets, 'none', True)
    assert len(names(train)) == len(names(val)) == 3
    assert not train.defects
    assert DetectionDataset(train, train=True)[0]
    with pytest.raises(DefectsError, match='1 x zero-size box'):
        check_pair(*sets, 'none', False)


def test_a_long_list_of_defects_is_cut(tmp_path):
    root = coco_folder(tmp_path)
    content = coco()
    content['annotations'] += [dict(content['annotations'][0], id=100 + i, bbox=[0, 0, 0, 1]) for i in range(60)]
    (root / 'annotations' / 'instances_train2017.json').write_text(json.dumps(content))
    with pytest.raises(DefectsError, match='has defects: 60 x zero-size box') as error:
        check_pair(*open_detection(root), 'full', False)
    lines = str(error.value).splitlines()
    assert len(lines) == 53
    assert lines[-2] == '  and 10 more'


def test_sets_of_two_sources_are_both_named(tmp_path):
    sets = []
    for name in ('a', 'b'):
        write_json(tmp_path / f'{name}.json', tmp_path / name)
        sets.append(read_coco(tmp_path / f'{name}.json', tmp_path / name))
    (tmp_path / 'b' / '7.png').unlink()
    with pytest.raises(DefectsError, match=r'a\.json or .*b\.json has defects'):
        check_pair(*sets, 'quick', False)


def test_nothing_left(tmp_path):
    root = coco_folder(tmp_path)
    shutil.move(root / 'train2017', tmp_path / 'elsewhere')
    (root / 'train2017').mkdir()
    with pytest.raises(ValueError, match='No image for training is left'):
        check_pair(*open_detection(root), 'quick', True)


@pytest.mark.parametrize('change', [dict(iscrowd=1), None])
def test_validation_needs_an_object_to_find(tmp_path, change):
    root = coco_folder(tmp_path)
    content = coco()
    content['annotations'] = [dict(a, **change) for a in content['annotations']] if change else []
    (root / 'annotations' / 'instances_val2017.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r'The 3 images for validation .* have no object to find'):
        check_pair(*open_detection(root), 'quick', True)


def test_difficult_objects_are_none_to_find(tmp_path):
    difficult = voc_file(voc_object(extra='<difficult>1</difficult>'))
    write_voc(tmp_path, {**VOC, 'd': difficult}, {'train': 'ac', 'val': 'bd'})
    with pytest.raises(ValueError, match=r'The 2 images for validation .* have no object to find'):
        check_pair(*open_detection(tmp_path), 'quick', True)


def test_images_in_both_sets_are_told(tmp_path, caplog):
    sets = open_detection(voc(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert check_pair(*sets, 'quick', False)[2] == []
    assert '1 of the 2 images for validation are also trained on (JPEGImages/a.jpg)' in caplog.text
    caplog.clear()
    check_pair(*open_segmentation(folders_of_splits(tmp_path / 'masks'), ['road', 'sky']), 'full', False)
    assert not caplog.text


def test_limit_keeps_the_first_images_and_all_defects(tmp_path):
    root = coco_folder(tmp_path)
    content = coco()
    content['annotations'][3]['bbox'] = [2, 2, 0, 6]
    (root / 'annotations' / 'instances_train2017.json').write_text(json.dumps(content))
    train, _ = open_detection(root)
    first = limit(train, 2)
    assert names(first) == ['train2017/7.png', 'train2017/5.png']
    assert first.classes == train.classes
    assert [d.kind for d in first.defects] == ['zero-size box']
    assert names(limit(train, 100)) == names(train)


def test_names_are_composed(tmp_path):
    letters = 'u\u0308'  # as macOS takes apart the letter that other systems write as one
    photo(tmp_path / 'train' / 'images' / f'{letters}.jpg')
    folders_of_splits(tmp_path)
    shutil.copy(tmp_path / 'train' / 'masks' / 'a.png', tmp_path / 'train' / 'masks' / f'{letters}.png')
    train, _ = open_segmentation(tmp_path, ['road', 'sky'])
    assert names(train)[2] == 'train/images/\u00fc.jpg'
    assert Path(train.records[2].image).is_file()


# ----------------------------------------------------------------------------------------------------------- real data


def test_bccd_has_two_boxes_without_an_area(tmp_path):
    folder = extract('bccd', tmp_path, 'bccd/')
    train, val = open_detection(folder, 'train,test')
    with pytest.raises(DefectsError, match='2 x zero-size box') as error:
        check_pair(train, val, 'full', False)
    assert sorted((d.kind, Path(d.file).stem) for d in error.value.defects) == [
        ('zero-size box', 'BloodImage_00338'),
        ('zero-size box', 'BloodImage_00343'),
    ]
    train, val, _ = check_pair(train, val, 'none', True)
    assert (len(train.records), len(val.records)) == (277, 87)
    assert sum(len(record.objects) for part in (train, val) for record in part.records) == 4886


def test_broken_copy_of_coco(tmp_path):
    folder = extract('tiny_coco', tmp_path, '.json')
    broken = []
    for split in ('train', 'val'):
        file = folder / 'annotations' / f'instances_{split}2017.json'
        content = json.loads(file.read_text())
        content['images'] = content['images'][:4]
        kept = {image['id'] for image in content['images']}
        content['annotations'] = [a for a in content['annotations'] if a['image_id'] in kept]
        content['annotations'][0]['bbox'][2] = 0
        content['annotations'][1]['bbox'][0] += 5000
        file.write_text(json.dumps(content))
        stored = [f'{split}2017/{image["file_name"]}' for image in content['images']]
        extract('tiny_coco', tmp_path, *stored)
        (folder / stored[1]).unlink()
        os.truncate(folder / stored[2], 20_000)
        broken += [('missing image', Path(stored[1]).name), ('unreadable image', Path(stored[2]).name)]
        broken += [('box outside the image', file.name), ('zero-size box', file.name)]
    content['categories'] = [
        dict(c, name='yeti' if c['name'] == 'person' else c['name']) for c in content['categories']
    ]
    file.write_text(json.dumps(content))
    people = sum(a['category_id'] == 1 for a in content['annotations'])
    sound = next(i for i, a in enumerate(content['annotations']) if a['category_id'] == 1)
    defects, train, val = defects_of(*open_detection(folder, masks=True))
    assert people > sound >= 0
    unknown = [defect for defect in defects if defect[0] == 'unknown category']
    assert len(unknown) == people
    assert sorted(set(defects) - set(unknown)) == sorted(broken)
    assert len(train.records) == len(val.records) == 2
    assert train.has_masks


def test_broken_copy_of_camvid(tmp_path):
    folder = extract('camvid', tmp_path, '0001TP_00669', '0001TP_0067', '0016E5_07959', '0016E5_07961', '0016E5_07963')
    train, val = open_segmentation(folder, CAMVID, ignore_index=11)
    *_, defects = check_pair(train, val, 'full', False)
    assert not defects
    images, masks = ([getattr(record, what) for record in train.records] for what in ('image', 'mask'))
    Path(images[0]).unlink()
    os.truncate(images[1], 5000)
    with Image.open(masks[2]) as mask:
        mask.resize((90, 60), Image.Resampling.NEAREST).save(masks[2])
    of_val = val.records[0].mask
    Image.fromarray(np.full((270, 360), 12, np.uint8)).save(of_val)
    defects, *left = defects_of(*open_segmentation(folder, CAMVID, ignore_index=11))
    assert defects == [
        ('missing image', 'images'),
        ('unknown mask value', Path(of_val).name),
        ('unreadable image', Path(images[1]).name),
        ('wrong mask size', Path(masks[2]).name),
    ]
    assert [len(part.records) for part in left] == [len(train.records) - 3, len(val.records) - 1]
    assert min(len(part.records) for part in left) > 0


# ------------------------------------------------------------------------------------------------------------- batches


def parameters():
    """Lengths with every kind of remainder, some with groups of random sizes."""
    rng = np.random.default_rng(0)
    for batch, world, accumulate in itertools.product((1, 2, 3), (1, 2, 3), (1, 2, 4)):
        step = batch * world * accumulate
        for length in (step, step + 1, 2 * step - 1, 5 * step, 7 * step + step // 2):
            kinds = int(rng.integers(0, 4))
            groups = rng.integers(0, kinds, length).tolist() if kinds else None
            yield length, batch, world, accumulate, groups


def of_all_ranks(length, batch, world, accumulate, groups, epoch=0, seed=0):
    """Batches (ranks, batches, images)."""
    samplers = [EpochBatches(length, batch, seed, rank, world, accumulate, groups) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    found = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(of_rank) for of_rank in found]
    return np.array(found)


def test_batches_of_all_processes():
    for length, batch, world, accumulate, groups in parameters():
        of_ranks = of_all_ranks(length, batch, world, accumulate, groups)
        assert of_ranks.shape[::2] == (world, batch)
        assert of_ranks.shape[1] == length // (batch * world * accumulate) * accumulate
        assert len(np.unique(of_ranks)) == of_ranks.size  # no image twice
        assert of_ranks.min() >= 0
        assert of_ranks.max() < length
        assert np.array_equal(of_ranks, of_all_ranks(length, batch, world, accumulate, groups))
        if groups is not None:
            of_groups = np.array(groups)[of_ranks]
            mixed = sum(len(np.unique(of_groups[:, i])) > 1 for i in range(of_ranks.shape[1]))
            rests = [groups.count(group) % (batch * world) for group in set(groups)]
            assert mixed <= sum(rests) // (batch * world)


def test_order_depends_on_seed_and_epoch():
    groups = [i % 2 for i in range(50)]
    orders = [of_all_ranks(50, 4, 2, 1, groups, epoch, seed).tolist() for epoch in range(3) for seed in range(3)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    left_out = [set(range(50)) - {i for of_rank in order for b in of_rank for i in b} for order in orders]
    assert all(len(left) == 2 for left in left_out)
    assert len(set(map(frozenset, left_out))) > 1


def test_images_of_every_group_are_left_out_at_times():
    groups = [i // 6 for i in range(18)]  # of each group one batch and two images, of which one mixed batch is made
    left_out = [set(range(18)) - set(of_all_ranks(18, 4, 1, 1, groups, epoch).flat) for epoch in range(60)]
    assert set().union(*left_out) == set(range(18))


def test_groups_come_in_turn():
    order = of_all_ranks(400, 2, 2, 1, [int(i < 200) for i in range(400)])[:, :, 0][0] < 200
    assert 20 < np.count_nonzero(order[1:] != order[:-1]) < 80  # of 99; sorted by group there would be one change


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(batch_size=0), 'must be 1 or more'),
        (dict(accumulate=0), 'must be 1 or more'),
        (dict(world_size=0), 'must be 1 or more'),
        (dict(world_size=2, rank=2), 'rank must be from 0 to 1, not 2'),
        (dict(rank=-1), 'rank must be from 0 to 0, not -1'),
        (dict(groups=[0] * 9), 'groups has 9 entries.*each of the 10 images'),
        (dict(batch_size=3, world_size=2, accumulate=2), r'10 images to train on.*12 \(batch size 3 x 2.* x 2'),
    ],
)
def test_batches_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        EpochBatches(**(dict(length=10, batch_size=1, seed=0) | options))


def test_groups_of_aspect_ratio_are_those_of_the_images_that_are_trained_on(tmp_path):
    content = coco()
    for image, (width, height) in zip(content['images'], ((40, 30), (40, 40), (30, 40)), strict=True):
        image.update(width=width, height=height)
    write_json(tmp_path / 'a.json', tmp_path / 'images', content)
    annotations = read_coco(tmp_path / 'a.json', tmp_path / 'images')
    assert aspect_ratio_groups(DetectionDataset(annotations, train=False)) == [1, 1, 0]
    assert aspect_ratio_groups(DetectionDataset(annotations, train=True)) == [1, 0]  # the second has no objects


def test_shares_are_a_partition():
    for length, world in itertools.product((0, 1, 2, 7, 8, 100), (1, 2, 3, 8)):
        shares = [share(length, rank, world) for rank in range(world)]
        assert sorted(itertools.chain(*shares)) == list(range(length))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for rank in (-1, 2):
        with pytest.raises(ValueError, match='rank must be from 0 to 1'):
            share(10, rank, 2)


def test_masks_of_one_class_and_what_does_not_count(tmp_path, caplog):
    for split in ('train', 'val'):
        for folder, value in (('images', 3), ('masks', 0)):
            (tmp_path / split / folder).mkdir(parents=True)
            pixels = np.full((8, 8), value, np.uint8)
            pixels[:4] = 255
            Image.fromarray(pixels).save(tmp_path / split / folder / 'a.png')
    open_segmentation(tmp_path, ['nothing', 'something'])
    assert 'have only the values 0 and 255, and 255 (--ignore-index) does not count' in caplog.text


def test_names_that_differ_in_case_only(tmp_path, caplog):
    root = coco_folder(tmp_path)
    for path in root.glob('annotations/*.json'):
        path.write_text(path.read_text().replace('"dog"', '"Cat"'))
    check_pair(*open_detection(root), 'none', skip_invalid=False)
    assert 'Cat and cat are two classes' in caplog.text


def test_a_validation_set_alone_may_be_in_a_folder_of_several_vocs(tmp_path):
    voc(tmp_path / 'VOC2007')
    train, val = open_detection(tmp_path, val_split='VOC2007:val', classes=['Platelets', 'RBC', 'WBC'])
    assert train is None
    assert len(val.records) == 2
