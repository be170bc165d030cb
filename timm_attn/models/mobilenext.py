"""MobileNeXt: networks of sandglass blocks, plain and with squeeze-and-excitation or coordinate attention.

Papers:
* `Rethinking Bottleneck Structure for Efficient Mobile Network Design` - https://arxiv.org/abs/2007.02269
* `Coordinate Attention for Efficient Mobile Network Design` - https://arxiv.org/abs/2103.02907 (SE and CA variants)
"""

import math
import re

import torch
from timm.layers import (
    DropPath,
    calculate_drop_path_rates,
    create_attn,
    get_act_layer,
    get_norm_act_layer,
    make_divisible,
)
from timm.models import generate_default_cfgs, register_model
from torch import nn

from ..layers import coord_attn, squeeze_excite
from ..weights import imagenet_cfg, pretrained_cfgs
from ..weights.convert import block_name, substitute
from .base import ZooModel
from .builder import build_model
from .staged import StagedNet

__all__ = ['MobileNeXt', 'SandglassBlock']

# reduction of the bottleneck, channels, blocks, stride of the first block
_STAGES = (
    (2, 96, 1, 2),
    (6, 144, 1, 1),
    (6, 192, 3, 2),
    (6, 288, 3, 2),
    (6, 384, 4, 1),
    (6, 576, 4, 2),
    (6, 960, 3, 1),
    (6, 1280, 1, 1),
)

_DEPTHS = tuple(depth for _, _, depth, _ in _STAGES)
_POINTWISE = {'0': 'conv_reduce', '1': 'bn2', '2': 'conv_expand', '3': 'bn3', '5': 'conv_dw2', '6': 'bn4'}
_WHOLE = {
    '0': 'conv_dw1', '1': 'bn1', '3': 'conv_reduce', '4': 'bn2', '5': 'conv_expand', '6': 'bn3', '8': 'conv_dw2',
    '9': 'bn4',
}  # fmt: skip


def _zhou_block(match: re.Match) -> str:
    index, layer = int(match[1]) - 1, match[2]
    stage, block = block_name(index, _DEPTHS).split('.')
    first_of_many = block == '0' and int(stage) < len(_DEPTHS) and _DEPTHS[int(stage)] > 1
    names = _POINTWISE if first_of_many else _WHOLE
    return f'stages.{stage}.{block}.{names.get(layer, layer)}.'


# github.com/Andrew-Qibin/ssdlite-pytorch-mobilenext
_rename_key = substitute(
    (r'^features\.0\.0\.', 'conv_stem.'),
    (r'^features\.0\.1\.', 'bn1.'),
    (r'^features\.(\d+)\.conv\.(\d+)\.', _zhou_block),
    (r'^classifier\.1\.', 'classifier.'),
)


def _depthwise(channels: int, stride: int, dilation: int, dd: dict) -> nn.Conv2d:
    return nn.Conv2d(
        channels, channels, 3, stride, padding=dilation, dilation=dilation, groups=channels, bias=False, **dd
    )


class SandglassBlock(nn.Module):
    """Sandglass block: depthwise convolution, bottleneck of two 1x1 convolutions, depthwise convolution with stride.

    Source: MobileNeXt (arXiv 2007.02269); attention after the first depthwise convolution, as in CA
    (arXiv 2103.02907).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the last depthwise convolution.
        reduction: The bottleneck has ``in_channels // reduction`` channels, and a sixth of ``out_channels`` at least.
        first_dw: Has the first depthwise convolution.
        last_dw: Has the last depthwise convolution.
        skip: Adds the input.
        dilation: Dilation of the first depthwise convolution.
        last_dilation: Dilation of the last depthwise convolution.
        attn_layer: Attention class, channels first, or a name that timm knows; it needs the first depthwise
            convolution.
        act_layer: Activation.
        norm_layer: Norm.
        drop_path_rate: Stochastic depth.
        device: Device of the parameters.
        dtype: Type of the parameters.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        reduction: int = 6,
        first_dw: bool = True,
        last_dw: bool = True,
        skip: bool = False,
        dilation: int = 1,
        last_dilation: int = 1,
        attn_layer=None,
        act_layer=nn.ReLU6,
        norm_layer=nn.BatchNorm2d,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        norm_act_layer = get_norm_act_layer(norm_layer, act_layer)
        hidden = in_channels // reduction
        if hidden < out_channels / 6:
            hidden = make_divisible(math.ceil(out_channels / 6), 16)
        self.conv_dw1 = _depthwise(in_channels, 1, dilation, dd) if first_dw else nn.Identity()
        self.bn1 = norm_act_layer(in_channels, inplace=True, **dd) if first_dw else nn.Identity()
        self.attn = (create_attn(attn_layer, in_channels, **dd) if first_dw else None) or nn.Identity()
        self.conv_reduce = nn.Conv2d(in_channels, hidden, 1, bias=False, **dd)
        self.bn2 = norm_act_layer(hidden, apply_act=False, **dd)
        self.conv_expand = nn.Conv2d(hidden, out_channels, 1, bias=False, **dd)
        self.bn3 = norm_act_layer(out_channels, inplace=True, **dd)
        self.conv_dw2 = _depthwise(out_channels, stride, last_dilation, dd) if last_dw else nn.Identity()
        self.bn4 = norm_act_layer(out_channels, apply_act=False, **dd) if last_dw else nn.Identity()
        self.skip = skip
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate and skip else nn.Identity()

    def expand(self, x: torch.Tensor) -> torch.Tensor:
        """Input (B, in_channels, H, W) -> the map before the last depthwise convolution (B, out_channels, H, W)."""
        x = self.attn(self.bn1(self.conv_dw1(x)))
        x = self.bn2(self.conv_reduce(x))
        return self.bn3(self.conv_expand(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x
        x = self.bn4(self.conv_dw2(self.expand(x)))
        if self.skip:
            x = self.drop_path(x)
            x += shortcut
        return x


class MobileNeXt(ZooModel, StagedNet):
    """MobileNeXt.

    Source: MobileNeXt (arXiv 2007.02269), with the exceptions of the authors' code: of the blocks that
    change the number of channels, one at stride 1 keeps only the two 1x1 convolutions, and one at stride 2 also the
    last depthwise; a block that is alone in its stage at stride 1, and the first of all, keep both but have no skip.

    Args:
        attn_layer: Attention class after the first depthwise convolution of each block, channels first.
        num_classes: Number of classes, 0 for none.
        in_chans: Number of input channels.
        output_stride: Total stride at most, 8, 16 or 32; beyond it stages are dilated instead.
        global_pool: Pooling before the classifier, any of timm's.
        act_layer: Activation.
        norm_layer: Norm.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth, rising linearly to this rate.
        device: Device of the parameters.
        dtype: Type of the parameters.
    """

    rename_key = staticmethod(_rename_key)
    absorbs_gate = {'attn': ('conv_reduce',)}

    def __init__(
        self,
        attn_layer=None,
        num_classes: int = 1000,
        in_chans: int = 3,
        output_stride: int = 32,
        global_pool: str = 'avg',
        act_layer=nn.ReLU6,
        norm_layer=nn.BatchNorm2d,
        drop_rate: float = 0.2,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        if output_stride not in (8, 16, 32):
            raise ValueError(f'output_stride={output_stride} must be one of 8, 16, 32.')
        dd = {'device': device, 'dtype': dtype}
        act_layer = get_act_layer(act_layer)
        conv_stem = nn.Conv2d(in_chans, 32, 3, stride=2, padding=1, bias=False, **dd)
        bn1 = get_norm_act_layer(norm_layer, act_layer)(32, inplace=True, **dd)
        drop_path_rates = calculate_drop_path_rates(drop_path_rate, [n for _, _, n, _ in _STAGES], stagewise=True)
        stages, feature_info = [], [dict(num_chs=32, reduction=2, module='bn1', stage=0)]
        in_channels, total_stride, dilation = 32, 2, 1
        for i, (reduction, out_channels, depth, stride) in enumerate(_STAGES):
            blocks = []
            for j in range(depth):
                first = j == 0
                alone = first and depth == 1  # keeps both depthwise convolutions
                downsamples = first and stride == 2
                next_dilation = dilation
                if downsamples and total_stride * 2 > output_stride:
                    next_dilation = dilation * 2
                elif downsamples:
                    total_stride *= 2
                blocks.append(
                    SandglassBlock(
                        in_channels,
                        out_channels,
                        2 if downsamples and next_dilation == dilation else 1,
                        reduction,
                        first_dw=alone or not first,
                        last_dw=alone or not first or downsamples,
                        skip=not first,
                        dilation=dilation,
                        last_dilation=dilation,
                        attn_layer=attn_layer,
                        act_layer=act_layer,
                        norm_layer=norm_layer,
                        drop_path_rate=drop_path_rates[i][j],
                        **dd,
                    )
                )
                in_channels, dilation = out_channels, next_dilation
            stages.append(nn.Sequential(*blocks))
            if i + 1 == len(_STAGES) or _STAGES[i + 1][3] == 2:
                feature_info.append(
                    dict(num_chs=out_channels, reduction=total_stride, module=f'stages.{i}', stage=i + 1)
                )
        super().__init__(conv_stem, bn1, stages, feature_info, num_classes, in_chans, global_pool, drop_rate, **dd)
        self.init_weights()

    def forward_expanded(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Images -> maps inside two blocks, before their last depthwise convolution, and the final map; for SSDLite.

        Args:
            x: Images (B, in_chans, H, W).

        Returns:
            The map of the last block that halves the resolution, (B, 576, H / 16, W / 16); that of the last block,
            (B, 1280, H / 32, W / 32); and what :meth:`forward_features` returns, of the same shape.
        """
        expanded = self._expanded_blocks()
        maps = []
        x = self.bn1(self.conv_stem(x))
        for stage in self.stages:
            for block in stage:
                if block in expanded:  # neither has a skip
                    x = block.expand(x)
                    maps.append(x)
                    x = block.bn4(block.conv_dw2(x))
                else:
                    x = block(x)
        return [*maps, x]

    def _expanded_blocks(self) -> tuple[SandglassBlock, SandglassBlock]:
        last_downsampling = max(i for i, (_, _, _, stride) in enumerate(_STAGES) if stride == 2)
        return self.stages[last_downsampling][0], self.stages[-1][-1]

    @torch.jit.ignore
    def init_weights(self) -> None:
        """He initialisation of the convolutions, a narrow normal one of the classifier."""
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                fan_out = m.kernel_size[0] * m.kernel_size[1] * m.out_channels // m.groups
                nn.init.normal_(m.weight, 0, math.sqrt(2.0 / fan_out))
                if m.bias is not None:
                    nn.init.zeros_(m.bias)
            elif isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, 0, 0.01)
                nn.init.zeros_(m.bias)


def _create_mobilenext(variant: str, pretrained: bool = False, **kwargs) -> MobileNeXt:
    return build_model(MobileNeXt, variant, pretrained, feature_cfg=dict(flatten_sequential=True), **kwargs)


default_cfgs = generate_default_cfgs(
    pretrained_cfgs(
        imagenet_cfg(first_conv='conv_stem', classifier='classifier'),
        mobilenext='mobilenext',
        mobilenext_se='mobilenext',
        mobilenext_ca='mobilenext',
    )
)


@register_model
def mobilenext(pretrained: bool = False, **kwargs) -> MobileNeXt:
    """MobileNeXt at width 1.0."""
    return _create_mobilenext('mobilenext', pretrained, **kwargs)


@register_model
def mobilenext_se(pretrained: bool = False, **kwargs) -> MobileNeXt:
    """MobileNeXt with squeeze-and-excitation after the first depthwise convolution of each block that has one."""
    return _create_mobilenext('mobilenext_se', pretrained, **dict(dict(attn_layer=squeeze_excite), **kwargs))


@register_model
def mobilenext_ca(pretrained: bool = False, **kwargs) -> MobileNeXt:
    """MobileNeXt with coordinate attention after the first depthwise convolution of each block that has one."""
    return _create_mobilenext('mobilenext_ca', pretrained, **dict(dict(attn_layer=coord_attn), **kwargs))
