"""Metrics of detectors and segmenters, the same for any order of the images and any number of processes."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .coco_results import coco_annotations, coco_average_precision, coco_results
from .data.records import check_classes
from .image_results import ImageResult
from .voc_map import VocRule, voc_average_precision

__all__ = ['DetectionMetric', 'SegmentationMetric']

T = TypeVar('T')


class DetectionMetric:
    """Average precision (AP) of a detector.

    The metric keeps the objects and detections of every image on the CPU, masks as run-length codes, and evaluates them
    in the order of their ids. So the numbers depend neither on the order of the images, which decides between
    detections of equal score, nor on how processes share them. An image that several of them have seen, because a
    sampler filled up their shares, counts once, as the first process saw it.

    With ``torch.distributed``, :meth:`compute`, :meth:`compute_voc` and :meth:`gather` must be called by all processes,
    and give each of them the result for all images.

    Args:
        classes: Names of the classes without background; label 1 is the first.
        masks: Whether to evaluate masks, too.
        category_ids: Id of each class in its data set, for the files of COCO; by default the labels.

    Raises:
        ValueError: If there are no classes, or names or ids are not unique, or not as many.
    """

    def __init__(self, classes: Sequence[str], masks: bool = False, category_ids: Sequence[int] | None = None) -> None:
        self.classes = list(check_classes(classes))
        self.masks = masks
        self.category_ids = list(range(1, len(self.classes) + 1) if category_ids is None else category_ids)
        if not len(self.classes) == len(self.category_ids) == len(set(self.category_ids)):
            raise ValueError(
                f'category_ids needs {len(self.classes)} different numbers, one for each class; got '
                f'{len(self.category_ids)}, {len(set(self.category_ids))} of them different.'
            )
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._images: dict[int, ImageResult] = {}
        self._gathered = False

    def update(self, predictions: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Any]]) -> None:
        """Add the images of a batch.

        Boxes are (x1, y1, x2, y2) in pixels of the original image, not of the one that the network saw.

        Args:
            predictions: As torchvision's detectors return them: ``boxes`` (M, 4), ``labels`` (M) and ``scores`` (M);
                with masks ``masks`` (M, 1, H, W), probabilities that count from above 0.5.
            targets: ``image_id``, which no other image has, ``boxes`` (N, 4) and ``labels`` (N); with masks ``masks``
                (N, H, W) of 0 and 1. ``area`` (N) in square pixels is that of the boxes where it is missing;
                ``iscrowd`` (N) and ``difficult`` (N) are zero. COCO knows no difficult objects: only
                :meth:`compute_voc` leaves them out.

        Raises:
            ValueError: If predictions and targets are not as many, a key is missing, shapes do not agree, boxes or
                scores are not finite, a label is no class, two different images have one id, or an image was added
                before with other predictions, as without :meth:`reset`. Nothing of the batch is added then.
            ImportError: If masks are given and the packages of the extra ``dense`` are missing.
        """
        for what, values in (('predictions', predictions), ('targets', targets)):
            if isinstance(values, Mapping):
                raise ValueError(f'{what} must be a list with a dict for each image, not one dict.')
        if len(predictions) != len(targets):
            raise ValueError(
                f'There must be one prediction for each target; got {len(predictions)} and {len(targets)}.'
            )
        num_classes = len(self.classes)
        batch = [ImageResult.of(p, t, num_classes, self.masks) for p, t in zip(predictions, targets, strict=True)]
        for image in batch:
            known = self._images.get(image.image_id)
            if known is not None and known.same_image(image) and not known.same_found(image):
                raise ValueError(
                    f'The image {image.image_id} was added before, with other predictions. Call reset() before each '
                    'evaluation.'
                )
        _add(self._images, batch)
        self._gathered = False

    def gather(self) -> None:
        """Collect the images of all processes in each of them; without ``torch.distributed`` nothing happens.

        Raises:
            ValueError: If two different images have one id.
        """
        images: dict[int, ImageResult] = {}
        for of_process in _all_processes(self._images):
            _add(images, of_process.values())
        self._images = images
        self._gathered = True

    def compute(self) -> dict[str, Any]:
        """AP and average recall (AR) as COCO defines them, equal to those of pycocotools' COCOeval on the files.

        All values are from 0 to 1, the larger the better. **None stands for nothing to find**: no object of that class
        or size is in the data. What an empty prediction earns is 0. Crowds are not objects to find, and detections in
        them count neither way.

        Returns:
            By name, those of masks with ``mask_`` before it:

            - ``AP``: area under the curve of precision over recall (101 points), mean over the IoU thresholds 0.50,
              0.55, ..., 0.95, mean over the classes that have objects. ``AP50``, ``AP75``: at that IoU threshold.
            - ``APs``, ``APm``, ``APl``: AP of objects with an ``area`` up to 32^2, from there to 96^2, and above, in
              square pixels.
            - ``AR1``, ``AR10``, ``AR100``: recall with that many detections for each image and class, mean over IoU
              thresholds and classes.
            - ``AP_per_class``: AP of each class by name.
            - ``images``, ``objects``: numbers of images, and of objects that are no crowds.

            See https://cocodataset.org/#detection-eval.

        Raises:
            ImportError: If the packages of the extra ``dense`` are missing.
            ValueError: As for :meth:`gather`.
        """
        self.gather()
        numbers = coco_average_precision(self._sorted(), self.classes, self.masks)
        objects = sum(int((~image.truth['iscrowd']).sum()) for image in self._images.values())
        return {**numbers, 'images': len(self._images), 'objects': objects}

    def compute_voc(self, rule: VocRule = 'voc07') -> dict[str, Any]:
        """Mean average precision of boxes as the development kit of PASCAL VOC defines it.

        It is not ``AP50`` of :meth:`compute`, which follows other rules. The boxes are taken for VOC's
        own, whose last column and row belong to the object: a pixel is added to both sides. Difficult objects and
        crowds are left out, with the detections that belong to them.

        Args:
            rule: ``'voc07'`` for 11 recalls, the metric of VOC 2007, in which results on its test set are published;
                ``'voc10'`` for the area under the curve, the metric since 2010.

        Returns:
            ``mAP_voc07`` (or ``mAP_voc10``): mean over the classes that have objects, from 0 to 1; None without any.
            ``AP_voc07_per_class``: by name; None for a class without objects. ``images`` and ``objects``: numbers of
            images, and of objects to find.

            See section 4.2 of Everingham et al., The PASCAL Visual Object Classes (VOC) Challenge, IJCV 88, 2010.

        Raises:
            ValueError: If the rule is another, or as for :meth:`gather`.
        """
        if rule not in ('voc07', 'voc10'):
            raise ValueError(f"rule must be 'voc07' or 'voc10', not {rule!r}.")
        self.gather()
        of_class = voc_average_precision(self._sorted(), len(self.classes), rule)
        truths = [image.truth for image in self._images.values()]
        return {
            f'mAP_{rule}': _mean(of_class),
            f'AP_{rule}_per_class': dict(zip(self.classes, of_class, strict=True)),
            'images': len(truths),
            'objects': sum(int((~truth['difficult'] & ~truth['iscrowd']).sum()) for truth in truths),
        }

    def coco_annotations(self, file_names: Mapping[int, str] | None = None) -> dict[str, Any]:
        """The objects of all images as the content of an annotation file of COCO (``instances_*.json``).

        Args:
            file_names: File name by image id, for those that are known.

        Returns:
            What ``json.dump`` writes, with the ids of images and categories that the data set has. Masks are compressed
            run-length codes.

        Raises:
            RuntimeError: If there are several processes and the images were not gathered.
        """
        return coco_annotations(self._sorted(), self.classes, self.category_ids, file_names)

    def coco_results(self, masks: bool = False) -> list[dict[str, Any]]:
        """The detections of all images as the content of a results file of COCO.

        Args:
            masks: Write masks, for COCOeval of type ``segm``, instead of boxes, for ``bbox``. One file has only one of
                them: COCOeval would sort masks into small, medium and large by the area of their boxes.

        Returns:
            What ``json.dump`` writes.

        Raises:
            RuntimeError: If there are several processes and the images were not gathered.
            ValueError: If masks are wanted, but the metric does not keep them.
        """
        if masks and not self.masks:
            raise ValueError('This metric keeps no masks. Create it with masks=True.')
        return coco_results(self._sorted(), self.category_ids, masks)

    def _sorted(self) -> list[ImageResult]:
        if not self._gathered and _num_processes() > 1:
            raise RuntimeError('Each process has only its own images yet. Call gather() in all of them first.')
        return [self._images[image_id] for image_id in sorted(self._images)]


class SegmentationMetric:
    """Mean intersection over union (mIoU) and accuracy of a segmenter.

    The metric counts pixels by true and predicted class, as whole numbers, so that neither the order of the images nor
    the number of processes matters. With ``torch.distributed``, :meth:`compute` must be called by all processes. It
    cannot tell whether two of them saw the same image: a sampler must not fill up their shares (in accelerate
    ``even_batches=False``).

    Args:
        classes: Names of all classes, that of the background included, if it is one; class 0 is the first.
        ignore_index: Value of the pixels of masks that do not count, such as 255, or 11 for CamVid; no class.

    Raises:
        ValueError: If there are no classes, their names are not unique, or ``ignore_index`` is one of them.
    """

    def __init__(self, classes: Sequence[str], ignore_index: int = 255) -> None:
        self.classes = list(check_classes(classes))
        if 0 <= ignore_index < len(self.classes):
            raise ValueError(
                f'ignore_index={ignore_index} is the class {self.classes[ignore_index]!r}. Choose a number that is no '
                f'class, {len(self.classes)} or above.'
            )
        self.ignore_index = ignore_index
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._pixels = torch.zeros(len(self.classes), len(self.classes), dtype=torch.int64)  # true, predicted

    def update(self, predictions: Tensor, masks: Tensor) -> None:
        """Add the images of a batch.

        Args:
            predictions: Logits (B, C, H, W), of which the largest counts, or classes (B, H, W) as whole numbers.
            masks: True classes (B, H, W) as whole numbers, with ``ignore_index`` where a pixel does not count.

        Raises:
            ValueError: If shapes do not agree, logits contain NaN, or a value is no class. Nothing is added then.
        """
        num_classes = len(self.classes)
        if isinstance(predictions, Mapping):
            raise ValueError(
                "predictions must be a tensor, not a dict: of torchvision's segmenters pass output['out']."
            )
        if masks.ndim != 3 or masks.is_floating_point():
            raise ValueError(f'masks must be whole numbers of shape (B, H, W), not {masks.dtype} {_shape(masks)}.')
        if predictions.ndim == 4:
            if predictions.shape[1] != num_classes:
                raise ValueError(
                    f'The logits have {predictions.shape[1]} channels; {num_classes} classes need {num_classes}.'
                )
            if predictions.isnan().any():
                raise ValueError('The logits contain NaN.')
            predictions = predictions.argmax(dim=1)
        elif predictions.ndim != 3 or predictions.is_floating_point():
            raise ValueError(
                'predictions must be logits of shape (B, C, H, W), or classes as whole numbers of shape (B, H, W); got '
                f'{predictions.dtype} {_shape(predictions)}.'
            )
        if predictions.shape != masks.shape:
            raise ValueError(
                f'The predictions have shape {_shape(predictions)} and the masks {_shape(masks)}. Resize the logits to '
                'the size of the masks.'
            )
        predictions, masks = predictions.long(), masks.to(predictions.device, torch.int64)
        counts = masks != self.ignore_index
        for what, values in (('The predictions', predictions), ('The masks', masks[counts])):
            wrong = values[(values < 0) | (values >= num_classes)]
            if len(wrong):
                ignored = ' It is ignored in masks, but a prediction must be a class.' * (wrong[0] == self.ignore_index)
                raise ValueError(
                    f'{what} contain {int(wrong[0])}; the {num_classes} classes are 0 to {num_classes - 1}.{ignored}'
                )
        pairs = masks[counts] * num_classes + predictions[counts]
        self._pixels += torch.bincount(pairs, minlength=num_classes**2).view_as(self._pixels).cpu()

    def compute(self) -> dict[str, Any]:
        """Intersection over union (IoU) and accuracy of all pixels that count, of all images together.

        All values are from 0 to 1. **None stands for nothing to measure**, and is left out of the means.

        Returns:
            By name:

            - ``mIoU``: mean of the IoU of the classes.
            - ``pixel_accuracy``: share of the pixels whose class is right.
            - ``class_accuracy``: mean over the classes that occur of the share of their pixels that is right.
            - ``IoU_per_class``: by name, pixels that are rightly of the class / pixels that are or were predicted of
              it; None for a class that neither occurs nor was predicted. One that was predicted but does not occur has
              0.
            - ``pixels``: number of pixels that count.

            IoU is that of PASCAL VOC's segmentation task (section 4.3 of Everingham et al., IJCV 111, 2015); the means
            are those of Long et al., Fully Convolutional Networks, CVPR 2015, section 5.
        """
        pixels = torch.stack(_all_processes(self._pixels)).sum(dim=0)
        right, true, predicted = pixels.diag(), pixels.sum(dim=1), pixels.sum(dim=0)
        iou = _ratios(right, true + predicted - right)
        return {
            'mIoU': _mean(iou),
            'pixel_accuracy': _ratios(right.sum()[None], pixels.sum()[None])[0],
            'class_accuracy': _mean(_ratios(right, true)),
            'IoU_per_class': dict(zip(self.classes, iou, strict=True)),
            'pixels': int(pixels.sum()),
        }


def _add(images: dict[int, ImageResult], new: Iterable[ImageResult]) -> None:
    """Add images that are not known yet: all or, if two different ones have one id, none."""
    added: dict[int, ImageResult] = {}
    for image in new:
        known = images.get(image.image_id) or added.setdefault(image.image_id, image)
        if not known.same_image(image):
            raise ValueError(
                f'Two different images have the id {image.image_id}: their objects differ. Each image needs '
                "an 'image_id' of its own."
            )
    images |= added


def _num_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _all_processes(value: T) -> list[T]:
    """The value in each process."""
    values = [value] * _num_processes()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def _ratios(parts: Tensor, wholes: Tensor) -> list[float | None]:
    return [part / whole if whole else None for part, whole in zip(parts.tolist(), wholes.tolist(), strict=True)]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
