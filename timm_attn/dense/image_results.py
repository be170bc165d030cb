"""What a detector found in one image beside what is there: checked, on the CPU, and small enough to keep."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

_MASK_THRESHOLD = 0.5  # of the probabilities that Mask R-CNN returns


def import_extra(module: str) -> ModuleType:
    """Import a module that the extra ``dense`` installs.

    Raises:
        ImportError: If it is missing; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as e:
        package = module.partition('.')[0].replace('_', '-')
        raise ImportError(f'This needs {package}: pip install "timm-attn[dense]"') from e


@dataclass(frozen=True, eq=False)
class ImageResult:
    """Objects of an image and what a detector found in it.

    Attributes:
        image_id: Id of the image in its data set.
        truth: ``boxes`` (N, 4), ``labels``, ``area``, ``iscrowd`` and ``difficult`` (N).
        found: ``boxes`` (M, 4), ``labels`` and ``scores`` (M), in the order of the detector.
        truth_masks: Run-length code of each object, or None without masks.
        found_masks: Run-length code of each detection, or None without masks.
        size: Height and width of the masks in pixels, or None without masks.

    Boxes are (x1, y1, x2, y2) in pixels and float64, so that nothing is rounded on the way to a file.
    """

    image_id: int
    truth: dict[str, np.ndarray]
    found: dict[str, np.ndarray]
    truth_masks: list[dict] | None = None
    found_masks: list[dict] | None = None
    size: tuple[int, int] | None = None

    @classmethod
    def of(
        cls, prediction: Mapping[str, Tensor], target: Mapping[str, Any], num_classes: int, masks: bool
    ) -> 'ImageResult':
        """Check and convert one prediction and its target; the arguments are those of ``DetectionMetric.update``.

        Raises:
            ValueError: If a key is missing or a value is wrong; the message names the image and the key.
        """
        image_id = _image_id(target)
        where = f'the target of image {image_id}'
        boxes, labels = _boxes_and_labels(target, num_classes, where)
        sides = boxes[:, 2:] - boxes[:, :2]
        defaults = {'area': sides.prod(axis=1), 'iscrowd': np.zeros(len(boxes)), 'difficult': np.zeros(len(boxes))}
        truth = {'boxes': boxes, 'labels': labels}
        for key, default in defaults.items():
            truth[key] = _vector(target, key, len(boxes), where) if key in target else default
        for key in ('iscrowd', 'difficult'):
            truth[key] = truth[key].astype(bool)

        where = f'the prediction of image {image_id}'
        boxes, labels = _boxes_and_labels(prediction, num_classes, where)
        found = {'boxes': boxes, 'labels': labels, 'scores': _vector(prediction, 'scores', len(boxes), where)}
        if not masks:
            return cls(image_id, truth, found)

        truth_masks = _masks(target, len(truth['boxes']), f'the target of image {image_id}')
        found_masks = _masks(prediction, len(boxes), where)
        height, width = truth_masks.shape[1:]
        if found_masks.shape[1:] != truth_masks.shape[1:]:
            raise ValueError(
                f'The masks of {where} have {found_masks.shape[1]} x {found_masks.shape[2]} pixels and those of its '
                f'target {height} x {width}. Both must have the size of the image that the boxes refer to.'
            )
        return cls(image_id, truth, found, _encode(truth_masks), _encode(found_masks), (height, width))

    def same_image(self, other: 'ImageResult') -> bool:
        """Whether the objects of both are the same; what was found may differ."""
        return _equal(self.truth, other.truth) and (self.truth_masks, self.size) == (other.truth_masks, other.size)

    def same_found(self, other: 'ImageResult') -> bool:
        """Whether the same was found in both."""
        return _equal(self.found, other.found) and self.found_masks == other.found_masks


def _equal(arrays: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(value, others[key]) for key, value in arrays.items())


def _image_id(target: Mapping[str, Any]) -> int:
    image_id = target.get('image_id')
    if isinstance(image_id, Tensor) and image_id.numel() == 1 and not image_id.is_floating_point():
        image_id = image_id.item()  # as some data sets give it
    if isinstance(image_id, bool) or not isinstance(image_id, int | np.integer):
        raise ValueError(
            f"Every target needs 'image_id', the whole number that tells its image from all others; got {image_id!r}."
        )
    return int(image_id)


def _tensor(values: Mapping[str, Any], key: str, where: str) -> Tensor:
    if not isinstance(values.get(key), Tensor):
        raise ValueError(
            f'{where.capitalize()} needs the tensor {key!r}; '
            + (f'it is a {type(values[key]).__name__}.' if key in values else f'it has: {", ".join(sorted(values))}.')
        )
    return values[key].detach()


def _vector(values: Mapping[str, Any], key: str, length: int, where: str) -> np.ndarray:
    """Values (N) of a key, one for each box, as float64."""
    tensor = _tensor(values, key, where)
    if tensor.shape != (length,):
        raise ValueError(f'{key!r} of {where} must have shape ({length},), one for each box, not {_shape(tensor)}.')
    vector = _copy(tensor)
    if not np.isfinite(vector).all():
        raise ValueError(f'{key!r} of {where} contains values that are not finite numbers.')
    return vector


def _boxes_and_labels(values: Mapping[str, Any], num_classes: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    tensor = _tensor(values, 'boxes', where)
    if tensor.ndim != 2 or tensor.shape[1] != 4:
        raise ValueError(f"'boxes' of {where} must have shape (N, 4), not {_shape(tensor)}.")
    boxes = _copy(tensor)
    if not np.isfinite(boxes).all():
        raise ValueError(f"'boxes' of {where} contains values that are not finite numbers.")
    if (boxes[:, 2:] < boxes[:, :2]).any():
        raise ValueError(f"'boxes' of {where} must be (x1, y1, x2, y2) with x1 <= x2 and y1 <= y2.")
    if _tensor(values, 'labels', where).is_floating_point():
        raise ValueError(f"'labels' of {where} must be whole numbers.")
    labels = _vector(values, 'labels', len(boxes), where).astype(np.int64)
    wrong = labels[(labels < 1) | (labels > num_classes)]
    if len(wrong):
        raise ValueError(
            f"'labels' of {where} contains {wrong[0]}; the labels of {num_classes} classes are 1 to {num_classes}, "
            'and 0 is the background.'
        )
    return boxes, labels


def _copy(tensor: Tensor) -> np.ndarray:
    return tensor.to('cpu', torch.float64, copy=True).numpy()


def _masks(values: Mapping[str, Any], length: int, where: str) -> Tensor:
    """Masks (N, H, W) of zeros and ones, uint8."""
    masks = _tensor(values, 'masks', where)
    if masks.ndim == 4 and masks.shape[1] == 1:
        masks = masks.squeeze(1)
    if masks.ndim != 3 or len(masks) != length:
        raise ValueError(
            f"'masks' of {where} must have shape ({length}, H, W) or ({length}, 1, H, W), one for each box, not "
            f'{_shape(masks)}.'
        )
    return (masks > _MASK_THRESHOLD).to('cpu', torch.uint8)


def _encode(masks: Tensor) -> list[dict]:
    if not len(masks):
        return []
    rle = import_extra('faster_coco_eval.core.mask')
    return rle.encode(np.asfortranarray(masks.permute(1, 2, 0).numpy()))


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
