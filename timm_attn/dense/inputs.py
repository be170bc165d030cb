"""Errors for people where torchvision's models would fail deep inside: on labels, boxes, or a batch of one image."""

from collections.abc import Mapping

import torch
from torch import nn

from .._compat import BatchNormBase


def check_detection_inputs(model: nn.Module, num_classes: int, smallest_batch: int = 1) -> nn.Module:
    """Let a detector check its targets before it computes anything.

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
    model.register_forward_pre_hook(_check_segmentation)
    return model


def _check_detection(model: nn.Module, args: tuple, kwargs: dict) -> None:
    if not model.training:
        return
    images, targets = (*args, *kwargs.values(), None)[:2]
    if targets is None:
        raise ValueError('A detector in training mode needs targets; for predictions call model.eval() first.')
    if len(images) != len(targets):
        raise ValueError(f'Got {len(images)} images and {len(targets)} targets.')
    if len(images) < model.smallest_batch and _trains_batch_norm(model):
        raise ValueError(_BATCH_OF_ONE.format(what='the last feature map has one pixel'))
    for i, target in enumerate(targets):
        _check_target(target, _which(i, target), model.num_classes)


def _check_target(target: Mapping, which: str, num_classes: int) -> None:
    boxes, labels = target.get('boxes'), target.get('labels')
    if not isinstance(boxes, torch.Tensor) or boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(
            f"The target of {which} must have 'boxes' of shape (N, 4); an image without objects has (0, 4)."
        )
    if not isinstance(labels, torch.Tensor) or labels.shape != boxes.shape[:1]:
        raise ValueError(f'The target of {which} must have a label for each of its {len(boxes)} boxes.')
    if not len(boxes):
        return
    if labels.min() < 1 or labels.max() >= num_classes:
        wrong = sorted({int(label) for label in labels if not 1 <= label < num_classes})
        raise ValueError(
            f'{which} has the label{"s" * (len(wrong) > 1)} {", ".join(map(str, wrong[:5]))}; labels must be in '
            f'1..{num_classes - 1} for num_classes={num_classes}, since 0 is the background.'
        )
    if not bool(boxes.isfinite().all()):
        raise ValueError(f'{which} has boxes with coordinates that are not finite.')
    flat = (boxes[:, 2:] <= boxes[:, :2]).any(dim=1)
    if flat.any():
        box = ', '.join(f'{x:g}' for x in boxes[flat][0].tolist())
        raise ValueError(f'{which} has a box without area: ({box}). Boxes are (x1, y1, x2, y2) with x1 < x2, y1 < y2.')


def _which(index: int, target: Mapping) -> str:
    image = target.get('image_id') if isinstance(target, Mapping) else None
    if image is None:
        return f'image {index} of the batch'
    return f'image {index} of the batch (image_id {image.item() if isinstance(image, torch.Tensor) else image})'


def _check_segmentation(model: nn.Module, args: tuple) -> None:
    if model.training and args and len(args[0]) == 1 and _trains_batch_norm(model.classifier):
        raise ValueError(_BATCH_OF_ONE.format(what='the pooled branch has one pixel'))


_BATCH_OF_ONE = (
    'A batch of one image cannot be trained: {what}, so that its batch norm has nothing to normalize over. Use a batch '
    'size of 2 or more, and drop_last=True in the DataLoader.'
)


def _trains_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(module, BatchNormBase) and module.training for module in model.modules())
