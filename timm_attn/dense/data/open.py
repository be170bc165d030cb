"""The two splits of a data set, by the layout of its folder, and their check before training."""

import logging
import os
import unicodedata
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from torchvision.datasets import Cityscapes
from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights

from ...printable import printable
from .check import check
from .coco import read_coco
from .files import files_by_stem
from .image_masks import MASK_EXTENSIONS, read_image_masks
from .images import load_mask
from .mask_coding import MaskCoding
from .records import Annotations, Defect, ImageRecord, InvalidDatasetError, InvalidRecord, PackedRecords, count_by_kind
from .voc import read_voc

_logger = logging.getLogger(__name__)

Files = tuple[str | Path, str | Path, str | Path, str | Path]
Readers = dict[str, Callable[[], Annotations]]

_TRAIN = ('train2017', 'train', 'training')
_VALIDATION = ('val2017', 'val', 'valid', 'validation')

_DETECTION_LAYOUTS = (
    'Pascal VOC: Annotations/*.xml, JPEGImages/*, ImageSets/Main/<split>.txt',
    'COCO: annotations/instances_<split>.json, <split>/* or images/<split>/*',
    'COCO as Roboflow exports it: <split>/_annotations.coco.json, and the images beside it',
)
_SEGMENTATION_LAYOUTS = (
    'folders: <split>/images/*, <split>/masks/*; or images/<split>/*, masks/<split>/*',
    'Pascal VOC: JPEGImages/*, SegmentationClass/*.png, ImageSets/Segmentation/<split>.txt',
    'Cityscapes: leftImg8bit/<split>/<city>/*_leftImg8bit.png, gtFine/<split>/<city>/*_gtFine_labelIds.png',
)

_VOC_CLASSES = ('background', *DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta['categories'][1:])
_CITYSCAPES_CLASSES = tuple(c.name for c in Cityscapes.classes if not c.ignore_in_eval)

_FIRST_MASKS = 10  # whose values are shown where the names of the classes are missing
_SHOWN_VALUES = 30
_SHOWN_DEFECTS = 50
_SHOWN_ENTRIES = 20
_SHOWN_NAMES = 3


class DefectsError(InvalidDatasetError):
    """The data of a training run have defects, and nobody asked to leave them out.

    Attributes:
        file: File that all of them were written to, where these are more than the message shows.
    """

    file: Path | None = None

    @property
    def has_more(self) -> bool:
        """Whether there are more defects than the message shows."""
        return len(self.defects) > _SHOWN_DEFECTS

    def __str__(self) -> str:
        first = [f'  {defect}' for defect in self.defects[:_SHOWN_DEFECTS]]
        more = len(self.defects) - len(first)
        all_of_them = f', all of them in {printable(str(self.file))}' if self.file else ''
        unknown = any(defect.kind == 'unknown mask value' for defect in self.defects)
        return '\n'.join(
            [
                f'{printable(self.source)} has defects: {count_by_kind(self.defects)}.',
                *first,
                *([f'  and {more} more{all_of_them}'] if more else []),
                *(['Are --classes and --ignore-index those of the masks?'] if unknown else []),
                'Correct them, or leave these images and objects out with --skip-invalid.',
            ]
        )


def open_detection(
    folder: str | Path | None,
    train_split: str | None = None,
    val_split: str | None = None,
    masks: bool = False,
    files: Files | None = None,
    classes: Sequence[str] | None = None,
) -> tuple[Annotations | None, Annotations]:
    """Read the training and the validation set of a folder of PASCAL VOC or COCO.

    The classes are those of the training set. An object of another class in the validation set is a defect.

    Args:
        folder: The folder, in one of these layouts:

            - PASCAL VOC: ``Annotations``, ``JPEGImages``, ``ImageSets/Main``. See :func:`read_voc` for several lists in
              a split.
            - COCO: ``annotations/instances_<split>.json``, with the images in ``<split>`` or ``images/<split>``.
            - COCO as Roboflow exports it: ``<split>/_annotations.coco.json``, with the images beside it.
        train_split: Name of the training set; by default ``train2017``, ``train`` or ``training``.
        val_split: Name of the validation set; by default ``val2017``, ``val``, ``valid`` or ``validation``.
        masks: Whether to read the masks of the objects, too, which COCO has.
        files: JSON and folder of images for training, JSON and folder of images for validation, instead of a folder.
        classes: Names of the classes, such as those of a trained model: only the validation set is read then.

    Returns:
        The training set, or None with ``classes``, and the validation set. Nothing is checked yet but what the readers
        do: see :func:`check_pair`.

    Raises:
        ValueError: If the folder has no such layout, a split is not there or cannot be read, or VOC is to have masks.
    """
    if files is not None:
        if folder is not None or train_split or val_split:
            raise ValueError('A folder and its splits cannot be named beside files of annotations.')
        train_json, train_images, val_json, val_images = files
        source = os.path.commonpath([os.path.abspath(path) for path in (train_images, val_images)])
        return _read_coco_pair((train_json, train_images), (val_json, val_images), masks, source, classes)
    root = _check_folder(folder)
    if _is_voc(root) or any(':' in split for split in (train_split, val_split) if split):
        if masks:
            raise ValueError(
                f'{str(root)!r} is in the layout of Pascal VOC, which has boxes only. Masks of objects are read from '
                "COCO's JSON."
            )
        lists = _text_files(root / 'ImageSets' / 'Main')
        train = None
        if classes is None:
            train = read_voc(root, train_split or _choose(lists, None, _TRAIN, root, '--train-split'))
            classes = train.classes
        val_split = val_split or _choose(lists, None, _VALIDATION, root, '--val-split')
        return train, read_voc(root, val_split, classes)
    if splits := _find_json(root):
        of_train = None
        if classes is None:
            of_train = splits[_choose(splits, train_split, _TRAIN, root, '--train-split')]
        of_val = splits[_choose(splits, val_split, _VALIDATION, root, '--val-split')]
        return _read_coco_pair(of_train, of_val, masks, str(root), classes)
    files_hint = 'any COCO JSON: --train-annotations, --train-images, --val-annotations, --val-images'
    raise _unknown_layout(root, (*_DETECTION_LAYOUTS, files_hint), lambda path: _is_voc(path) or bool(_find_json(path)))


def _read_coco_pair(
    train: tuple[str | Path, str | Path] | None,
    val: tuple[str | Path, str | Path],
    masks: bool,
    source: str,
    classes: Sequence[str] | None,
) -> tuple[Annotations | None, Annotations]:
    of_train = None
    if classes is None and train is not None:
        of_train = replace(read_coco(*train, masks=masks), source=source)
        classes = of_train.classes
    return of_train, replace(read_coco(*val, masks=masks, classes=classes), source=source)


def _is_voc(root: Path) -> bool:
    return all((root / name).is_dir() for name in ('Annotations', 'JPEGImages', 'ImageSets/Main'))


def _find_json(root: Path) -> dict[str, tuple[Path, Path]]:
    """JSON and folder of images of each split."""
    coco = {path.stem.removeprefix('instances_'): path for path in sorted(root.glob('annotations/instances_*.json'))}
    if coco:
        images = root / 'images' if (root / 'images').is_dir() else root
        return {split: (path, images / split) for split, path in coco.items()}
    return {path.parent.name: (path, path.parent) for path in sorted(root.glob('*/_annotations.coco.json'))}


def open_segmentation(
    folder: str | Path,
    classes: Sequence[str] | None = None,
    ignore_index: int = 255,
    train_split: str | None = None,
    val_split: str | None = None,
    only_val: bool = False,
) -> tuple[Annotations | None, Annotations]:
    """Read the training and the validation set of a folder of images and masks.

    Args:
        folder: The folder, in one of these layouts:

            - ``<split>/images`` and ``<split>/masks``, or ``images/<split>`` and ``masks/<split>``.
            - PASCAL VOC: ``JPEGImages``, ``SegmentationClass``, ``ImageSets/Segmentation/<split>.txt``.
            - Cityscapes: ``leftImg8bit/<split>/<city>``, ``gtFine/<split>/<city>``. Of the masks those named
              ``labelTrainIds`` are read if a split has any, otherwise those named ``labelIds``, in which the classes
              that the benchmark leaves out become ``ignore_index``.
        classes: Names of the classes in the order of their values in the masks. By default those of PASCAL VOC, with
            the background, and the 19 of Cityscapes; of other folders they must be named.
        ignore_index: Value of pixels that count neither in training nor in evaluation.
        train_split: Name of the training set; by default as for :func:`open_detection`.
        val_split: Name of the validation set; by default as for :func:`open_detection`.
        only_val: Whether to read the validation set alone.

    Returns:
        The training set, or None with ``only_val``, and the validation set. Nothing is checked yet but what the reader
        does: see :func:`check_pair`.

    Raises:
        ValueError: If the folder has no such layout, a split is not there or cannot be read, or classes are missing or
            are not as many as Cityscapes has.
    """
    root = _check_folder(folder)
    for find in _FINDERS:
        if readers := find(root, classes, ignore_index):
            train = None
            if not only_val:
                train = replace(
                    readers[_choose(readers, train_split, _TRAIN, root, '--train-split')](), source=str(root)
                )
            val = readers[_choose(readers, val_split, _VALIDATION, root, '--val-split')]()
            return train, replace(val, source=str(root))
    raise _unknown_layout(
        root, _SEGMENTATION_LAYOUTS, lambda path: any(find(path, classes, ignore_index) for find in _FINDERS)
    )


def _find_voc_masks(root: Path, classes: Sequence[str] | None, ignore_index: int) -> Readers:
    images, masks = root / 'JPEGImages', root / 'SegmentationClass'
    if not (images.is_dir() and masks.is_dir()):
        return {}
    lists = _text_files(root / 'ImageSets' / 'Segmentation')
    read = partial(read_image_masks, images, masks, _VOC_CLASSES if classes is None else classes, ignore_index)
    return {name: partial(read, split=path) for name, path in lists.items()}


def _find_cityscapes(root: Path, classes: Sequence[str] | None, ignore_index: int) -> Readers:
    folders = _common_folders(root / 'leftImg8bit', root / 'gtFine')
    return {name: partial(_read_cityscapes, *paths, classes, ignore_index) for name, paths in folders.items()}


def _read_cityscapes(images: Path, masks: Path, classes: Sequence[str] | None, ignore_index: int) -> Annotations:
    classes = _CITYSCAPES_CLASSES if classes is None else classes
    if len(classes) != len(_CITYSCAPES_CLASSES):
        raise ValueError(
            f'Cityscapes has {len(_CITYSCAPES_CLASSES)} classes, and {len(classes)} are named; without names they are: '
            f'{", ".join(_CITYSCAPES_CLASSES)}.'
        )
    suffix = '_gtFine_labelTrainIds'
    values = {**{i: i for i in range(len(classes))}, 255: ignore_index}
    if not any(masks.glob(f'*/*{suffix}.png')):
        suffix = '_gtFine_labelIds'
        values = {c.id: ignore_index if c.ignore_in_eval else c.train_id for c in Cityscapes.classes if c.id >= 0}
    return read_image_masks(
        images,
        masks,
        classes,
        ignore_index,
        values,
        image_suffix='_leftImg8bit',
        mask_suffix=suffix,
        recursive=True,
    )


def _find_mask_folders(root: Path, classes: Sequence[str] | None, ignore_index: int) -> Readers:
    folders = {
        path.name: (path / 'images', path / 'masks')
        for path in _subfolders(root)
        if (path / 'images').is_dir()
        and (path / 'masks').is_dir()
        and not _common_folders(path / 'images', path / 'masks')
    } or _common_folders(root / 'images', root / 'masks')
    return {name: partial(_read_folders, *paths, classes, ignore_index) for name, paths in folders.items()}


def _read_folders(images: Path, masks: Path, classes: Sequence[str] | None, ignore_index: int) -> Annotations:
    paths = [path for paths in files_by_stem(masks, MASK_EXTENSIONS).values() for path in paths][:_FIRST_MASKS]
    values = _find_values(paths)
    if classes is not None and len(values) == 2 and ignore_index in values:
        _logger.warning(
            f'The first masks in {str(masks)!r} have only the values {values[0]} and {values[1]}, and {ignore_index} '
            '(--ignore-index) does not count. If it stands for a class, name another --ignore-index, and recode the '
            'masks so that classes are 0, 1 and so on.'
        )
    if classes is None:
        shown = ', '.join(map(str, values[:_SHOWN_VALUES])) + (', ...' if len(values) > _SHOWN_VALUES else '')
        found = f'have the values {shown}' if values else 'cannot be read'
        raise ValueError(
            f'Nothing in {str(images.parent)!r} names the classes. Name them in the order of their values in the '
            'masks, from 0 on: --classes NAME NAME ..., or --classes FILE with a name a line. The first masks in '
            f'{str(masks)!r} {found}; a value that is no class is for --ignore-index ({ignore_index}).'
        )
    return read_image_masks(images, masks, classes, ignore_index)


def _find_values(masks: Sequence[str]) -> list[int]:
    """Values in the masks that can be read."""
    anything = MaskCoding(2**16, ignore_index=-1)
    values: set[int] = set()
    for path in masks:
        with suppress(InvalidRecord):
            values.update(np.unique(load_mask(path, anything)).tolist())
    return sorted(values)


_FINDERS = (_find_voc_masks, _find_cityscapes, _find_mask_folders)
"""Each gives a reader for every split of a folder in its layout, and none for other folders."""


def _check_folder(folder: str | Path | None) -> Path:
    if not folder:
        raise ValueError('Name the folder of a data set.')
    root = Path(folder)
    if not root.is_dir():
        problem = 'is not a folder' if root.exists() else 'does not exist'
        raise ValueError(f'{str(folder)!r} {problem}; name the folder of a data set.')
    return root


def _subfolders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith('.'))


def _common_folders(images: Path, masks: Path) -> dict[str, tuple[Path, Path]]:
    """Folders that are in both, by their names."""
    if not (images.is_dir() and masks.is_dir()):
        return {}
    return {path.name: (path, masks / path.name) for path in _subfolders(images) if (masks / path.name).is_dir()}


def _text_files(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob('*.txt'))}


def _choose(splits: Collection[str], name: str | None, defaults: Sequence[str], root: Path, option: str) -> str:
    """The split of a name, or the first of the defaults that there is.

    Raises:
        ValueError: If there is none; the message has those that there are.
    """
    found = next((split for split in ([name] if name else defaults) if split in splits), None)
    if found is None:
        wanted = repr(name) if name else ' or '.join(defaults)
        # without any, other folders of VOC are in this one
        there = f'one of these with {option}: {", ".join(splits)}' if splits else f'{option}, such as VOC2007:test'
        raise ValueError(f'{str(root)!r} has no split {wanted}. Name {there}.')
    return found


def _unknown_layout(root: Path, layouts: Sequence[str], is_known: Callable[[Path], bool]) -> ValueError:
    """The error for a folder without a known layout."""
    entries = sorted(path.name + '/' * path.is_dir() for path in root.iterdir())
    found = ', '.join(entries[:_SHOWN_ENTRIES]) + (', ...' if len(entries) > _SHOWN_ENTRIES else '')
    known = next((path for path in _subfolders(root) if is_known(path)), None)
    return ValueError(
        '\n'.join(
            [
                f'{printable(str(root))!r} has none of the layouts that can be read:',
                *(f'  {layout}' for layout in layouts),
                f'It has: {printable(found) or "nothing"}.',
                *([f'Did you mean {printable(str(known))!r}?'] if known else []),
            ]
        )
    )


def limit(annotations: Annotations, n: int) -> Annotations:
    """The first images of a data set, for a trial.

    Args:
        annotations: What a reader returned.
        n: How many images to keep. The defects that the reader found are kept.
    """
    return replace(annotations, records=PackedRecords(annotations.records[:n]))


def names(annotations: Annotations) -> list[str]:
    """Names of the images relative to their data set, with ``/`` on every system.

    Args:
        annotations: What :func:`open_detection` or :func:`open_segmentation` returned.
    """
    return [_name(record.image, annotations.source) for record in annotations.records]


def _name(path: str, source: str) -> str:
    relative = Path(os.path.relpath(path, source)).as_posix()
    return unicodedata.normalize('NFC', relative)  # some systems take letters apart


def check_pair(
    train: Annotations | None, val: Annotations, level: Literal['full', 'quick', 'none'], skip_invalid: bool
) -> tuple[Annotations | None, Annotations, list[Defect]]:
    """Check a training and a validation set before a model is trained on them, or a validation set alone.

    An image that is in both is no defect, but a warning tells.

    Args:
        train: Training set; None if nothing is trained.
        val: Validation set.
        level: Whether to open all images and masks, to read their headers (``quick``), or to open none. What the
            readers found counts in any case.
        skip_invalid: Whether to leave out what has a defect.

    Returns:
        The sets without anything that has a defect, and the defects.

    Raises:
        DefectsError: If there are defects and ``skip_invalid`` is not set.
        ValueError: If no image is left in one of them, or the validation set has no object to find.
    """
    parts = [val] if train is None else [train, val]
    reports = [check(part, quick=level == 'quick') for part in parts] if level != 'none' else []
    defects = [defect for part in (reports or parts) for defect in part.defects]
    if defects and not skip_invalid:
        raise DefectsError(' or '.join(dict.fromkeys(part.source for part in parts)), defects)
    *of_train, val = [report.valid for report in reports] or [replace(part, defects=()) for part in parts]
    for part, what in zip((val, *of_train), ('validation', 'training'), strict=False):
        if not len(part.records):
            raise ValueError(f'No image for {what} is left of {part.source!r}: all have defects.')
    if val.mask_coding is None and not any(_has_objects(record) for record in val.records):
        raise ValueError(
            f'The {len(val.records)} images for validation in {val.source!r} have no object to find, so that no result '
            'can be computed. Name others with --val-split, or take more with --limit.'
        )
    _warn_of_similar_names(val.classes)
    for part in of_train:
        _warn_of_common_images(part, val)
    return (of_train[0] if of_train else None), val, defects


def _warn_of_similar_names(classes: Sequence[str]) -> None:
    first: dict[str, str] = {}
    for name in classes:
        other = first.setdefault(name.casefold(), name)
        if other != name:
            _logger.warning(
                f'{printable(other)} and {printable(name)} are two classes, whose names differ in case only.'
            )


def _has_objects(record: ImageRecord) -> bool:
    """Whether evaluation looks for any: neither for crowds nor for what is difficult."""
    return bool(((record.objects.iscrowd == 0) & (record.objects.difficult == 0)).any())


def _warn_of_common_images(train: Annotations, val: Annotations) -> None:
    of_train = {os.path.realpath(record.image) for record in train.records}
    common = [record.image for record in val.records if os.path.realpath(record.image) in of_train]
    if common:
        first = ', '.join(printable(_name(path, val.source)) for path in common[:_SHOWN_NAMES])
        more = ', ...' if len(common) > _SHOWN_NAMES else ''
        _logger.warning(
            f'{len(common)} of the {len(val.records)} images for validation are also trained on ({first}{more}), so '
            'that the results will be too good.'
        )
