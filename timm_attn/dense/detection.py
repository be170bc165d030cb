"""Detectors with any timm model as the backbone: torchvision's classes, arguments, inputs, targets and outputs."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from timm.data import IMAGENET_DEFAULT_MEAN
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.ops.feature_pyramid_network import (
    ExtraFPNBlock,
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from .builders import builder, check_arguments, count_classes
from .features import BatchNormMode, FeatureMaps, make_backbone
from .inputs import check_detection_inputs
from .ssdlite import MEAN, VARIANTS, SSDLite, make_ssdlite_backbone

_COCO_IDS = 91  # torchvision's number of classes: the categories' ids run to 90, with holes
_FIXED = (
    'anchor_generator', 'fixed_size', 'head', 'max_size', 'min_size', 'size', 'size_divisible', 'topk_candidates',
)  # fmt: skip
_DEFAULT_TRAINABLE = 3  # torchvision's and mmdetection's: the stem and the first stage are frozen


class PyramidBackbone(nn.Module):
    """Feature maps and the feature pyramid network on them.

    Args:
        body: The maps.
        extra_blocks: Levels above the last map.
        out_channels: Channels of each level of the pyramid.
    """

    def __init__(self, body: FeatureMaps, extra_blocks: ExtraFPNBlock, out_channels: int = 256):
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(body.out_channels, out_channels, extra_blocks)
        self.out_channels = out_channels

    def forward(self, x: torch.Tensor) -> 'OrderedDict[str, torch.Tensor]':
        """Images (B, 3, H, W) -> levels of the pyramid, each with ``out_channels``."""
        return self.fpn(self.body(x))


@builder
def fasterrcnn(
    backbone: str | nn.Module,
    num_classes: int | None = None,
    *,
    classes: Sequence[str] | None = None,
    pretrained_backbone: bool = False,
    trainable_layers: int | None = None,
    batch_norm: BatchNormMode | None = None,
    backbone_args: dict | None = None,
    **kwargs,
) -> FasterRCNN:
    """Faster R-CNN with a feature pyramid, as torchvision's ``fasterrcnn_resnet50_fpn``, on any timm model.

    Sources: arXiv 1506.01497, arXiv 1612.03144. ``csa_resnet50`` here is the detector of CSA-Net (arXiv 2405.05755),
    whose code is for mmdetection 2: its RoIAlign has ``aligned=True``, its losses are L1, and its background class is
    the last one. ``csa_blocks='all'`` in ``backbone_args`` puts CSA into every block as that code does, and
    ``batch_norm='eval'`` trains weight and bias of the norms as it does.

    Args:
        backbone: Name of a timm model, or a model, with maps at strides 4, 8, 16 and 32.
        num_classes: Number of classes, background (0) included; by default one more than ``classes``, or 91.
        classes: Names of the classes without background; ``model.classes`` keeps them, and so does :func:`save`.
        pretrained_backbone: Load the weights of the backbone.
        trainable_layers: Stages of the backbone, counted from the last, that are trained; by default 3 with
            ``pretrained_backbone``, and all otherwise.
        batch_norm: ``'train'``, ``'eval'`` or ``'frozen'``, see :class:`~timm_attn.dense.features.FeatureMaps`; by
            default frozen with ``pretrained_backbone``, and trained otherwise.
        backbone_args: Arguments of ``timm.create_model``.
        **kwargs: Arguments of torchvision's ``FasterRCNN``, which describes inputs, targets and outputs. The mean and
            standard deviation of the images are by default those of the backbone.

    Raises:
        ValueError: If the backbone lacks a map, or arguments contradict each other.
    """
    return _pyramid_detector(
        FasterRCNN, (4, 8, 16, 32), LastLevelMaxPool(), backbone, count_classes(num_classes, classes, _COCO_IDS),
        pretrained_backbone, trainable_layers, batch_norm, backbone_args, kwargs,
    )  # fmt: skip


@builder
def maskrcnn(
    backbone: str | nn.Module,
    num_classes: int | None = None,
    *,
    classes: Sequence[str] | None = None,
    pretrained_backbone: bool = False,
    trainable_layers: int | None = None,
    batch_norm: BatchNormMode | None = None,
    backbone_args: dict | None = None,
    **kwargs,
) -> MaskRCNN:
    """Mask R-CNN with a feature pyramid, as torchvision's ``maskrcnn_resnet50_fpn``, on any timm model.

    Source: arXiv 1703.06870. ``csa_resnet50`` here is the instance segmenter of CSA-Net; see :func:`fasterrcnn`, also
    for the arguments.

    Args:
        backbone: Name of a timm model, or a model.
        num_classes: Number of classes, background included.
        classes: Names of the classes without background.
        pretrained_backbone: Load the weights of the backbone.
        trainable_layers: Stages of the backbone that are trained.
        batch_norm: ``'train'``, ``'eval'`` or ``'frozen'``.
        backbone_args: Arguments of ``timm.create_model``.
        **kwargs: Arguments of torchvision's ``MaskRCNN``.

    Raises:
        ValueError: If the backbone lacks a map, or arguments contradict each other.
    """
    return _pyramid_detector(
        MaskRCNN, (4, 8, 16, 32), LastLevelMaxPool(), backbone, count_classes(num_classes, classes, _COCO_IDS),
        pretrained_backbone, trainable_layers, batch_norm, backbone_args, kwargs,
    )  # fmt: skip


@builder
def retinanet(
    backbone: str | nn.Module,
    num_classes: int | None = None,
    *,
    classes: Sequence[str] | None = None,
    pretrained_backbone: bool = False,
    trainable_layers: int | None = None,
    batch_norm: BatchNormMode | None = None,
    backbone_args: dict | None = None,
    **kwargs,
) -> RetinaNet:
    """RetinaNet, as torchvision's ``retinanet_resnet50_fpn``, on any timm model.

    Source: arXiv 1708.02002. The SCSA paper (arXiv 2407.05128) reports it with ``scsa_resnet50``, in mmdetection 3,
    whose sixth level follows the backbone's last map and not the pyramid's. For the arguments see :func:`fasterrcnn`.

    Args:
        backbone: Name of a timm model, or a model, with maps at strides 8, 16 and 32.
        num_classes: Number of classes, background included.
        classes: Names of the classes without background.
        pretrained_backbone: Load the weights of the backbone.
        trainable_layers: Stages of the backbone that are trained.
        batch_norm: ``'train'``, ``'eval'`` or ``'frozen'``.
        backbone_args: Arguments of ``timm.create_model``.
        **kwargs: Arguments of torchvision's ``RetinaNet``.

    Raises:
        ValueError: If the backbone lacks a map, or arguments contradict each other.
    """
    return _pyramid_detector(
        RetinaNet, (8, 16, 32), LastLevelP6P7(256, 256), backbone, count_classes(num_classes, classes, _COCO_IDS),
        pretrained_backbone, trainable_layers, batch_norm, backbone_args, kwargs,
    )  # fmt: skip


def _pyramid_detector(
    detector, strides, extra_blocks, backbone, num_classes, pretrained, trainable_layers, batch_norm, args, kwargs
):
    check_arguments(detector, kwargs, taken=('box_predictor', 'mask_predictor'))  # they follow from num_classes
    if pretrained and trainable_layers is None:
        trainable_layers = _DEFAULT_TRAINABLE
    model, trainable_layers = make_backbone(backbone, pretrained, trainable_layers, args)
    body = FeatureMaps(
        model,
        strides=strides,
        trainable_layers=trainable_layers,
        batch_norm=batch_norm or ('frozen' if pretrained else 'train'),
    )
    options = _normalization(body, body.mean, kwargs)
    made = detector(PyramidBackbone(body, extra_blocks), num_classes, **(options | kwargs))
    return check_detection_inputs(_with_precise_boxes(made), num_classes)


class PreciseAnchorGenerator(AnchorGenerator):
    """torchvision's anchors, in float32 at least: in bfloat16, boxes beyond pixel 512 would be 4 pixels apart."""

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        """Set the anchors of a cell; ``dtype`` is that of the feature maps."""
        super().set_cell_anchors(torch.promote_types(dtype, torch.float32), device)


def _with_precise_boxes(detector: nn.Module) -> nn.Module:
    """Let a detector compute boxes and scores in float32 at least, also in mixed precision."""
    has_rois = hasattr(detector, 'roi_heads')
    owner = detector.rpn if has_rois else detector
    given = owner.anchor_generator
    if type(given) is AnchorGenerator:
        owner.anchor_generator = PreciseAnchorGenerator(given.sizes, given.aspect_ratios)
    for head in (detector.rpn.head, detector.roi_heads.box_predictor) if has_rois else (detector.head,):
        head.register_forward_hook(_to_precise)
    return detector


def _to_precise(module: nn.Module, args: tuple, outputs):
    """Outputs of a head in float32 at least, whatever holds them."""
    if isinstance(outputs, torch.Tensor):
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    if isinstance(outputs, dict):
        return {name: _to_precise(module, args, value) for name, value in outputs.items()}
    return type(outputs)(_to_precise(module, args, value) for value in outputs)


def _normalization(maps: FeatureMaps, mean, kwargs: dict) -> dict[str, list[float]]:
    """Mean and standard deviation of images for a detector."""
    if maps.in_chans != len(mean) and not {'image_mean', 'image_std'} <= kwargs.keys():
        raise ValueError(
            f'The backbone takes {maps.in_chans} channels: pass image_mean and image_std with as many numbers.'
        )
    return dict(image_mean=list(mean), image_std=list(maps.std))


@builder
def ssdlite320(
    backbone: str | nn.Module,
    num_classes: int | None = None,
    *,
    variant: str = 'coco',
    classes: Sequence[str] | None = None,
    pretrained_backbone: bool = False,
    trainable_layers: int | None = None,
    batch_norm: BatchNormMode = 'train',
    attn_in_extras: bool | None = None,
    backbone_args: dict | None = None,
    **kwargs,
) -> SSDLite:
    """SSDLite at 320 x 320, as the authors of coordinate attention built it, on any timm model.

    Source: arXiv 2103.02907, section 4.3.1, and github.com/Andrew-Qibin/ssdlite-pytorch-mobilenext, whose checkpoints
    ``load_state_dict`` takes for ``mobilenetv2_100``, ``mbv2_se`` and ``mobilenext``. The files with coordinate
    attention and CBAM were not published: ``mbv2_ca`` and ``mbv2_cbam`` here are reconstructed.

    It differs from torchvision's ``ssdlite320_mobilenet_v3_large``: the first map is the linear output at stride 16 and
    not an expansion, the extra blocks have other widths, and the last level's head is a single convolution.

    Args:
        backbone: Name of a timm model, or a model, with maps at strides 16 and 32.
        num_classes: Number of classes, background (0) included; by default one more than ``classes``, or 81 and 21.
        variant: ``'coco'``: focal loss, a sigmoid for each class, 3232 default boxes. ``'voc'``: softmax, hard
            negatives, 3234 default boxes.
        classes: Names of the classes without background; ``model.classes`` keeps them, and so does :func:`save`.
        pretrained_backbone: Load the weights of the backbone.
        trainable_layers: Stages of the backbone, counted from the last, that are trained; all by default.
        batch_norm: ``'train'``, ``'eval'`` or ``'frozen'``, for the backbone.
        attn_in_extras: The backbone's attention also in the extra blocks; by default in MobileNetV2 with attention.
        backbone_args: Arguments of ``timm.create_model``.
        **kwargs: Arguments of torchvision's ``SSD``, which describes inputs, targets and outputs. Where the backbone
            was trained with ImageNet's mean, images are normalized with the authors' (123, 117, 104) / 255, which is at
            most .003 away; otherwise with the backbone's mean.

    Raises:
        ValueError: If the backbone lacks a map, or arguments contradict each other.
    """
    if variant not in VARIANTS:
        raise ValueError(f'variant={variant!r} must be one of {", ".join(map(repr, VARIANTS))}.')
    chosen = VARIANTS[variant]
    of_negatives = ('positive_fraction',) if chosen.focal else ()  # the focal loss takes all of them
    check_arguments(SSD, kwargs, taken=(*_FIXED, *of_negatives))
    num_classes = count_classes(num_classes, classes, chosen.num_classes)
    model, trainable_layers = make_backbone(backbone, pretrained_backbone, trainable_layers, backbone_args)
    maps = make_ssdlite_backbone(model, attn_in_extras, trainable_layers=trainable_layers, batch_norm=batch_norm)
    mean = MEAN if maps.body.mean == IMAGENET_DEFAULT_MEAN else maps.body.mean
    options = _normalization(maps.body, mean, kwargs) | kwargs
    # the smallest map is a single cell, whose norm has only the batch to learn from
    return check_detection_inputs(SSDLite(maps, chosen, num_classes, **options), num_classes, smallest_batch=2)
