"""Data sets for detection and segmentation: readers, a check before training, and transforms.

A reader returns :class:`Annotations`, a data set makes targets of them::

    annotations = read_coco('instances_train2017.json', 'train2017')
    report = check(annotations)  # prints as a list of defects
    train = DetectionDataset(report.valid, train=True, transforms=ssd_transforms())

:func:`open_detection` and :func:`open_segmentation` find out by the layout of a folder which reader it needs.
"""

from .batches import EpochBatches, aspect_ratio_groups
from .check import Report, check
from .coco import read_coco
from .datasets import DetectionDataset, SegmentationDataset, collate
from .files import read_lines
from .image_masks import read_image_masks
from .mask_coding import MaskCoding
from .open import check_pair, open_detection, open_segmentation
from .records import Annotations, Defect, ImageRecord, InvalidDatasetError, InvalidRecord, Objects
from .transforms import eval_transforms, rcnn_transforms, segmentation_transforms, ssd_transforms
from .voc import read_voc

__all__ = [
    'Annotations',
    'Defect',
    'DetectionDataset',
    'EpochBatches',
    'ImageRecord',
    'InvalidDatasetError',
    'InvalidRecord',
    'MaskCoding',
    'Objects',
    'Report',
    'SegmentationDataset',
    'aspect_ratio_groups',
    'check',
    'check_pair',
    'collate',
    'eval_transforms',
    'open_detection',
    'open_segmentation',
    'rcnn_transforms',
    'read_coco',
    'read_image_masks',
    'read_lines',
    'read_voc',
    'segmentation_transforms',
    'ssd_transforms',
]
