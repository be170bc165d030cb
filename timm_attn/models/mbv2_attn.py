"""MobileNetV2 with attention behind the depthwise convolution.

Papers:
* `Coordinate Attention for Efficient Mobile Network Design` - https://arxiv.org/abs/2103.02907 (CA, SE, CBAM)
* `SCSA: Exploring the Synergistic Effects Between Spatial and Channel Attention` -
  https://arxiv.org/abs/2407.05128 (SCSA)
* `MobileNetV2: Inverted Residuals and Linear Bottlenecks` - https://arxiv.org/abs/1801.04381
"""

from functools import partial

from timm.layers import create_attn, get_act_layer
from timm.models import generate_default_cfgs, register_model
from timm.models._efficientnet_builder import decode_arch_def, resolve_bn_args, round_channels
from timm.models.efficientnet import EfficientNet
from torch import nn

from ..layers import SCSA, cbam, coord_attn, squeeze_excite
from ..pretrained import ZooModel, rename_mbv2
from ..weights import pretrained_cfgs
from ._build import build_model, imagenet_cfg

__all__ = ['AttnMobileNetV2']


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

    rename_key = staticmethod(rename_mbv2)
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
            se_layer=None if attn_layer is None else partial(_in_block, attn_layer),
        )
        super().__init__(**dict(model_args, **kwargs))


def _in_block(attn_layer, channels: int, act_layer=None, device=None, dtype=None) -> nn.Module:
    """Build an attention layer inside a block, which hands its own activation and no reduction ratio to the layer."""
    return create_attn(attn_layer, channels, device=device, dtype=dtype)


def _create_mbv2(variant: str, pretrained: bool = False, **kwargs) -> AttnMobileNetV2:
    return build_model(AttnMobileNetV2, variant, pretrained, feature_cfg=dict(flatten_sequential=True), **kwargs)


default_cfgs = generate_default_cfgs(
    pretrained_cfgs(
        'mbv2_ca',
        'mbv2_ca_075',
        'mbv2_ca_050',
        'mbv2_se',
        'mbv2_cbam',
        'mbv2_scsa',
        **imagenet_cfg(first_conv='conv_stem', classifier='classifier'),
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
