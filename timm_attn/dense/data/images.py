"""Opening the image and the mask of a record in the frame in which it was annotated."""

import os
from collections.abc import Callable
from contextlib import suppress

import numpy as np
from PIL import ExifTags, Image

from ...image_files import MAX_PIXELS, UNREADABLE, check_regular, open_image
from .mask_coding import MaskCoding
from .records import DefectKind, InvalidRecord

_TURNED = {  # EXIF orientations that swap height and width, and what turns an upright image back
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def load_image(path: str, size: tuple[int, int], mask: str = '') -> Image.Image:
    """Read an annotated image as RGB.

    It is upright, as its EXIF orientation says, unless its annotation was made on the image as it is stored.

    Args:
        path: The image.
        size: Height and width that its annotation states, or those of its mask.
        mask: Path of the mask whose size this is, for the error.

    Raises:
        InvalidRecord: As :func:`find_orientation` does, or if the image cannot be decoded.
    """
    turn_back = find_orientation(path, size, mask)
    try:
        image = open_image(path)
    except ValueError as e:
        raise InvalidRecord('unreadable image', str(e), path) from None
    image = image if turn_back is None else image.transpose(turn_back)
    if image.size != size[::-1]:  # an orientation that only decoding finds
        raise InvalidRecord('unclear orientation', f'it is decoded as {image.width} x {image.height} pixels', path)
    return image


def find_orientation(path: str, size: tuple[int, int], mask: str = '') -> Image.Transpose | None:
    """Compare the header of an image with its annotation.

    Args:
        path: The image.
        size: As for :func:`load_image`.
        mask: As for :func:`load_image`.

    Returns:
        How to turn the upright image into the one that was annotated; None if it is the same.

    Raises:
        InvalidRecord: If the image is missing, is none, or has another size, or if its EXIF orientation turns it and
            the size does not tell whether the annotation is of the turned image.
    """
    height, width = size
    stored, orientation = _read_header(path, 'image')
    upright = stored[::-1] if orientation in _TURNED else stored
    if (width, height) not in (stored, upright):
        pixels = f'{upright[0]} x {upright[1]} pixels'
        if mask:
            raise InvalidRecord('wrong mask size', f'it has {width} x {height} pixels, {path!r} has {pixels}', mask)
        raise InvalidRecord('wrong image size', f'it has {pixels}, but {width} x {height} are annotated', path)
    if orientation != 1 and stored == upright:
        raise InvalidRecord(
            'unclear orientation',
            f'its EXIF orientation {orientation} turns it, and nothing tells whether it was annotated before or after; '
            'save it without this entry, so that it is shown as it was annotated',
            path,
        )
    return None if (width, height) == upright else _TURNED[orientation]


def read_size(path: str) -> tuple[int, int]:
    """Height and width of an image whose annotation does not state them.

    Raises:
        InvalidRecord: If the image is missing or is none, or if its EXIF orientation turns it.
    """
    (width, height), orientation = _read_header(path, 'image')
    if orientation != 1:
        raise InvalidRecord(
            'unclear orientation',
            f'its EXIF orientation {orientation} turns it, and no size tells whether it was annotated before or after',
            path,
        )
    return height, width


def load_mask(path: str, coding: MaskCoding) -> np.ndarray:
    """Read a mask.

    Returns:
        Class ids (H, W), int64.

    Raises:
        InvalidRecord: If it cannot be read, holds colours, or has values that the coding lacks.
    """
    read_mask_size(path)
    mask = _open(path, 'mask', np.asarray)
    if mask.ndim != 2 or mask.dtype not in (bool, np.uint8, np.uint16, np.int32):
        raise InvalidRecord(
            'unreadable mask',
            'it has colours or fractions; a mask has one whole number a pixel: a PNG with a palette or grey',
            path,
        )
    ids, unknown = coding.decode(mask.astype(np.uint8) if mask.dtype == bool else mask)
    if unknown:
        some = ', '.join(map(str, unknown[:5])) + (', ...' if len(unknown) > 5 else '')
        allowed = sorted(coding.values) if coding.values is not None else f'0 to {coding.num_classes - 1}'
        raise InvalidRecord(
            'unknown mask value', f'{some}; the values of classes are {allowed}, {coding.ignore_index} is ignored', path
        )
    return ids


def read_mask_size(path: str) -> tuple[int, int]:
    """Height and width of a mask, from its header.

    Raises:
        InvalidRecord: If it cannot be read.
    """
    (width, height), _ = _read_header(path, 'mask')
    return height, width


def _read_header(path: str, what: str) -> tuple[tuple[int, int], int]:
    """Width and height as stored, and the EXIF orientation (1 is upright)."""

    def read(image: Image.Image) -> tuple[tuple[int, int], int]:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f'{image.width} x {image.height} pixels are too many; the most are {MAX_PIXELS}')
        orientation = 1
        if image.format != 'PNG' or 'exif' in image.info:  # otherwise Pillow decodes a PNG to look for it at its end
            with suppress(Exception):  # an orientation that cannot be read is none
                orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        size = image.size
        if image.format == 'TIFF' and orientation in _TURNED:  # of these Pillow states the upright size
            size = size[::-1]
        return size, orientation if orientation in range(1, 9) else 1

    return _open(path, what, read)


def _open(path: str, what: str, use: Callable):
    unreadable: DefectKind = 'unreadable image' if what == 'image' else 'unreadable mask'
    if not os.path.lexists(path):
        raise InvalidRecord('missing image' if what == 'image' else 'missing file', 'there is no such file', path)
    try:
        check_regular(path)
        with Image.open(path) as image:
            return use(image)
    except UNREADABLE as e:
        raise InvalidRecord(unreadable, str(e) or type(e).__name__, path) from None
