"""Augmentation and conversion of annotated images; all of it is torchvision's."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

_PER_BOX = ('labels', 'area', 'iscrowd', 'difficult')


def ssd_transforms(mean: Sequence[float] = IMAGENET_DEFAULT_MEAN) -> v2.Compose:
    """Augmentation of SSD: distorted colours, a larger canvas, a crop around objects, and a mirror image.

    The crop keeps an overlap (IoU) with one object of at least 0.1, 0.3, 0.7, 0.9 or any, or is the whole image, as for
    the published SSDLite with coordinate attention. Objects whose centres are outside are dropped, so that an image may
    be left without any.

    Image and target are those of :class:`DetectionDataset`. The image becomes a float tensor from 0 to 1; resizing and
    normalization are the model's. ``area`` keeps its value for the image as annotated: it is for evaluation only.

    Args:
        mean: Colour of the canvas, from 0 to 1.
    """
    return v2.Compose(
        [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(fill={tv_tensors.Image: [round(255 * m) for m in mean], 'others': 0}),
            v2.RandomIoUCrop(sampler_options=[0.0, 0.1, 0.3, 0.7, 0.9, 1.0]),
            *_flip_and_clean(),
            *_to_float(),
        ]
    )


def rcnn_transforms() -> v2.Compose:
    """Augmentation of Faster and Mask R-CNN: a mirror image. The rest is as for :func:`ssd_transforms`."""
    return v2.Compose([*_flip_and_clean(), *_to_float()])


def segmentation_transforms(
    size: int,
    ignore_index: int = 255,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
) -> v2.Compose:
    """Augmentation of segmenters: a shorter side of 0.5 to 2 times the crop, a mirror image, and a square crop.

    Image and mask are those of :class:`SegmentationDataset`. The image becomes a normalized float tensor.

    Args:
        size: Side of the crop in pixels.
        ignore_index: Fills the mask where the image is smaller than the crop; the image is filled with ``mean``.
        mean: Mean of the model's input, from 0 to 1.
        std: Standard deviation of the model's input.
    """
    fill = {tv_tensors.Image: [round(255 * m) for m in mean], tv_tensors.Mask: ignore_index}
    return v2.Compose(
        [
            v2.RandomResize(min_size=size // 2, max_size=2 * size + 1),
            v2.RandomHorizontalFlip(),
            v2.RandomCrop(size, pad_if_needed=True, fill=fill),
            *_to_float(mean, std),
        ]
    )


def eval_transforms(mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> v2.Compose:
    """Conversion of images to float tensors from 0 to 1, without augmentation.

    Args:
        mean: Mean of the input of a segmenter. Detectors normalize by themselves: leave it and ``std`` out.
        std: Standard deviation of the input of a segmenter.
    """
    return v2.Compose(_to_float(mean, std))


def _flip_and_clean() -> list[nn.Module]:
    """A mirror image, and no boxes that a network cannot be trained on."""
    return [
        v2.RandomHorizontalFlip(),
        v2.ClampBoundingBoxes(),
        v2.SanitizeBoundingBoxes(labels_getter=_fields_of_boxes),
    ]


def _fields_of_boxes(sample: tuple[Any, dict[str, Any]]) -> list[Tensor]:
    """What must lose a row with each box; masks do by themselves."""
    return [sample[1][name] for name in _PER_BOX]


def _to_float(mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> list[nn.Module]:
    normalize = [v2.Normalize(list(mean), list(std))] if mean and std else []
    return [v2.ToDtype(torch.float32, scale=True), *normalize, v2.ToPureTensor()]
