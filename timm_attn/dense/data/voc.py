"""Reader of annotations in the XML of PASCAL VOC."""

import os
import reprlib
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...image_files import check_regular
from .files import files_by_stem, read_split
from .images import read_size
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


def read_voc(folder: str | Path, split: str | None = None, classes: Sequence[str] | None = None) -> Annotations:
    """Read object annotations in the format of PASCAL VOC.

    Boxes keep the numbers of the file. Those of PASCAL VOC itself count pixels from 1 and include the last one, while
    tools that write its format often count from 0; nothing in a file tells which. So boxes of VOC may lie up to a pixel
    to the right and below of their objects, in training and in evaluation alike. The metric of VOC, which counts the
    last pixel as part of a box, fits these numbers.

    The id of an image is its place in the split, or in all splits one after the other.

    Args:
        folder: Folder with ``Annotations/*.xml``, ``JPEGImages`` and ``ImageSets/Main``. An image has the name of its
            annotations, whatever these say.
        split: Name of the list of images ``ImageSets/Main/<split>.txt``; by default all annotations count. Several are
            separated by commas, and one may be of a folder in ``folder``: ``VOC2007:trainval,VOC2012:trainval``.
        classes: Names of the classes in the order of their labels, such as those of the training set; by default the
            names of the objects, sorted. An object with another name is a defect.

    Raises:
        ValueError: If a folder or the split is missing, or there are no images or no names of classes.
    """
    root = Path(folder)
    defects: list[Defect] = []
    files: dict[str, list[str]] = {}
    for part in [None] if split is None else [part.strip() for part in split.split(',')]:
        for xml_file, images in _find_files(root, part, defects).items():
            if xml_file in files:
                defects.append(Defect('duplicate id', xml_file, '', f'several of the splits {split} name it'))
            files[xml_file] = images

    if classes is not None:
        classes = check_classes(classes)

    found: list[tuple[int, str, tuple[int, int]]] = []
    objects: dict[int, list[tuple[str, AnnotatedObject]]] = {}
    for image_id, (xml_file, images) in enumerate(files.items()):
        try:
            if not os.path.lexists(xml_file):
                raise InvalidRecord('missing file', 'the split names it, but there is no such file')
            image = _check_image(images, xml_file)
            content = _parse(xml_file)
            size = _read_annotated_size(content) or read_size(image)
        except InvalidRecord as e:
            defects.append(e.at(xml_file))
            continue
        found.append((image_id, image, size))
        objects[image_id] = _read_objects(content, size, classes, xml_file, defects)

    names = {name for of_image in objects.values() for name, _ in of_image}
    if not names:
        defects.append(Defect('no objects', str(root), '', 'no annotation has an object'))
        if classes is None:
            shown = '\n'.join(map(str, defects[:5]))
            raise ValueError(f'There are no objects in {str(root)!r}, which could name the classes.\n{shown}')
    classes = check_classes(sorted(names) if classes is None else classes)
    label_of = {name: label for label, name in enumerate(classes, 1)}
    records = PackedRecords(
        ImageRecord(
            image_id,
            image,
            size,
            collect_objects([replace(o, label=label_of[name]) for name, o in objects[image_id]]),
        )
        for image_id, image, size in found
    )
    return Annotations(str(root), classes, tuple(label_of.values()), records, tuple(defects))


def _find_files(root: Path, split: str | None, defects: list[Defect]) -> dict[str, list[str]]:
    """Images of each file of annotations in a split, which may have the form ``folder:split``."""
    folder, _, name = (split or '').rpartition(':')
    root = root / folder
    xml_files = files_by_stem(root / 'Annotations', ('.xml',))
    images = files_by_stem(root / 'JPEGImages')
    stems = sorted(xml_files) if split is None else read_split(root / 'ImageSets' / 'Main' / f'{name}.txt', defects)
    if not stems:
        raise ValueError(f'The split {split!r} of {str(root)!r} names no images.')
    return {xml_files.get(stem, [str(root / 'Annotations' / f'{stem}.xml')])[0]: images.get(stem, []) for stem in stems}


def _check_image(paths: list[str], xml_file: str) -> str:
    if not paths:
        raise InvalidRecord('missing image', f'JPEGImages has no image {reprlib.repr(Path(xml_file).stem)}')
    if len(paths) > 1:
        raise InvalidRecord('duplicate id', f'several images have the name: {", ".join(map(os.path.basename, paths))}')
    return paths[0]


class _TreeBuilder(ET.TreeBuilder):
    """Refuses definitions of entities, with which a short file grows without bounds or reads other files."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise InvalidRecord('broken file', 'a DOCTYPE is not allowed in annotations')


def _parse(path: str) -> ET.Element:
    try:
        check_regular(path)
        content = ET.parse(path, ET.XMLParser(target=_TreeBuilder())).getroot()
    except ET.ParseError as e:
        line, column = e.position
        raise InvalidRecord('broken file', f'line {line}, column {column + 1}: {e}') from None
    except InvalidRecord:
        raise
    except (OSError, ValueError, LookupError) as e:  # LookupError: an unknown encoding
        raise InvalidRecord('broken file', str(e)) from None
    if content.tag != 'annotation':
        raise InvalidRecord('broken file', f'it begins with <{content.tag}> instead of <annotation>')
    return content


def _read_annotated_size(content: ET.Element) -> tuple[int, int] | None:
    """Height and width; None where they are missing or zero, which some tools write."""
    if not any((content.findtext(f'size/{name}') or '0').strip() != '0' for name in ('width', 'height')):
        return None
    return check_size(_read_number(content, 'size/height'), _read_number(content, 'size/width'))


def _read_objects(
    content: ET.Element, size: tuple[int, int], classes: Sequence[str] | None, xml_file: str, defects: list[Defect]
) -> list[tuple[str, AnnotatedObject]]:
    """Objects, still without a label, and the names of their classes."""
    objects = []
    for i, element in enumerate(content.findall('object'), 1):
        name = (element.findtext('name') or '').strip()
        try:
            if not name:
                raise InvalidRecord('invalid field', 'name is missing')
            if classes is not None and name not in classes:
                raise InvalidRecord('unknown category', f'{reprlib.repr(name)} is not one of the classes')
            objects.append((name, _read_object(element, size)))
        except InvalidRecord as e:
            defects.append(e.at(xml_file, f'object {i} ({name})' if name else f'object {i}'))
    return objects


def _read_object(element: ET.Element, size: tuple[int, int]) -> AnnotatedObject:
    x1, y1, x2, y2 = (_read_number(element, f'bndbox/{name}') for name in ('xmin', 'ymin', 'xmax', 'ymax'))
    box = check_box((x1, y1, x2, y2), size)
    difficult = (element.findtext('difficult') or '0').strip()
    if difficult not in ('0', '1'):
        raise InvalidRecord('invalid field', f'difficult must be 0 or 1, not {reprlib.repr(difficult)}')
    return AnnotatedObject(box, 0, (x2 - x1) * (y2 - y1), difficult=int(difficult))


def _read_number(element: ET.Element, path: str) -> float:
    text = element.findtext(path)
    try:
        value = float(text or '')
    except ValueError:
        raise InvalidRecord('invalid field', f'{path} must be a number, not {reprlib.repr(text)}') from None
    return check_number(value, path)
