"""What every reader returns: the images of a data set with their annotations, and the defects of the rest."""

import pickle
import reprlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, overload

import numpy as np

from ...image_files import MAX_PIXELS
from ...printable import printable
from .mask_coding import MaskCoding

DefectKind = Literal[
    'annotations of an unknown image',
    'box outside the image',
    'broken file',
    'duplicate id',
    'invalid field',
    'invalid number',
    'invalid segmentation',
    'missing file',
    'missing image',
    'no objects',
    'path outside the folder',
    'unclear orientation',
    'unknown category',
    'unknown mask value',
    'unreadable image',
    'unreadable mask',
    'wrong image size',
    'wrong mask size',
    'zero-size box',
]

_SHOWN = 5  # defects in the message of an error
_TOLERANCE = 1.0  # pixels by which boxes leave their image in data sets that are otherwise sound: rounding


@dataclass(frozen=True)
class Defect:
    """Something wrong in a data set.

    Attributes:
        kind: What is wrong.
        file: The file with the defect.
        record: Place in the file, such as ``annotations[3] (id 12)``; empty if it is the whole file.
        message: What exactly is wrong.
    """

    kind: DefectKind
    file: str
    record: str
    message: str

    def __str__(self) -> str:
        return printable(': '.join(part for part in (self.file, self.record, self.kind, self.message) if part))


class InvalidRecord(ValueError):
    """An image or an object that cannot be used.

    Args:
        kind: What is wrong.
        message: What exactly is wrong.
        file: The file with the defect; None if the caller knows.
    """

    def __init__(self, kind: DefectKind, message: str, file: str | None = None) -> None:
        super().__init__(kind, message, file)  # all of them, so that it can be pickled in a worker
        self.kind = kind
        self.message = message
        self.file = file

    def __str__(self) -> str:
        text = printable(': '.join(part for part in (self.file, self.kind, self.message) if part))
        return f'{text}. timm_attn.dense.data.check finds all of these, and its report has the valid rest.'

    def at(self, file: str, record: str = '') -> Defect:
        """The defect, for a list.

        Args:
            file: The file, unless the exception names another.
            record: Place in the file.
        """
        return Defect(self.kind, self.file or file, record, self.message)


class InvalidDatasetError(ValueError):
    """A data set has defects, and nobody asked to leave them out."""

    def __init__(self, source: str, defects: Sequence[Defect]) -> None:
        super().__init__(source, tuple(defects))
        self.source = source
        self.defects = tuple(defects)

    def __str__(self) -> str:
        first = '\n'.join(f'  {defect}' for defect in self.defects[:_SHOWN])
        more = f'\n  and {len(self.defects) - _SHOWN} more' if len(self.defects) > _SHOWN else ''
        return (
            f'{printable(self.source)} has defects: {count_by_kind(self.defects)}.\n{first}{more}\n'
            'Correct them, or leave these images and objects out with skip_invalid=True.'
        )


def count_by_kind(defects: Iterable[Defect]) -> str:
    """Numbers of defects, the most frequent kind first, as text."""
    counts = Counter(defect.kind for defect in defects).most_common()
    return ', '.join(f'{count} x {kind}' for kind, count in counts) or 'none'


@dataclass(frozen=True, eq=False)
class Objects:
    """Annotated objects of one image.

    Attributes:
        boxes: (N, 4) as (x1, y1, x2, y2) in pixels, float64 and as the file has them.
        labels: (N), 1 for the first class.
        area: (N) in square pixels.
        iscrowd: (N), 1 where the box is around a crowd that nobody counted.
        difficult: (N), 1 where evaluation neither rewards nor punishes a detection.
        segmentations: For each object its polygons or its run-length code; None if they were not read.
    """

    boxes: np.ndarray
    labels: np.ndarray
    area: np.ndarray
    iscrowd: np.ndarray
    difficult: np.ndarray
    segmentations: list | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, keep: np.ndarray) -> 'Objects':
        """The objects where a mask (N) is true."""
        segmentations = self.segmentations and [self.segmentations[i] for i in np.flatnonzero(keep)]
        return Objects(
            self.boxes[keep],
            self.labels[keep],
            self.area[keep],
            self.iscrowd[keep],
            self.difficult[keep],
            segmentations,
        )


@dataclass(frozen=True)
class AnnotatedObject:
    """One object of :class:`Objects`."""

    box: tuple[float, float, float, float]
    label: int
    area: float
    iscrowd: int = 0
    difficult: int = 0
    segmentation: list[np.ndarray] | dict | None = None


def collect_objects(objects: Sequence[AnnotatedObject], segmentations: bool = False) -> Objects:
    """Put the objects of an image into arrays."""
    return Objects(
        np.array([o.box for o in objects], dtype=np.float64).reshape(-1, 4),
        np.array([o.label for o in objects], dtype=np.int64),
        np.array([o.area for o in objects], dtype=np.float64),
        np.array([o.iscrowd for o in objects], dtype=np.int64),
        np.array([o.difficult for o in objects], dtype=np.int64),
        [o.segmentation for o in objects] if segmentations else None,
    )


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """An image and what is known of it: objects, or a mask of class ids.

    Attributes:
        image_id: Number that no other image of the data set has.
        image: Path of the image.
        size: Height and width in pixels that the annotation states; zero with a mask, which has a size itself.
        objects: Objects for detection; none with a mask.
        mask: Path of the mask for segmentation.
    """

    image_id: int
    image: str
    size: tuple[int, int] = (0, 0)
    objects: Objects = field(default_factory=lambda: collect_objects([]))
    mask: str = ''


class PackedRecords(Sequence[ImageRecord]):
    """Records as bytes in one array.

    Workers of a loader then share the memory. Of Python objects each worker would make its own copy in time, since
    counting references writes to them.
    """

    def __init__(self, records: Iterable[ImageRecord]) -> None:
        packed = [pickle.dumps(record, pickle.HIGHEST_PROTOCOL) for record in records]
        self._ends = np.cumsum([0, *map(len, packed)], dtype=np.int64)
        self._bytes = np.frombuffer(b''.join(packed), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[ImageRecord]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return pickle.loads(self._bytes[self._ends[index] : self._ends[index + 1]])


@dataclass(frozen=True, eq=False, repr=False)
class Annotations:
    """A data set as a reader found it.

    Attributes:
        source: File or folder that was read.
        classes: Names of the classes. For detection they are without background, and label 1 is the first; for
            segmentation class 0 is the first.
        category_ids: Id of each class in the files.
        records: The images, without anything that has a defect.
        defects: What the reader left out, and why. Images are not opened yet: see
            :func:`~timm_attn.dense.data.check`.
        mask_coding: What the values of masks mean; None for detection.
        has_masks: Whether each object has a mask.
    """

    source: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    records: Sequence[ImageRecord]
    defects: tuple[Defect, ...] = ()
    mask_coding: MaskCoding | None = None
    has_masks: bool = False

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}({self.source!r}: {len(self.records)} images, {len(self.classes)} classes, '
            f'{len(self.defects)} defects)'
        )


def check_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Check names of classes.

    Raises:
        ValueError: If there are none, or they are not texts, or not unique.
    """
    names = () if isinstance(classes, str) else tuple(classes)
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f'classes must be a list of names; got {reprlib.repr(classes)}.')
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f'classes must be unique; {twice[0]!r} is there twice.')
    return names


def check_size(height: float, width: float) -> tuple[int, int]:
    """Check the size of an image that an annotation states.

    Raises:
        InvalidRecord: If it is not one of an image that can be read.
    """
    if height != int(height) or width != int(width) or min(height, width) < 1 or height * width > MAX_PIXELS:
        raise InvalidRecord(
            'wrong image size',
            f'its width {width:g} and height {height:g} must be whole numbers, with at most {MAX_PIXELS} pixels',
        )
    return int(height), int(width)


def check_box(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Check a box (x1, y1, x2, y2) in an image of a height and a width.

    Raises:
        InvalidRecord: If it has no area in float32, in which networks see it, or lies more than a pixel outside.
    """
    (x1, y1, x2, y2), (height, width) = box, size
    text = f'({x1:g}, {y1:g}, {x2:g}, {y2:g})'
    if not (np.float32(x1) < np.float32(x2) and np.float32(y1) < np.float32(y2)):
        raise InvalidRecord('zero-size box', f'(x1, y1, x2, y2) = {text} has no area')
    if min(x1, y1) < -_TOLERANCE or x2 > width + _TOLERANCE or y2 > height + _TOLERANCE:
        raise InvalidRecord('box outside the image', f'(x1, y1, x2, y2) = {text}, the image has {width} x {height}')
    return box


def check_number(value: object, name: str, low: float = -1e9, high: float = 1e9) -> float:
    """Check that a value is a number in a range.

    Raises:
        InvalidRecord: If it is none, is not finite, or is out of the range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRecord('invalid field', f'{name} must be a number, not {reprlib.repr(value)}')
    if not low <= value <= high:
        raise InvalidRecord('invalid number', f'{name} must be from {low:g} to {high:g}, not {reprlib.repr(value)}')
    return value
