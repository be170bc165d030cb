"""Detections and objects in the formats of COCO, and average precision as COCO defines it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .image_results import ImageResult, import_extra

# exact, since the defaults of torchmetrics are rounded to float32, which moves the AP of small sets
_IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10).tolist()
_RECALLS = np.linspace(0, 1, 101).tolist()

_NUMBERS = {
    'AP': 'map',
    'AP50': 'map_50',
    'AP75': 'map_75',
    'APs': 'map_small',
    'APm': 'map_medium',
    'APl': 'map_large',
    'AR1': 'mar_1',
    'AR10': 'mar_10',
    'AR100': 'mar_100',
}


def coco_average_precision(images: Sequence[ImageResult], classes: Sequence[str], masks: bool) -> dict[str, Any]:
    """Average precision and recall, equal to those of COCOeval on :func:`coco_annotations` and :func:`coco_results`.

    Args:
        images: The images in the order of their ids.
        classes: Names of the classes without background.
        masks: Whether to add the numbers of the masks.

    Returns:
        As for ``DetectionMetric.compute``, without the counts.

    Raises:
        ImportError: If the packages of the extra ``dense`` are missing.
    """
    labels = np.unique(np.concatenate([[], *(x['labels'] for image in images for x in (image.truth, image.found))]))
    prefixes = {'bbox': '', 'segm': 'mask_'} if masks else {'bbox': ''}
    values = _run_torchmetrics(images, tuple(prefixes)) if len(labels) else {}
    numbers: dict[str, Any] = {}
    for iou_type, prefix in prefixes.items():
        theirs = f'{iou_type}_' if masks else ''
        numbers |= {prefix + ours: _known(values.get(theirs + name)) for ours, name in _NUMBERS.items()}
        of_class = dict.fromkeys(classes)
        for k, label in enumerate(labels):
            precision = values[f'{theirs}precision'][:, :, k, 0, -1]  # thresholds, recalls, class, any area, most found
            of_class[classes[int(label) - 1]] = _known(precision.mean())
        numbers[f'{prefix}AP_per_class'] = of_class
    return numbers


def _run_torchmetrics(images: Sequence[ImageResult], iou_types: tuple[str, ...]) -> dict[str, Tensor]:
    metric = import_extra('torchmetrics.detection').MeanAveragePrecision(
        iou_type=iou_types,
        iou_thresholds=_IOU_THRESHOLDS,
        rec_thresholds=_RECALLS,
        extended_summary=True,  # has the precision of each class
        backend='faster_coco_eval',
        sync_on_compute=False,  # the images are those of all processes already
    )
    metric.warn_on_many_detections = False  # COCO takes the best 100 of each class, which is no accident
    for image in images:
        truth = {key: torch.from_numpy(value) for key, value in image.truth.items()}
        found = {key: torch.from_numpy(value) for key, value in image.found.items()}
        truth['area'] = truth['area'].clamp(min=1e-9)  # torchmetrics takes zero for an unknown area
        if image.size:
            truth['masks'] = _decode(image.truth_masks, image.size)
            found['masks'] = _decode(image.found_masks, image.size)
        metric.update([found], [truth])
    return metric.compute()


def _known(value: Tensor | None) -> float | None:
    """A value in float32, in which perfect is exactly 1; None for the -1 that stands for nothing to find."""
    return None if value is None or value < 0 else float(value.float())


def _decode(masks: list[dict] | None, size: tuple[int, int]) -> Tensor:
    if not masks:
        return torch.zeros(0, *size, dtype=torch.uint8)
    return torch.from_numpy(import_extra('faster_coco_eval.core.mask').decode(masks)).permute(2, 0, 1)


def coco_annotations(
    images: Sequence[ImageResult],
    classes: Sequence[str],
    category_ids: Sequence[int],
    file_names: Mapping[int, str] | None = None,
) -> dict[str, Any]:
    """The objects as the content of an annotation file of COCO.

    Args:
        images: The images.
        classes: Names of the classes without background.
        category_ids: Id of each class in the file.
        file_names: File name by image id, for those that are known.

    Returns:
        What ``json.dump`` writes. Masks are compressed run-length codes.
    """
    names = file_names or {}
    records = []
    annotations: list[dict[str, Any]] = []
    for image in images:
        record: dict[str, Any] = {'id': image.image_id}
        if image.image_id in names:
            record['file_name'] = names[image.image_id]
        if image.size:
            record['height'], record['width'] = image.size
        records.append(record)
        truth = image.truth
        for i, box in enumerate(_xywh(truth['boxes'])):
            annotation = {
                'id': len(annotations) + 1,  # COCOeval takes 0 for not matched
                'image_id': image.image_id,
                'category_id': category_ids[truth['labels'][i] - 1],
                'bbox': box,
                'area': float(truth['area'][i]),
                'iscrowd': int(truth['iscrowd'][i]),
            }
            if image.truth_masks is not None:
                annotation['segmentation'] = _as_text(image.truth_masks[i])
            annotations.append(annotation)
    return {
        'info': {'description': 'Objects by timm-attn'},  # pycocotools needs the key
        'images': records,
        'annotations': annotations,
        'categories': [{'id': i, 'name': name} for i, name in zip(category_ids, classes, strict=True)],
    }


def coco_results(images: Sequence[ImageResult], category_ids: Sequence[int], masks: bool = False) -> list[dict]:
    """The detections as the content of a results file of COCO.

    Args:
        images: The images.
        category_ids: Id of each class in the file.
        masks: Write masks, and no boxes: COCOeval would take the area of the box for that of the mask.

    Returns:
        What ``json.dump`` writes.
    """
    results = []
    for image in images:
        found = image.found
        boxes = _xywh(found['boxes'])
        for i, (label, score) in enumerate(zip(found['labels'], found['scores'], strict=True)):
            result = {'image_id': image.image_id, 'category_id': category_ids[label - 1], 'score': float(score)}
            if masks:
                assert image.found_masks is not None
                result['segmentation'] = _as_text(image.found_masks[i])
            else:
                result['bbox'] = boxes[i]
            results.append(result)
    return results


def _xywh(boxes: np.ndarray) -> list[list[float]]:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()


def _as_text(rle: dict) -> dict:
    return {'size': list(rle['size']), 'counts': rle['counts'].decode('ascii')}
