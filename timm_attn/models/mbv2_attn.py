"""MobileNetV2 with attention after the depthwise convolution.

Papers:
* `Coordinate Attention for Efficient Mobile Network Design` - https://arxiv.org/abs/2103.02907 (CA, SE, CBAM)
* `SCSA: Exploring the Synergistic Effects Between Spatial and Channel Attention` -
  https://arxiv.org/abs/2407.05128 (SCSA)
* `MobileNetV2: Inverted Residuals and Linear Bottlenecks` - https://arxiv.org/abs/1801.04381
"""

import re
from collections.abc import Callable
from functools import partial

from timm.layers import create_attn, get_act_layer
from timm.models import generate_default_cfgs, register_model
from timm.models.efficientnet import EfficientNet
from torch import nn

from .._compat import decode_arch_def, resolve_bn_args, round_channels
from ..layers import SCSA, cbam, coord_attn, squeeze_excite
from ..weights import imagenet_cfg, pretrained_cfgs
from ..weights.convert import block_name, substitute
from .base import ZooModel
from .builder import build_model

__all__ = ['AttnMobileNetV2']

_DEPTHS = (1, 2, 3, 4, 3, 3, 1)
_FIRST = {'0': 'conv_dw', '1': 'bn1', '3': 'conv_pw', '4': 'bn2'}
AUTHORS_BLOCK = {'0': 'conv_pw', '1': 'bn1', '3': 'conv_dw', '4': 'bn2', '6': 'se', '7': 'conv_pwl', '8': 'bn3'}
"""Layers of a block that expands, under the authors' names."""
_TORCHVISION_FIRST = {'0.0': 'conv_dw', '0.1': 'bn1', '1': 'conv_pw', '2': 'bn2'}
TORCHVISION_BLOCK = {
    '0.0': 'conv_pw', '0.1': 'bn1', '1.0': 'conv_dw', '1.1': 'bn2', '2': 'conv_pwl', '3': 'bn3',
}  # fmt: skip
"""Layers of a block that expands, under torchvision's names."""
_MM_FIRST = {'0.conv': 'conv_dw', '0.bn': 'bn1', '1': 'se', '2.conv': 'conv_pw', '2.bn': 'bn2'}
_MM_OTHER = {
    '0.conv': 'conv_pw', '0.bn': 'bn1', '1.conv': 'conv_dw', '1.bn': 'bn2', '2': 'se', '3.conv': 'conv_pwl',
    '3.bn': 'bn3',
}  # fmt: skip


def _houqb_block(match: re.Match) -> str:
    index, layer = int(match[1]) - 1, match[2]
    names = _FIRST if index == 0 else AUTHORS_BLOCK
    return f'blocks.{block_name(index, _DEPTHS)}.{names.get(layer, layer)}.'


def _torchvision_block(match: re.Match) -> str:
    index, layer = int(match[1]) - 1, match[2]
    names = _TORCHVISION_FIRST if index == 0 else TORCHVISION_BLOCK
    return f'blocks.{block_name(index, _DEPTHS)}.{names.get(layer, layer)}.'


def _mm_block(match: re.Match) -> str:
    stage, block, layer = int(match[1]) - 1, match[2], match[3]
    names = _MM_FIRST if stage == 0 else _MM_OTHER
    return f'blocks.{stage}.{block}.{names.get(layer, layer)}.'


# github.com/houqb/CoordAttention, and mmpretrain from github.com/HZAI-ZJNU/SCSA
_rename_key = substitute(
    (r'^features\.0\.0\.', 'conv_stem.'),
    (r'^features\.0\.1\.', 'bn1.'),
    (r'^features\.(\d+)\.conv\.(\d+)\.', _houqb_block),
    (r'^conv1\.conv\.', 'conv_stem.'),
    (r'^conv1\.bn\.', 'bn1.'),
    (r'^layer(\d+)\.(\d+)\.conv\.(\d+\.conv|\d+\.bn|\d+)\.', _mm_block),
    (r'^(?:conv\.0|conv2\.conv)\.', 'conv_head.'),
    (r'^(?:conv\.1|conv2\.bn)\.', 'bn2.'),
    (r'^(?:classifier\.1|head\.fc)\.', 'classifier.'),
)

torchvision_key = substitute(
    (r'^features\.0\.0\.', 'conv_stem.'),
    (r'^features\.0\.1\.', 'bn1.'),
    (r'^features\.18\.0\.', 'conv_head.'),
    (r'^features\.18\.1\.', 'bn2.'),
    (r'^features\.(\d+)\.conv\.(\d\.\d|\d)\.', _torchvision_block),
)
"""Key of torchvision's MobileNetV2 -> timm's. It tells the layers by other numbers than the authors' code does."""


class AttnMobileNetV2(ZooModel, EfficientNet):
    """timm's MobileNetV2 body with an attention layer in each block.

    Args:
        attn_layer: Attention class, channels first, or a name that timm knows; None for none.
        attn_first: Also in the first block, which does not expand.
        width: Multiplier of the channels; the last convolution keeps 1280 at widths up to 1.
        act_layer: Activation.
        norm_layer: Norm; by default batch norm, with ``bn_momentum`` and ``bn_eps`` where given.
        **kwargs: Arguments of ``timm.models.EfficientNet``.
    """

    rename_key = staticmethod(_rename_key)
    absorbs_gate = {'se': ('conv_pwl', 'conv_pw')}

    def __init__(
        self,
        attn_layer=None,
        attn_first: bool = False,
        width: float = 1.0,
        act_layer='relu6',
        norm_layer=None,
        **kwargs,
    ):
        arch_def = [
            ['ds_r1_k3_s1_c16'],
            ['ir_r2_k3_s2_e6_c24'],
            ['ir_r3_k3_s2_e6_c32'],
            ['ir_r4_k3_s2_e6_c64'],
            ['ir_r3_k3_s1_e6_c96'],
            ['ir_r3_k3_s2_e6_c160'],
            ['ir_r1_k3_s1_e6_c320'],
        ]
        if attn_layer is not None:  # timm's builder places attention only in blocks with an 'se' part
            arch_def = [
                [f'{block}_se1' for block in stage] if i or attn_first else stage for i, stage in enumerate(arch_def)
            ]
        round_chs_fn = partial(round_channels, multiplier=width)
        model_args = dict(
            block_args=decode_arch_def(arch_def),
            num_features=max(1280, round_chs_fn(1280)),
            round_chs_fn=round_chs_fn,
            act_layer=get_act_layer(act_layer),
            norm_layer=norm_layer or partial(nn.BatchNorm2d, **resolve_bn_args(kwargs)),
            se_layer=None if attn_layer is None else in_block(attn_layer),
        )
        super().__init__(**dict(model_args, **kwargs))


def in_block(attn_layer) -> Callable[..., nn.Module]:
    """Attention class -> what timm's blocks call with the channels and their own activation, which it leaves out."""
    return partial(_build, attn_layer)


def _build(attn_layer, channels: int, act_layer=None, device=None, dtype=None) -> nn.Module:
    return create_attn(attn_layer, channels, device=device, dtype=dtype)


def _create_mbv2(variant: str, pretrained: bool = False, **kwargs) -> AttnMobileNetV2:
    return build_model(AttnMobileNetV2, variant, pretrained, feature_cfg=dict(flatten_sequential=True), **kwargs)


default_cfgs = generate_default_cfgs(
    pretrained_cfgs(
        imagenet_cfg(first_conv='conv_stem', classifier='classifier'),
        mbv2_ca='mobilenetv2_100',
        mbv2_ca_075='mobilenetv2_075',
        mbv2_ca_050='mobilenetv2_050',
        mbv2_se='mobilenetv2_100',
        mbv2_cbam='mobilenetv2_100',
        mbv2_scsa='mobilenetv2_100',
    )
)


@register_model
def mbv2_ca(pretrained: bool = False, **kwargs) -> AttnMobileNetV2:
    """MobileNetV2 with coordinate attention in every block that expands."""
    return _create_mbv2('mbv2_ca', pretrained, **dict(dict(attn_layer=coord_attn), **kwargs))


@register_model
def mbv2_ca_075(pretrained: bool = False, **kwargs) -> AttnMobileNetV2:
    """MobileNetV2 at width 0.75 with coordinate attention in every block that expands."""
    return _create_mbv2('mbv2_ca_075', pretrained, **dict(dict(attn_layer=coord_attn, width=0.75), **kwargs))


@register_model
def mbv2_ca_050(pretrained: bool = False, **kwargs) -> AttnMobileNetV2:
    """MobileNetV2 at width 0.5 with coordinate attention in every block that expands."""
    return _create_mbv2('mbv2_ca_050', pretrained, **dict(dict(attn_layer=coord_attn, width=0.5), **kwargs))


@register_model
def mbv2_se(pretrained: bool = False, **kwargs) -> AttnMobileNetV2:
    """MobileNetV2 with squeeze-and-excitation in every block that expands."""
    return _create_mbv2('mbv2_se', pretrained, **dict(dict(attn_layer=squeeze_excite), **kwargs))


@register_model
def mbv2_cbam(pretrained: bool = False, **kwargs) -> AttnMobileNetV2:
    """MobileNetV2 with CBAM in every block that expands."""
    return _create_mbv2('mbv2_cbam', pretrained, **dict(dict(attn_layer=cbam), **kwargs))


@register_model
def mbv2_scsa(pretrained: bool = False, **kwargs) -> AttnMobileNetV2:
    """MobileNetV2 with SCSA in every block."""
    return _create_mbv2('mbv2_scsa', pretrained, **dict(dict(attn_layer=SCSA, attn_first=True), **kwargs))
