"""Checks of what models are given in training, before torchvision fails deep inside on it."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import nn

from .._compat import BatchNormBase

_BRIGHTEST = 2.0  # augmentation may leave 0..1 by a little
_TOLERANCE = 1.0  # pixels by which boxes of sound data sets leave their image: rounding


def check_detection_inputs(model: nn.Module, num_classes: int, smallest_batch: int = 1) -> nn.Module:
    """Let a detector check its images and targets before it computes anything.

    Args:
        model: The detector.
        num_classes: Number of classes, background included.
        smallest_batch: Images that its batch norms need, where they are trained.

    Returns:
        The detector.
    """
    model.num_classes = num_classes
    model.smallest_batch = smallest_batch
    model.register_forward_pre_hook(_check_detection, with_kwargs=True)
    return model


def check_segmentation_inputs(model: nn.Module) -> nn.Module:
    """Let a segmenter with a pooled branch check the size of its batch.

    Args:
        model: The segmenter.

    Returns:
        The segmenter.
    """
    model.register_forward_pre_hook(_check_segmentation, with_kwargs=True)
    return model


def _check_detection(model: nn.Module, args: tuple, kwargs: dict) -> None:
    images, targets = (*args, None, None)[:2]
    images, targets = kwargs.get('images', images), kwargs.get('targets', targets)
    channels = len(model.transform.image_mean)
    for i, image in enumerate(images):
        if not isinstance(image, torch.Tensor) or image.ndim != 3 or image.shape[0] != channels:
            shape = tuple(image.shape) if hasattr(image, 'shape') else type(image).__name__
            raise ValueError(f'Image {i} of the batch must be a tensor ({channels}, H, W), not {shape}.')
    if not model.training:
        return
    if targets is None:
        raise ValueError('A detector in training mode needs targets; for predictions call model.eval() first.')
    if len(images) != len(targets):
        raise ValueError(f'Got {len(images)} images and {len(targets)} targets.')
    if len(images) < model.smallest_batch and _trains_batch_norm(model):
        raise ValueError(_BATCH_OF_ONE.format(what='the last feature map has one pixel'))
    for i, (image, target) in enumerate(zip(images, targets, strict=True)):
        which = _which(i, target)
        if image.is_floating_point() and image.max() > _BRIGHTEST:
            raise ValueError(f'{which} has values up to {float(image.max()):g}: images must be in 0..1.')
        _check_target(target, which, model.num_classes, tuple(image.shape[-2:]))


def _check_target(target: Mapping, which: str, num_classes: int, size: tuple[int, int]) -> None:
    if not isinstance(target, Mapping):
        raise ValueError(
            f"The target of {which} must be a dict with 'boxes' and 'labels', not {type(target).__name__}."
        )
    boxes, labels, masks = target.get('boxes'), target.get('labels'), target.get('masks')
    if not isinstance(boxes, torch.Tensor) or boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(
            f"The target of {which} must have 'boxes' of shape (N, 4); an image without objects has (0, 4)."
        )
    if not isinstance(labels, torch.Tensor) or labels.shape != boxes.shape[:1]:
        raise ValueError(f'The target of {which} must have a label for each of its {len(boxes)} boxes.')
    if labels.dtype != torch.int64:
        raise ValueError(f'The labels of {which} must be int64, not {str(labels.dtype).removeprefix("torch.")}.')
    if masks is not None and masks.shape != (len(boxes), *size):
        expected = (len(boxes), *size)
        raise ValueError(f'The masks of {which} must have the shape (N, H, W) {expected}, not {tuple(masks.shape)}.')
    if not len(boxes):
        return
    if masks is not None and masks.max() > 1:
        raise ValueError(f'The masks of {which} must be 0 or 1, but contain {masks.max().item():g}.')
    if labels.min() < 1 or labels.max() >= num_classes:
        wrong = sorted({int(label) for label in labels if not 1 <= label < num_classes})
        raise ValueError(
            f'{which} has the label{"s" * (len(wrong) > 1)} {", ".join(map(str, wrong[:5]))}; labels must be in '
            f'1..{num_classes - 1} for num_classes={num_classes}, since 0 is the background.'
        )
    if not bool(boxes.isfinite().all()):
        raise ValueError(f'{which} has boxes with coordinates that are not finite.')
    height, width = size
    outside = (boxes < -_TOLERANCE) | (boxes > boxes.new_tensor([width, height, width, height]) + _TOLERANCE)
    for what, wrong in (
        ('without area', (boxes[:, 2:] <= boxes[:, :2]).any(dim=1)),
        (f'outside of its {width} x {height} pixels', outside.any(dim=1)),
    ):
        if wrong.any():
            box = ', '.join(f'{x:g}' for x in boxes[wrong][0].tolist())
            raise ValueError(f'{which} has a box {what}: ({box}). Boxes are (x1, y1, x2, y2) with x1 < x2, y1 < y2.')


def _which(index: int, target: Mapping) -> str:
    image = target.get('image_id') if isinstance(target, Mapping) else None
    if image is None:
        return f'image {index} of the batch'
    return f'image {index} of the batch (image_id {image.item() if isinstance(image, torch.Tensor) else image})'


def _check_segmentation(model: nn.Module, args: tuple, kwargs: dict) -> None:
    images = next(iter((*args, *kwargs.values())), ())
    if model.training and len(images) == 1 and _trains_batch_norm(model.classifier):
        raise ValueError(_BATCH_OF_ONE.format(what='the pooled branch has one pixel'))


_BATCH_OF_ONE = (
    'Cannot train on a batch of one image: {what}, and batch norm needs more than one. Use a batch size of 2 or more, '
    'and drop_last=True in the DataLoader.'
)


def _trains_batch_norm(model: nn.Module) -> bool:
    """Whether a batch norm uses the statistics of the batch of this process alone."""
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    norms = [m for m in model.modules() if isinstance(m, BatchNormBase) and m.training]
    return any(not (several and isinstance(m, nn.SyncBatchNorm)) for m in norms)
