"""SSDLite320 as the authors of coordinate attention built it, on torchvision's SSD.

Source: github.com/Andrew-Qibin/ssdlite-pytorch-mobilenext, which the paper on coordinate attention (arXiv 2103.02907)
names for its detectors; it contains MobileNetV2, MobileNetV2 with squeeze-and-excitation, and MobileNeXt.
"""

import math
import re
from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct
from torch import nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD, SSDScoringHead
from torchvision.ops import batched_nms, clip_boxes_to_image, sigmoid_focal_loss

from .._compat import ConvertsStateDict, InvertedResidual
from ..layers import attention_of
from ..models.base import ZooModel
from ..models.mbv2_attn import AUTHORS_BLOCK, TORCHVISION_BLOCK, AttnMobileNetV2, in_block, torchvision_key
from ..models.mobilenext import MobileNeXt
from ..weights.warm_start import attention_sites
from .features import FeatureMaps

SIZE = 320
MEAN = (123 / 255, 117 / 255, 104 / 255)
"""What the authors subtract from images in 0..1, whatever the backbone was trained with."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One of the authors' two configurations.

    Attributes:
        num_classes: Default number of classes, background included.
        max_sizes: Upper sizes of the default boxes at each level, in pixels.
        aspect_ratios: Ratios of the default boxes at each level.
        focal: Sigmoid focal loss; otherwise softmax with hard negatives.
        score_thresh: Detections below this score are dropped.
        nms_thresh: Overlap of two boxes of a class, of which the weaker is dropped.
    """

    num_classes: int
    max_sizes: tuple[int, ...]
    aspect_ratios: tuple[tuple[int, ...], ...]
    focal: bool
    score_thresh: float
    nms_thresh: float


VARIANTS = {
    'coco': Variant(
        num_classes=81,
        max_sizes=(90, 135, 180, 225, 270, 315),
        aspect_ratios=((2, 3),) * 5 + ((2,),),
        focal=True,
        score_thresh=0.05,
        nms_thresh=0.5,
    ),
    'voc': Variant(
        num_classes=21,
        max_sizes=(120, 180, 220, 260, 300, 320),
        aspect_ratios=((2, 3),) * 6,
        focal=False,
        score_thresh=0.01,
        nms_thresh=0.45,
    ),
}
_MIN_SIZES = (45, 90, 135, 180, 225, 270)
_STRIDES = (16, 32, 64, 120, 160, 320)


class DefaultBoxes(DefaultBoxGenerator):
    """Default boxes from a lower and an upper size at each level.

    At each cell: a square of the lower size, one of the geometric mean of both, then for each ratio a wide and a tall
    box of the lower size. torchvision's generator takes the next level's lower size for the upper.

    Args:
        min_sizes: Lower sizes, in pixels.
        max_sizes: Upper sizes, in pixels.
        aspect_ratios: Ratios of width to height, above 1.
        steps: Distance of the cells, in pixels.
        size: Side of the image, in pixels.
    """

    def __init__(self, min_sizes, max_sizes, aspect_ratios, steps, size: int):
        self.max_scales = [m / size for m in max_sizes]
        scales = [m / size for m in min_sizes]
        super().__init__([list(ratios) for ratios in aspect_ratios], scales=scales, steps=list(steps), clip=True)

    def forward(self, image_list, feature_maps):
        """Corners of the boxes in pixels, for each image; in float32 at least, since bfloat16 has steps of 2 pixels."""
        first = feature_maps[0]
        return super().forward(image_list, [first.to(_precise(first)), *feature_maps[1:]])

    def _generate_wh_pairs(self, num_outputs, dtype=torch.float32, device=None):
        pairs = []
        for low, high, ratios in zip(self.scales, self.max_scales, self.aspect_ratios, strict=True):
            middle = math.sqrt(low * high)
            sizes = [(low, low), (middle, middle)]
            for ratio in map(math.sqrt, ratios):
                sizes += [(low * ratio, low / ratio), (low / ratio, low * ratio)]
            pairs.append(torch.tensor(sizes, dtype=dtype, device=device))
        return pairs


def _precise(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


class SSDLiteHead(nn.Module):
    """Class scores and box offsets of all default boxes.

    At each level a depthwise 3x3 and a 1x1 convolution; at the last, whose map is one cell, the 1x1 alone. Classes and
    boxes share no weights.

    Args:
        in_channels: Channels of each level.
        num_anchors: Default boxes at each cell of a level.
        num_classes: Outputs for each box.
        prior: Probability of each class that the scores start with; None for scores around zero.
    """

    def __init__(self, in_channels: list[int], num_anchors: list[int], num_classes: int, prior: float | None = None):
        super().__init__()
        self.classification_head = _scores(in_channels, num_anchors, num_classes)
        self.regression_head = _scores(in_channels, num_anchors, 4)
        if prior is not None:
            for level in self.classification_head.module_list:
                last = level[-1] if isinstance(level, nn.Sequential) else level
                nn.init.normal_(last.weight, std=0.01)
                nn.init.constant_(last.bias, -math.log((1 - prior) / prior))

    def forward(self, x: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Maps -> ``bbox_regression`` (B, boxes, 4) and ``cls_logits`` (B, boxes, num_classes), in float32 at least."""
        outputs = {'bbox_regression': self.regression_head(x), 'cls_logits': self.classification_head(x)}
        return {name: output.to(_precise(output)) for name, output in outputs.items()}


def _scores(in_channels: list[int], num_anchors: list[int], columns: int) -> SSDScoringHead:
    levels = nn.ModuleList()
    for i, (channels, anchors) in enumerate(zip(in_channels, num_anchors, strict=True)):
        level: nn.Module = nn.Conv2d(channels, anchors * columns, 1)
        if i + 1 < len(in_channels):
            depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
            level = nn.Sequential(depthwise, nn.BatchNorm2d(channels), nn.ReLU6(), level)
        levels.append(level)
    for module in levels.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return SSDScoringHead(levels, columns)


class SSDLiteBackbone(nn.Module):
    """Maps at strides 16 and 32, and four extra blocks that halve the last one.

    Args:
        body: The two maps; the extra blocks follow the last one that it returns.
        extras: The extra blocks.
        out_channels: Channels of all six maps.
    """

    def __init__(self, body: FeatureMaps, extras: nn.ModuleList, out_channels: list[int]):
        super().__init__()
        self.body = body
        self.extras = extras
        self.out_channels = out_channels

    def forward(self, x: torch.Tensor) -> 'OrderedDict[str, torch.Tensor]':
        """Images (B, 3, 320, 320) -> six maps of 20, 10, 5, 3, 2 and 1 cells a side."""
        maps = list(self.body(x).values())
        x = maps[-1]
        maps = maps[:2]
        for block in self.extras:
            x = block(x)
            maps.append(x)
        return OrderedDict((str(i), m) for i, m in enumerate(maps))


class MobileNeXtMaps(FeatureMaps):
    """MobileNeXt's maps before the last depthwise convolution of two blocks, and the final map.

    The first two, with 576 channels at stride 16 and 1280 at stride 32, are what boxes are found in. The extra blocks
    follow the final one.
    """

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The maps alone."""
        return self.model.forward_expanded(x)


def make_ssdlite_backbone(model: nn.Module, attn_in_extras: bool | None = None, **kwargs) -> SSDLiteBackbone:
    """Backbone of SSDLite320 for any timm model.

    Args:
        model: The model.
        attn_in_extras: Attention also in the extra blocks. By default in MobileNetV2 with attention, as in the authors'
            file for squeeze-and-excitation; with it the parameters also round to what the paper reports for coordinate
            attention, whose file was not published.
        **kwargs: Arguments of :class:`FeatureMaps`.

    Raises:
        ValueError: If the model has no maps at strides 16 and 32, or no attention that ``attn_in_extras`` could use.
    """
    sites = attention_sites(model) if isinstance(model, ZooModel) else ()
    attention = next((attention_of(attn) for _, attn, *_ in sites), None)
    if attn_in_extras and (attention is None or attention.part_of):
        raise ValueError('attn_in_extras=True needs a backbone with an attention that is a layer of its own.')
    if attn_in_extras is None:
        attn_in_extras = isinstance(model, AttnMobileNetV2)
    attn_layer = attention.layer if attention and attn_in_extras else None
    options = dict(strides=(16, 32), final=True, **kwargs)
    if isinstance(model, MobileNeXt):
        body: FeatureMaps = MobileNeXtMaps(model, names=('0', '1', 'final'), **options)
        block, widths, ratios = _sandglass, (512, 256, 256, 128), (0.2, 0.25, 0.5, 0.5)
    else:
        body = FeatureMaps(model, **options)
        of_se = attention is not None and attention.name == 'se'
        block, widths = _inverted_residual, (512, 256, 256, 64)
        ratios = (0.2, 0.25, 0.5, 0.25) if of_se and attn_layer else (0.2, 0.5, 0.5, 0.5)
    in_channels = [body.out_channels[-1], *widths[:-1]]
    extras = nn.ModuleList(block(*args, attn_layer) for args in zip(in_channels, widths, ratios, strict=True))
    for module in extras.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode='fan_out')
    return SSDLiteBackbone(body, extras, [*body.out_channels[:2], *widths])


def _inverted_residual(in_channels: int, out_channels: int, ratio: float, attn_layer) -> nn.Module:
    """MobileNetV2's block with fewer channels inside than outside, and a linear output."""
    return InvertedResidual(
        in_channels,
        out_channels,
        stride=2,
        exp_ratio=ratio,
        act_layer=nn.ReLU6,
        se_layer=attn_layer and in_block(attn_layer),
    )


def _sandglass(in_channels: int, out_channels: int, ratio: float, attn_layer) -> nn.Module:
    """The first three layers of MobileNeXt's block, with the stride in the first."""
    hidden = int(in_channels * ratio)
    first = ConvNormAct(in_channels, in_channels, 3, stride=2, groups=in_channels, act_layer=nn.ReLU6)
    attn = [attn_layer(in_channels)] if attn_layer else []
    reduce = ConvNormAct(in_channels, hidden, 1, apply_act=False)
    return nn.Sequential(first, *attn, reduce, ConvNormAct(hidden, out_channels, 1, act_layer=nn.ReLU6))


class SSDLite(ConvertsStateDict, SSD):
    """torchvision's SSD with the authors' configurations; ``load_state_dict`` also takes their keys.

    Args:
        backbone: Backbone with six maps.
        variant: Key of ``VARIANTS``.
        num_classes: Number of classes, background included. With focal loss label k is scored by output k - 1, as in
            the authors' code. The last output then stands for no class, and no box is returned for it.
        image_mean: Subtracted from images in 0..1.
        image_std: Divides them.
        **kwargs: Arguments of torchvision's ``SSD``.
    """

    def __init__(self, backbone: SSDLiteBackbone, variant: Variant, num_classes: int, image_mean, image_std, **kwargs):
        anchors = DefaultBoxes(_MIN_SIZES, variant.max_sizes, variant.aspect_ratios, _STRIDES, SIZE)
        num_anchors = anchors.num_anchors_per_location()
        options = dict(
            score_thresh=variant.score_thresh,
            nms_thresh=variant.nms_thresh,
            detections_per_img=100,
        )
        super().__init__(
            backbone,
            anchors,
            (SIZE, SIZE),
            num_classes,
            image_mean=list(image_mean),
            image_std=list(image_std),
            head=SSDLiteHead(backbone.out_channels, num_anchors, num_classes, 0.01 if variant.focal else None),
            **(options | kwargs),
        )
        self.focal = variant.focal

    def compute_loss(self, targets, head_outputs, anchors, matched_idxs):
        """Losses of torchvision's SSD; in the COCO variant the classes' is the authors' sigmoid focal loss.

        Its weight is alpha 0.25, gamma 2, times 5; both losses are divided by the number of matched boxes, 1 at least.
        """
        losses = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        if self.focal:
            logits = head_outputs['cls_logits']
            # index 0 is the background, which no output stands for
            labels = torch.stack(
                [F.pad(t['labels'], (1, 0))[m + 1] for t, m in zip(targets, matched_idxs, strict=True)]
            )
            one_hot = F.one_hot(labels, logits.shape[-1] + 1)[..., 1:].to(logits.dtype)
            focal = sigmoid_focal_loss(logits, one_hot, alpha=0.25, gamma=2, reduction='sum')
            losses['classification'] = 5 * focal / (labels > 0).sum().clamp(min=1)
        return losses

    def postprocess_detections(self, head_outputs, image_anchors, image_shapes):
        """Boxes, scores and labels of each image: all that are above the threshold, then suppression, then the best.

        torchvision clips boxes before the suppression; here, as in the authors' code, it sees whole boxes. They are
        clipped afterwards.
        """
        logits = head_outputs['cls_logits']
        scores_of_all = logits[..., :-1].sigmoid() if self.focal else logits.softmax(-1)[..., 1:]
        detections = []
        for offsets, scores, anchors, shape in zip(
            head_outputs['bbox_regression'], scores_of_all, image_anchors, image_shapes, strict=True
        ):
            boxes = self.box_coder.decode_single(offsets, anchors)
            index, label = torch.where(scores > self.score_thresh)
            scores, boxes = scores[index, label], boxes[index]
            keep = batched_nms(boxes, scores, label, self.nms_thresh)[: self.detections_per_img]
            boxes = clip_boxes_to_image(boxes[keep], shape)
            detections.append(dict(boxes=boxes, scores=scores[keep], labels=label[keep] + 1))
        return detections

    def convert_state_dict(self, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Tensors in the authors' keys -> in ours."""
        if not any(key.startswith('box_head.') for key in state_dict):
            return state_dict
        return {self._rename_key(key): value for key, value in state_dict.items()}

    def _rename_key(self, key: str) -> str:
        if match := re.fullmatch(r'box_head\.predictor\.(cls|reg)_headers\.(\d+)\.(?:conv\.)?(.*)', key):
            head = {'cls': 'classification', 'reg': 'regression'}[match[1]]
            return f'head.{head}_head.module_list.{match[2]}.{match[3]}'
        model = self.backbone.body.model
        if match := re.fullmatch(r'backbone\.extras\.(\d+)\.(?:conv\.)?(\d(?:\.\d)?)\.(.*)', key):
            if isinstance(model, MobileNeXt):
                names = _MOBILENEXT_EXTRA
            else:  # the authors' plain MobileNetV2 is torchvision's
                names = AUTHORS_BLOCK if isinstance(model, AttnMobileNetV2) else TORCHVISION_BLOCK
            layer, inside = names.get(match[2], match[2]), match[3]
            if layer == 'se' and (row := attention_of(self.backbone.extras[0].se)):
                inside = row.rename_key(inside)
            return f'backbone.extras.{match[1]}.{layer}.{inside}'
        if match := re.fullmatch(r'backbone\.((?:features|conv)\..*)', key):
            # a model of the zoo renames its own keys
            return 'backbone.body.model.' + (match[1] if isinstance(model, ZooModel) else torchvision_key(match[1]))
        return key


_MOBILENEXT_EXTRA = {'0': '0.conv', '1': '0.bn', '3': '1.conv', '4': '1.bn', '5': '2.conv', '6': '2.bn'}
