"""A folder of images, one folder for each class, as timm datasets that are checked before training."""

import logging
import random
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path

from PIL import Image
from timm.data import ImageDataset, create_dataset

from ..image_files import IMAGE_EXTENSIONS, UNREADABLE

_logger = logging.getLogger(__name__)

_TRAIN = ('train', 'training')
_VALIDATION = ('val', 'valid', 'validation', 'eval', 'evaluation')


class FolderError(ValueError):
    """A folder that cannot be trained on."""


def open_folder(
    root: str | Path, train_split: str = 'train', val_split: str | None = None, val_fraction: float = 0.2
) -> tuple[ImageDataset, ImageDataset, list[str]]:
    """Find the images for training and validation, with the same classes in the same order.

    Without a folder for validation, a share of the training images of every class is held out, the same one each time.
    Files that cannot be read as images are left out with a warning.

    Args:
        root: ``root/train/<class>/*`` and ``root/val/<class>/*``, or ``root/<class>/*``.
        train_split: Name of the folder for training.
        val_split: Name of the folder for validation; if None, ``val`` or one of timm's synonyms.
        val_fraction: Share of each class that is held out where there is no folder for validation.

    Returns:
        Training images, validation images, and the classes in the order of their indices.

    Raises:
        FolderError: If it cannot be trained on; the message says what is wrong and where.
    """
    root = Path(root)
    if not root.is_dir():
        problem = 'is not a directory' if root.exists() else 'does not exist'
        raise FolderError(f'{root} {problem}; name a folder of images.')
    if not 0 < val_fraction < 1:
        raise FolderError(f'The share of images to hold out must be between 0 and 1, not {val_fraction}.')
    train_root = _find(root, _TRAIN if train_split in _TRAIN else (train_split,))
    val_root = _find(root, _VALIDATION if val_split is None else (val_split,))
    if val_split and not val_root:
        raise FolderError(f'{root} has no folder {val_split!r} for validation; it has: {_subfolders(root)}.')
    if not train_root and (val_root or train_split not in _TRAIN):
        raise FolderError(f'{root} has no folder {train_split!r} for training; it has: {_subfolders(root)}.')
    train_root = train_root or root
    train = _read(train_root)
    classes = list(train.reader.class_to_idx)
    if len(classes) < 2:
        raise FolderError(
            f'{train_root} has images of only one class, {classes[0]!r}, so there is nothing to learn. It needs a '
            'folder for each class.'
        )
    if train_root != root and not val_root and (root / 'test').is_dir():
        _logger.warning(f'{root / "test"} is not used; --val-split test validates on it.')
    if val_root:
        val = _read(val_root, classes)
    else:
        val = copy(train)
        val.reader = copy(train.reader)
        train.reader.samples, val.reader.samples = _hold_out(train.reader.samples, val_fraction, train_root)
    return train, val, classes


def _find(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _subfolders(root: Path) -> str:
    return ', '.join(sorted(path.name for path in root.iterdir() if path.is_dir())) or 'no folders'


def _read(root: Path, classes: list[str] | None = None) -> ImageDataset:
    """Dataset of a folder that holds a folder of images for each class, in the order of ``classes`` if given."""
    try:
        dataset = create_dataset('', str(root), search_split=False, input_key=';'.join(IMAGE_EXTENSIONS))
    except RuntimeError:  # no file with the name of an image
        raise FolderError(
            f'There are no images in {root}. It needs a folder of images ({", ".join(IMAGE_EXTENSIONS)}) for each '
            f'class, such as {root / "daisy" / "1.jpg"}.'
        ) from None
    reader = dataset.reader
    for path, _ in reader.samples:
        name, *inside = Path(path).relative_to(root).parts
        if len(inside) != 1:  # timm would name the class after the innermost folder
            raise FolderError(f'{path} is not directly inside the folder of a class, {root / "<class>"}; move it.')
        if name.startswith('.'):
            raise FolderError(
                f'{root / name} is hidden and contains images, which would become a class; move it elsewhere.'
            )
    if classes:
        own = list(reader.class_to_idx)
        unknown = [name for name in own if name not in classes]
        if unknown:
            raise FolderError(f'{root} has classes that are not among those for training: {", ".join(unknown)}.')
        reader.samples = [(path, classes.index(own[i])) for path, i in reader.samples]
        reader.class_to_idx = {name: i for i, name in enumerate(classes)}
    reader.samples = _readable(reader.samples)
    filled = {Path(path).parent.name for path, _ in reader.samples}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if not folder.name.startswith('.') and folder.name not in filled:
            raise FolderError(
                f'The class folder {folder} has no readable images ({", ".join(IMAGE_EXTENSIONS)}); add some or remove '
                'it.'
            )
    return dataset


def _readable(samples: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Leave out files that cannot be decoded to their end; some versions of timm would stop at them, hours later."""

    def problem(sample):
        try:
            with Image.open(sample[0]) as image:
                image.draft('RGB', (32, 32))  # JPEG: all of the file, at a small part of its size
                image.load()
        except UNREADABLE as e:
            return str(e) or type(e).__name__

    with ThreadPoolExecutor() as pool:
        problems = list(pool.map(problem, samples))
    for (path, _), what in zip(samples, problems, strict=True):
        if what:
            _logger.warning(f'Left out, cannot be read as an image: {path} ({what})')
    return [sample for sample, what in zip(samples, problems, strict=True) if not what]


def _hold_out(samples: list[tuple[str, int]], fraction: float, root: Path) -> tuple[list, list]:
    """Split images into training and validation, each class alike and the same way each time."""
    by_class = defaultdict(list)
    for sample in samples:
        by_class[sample[1]].append(sample)
    train, val = [], []
    for of_class in by_class.values():
        random.Random(0).shuffle(of_class)
        n = min(max(1, round(fraction * len(of_class))), len(of_class) - 1)
        val += of_class[:n]
        train += of_class[n:]
    if not val:
        raise FolderError(f'{root} has a single image of each class, too few to hold some out for validation.')
    return sorted(train), sorted(val)
