"""Reader of annotations in COCO's JSON."""

import json
import reprlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from ...image_files import check_regular
from .images import read_size
from .outlines import check_segmentation
from .records import (
    AnnotatedObject,
    Annotations,
    Defect,
    ImageRecord,
    InvalidRecord,
    PackedRecords,
    check_box,
    check_classes,
    check_number,
    check_size,
    collect_objects,
)

_MAX_ID = 2**63 - 1


def read_coco(
    file: str | Path, images: str | Path, masks: bool = False, classes: Sequence[str] | None = None
) -> Annotations:
    """Read object annotations in COCO's format.

    Labels are 1 to K in the order of the categories' ids, which may have holes. Boxes, ``[x, y, width, height]`` in the
    file, keep their numbers. ``area`` is that of the file, and that of the box where it has none.

    Args:
        file: The JSON file.
        images: Folder that its ``file_name`` refer to.
        masks: Whether to read the polygons and run-length codes, too.
        classes: Names of the classes in the order of their labels, such as those of the training set; by default the
            categories of the file. An object of another category is a defect.

    Returns:
        The annotations. A category id that the file lacks is above its others.

    Raises:
        ValueError: If the file is no such JSON, has no images or no categories, its categories are not unique, or
            ``images`` is not a directory.
        ImportError: If masks are read and the packages of the extra ``dense`` are missing.
    """
    source = str(file)
    if not Path(images).is_dir():
        raise ValueError(f'{str(images)!r}, where the images should be, is not a directory.')
    content = _load(source)
    classes, category_ids, label_of = _read_categories(source, content, classes)
    defects: list[Defect] = []

    sizes: dict[int, tuple[int, int]] = {}
    paths: dict[int, str] = {}
    broken: set[int] = set()  # their annotations are no defects of their own
    for where, image in _records(content, 'images', source):
        image_id = None
        try:
            image_id = _check_id(image, 'id')
            if image_id in paths or image_id in broken:
                raise InvalidRecord('duplicate id', f'another image has the id {image_id}')
            paths[image_id], sizes[image_id] = _read_image(image, Path(images))
        except InvalidRecord as e:
            defects.append(e.at(source, where))
            if image_id is not None and image_id not in paths:
                broken.add(image_id)

    objects: dict[int, list[AnnotatedObject]] = defaultdict(list)
    seen: set[int] = set()
    for where, annotation in _records(content, 'annotations', source):
        try:
            if 'id' in annotation:
                annotation_id = _check_id(annotation, 'id')
                if annotation_id in seen:
                    raise InvalidRecord('duplicate id', f'another annotation has the id {annotation_id}')
                seen.add(annotation_id)
            image_id = _check_id(annotation, 'image_id')
            if image_id in broken:
                continue
            if image_id not in sizes:
                raise InvalidRecord('annotations of an unknown image', f'no image has the id {image_id}')
            objects[image_id].append(_read_object(annotation, sizes[image_id], label_of, masks))
        except InvalidRecord as e:
            defects.append(e.at(source, where))
    if not content['annotations']:
        defects.append(Defect('no objects', source, '', 'its annotations are empty'))

    records = PackedRecords(
        ImageRecord(image_id, path, sizes[image_id], collect_objects(objects.get(image_id, ()), masks))
        for image_id, path in paths.items()
    )
    return Annotations(source, classes, category_ids, records, tuple(defects), has_masks=masks)


def _load(source: str) -> dict:
    try:
        check_regular(source)
        content = json.loads(Path(source).read_bytes() or b'null')
    except json.JSONDecodeError as e:
        raise ValueError(f'Cannot read {source!r}: line {e.lineno}, column {e.colno}: {e.msg}.') from None
    except RecursionError:
        raise ValueError(f'Cannot read {source!r}: its values are nested too deeply.') from None
    except (OSError, ValueError) as e:
        raise ValueError(f'Cannot read {source!r}: {e}') from None
    if content is None:
        raise ValueError(f'{source!r} is empty.')
    keys = ('images', 'annotations', 'categories')
    missing = [key for key in keys if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if missing:
        raise ValueError(
            f"{source!r} is no annotation file of COCO: it needs an object with the lists 'images', 'annotations' and "
            f"'categories', and {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing."
        )
    if not content['images']:
        raise ValueError(f'{source!r} has no images.')
    return content


def _records(content: dict, key: str, source: str) -> Iterator[tuple[str, dict]]:
    """Place and content of the records in a list."""
    for i, record in enumerate(content[key]):
        if not isinstance(record, dict):
            raise ValueError(f'{source!r}: {key}[{i}] must be an object, not {reprlib.repr(record)}.')
        yield f'{key}[{i}]' + (f' (id {reprlib.repr(record["id"])})' if 'id' in record else ''), record


def _read_categories(
    source: str, content: dict, classes: Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[int, ...], dict[int, int]]:
    """Classes and their ids in the order of the labels, and the label of each id in the file."""
    names: dict[int, str] = {}
    roots = set()
    for where, category in _records(content, 'categories', source):
        try:
            category_id = _check_id(category, 'id')
        except InvalidRecord as e:
            raise ValueError(f'{source!r}: {where}: {e.message}.') from None
        if category_id in names:
            raise ValueError(f'{source!r}: two categories have the id {category_id}.')
        names[category_id] = category.get('name', '')
        if category.get('supercategory') == 'none':
            roots.add(category_id)
    # Roboflow lists its project as a category above the others, which may have the name of one of them
    parents = [category.get('supercategory') for category in content['categories']]
    ids = [annotation.get('category_id') for _, annotation in _records(content, 'annotations', source)]
    unused = roots.difference(i for i in ids if isinstance(i, int))
    names = {i: name for i, name in sorted(names.items()) if i not in unused or name not in parents}
    try:
        own = check_classes(list(names.values()))
    except ValueError as e:
        raise ValueError(f'{source!r}: the names of its categories: {e}') from None
    classes = own if classes is None else check_classes(classes)
    id_of = {name: category_id for category_id, name in names.items()}
    highest = max(names)
    category_ids = [id_of.get(name, highest + i) for i, name in enumerate(classes, 1)]
    label_of = {id_of[name]: label for label, name in enumerate(classes, 1) if name in id_of}
    return classes, tuple(category_ids), label_of


def _read_image(image: dict, folder: Path) -> tuple[str, tuple[int, int]]:
    """Path and (height, width)."""
    name = image.get('file_name')
    if not isinstance(name, str) or not name or '\0' in name:
        raise InvalidRecord('invalid field', f'file_name must be the name of a file, not {reprlib.repr(name)}')
    for pure in (PurePosixPath(name), PureWindowsPath(name)):
        if pure.drive or pure.root or '..' in pure.parts or not pure.parts:
            raise InvalidRecord(
                'path outside the folder', f'file_name {reprlib.repr(name)} must be a path below the folder of images'
            )
    path = str(folder / name)
    if image.get('width') is None and image.get('height') is None:
        return path, read_size(path)
    return path, check_size(check_number(image.get('height'), 'height'), check_number(image.get('width'), 'width'))


def _read_object(annotation: dict, size: tuple[int, int], label_of: dict[int, int], masks: bool) -> AnnotatedObject:
    category_id = _check_id(annotation, 'category_id')
    if category_id not in label_of:
        raise InvalidRecord('unknown category', f'category_id {category_id} is not one of the classes')
    bbox = annotation.get('bbox')
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise InvalidRecord('invalid field', f'bbox must be [x, y, width, height], not {reprlib.repr(bbox)}')
    x, y, width, height = (
        check_number(value, name) for value, name in zip(bbox, ('x', 'y', 'width', 'height'), strict=True)
    )
    box = check_box((x, y, x + width, y + height), size)
    area = annotation.get('area')
    iscrowd = annotation.get('iscrowd', 0)
    if iscrowd not in (0, 1):
        raise InvalidRecord('invalid field', f'iscrowd must be 0 or 1, not {reprlib.repr(iscrowd)}')
    return AnnotatedObject(
        box,
        label_of[category_id],
        width * height if area is None else check_number(area, 'area', low=0, high=1e18),
        int(iscrowd),
        segmentation=check_segmentation(annotation.get('segmentation'), size) if masks else None,
    )


def _check_id(record: dict, name: str) -> int:
    value = record.get(name)
    if type(value) is not int or not -_MAX_ID <= value <= _MAX_ID:
        raise InvalidRecord('invalid field', f'{name} must be a whole number, not {reprlib.repr(value)}')
    return value
