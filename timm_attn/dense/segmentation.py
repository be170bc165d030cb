"""Segmenters with any timm model as the backbone, on torchvision's DeepLabV3."""

from collections.abc import Sequence
from typing import Literal

from torch import nn
from torchvision.models.segmentation import DeepLabV3
from torchvision.models.segmentation.deeplabv3 import ASPP, DeepLabHead

from .builders import builder, count_classes
from .features import BatchNormMode, FeatureMaps, make_backbone
from .inputs import check_segmentation_inputs

_RATES = {8: (12, 24, 36), 16: (6, 12, 18)}


@builder
def deeplabv3(
    backbone: str | nn.Module,
    num_classes: int | None = None,
    *,
    output_stride: Literal[8, 16] = 16,
    head: Literal['compact', 'torchvision'] = 'compact',
    classes: Sequence[str] | None = None,
    pretrained_backbone: bool = False,
    trainable_layers: int | None = None,
    batch_norm: BatchNormMode = 'train',
    backbone_args: dict | None = None,
) -> DeepLabV3:
    """DeepLabV3 on any timm model that can be dilated.

    Source: arXiv 1706.05587. The paper on coordinate attention (arXiv 2103.02907) reports it with MobileNetV2, but no
    code was published: the compact head is reconstructed from the reported parameter counts alone. All four rows of the
    paper (4.5, 4.9, 4.9 and 5.0 million) fit it.

    Inputs are images (B, 3, H, W), normalized with the ``mean`` and ``std`` of ``model.backbone``. The output is
    ``{'out': logits}`` with logits (B, num_classes, H, W), as in torchvision.

    Args:
        backbone: Name of a timm model, or a model that was made with the same ``output_stride``.
        num_classes: Number of classes, background included where the data has one; by default that of ``classes``, or
            21.
        output_stride: Stride of the last map. The rates of the dilated convolutions follow it: 6, 12, 18 at 16 and
            12, 24, 36 at 8.
        head: ``'compact'``: atrous spatial pyramid pooling and a 1x1 convolution. ``'torchvision'``: a 3x3 convolution
            between them, 0.59 million parameters more.
        classes: Names of all classes; ``model.classes`` keeps them, and so does :func:`save`.
        pretrained_backbone: Load the weights of the backbone.
        trainable_layers: Stages of the backbone, counted from the last, that are trained; all by default.
        batch_norm: ``'train'``, ``'eval'`` or ``'frozen'``, for the backbone.
        backbone_args: Further arguments of ``timm.create_model``.

    Raises:
        ValueError: If the backbone has no map of that stride, or arguments contradict each other.
    """
    if output_stride not in _RATES:
        raise ValueError(f'output_stride={output_stride!r} must be 8 or 16.')
    if head not in ('compact', 'torchvision'):
        raise ValueError(f"head={head!r} must be 'compact' or 'torchvision'.")
    if isinstance(backbone, str):
        backbone_args = dict(backbone_args or {}, output_stride=output_stride)
    num_classes = count_classes(num_classes, classes, 21, background=False)
    try:
        model, trainable_layers = make_backbone(backbone, pretrained_backbone, trainable_layers, backbone_args)
    except (AssertionError, TypeError) as e:  # so timm refuses what cannot be dilated
        if isinstance(e, TypeError) and 'output_stride' not in str(e):
            raise
        raise ValueError(f'{backbone} cannot be built with output_stride={output_stride}.') from None
    maps = FeatureMaps(
        model, (output_stride,), names=('out',), trainable_layers=trainable_layers, batch_norm=batch_norm
    )
    if maps.strides_of_model[-1] != output_stride:
        raise ValueError(
            f'The backbone was made with a stride of {maps.strides_of_model[-1]}; create it with '
            f'output_stride={output_stride}.'
        )
    channels, rates = maps.out_channels[0], _RATES[output_stride]
    if head == 'compact':
        classifier: nn.Module = nn.Sequential(ASPP(channels, rates), nn.Conv2d(256, num_classes, 1))
    else:
        classifier = DeepLabHead(channels, num_classes, rates)
    return check_segmentation_inputs(DeepLabV3(maps, classifier))
