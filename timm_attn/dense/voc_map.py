"""Average precision by the rules of PASCAL VOC."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torchvision.ops import box_iou

from .image_results import ImageResult

VocRule = Literal['voc07', 'voc10']

_IOU_THRESHOLD = 0.5
_RECALLS = np.arange(0.0, 1.1, 0.1)  # 0.3, 0.6 and 0.7 one rounding error too large, as evaluators in Python have them


def voc_average_precision(
    images: Sequence[ImageResult], num_classes: int, rule: VocRule = 'voc07'
) -> list[float | None]:
    """Average precision of each class as the development kit of PASCAL VOC defines it.

    Boxes are read as (first column, first row, last column, last row), so that a pixel is added to their sides. Every
    detection, the best first, belongs to the object of its class and image with which its IoU is largest. It is
    correct if that IoU is at least 0.5 and nothing found the object before. If the object is difficult, or a crowd,
    the detection counts neither way.

    Detections of equal score keep the order of ``images``, and within an image that of the detector. (The kit keeps the
    order of its file; the evaluator of chainercv leaves it to a sort that is not stable.)

    Args:
        images: The images, in an order that does not depend on how they were loaded.
        num_classes: Number of classes without background.
        rule: ``'voc07'`` for the mean of the precision at the 11 recalls 0, 0.1, ..., 1, as until 2009; ``'voc10'`` for
            the area under the curve, as since 2010. The precision at a recall is the largest there or at any above.

    Returns:
        Values from 0 to 1, the first for label 1; None for a class without objects to find.
    """
    truth_labels = _concatenate([image.truth['labels'] for image in images])
    ignored = _concatenate([image.truth['difficult'] | image.truth['iscrowd'] for image in images]).astype(bool)
    labels = _concatenate([image.found['labels'] for image in images])
    scores = _concatenate([image.found['scores'] for image in images])
    starts = np.cumsum([0, *(len(image.truth['labels']) for image in images)])
    objects = _concatenate([_assign(image, start) for image, start in zip(images, starts, strict=False)]).astype(int)

    precisions: list[float | None] = []
    for label in range(1, num_classes + 1):
        num_objects = np.count_nonzero((truth_labels == label) & ~ignored)
        if not num_objects:
            precisions.append(None)
            continue
        of_class = np.flatnonzero(labels == label)
        found = objects[of_class[np.argsort(-scores[of_class], kind='stable')]]
        found = found[(found < 0) | ~ignored[found]]
        correct = np.zeros(len(found), dtype=bool)
        correct[np.unique(found, return_index=True)[1]] = True  # the first detection of each object
        hits = np.cumsum(correct & (found >= 0))
        recall = hits / num_objects
        precision = hits / np.arange(1, len(found) + 1)
        precision = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0)  # 0 where a recall is not reached
        if rule == 'voc07':
            precisions.append(float(precision[np.searchsorted(recall, _RECALLS)].mean()))
        else:
            precisions.append(float(np.diff(recall, prepend=0) @ precision[:-1]))
    return precisions


def _assign(image: ImageResult, start: int) -> np.ndarray:
    """Object that each detection belongs to, counted from ``start``; -1 for none."""
    found, truth = image.found, image.truth
    if not len(truth['labels']):
        return np.full(len(found['labels']), -1)
    pixel = torch.tensor([0, 0, 1, 1])
    iou = box_iou(torch.from_numpy(found['boxes']) + pixel, torch.from_numpy(truth['boxes']) + pixel).numpy()
    iou = np.where(found['labels'][:, None] == truth['labels'], iou, -1)
    return np.where(iou.max(axis=1) >= _IOU_THRESHOLD, iou.argmax(axis=1) + start, -1)


def _concatenate(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(0)
