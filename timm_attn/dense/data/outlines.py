"""The mask of an object as COCO writes it: polygons or a run-length code."""

import reprlib
from typing import Any

import numpy as np

from ..image_results import import_extra
from .records import InvalidRecord


def check_segmentation(value: Any, size: tuple[int, int]) -> list[np.ndarray] | dict:
    """Check a segmentation of COCO and make it small.

    Args:
        value: The segmentation: a list of polygons ``[x, y, x, y, ...]``, or a run-length code with ``size`` and
            ``counts``, compressed or not.
        size: Height and width of the image.

    Returns:
        Polygons, float64, or a compressed run-length code.

    Raises:
        InvalidRecord: If it is neither, or does not fit the image.
        ImportError: If it is a run-length code, and the packages of the extra ``dense`` are missing.
    """
    if isinstance(value, dict):
        return _check_code(value, size)
    if not isinstance(value, list) or not value:
        raise InvalidRecord(
            'invalid segmentation', f'it must be polygons or a run-length code, not {reprlib.repr(value)}'
        )
    return [_check_polygon(polygon, size) for polygon in value]


def to_mask(segmentation: list[np.ndarray] | dict, size: tuple[int, int]) -> np.ndarray:
    """Draw a segmentation that :func:`check_segmentation` returned.

    Args:
        segmentation: The segmentation.
        size: Height and width of the image.

    Returns:
        Mask (H, W), uint8, 1 inside.

    Raises:
        ImportError: If the packages of the extra ``dense`` are missing.
    """
    coco = import_extra('faster_coco_eval.core.mask')
    if isinstance(segmentation, dict):
        return coco.decode(segmentation)
    return coco.decode(coco.merge(coco.frPyObjects([polygon.tolist() for polygon in segmentation], *size)))


def _check_code(code: dict, size: tuple[int, int]) -> dict:
    coco = import_extra('faster_coco_eval.core.mask')
    if code.get('size') != list(size):
        raise InvalidRecord(
            'invalid segmentation',
            f'its run-length code has the size {reprlib.repr(code.get("size"))}, not {list(size)} (height, width)',
        )
    counts = code.get('counts')
    try:
        if isinstance(counts, list):
            code = coco.frPyObjects({'size': list(size), 'counts': counts}, *size)
        else:
            code = {'size': list(size), 'counts': counts.encode('ascii')}  # type: ignore[union-attr]
        coco.decode(code)  # checks that it covers the image exactly
    except (ValueError, RuntimeError, TypeError, AttributeError) as e:
        raise InvalidRecord('invalid segmentation', f'its run-length code is damaged: {e}') from None
    return code


def _check_polygon(polygon: Any, size: tuple[int, int]) -> np.ndarray:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        raise InvalidRecord(
            'invalid segmentation', f'a polygon needs x and y of three points or more: {reprlib.repr(polygon)}'
        )
    limit = 2 * max(size)  # drawing takes time and memory with the length of the outline
    wrong = [v for v in polygon if type(v) not in (int, float) or not -limit <= v <= limit]
    if wrong:
        raise InvalidRecord(
            'invalid segmentation', f'a polygon contains {reprlib.repr(wrong[0])}, not a number in or near the image'
        )
    return np.array(polygon, dtype=np.float64)
