"""What a training run does differently for detection and for segmentation: data, model, losses and results."""

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from ..train.dense_options import FILES
from ..train.log import Metric
from ..train.options import RunError
from ..train.start import explained
from ..whole_file import write_json
from .builders import BUILDERS
from .data import (
    Annotations,
    DetectionDataset,
    SegmentationDataset,
    aspect_ratio_groups,
    eval_transforms,
    open_detection,
    open_segmentation,
    rcnn_transforms,
    read_lines,
    segmentation_transforms,
    ssd_transforms,
)
from .draw import TILE, draw_class_map, draw_detections
from .features import maps_of
from .metrics import DetectionMetric, SegmentationMetric

_NUMBERS = ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl', 'AR100')
_SAMPLES = 4  # pictures after each validation

Loss = dict[str, Tensor]
Sample = tuple[int, Tensor, Tensor]
"""Index of an image in its data set, and two pictures (3, H, W): of the truth and of the prediction."""


class Task(ABC):
    """Part of a training run that depends on the task.

    Args:
        args: Options of the command.

    Attributes:
        metric: What decides which epoch is the best.
        samples: Pictures of the last evaluation.
        details: Numbers of the last evaluation, with those of each class.
    """

    command: ClassVar[str]
    """Command that runs a trained model on images."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.metric = Metric(args.eval_metric, args.eval_metric)
        self.samples: list[Sample] = []
        self.details: dict[str, Any] = {}
        self.adopted: nn.Module | None = None

    @property
    @abstractmethod
    def builder(self) -> str:
        """Name of the builder of the model."""

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """Numbers of an evaluation that the log has."""

    @abstractmethod
    def open(self) -> tuple[Annotations | None, Annotations]:
        """Images to train on and to validate on, not checked yet; only the latter where a model was adopted."""

    @abstractmethod
    def train_dataset(self, model: nn.Module, annotations: Annotations) -> Dataset:
        """Images to train on, with the augmentation that the model needs."""

    @abstractmethod
    def val_dataset(self, model: nn.Module, annotations: Annotations) -> Dataset:
        """Images to validate on."""

    def groups(self, train: Any) -> list[int] | None:
        """Group of each image, of which batches are formed; None for batches of any images."""
        return None

    @property
    def val_batch_size(self) -> int:
        """Images in a batch of an evaluation.

        Where images keep their size it is one: what is padded to the size of others changes the result through the
        global pooling of attention.
        """
        return 1

    @abstractmethod
    def losses(self, model: nn.Module, images: Sequence[Tensor], targets: Sequence[Any], device: torch.device) -> Loss:
        """Losses of a batch by name, whose sum is minimised."""

    @abstractmethod
    def evaluate(
        self, model: nn.Module, batches: Iterable, indices: Sequence[int], device: torch.device
    ) -> dict[str, float]:
        """Evaluate a model on the share of a process; every process gets the numbers of all images.

        Args:
            model: The model in evaluation mode.
            batches: Pairs of a list of images and a list of targets.
            indices: Index of each image in its data set.
            device: Where the model is.
        """

    def describe_objects(self, annotations: Annotations) -> str:
        """What a data set has besides images, for a line on the terminal."""
        return ''

    def write_results(self, folder: Path, names: dict[int, str]) -> None:
        """Write what the last evaluation found.

        Args:
            folder: Folder of the run.
            names: File name by image id.
        """
        write_json(folder / 'metrics.json', self.details, indent=1)

    def create(self, annotations: Annotations, pretrained: bool) -> nn.Module:
        """Build the model.

        Args:
            annotations: Its training data, which name the classes.
            pretrained: Whether to load the weights of the backbone.

        Raises:
            RunError: If it cannot be built with these options, or the weights cannot be used.
        """
        args = self.args
        file = args.pretrained_path if pretrained else None
        backbone_args = dict(args.backbone_kwargs)
        if file:
            backbone_args['pretrained_cfg_overlay'] = dict(file=file, num_classes=-1)
        with explained(args.backbone, pretrained, file, f'{self.builder} on {args.backbone}'):
            model = BUILDERS[self.builder](
                args.backbone,
                classes=list(annotations.classes),
                pretrained_backbone=pretrained,
                backbone_args=backbone_args,
                **args.model_kwargs,
            )
        return self.label(model, annotations)

    def label(self, model: nn.Module, annotations: Annotations) -> nn.Module:
        """Let a model keep what its data call the classes."""
        model.category_ids = list(annotations.category_ids)
        model.ignore_index = None
        return model

    def adopt(self, model: nn.Module) -> None:
        """Take over what a trained model, which is only evaluated, knows of its data."""
        if not model.classes:
            raise RunError('The model has no names of classes, by which those of the data could be found.')
        self.adopted = model

    def _keep_sample(self, position: int, indices: Sequence[int], draw: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Draw some of the images, evenly spread: neighbours are often frames of one film."""
        if position % -(-len(indices) // _SAMPLES) == 0:
            self.samples.append((indices[position], *draw()))


class DetectionTask(Task):
    """Boxes, and with Mask R-CNN masks."""

    command = 'detect'

    @property
    def builder(self) -> str:
        """Name of the builder of the model."""
        return self.args.detector

    @property
    def has_masks(self) -> bool:
        """Whether the detector finds masks."""
        return self.builder == 'maskrcnn'

    @property
    def columns(self) -> tuple[str, ...]:
        """Numbers of an evaluation that the log has."""
        return (*_NUMBERS, 'mAP_voc07', *(f'mask_{name}' for name in _NUMBERS if self.has_masks))

    def open(self) -> tuple[Annotations | None, Annotations]:
        """Images to train on and to validate on, not checked yet; only the latter where a model was adopted."""
        args = self.args
        files = [getattr(args, name) for name in FILES]
        return open_detection(
            args.data_dir,
            args.train_split,
            args.val_split,
            self.has_masks,
            tuple(files) if all(files) else None,
            self.adopted.classes if self.adopted else None,
        )

    def train_dataset(self, model: nn.Module, annotations: Annotations) -> DetectionDataset:
        """Images to train on, with the augmentation that the model needs."""
        transforms = ssd_transforms(model.transform.image_mean) if self._is_fixed else rcnn_transforms()
        return DetectionDataset(annotations, train=True, transforms=transforms)

    def val_dataset(self, model: nn.Module, annotations: Annotations) -> DetectionDataset:
        """Images to validate on."""
        return DetectionDataset(annotations, train=False, transforms=eval_transforms())

    @property
    def _is_fixed(self) -> bool:
        """Whether all images are resized to one size."""
        return self.builder == 'ssdlite320'

    def groups(self, train: DetectionDataset) -> list[int] | None:
        """Group of each image, of which batches are formed; None for batches of any images."""
        wanted = self.args.group_aspect_ratio
        return aspect_ratio_groups(train) if (not self._is_fixed if wanted is None else wanted) else None

    @property
    def val_batch_size(self) -> int:
        """Images in a batch of an evaluation."""
        return self.args.batch_size if self._is_fixed else 1

    def losses(self, model: nn.Module, images: Sequence[Tensor], targets: Sequence[Any], device: torch.device) -> Loss:
        """Losses of a batch by name, whose sum is minimised."""
        used = [
            {key: t[key].to(device, non_blocking=True) for key in ('boxes', 'labels', 'masks') if key in t}
            for t in targets
        ]
        return model([image.to(device, non_blocking=True) for image in images], used)

    def evaluate(
        self, model: nn.Module, batches: Iterable, indices: Sequence[int], device: torch.device
    ) -> dict[str, float]:
        """Evaluate a model on the share of a process; every process gets the numbers of all images."""
        self._result = DetectionMetric(model.classes, self.has_masks, model.category_ids)
        self.samples = []
        done = 0
        for images, targets in batches:
            predictions = [_on_cpu(found) for found in model([image.to(device) for image in images])]
            self._result.update(predictions, targets)
            for image, target, found in zip(images, targets, predictions, strict=True):
                self._keep_sample(done, indices, partial(_draw, image, target, found, model.classes))
                done += 1
        numbers = self._result.compute()
        voc = self._result.compute_voc()
        self.details = {**voc, **numbers}  # both count images; COCO counts difficult objects, too
        return {name: _or_nan(self.details[name]) for name in self.columns}

    def describe_objects(self, annotations: Annotations) -> str:
        """What a data set has besides images, for a line on the terminal."""
        return f' with {sum(len(record.objects) for record in annotations.records)} objects'

    def write_results(self, folder: Path, names: dict[int, str]) -> None:
        """Write what the last evaluation found, and the truth, in the formats of COCO."""
        super().write_results(folder, names)
        write_json(folder / 'annotations.json', self._result.coco_annotations(names))
        write_json(folder / 'predictions.json', self._result.coco_results())
        if self.has_masks:
            write_json(folder / 'predictions_masks.json', self._result.coco_results(masks=True))


class SegmentationTask(Task):
    """A class for each pixel."""

    command = 'segment'

    @property
    def builder(self) -> str:
        """Name of the builder of the model."""
        return self.args.segmenter

    @property
    def columns(self) -> tuple[str, ...]:
        """Numbers of an evaluation that the log has."""
        return ('loss', 'mIoU', 'pixel_accuracy', 'class_accuracy')

    def open(self) -> tuple[Annotations | None, Annotations]:
        """Images to train on and to validate on, not checked yet; only the latter where a model was adopted."""
        args = self.args
        if args.classes and len(args.classes) == 1:
            if not Path(args.classes[0]).is_file():
                raise RunError(
                    f'--classes {args.classes[0]}: there is no such file, and one class alone is not enough. Name a '
                    'file with a name a line, or at least two classes.'
                )
            args.classes = read_lines(args.classes[0])
        only_val = self.adopted is not None
        return open_segmentation(
            args.data_dir, args.classes, args.ignore_index, args.train_split, args.val_split, only_val
        )

    def train_dataset(self, model: nn.Module, annotations: Annotations) -> SegmentationDataset:
        """Images to train on, with the augmentation that the model needs."""
        maps, args = maps_of(model), self.args
        transforms = segmentation_transforms(args.img_size, args.ignore_index, maps.mean, maps.std)
        return SegmentationDataset(annotations, transforms)

    def val_dataset(self, model: nn.Module, annotations: Annotations) -> SegmentationDataset:
        """Images to validate on."""
        maps = maps_of(model)
        return SegmentationDataset(annotations, eval_transforms(maps.mean, maps.std))

    def adopt(self, model: nn.Module) -> None:
        """Take over what a trained model, which is only evaluated, knows of its data."""
        super().adopt(model)
        if not self.args.classes:
            self.args.classes = model.classes
            if model.ignore_index is not None:
                self.args.ignore_index = model.ignore_index

    def label(self, model: nn.Module, annotations: Annotations) -> nn.Module:
        """Let a model keep what its data call the classes."""
        super().label(model, annotations)
        model.ignore_index = self.args.ignore_index
        return model

    def losses(self, model: nn.Module, images: Sequence[Tensor], targets: Sequence[Any], device: torch.device) -> Loss:
        """Losses of a batch by name, whose sum is minimised."""
        total, pixels = self._loss(model(torch.stack(list(images)).to(device)), torch.stack(list(targets)).to(device))
        return {'loss': total / pixels.clamp(min=1)}  # a crop may have no pixel that counts

    def _loss(self, output: dict[str, Tensor], masks: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of all pixels, and their number."""
        loss = functional.cross_entropy(
            output['out'].float(), masks, ignore_index=self.args.ignore_index, reduction='sum'
        )
        return loss, (masks != self.args.ignore_index).sum()

    def evaluate(
        self, model: nn.Module, batches: Iterable, indices: Sequence[int], device: torch.device
    ) -> dict[str, float]:
        """Evaluate a model on the share of a process; every process gets the numbers of all images."""
        result = SegmentationMetric(model.classes, self.args.ignore_index)
        self.samples = []
        totals = torch.zeros(2, dtype=torch.float64, device='cpu' if device.type == 'mps' else device)
        for position, ((image,), (mask,)) in enumerate(batches):
            masks = mask[None].to(device)
            output = model(image[None].to(device))
            result.update(output['out'], masks)
            totals += torch.stack(self._loss(output, masks)).to(totals)
            found = output['out'].argmax(dim=1)[0].cpu()
            self._keep_sample(position, indices, partial(self._draw, image, mask, found, model))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(totals)
        self.details = result.compute()
        if not self.details['pixels']:
            raise RunError(
                f'No pixel of the images for validation counts: all are {self.args.ignore_index}, --ignore-index.'
            )
        self.details['loss'] = float(totals[0] / totals[1])
        return {name: _or_nan(self.details[name]) for name in self.columns}

    def _draw(self, image: Tensor, mask: Tensor, found: Tensor, model: nn.Module) -> tuple[Tensor, Tensor]:
        maps = maps_of(model)
        mean, std = (torch.tensor(values)[:, None, None] for values in (maps.mean, maps.std))
        image = F.to_dtype((image * std + mean).clamp(0, 1), torch.uint8, scale=True)
        size = _size_of_tile(image)
        image = F.resize(image, size)
        class_maps = [F.resize(tv_tensors.Mask(ids), size) for ids in (mask, found)]
        truth, prediction = (draw_class_map(image, ids, model.classes, self.args.ignore_index) for ids in class_maps)
        return truth, prediction


def _on_cpu(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a detector found in an image; of masks only whether a pixel belongs to the object."""
    moved = {key: (value.float() if value.is_floating_point() else value) for key, value in found.items()}
    if 'masks' in moved:
        moved['masks'] = (moved['masks'] > 0.5).to(torch.uint8)
    return {key: value.cpu() for key, value in moved.items()}


def _draw(image: Tensor, target: dict, found: dict, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    image = F.to_dtype(image, torch.uint8, scale=True)
    size = _size_of_tile(image)
    canvas = tuple(image.shape[-2:])
    shown = []
    for objects in (target, found):
        boxes = tv_tensors.BoundingBoxes(objects['boxes'], format='XYXY', canvas_size=canvas)
        objects = dict(objects, boxes=F.resize(boxes, size).as_subclass(Tensor))
        if 'masks' in objects:
            objects['masks'] = F.resize(objects['masks'].as_subclass(Tensor), size)
        shown.append(objects)
    image = F.resize(image, size)
    return draw_detections(image, shown[0], classes), draw_detections(image, shown[1], classes)


def _size_of_tile(image: Tensor) -> list[int]:
    """Height and width of an image on a sheet of samples."""
    longest = max(image.shape[-2:])
    return [max(1, side * min(TILE, longest) // longest) for side in image.shape[-2:]]


def _or_nan(value: float | None) -> float:
    return float('nan') if value is None else value
