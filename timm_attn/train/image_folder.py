"""A folder of images, one folder for each class, as timm datasets that are checked before training."""

import logging
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path

from PIL import Image
from timm.data import ImageDataset

from ..image_files import IMAGE_EXTENSIONS, UNREADABLE, check_regular, find_loop, open_image
from .split import Draw, Split, hold_out

_logger = logging.getLogger(__name__)

TRAIN_FOLDERS = ('train', 'training')
_VALIDATION = ('val', 'valid', 'validation', 'eval', 'evaluation')


class FolderError(ValueError):
    """A folder that cannot be trained on."""


class FolderImages(ImageDataset):
    """timm's dataset of a folder, which reads images as ``timm-attn predict`` does: upright, any mode as RGB."""

    def __getitem__(self, index: int):
        for _ in range(10):  # as timm's own: a file may have gone since the folder was checked
            path, target = self.reader.samples[index]
            try:
                image = open_image(path)
            except (OSError, ValueError) as e:
                _logger.warning(f'Skipped, another image takes its place: {e}')
                index = (index + 1) % len(self)
            else:
                return self.transform(image) if self.transform else image, target
        raise FolderError(f'Ten images in a row cannot be read any more, the last is {path}.')


def open_folder(
    root: str | Path,
    train_split: str = 'train',
    val_split: str | None = None,
    val_fraction: float = 0.2,
    draw: Draw = hold_out,
) -> tuple[ImageDataset, ImageDataset, list[str]]:
    """Find the images for training and validation, with the same classes in the same order.

    Without a folder for validation, a share of the training images of every class is held out, the same one each time.
    Files that cannot be read as images are left out with a warning.

    Args:
        root: ``root/train/<class>/*`` and ``root/val/<class>/*``, or ``root/<class>/*``.
        train_split: Name of the folder for training.
        val_split: Name of the folder for validation; if None, ``val`` or one of timm's synonyms.
        val_fraction: Share of each class that is held out where there is no folder for validation.
        draw: How it is chosen.

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
    train_root = _find(root, TRAIN_FOLDERS if train_split in TRAIN_FOLDERS else (train_split,))
    val_root = _find(root, _VALIDATION if val_split is None else (val_split,))
    if val_split and not val_root:
        raise FolderError(f'{root} has no folder {val_split!r} for validation; it has: {_subfolders(root)}.')
    if not train_root and (val_root or train_split not in TRAIN_FOLDERS):
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
        held_out = draw(image_names(train, train_root), val_fraction)
        if not held_out:
            raise FolderError(
                f'{train_root} has a single image of each class, too few to hold some out for validation.'
            )
        train.reader.samples, val.reader.samples = (
            sorted(sample for sample in train.reader.samples if (_name(sample[0], train_root) in held_out) is of_val)
            for of_val in (False, True)
        )
    return train, val, classes


def split_of(train: ImageDataset, val: ImageDataset, root: str | Path) -> Split:
    """Names of the images of two datasets in their common folder."""
    return Split(image_names(train, root), image_names(val, root))


def image_names(dataset: ImageDataset, root: str | Path) -> list[str]:
    """Names of the images of a dataset relative to a folder, with ``/`` on every system."""
    return [_name(path, root) for path, _ in dataset.reader.samples]


def _name(path: str, root: str | Path) -> str:
    return unicodedata.normalize('NFC', Path(path).relative_to(root).as_posix())  # some systems take letters apart


def _find(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _subfolders(root: Path) -> str:
    return ', '.join(sorted(path.name for path in root.iterdir() if path.is_dir())) or 'no folders'


def _read(root: Path, classes: list[str] | None = None) -> ImageDataset:
    """Dataset of a folder that holds a folder of images for each class, in the order of ``classes`` if given."""
    if loop := find_loop(root):  # timm would follow it for ever
        raise FolderError(f'{loop} is a link to a folder that it lies in; remove it.')
    try:
        dataset = FolderImages(str(root), input_key=';'.join(IMAGE_EXTENSIONS))
    except RuntimeError:  # no file with the name of an image
        raise FolderError(
            f'There are no images in {root}. It needs a folder of images ({", ".join(IMAGE_EXTENSIONS)}) for each '
            f'class, such as {root / "daisy" / "1.jpg"}.'
        ) from None
    reader = dataset.reader
    if all(Path(path).parent == root for path, _ in reader.samples):
        raise FolderError(
            f'{root} has images directly inside, as the folder of one class; did you mean its parent, '
            f'{root.resolve().parent}? It needs a folder of images for each class.'
        )
    for path, _ in reader.samples:
        name, *inside = Path(path).relative_to(root).parts
        if len(inside) != 1:  # timm would name the class after the innermost folder
            raise FolderError(
                f'{path} is not directly inside the folder of a class, {root / "<class>"}: name the folder that holds '
                'the classes, or move the image.'
            )
        if name.startswith('.'):
            raise FolderError(
                f'{root / name} is hidden and contains images, which would become a class; move it elsewhere.'
            )
        if any('\ud800' <= letter <= '\udfff' for letter in name):  # how Python reads bytes that are no text
            raise FolderError(f'The class folder {str(root / name)!r} has a name that is not UTF-8; rename it.')
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
    """Leave out files that cannot be decoded to their end, each with a warning that names it."""
    with ThreadPoolExecutor() as pool:
        problems = list(pool.map(_problem, [path for path, _ in samples]))
    for problem in filter(None, problems):
        _logger.warning(f'Left out: {problem}')
    return [sample for sample, problem in zip(samples, problems, strict=True) if not problem]


def _problem(path: str) -> str | None:
    """Why a file cannot be read as an image."""
    try:
        check_regular(path)
        with Image.open(path) as image:
            if image.format == 'JPEG':  # all of the file, at a small part of its size; any can be converted
                image.draft('RGB', (32, 32))
                image.load()
                return None
        open_image(path)
    except UNREADABLE as e:
        return str(e) if path in str(e) else f'{path} cannot be read as an image: {str(e) or type(e).__name__}'
    return None
