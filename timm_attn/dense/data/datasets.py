"""Torch data sets of annotated images, in the forms that torchvision's detectors and segmenters take."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from .images import load_image, load_mask
from .outlines import to_mask
from .records import Annotations, ImageRecord, InvalidDatasetError

Transforms = Callable[[Any, Any], tuple[Any, Any]]


def _check_type(annotations: Any) -> None:
    if not isinstance(annotations, Annotations):
        hint = '; of a report pass report.valid' if hasattr(annotations, 'valid') else ''
        raise TypeError(f'annotations must be what a reader returned, not {type(annotations).__name__}{hint}.')


class _AnnotatedImages(Dataset):
    """What the data sets of both tasks share.

    Attributes:
        classes: As in :class:`Annotations`.
        category_ids: As in :class:`Annotations`.
        skipped: Number of defects of each kind that the reader left out.
    """

    def __init__(self, annotations: Annotations, transforms: Transforms | None, skip_invalid: bool) -> None:
        if annotations.defects and not skip_invalid:
            raise InvalidDatasetError(annotations.source, annotations.defects)
        self.classes = annotations.classes
        self.category_ids = annotations.category_ids
        self.skipped = Counter(defect.kind for defect in annotations.defects)
        self.transforms = transforms
        self._records = annotations.records
        self._keep = self._select(annotations)
        if not len(self._keep):
            raise ValueError(f'No image of {annotations.source!r} is left: all have defects, or no object to train on.')

    def _select(self, annotations: Annotations) -> np.ndarray:
        """Indices of the records to use."""
        return np.arange(len(annotations.records))

    def __len__(self) -> int:
        return len(self._keep)

    def record(self, index: int) -> ImageRecord:
        """The record of an image, without opening it."""
        return self._records[self._keep[range(len(self))[index]]]

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        image, target = self._load(self.record(index))
        return (image, target) if self.transforms is None else self.transforms(image, target)

    def _load(self, record: ImageRecord) -> tuple[tv_tensors.Image, Any]:
        raise NotImplementedError


class DetectionDataset(_AnnotatedImages):
    """Images with boxes, as ``(image, target)``.

    The image is a ``tv_tensors.Image`` (3, H, W), uint8. The target is a dict, of the same shapes for an image without
    objects (N = 0):

    - ``boxes``: ``tv_tensors.BoundingBoxes`` (N, 4), float32, (x1, y1, x2, y2) in pixels.
    - ``labels``: (N), int64, 1 for the first of ``classes``; 0 is the background.
    - ``image_id``: int.
    - ``area``: (N), float32, in square pixels; COCO means that of the mask.
    - ``iscrowd`` and ``difficult``: (N), int64.
    - ``masks``: ``tv_tensors.Mask`` (N, H, W), uint8, if the annotations were read with masks.

    Args:
        annotations: What :func:`read_coco` or :func:`read_voc` returned.
        train: Whether to leave out what a detector is not trained on: crowds, and as the next arguments say. In
            evaluation everything is there, with its flags.
        transforms: Called with image and target, such as :func:`ssd_transforms`.
        drop_difficult: Whether training leaves out difficult objects.
        drop_empty: Whether training leaves out images in which no object is left.
        skip_invalid: Whether to leave out what the reader found to have a defect, instead of raising an error. Damaged
            images show only when they are opened: ``check(annotations).valid`` is without them, too.

    Raises:
        InvalidDatasetError: If the annotations have defects, and ``skip_invalid`` is not set.
        ValueError: If no image is left, or the annotations are masks of class ids. Getting an image raises one, too, if
            the image is not as annotated; :func:`check` finds these beforehand.
    """

    def __init__(
        self,
        annotations: Annotations,
        train: bool,
        transforms: Transforms | None = None,
        drop_difficult: bool = True,
        drop_empty: bool = True,
        skip_invalid: bool = False,
    ) -> None:
        _check_type(annotations)
        if annotations.mask_coding is not None:
            raise ValueError(f'{annotations.source!r} was read with masks of class ids: use SegmentationDataset.')
        self.has_masks = annotations.has_masks
        self._train = train
        self._drop_difficult = drop_difficult
        self._drop_empty = drop_empty
        super().__init__(annotations, transforms, skip_invalid)

    def _select(self, annotations: Annotations) -> np.ndarray:
        if not (self._train and self._drop_empty):
            return super()._select(annotations)
        return np.flatnonzero([self._wanted(record).any() for record in annotations.records])

    def _wanted(self, record: ImageRecord) -> np.ndarray:
        """Which objects of a record are part of the target."""
        objects = record.objects
        if not self._train:
            return np.ones(len(objects), dtype=bool)
        return (objects.iscrowd == 0) & ((objects.difficult == 0) | (not self._drop_difficult))

    def _load(self, record: ImageRecord) -> tuple[tv_tensors.Image, dict[str, Any]]:
        image = tv_tensors.Image(load_image(record.image, record.size))
        size = tuple(image.shape[-2:])
        objects = record.objects.select(self._wanted(record))
        target = {
            'boxes': tv_tensors.BoundingBoxes(torch.from_numpy(objects.boxes).float(), format='XYXY', canvas_size=size),
            'labels': torch.from_numpy(objects.labels),
            'image_id': record.image_id,
            'area': torch.from_numpy(objects.area).float(),
            'iscrowd': torch.from_numpy(objects.iscrowd),
            'difficult': torch.from_numpy(objects.difficult),
        }
        if self.has_masks:
            masks = torch.zeros(len(objects), *size, dtype=torch.uint8)
            for mask, segmentation in zip(masks, objects.segmentations or (), strict=True):
                mask.copy_(torch.from_numpy(to_mask(segmentation, size)))
            target['masks'] = tv_tensors.Mask(masks)
        return image, target


class SegmentationDataset(_AnnotatedImages):
    """Images with masks of class ids, as ``(image, mask)``.

    The image is a ``tv_tensors.Image`` (3, H, W), uint8, the mask a ``tv_tensors.Mask`` (H, W), int64.

    Attributes:
        ignore_index: Value of pixels that count neither in training nor in evaluation.

    Args:
        annotations: What :func:`read_image_masks` returned.
        transforms: Called with image and mask, such as :func:`segmentation_transforms`.
        skip_invalid: Whether to leave out what the reader found to have a defect, instead of raising an error. Damaged
            images show only when they are opened: ``check(annotations).valid`` is without them, too.

    Raises:
        InvalidDatasetError: If the annotations have defects, and ``skip_invalid`` is not set.
        ValueError: If no image is left, or the annotations are boxes. Getting an image raises one, too, if it cannot be
            used; :func:`check` finds these beforehand.
    """

    def __init__(
        self, annotations: Annotations, transforms: Transforms | None = None, skip_invalid: bool = False
    ) -> None:
        _check_type(annotations)
        if annotations.mask_coding is None:
            raise ValueError(f'{annotations.source!r} was read with boxes: use DetectionDataset.')
        self._coding = annotations.mask_coding
        self.ignore_index = self._coding.ignore_index
        super().__init__(annotations, transforms, skip_invalid)

    def _load(self, record: ImageRecord) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        mask = torch.from_numpy(load_mask(record.mask, self._coding))
        image = load_image(record.image, tuple(mask.shape), record.mask)
        return tv_tensors.Image(image), tv_tensors.Mask(mask)


def collate(batch: Sequence[tuple[Tensor, Any]]) -> tuple[list[Tensor], list[Any]]:
    """Put the images and the targets of a batch into one list each: images of a detector differ in size."""
    images, targets = zip(*batch, strict=True)
    return list(images), list(targets)
