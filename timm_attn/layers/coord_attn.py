"""timm's attention layers with the arguments of the coordinate attention paper.

Paper: `Coordinate Attention for Efficient Mobile Network Design` - https://arxiv.org/abs/2103.02907
Original placement: MobileNetV2, after the depthwise convolution of each block that expands; MobileNeXt, after the
first depthwise convolution of a block.
"""

import torch
from timm.layers import SqueezeExcite
from timm.layers import coord_attn as timm_coord_attn
from timm.layers.cbam import CbamModule
from torch import nn

from .axes import axis_means, gate_axes


def _with_defaults(kwargs: dict, rd_channels: int, **defaults) -> dict:
    """Arguments as published, where the caller gives none; a ratio from the caller also sets the hidden width."""
    if 'rd_ratio' not in kwargs:
        defaults['rd_channels'] = rd_channels
    return {**defaults, **kwargs}


class CoordAttn(timm_coord_attn.CoordAttn):
    """timm's coordinate attention, computed with fewer passes over the feature map; the same arguments and weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, w = axis_means(x)
        y = torch.cat([h, w], dim=2).unsqueeze(3)  # (B, C, H + W, 1)
        y = self.act(self.bn1(self.conv1(y)))
        h, w = torch.split(y, [x.shape[2], x.shape[3]], dim=2)
        out = gate_axes(x, self.gate(self.conv_h(h)), self.gate(self.conv_w(w.transpose(2, 3))))
        return out + x if self.has_skip else out


def coord_attn(channels: int, **kwargs) -> CoordAttn:
    """Coordinate attention as published: hidden width max(8, C // 32), biases, hard swish.

    Args:
        channels: Number of input channels C.
        **kwargs: Arguments of timm's CoordAttn that replace or extend these. The variant with ReLU and reduction 16
            that is in circulation is ``coord_attn(C, rd_channels=max(8, C // 16), act_layer=nn.ReLU)``.
    """
    return CoordAttn(channels, **_with_defaults(kwargs, max(8, channels // 32), bias=True))


def squeeze_excite(channels: int, **kwargs) -> nn.Module:
    """Squeeze-and-excitation, the paper's baseline: two 1x1 convolutions with bias, hidden width C // 24, ReLU6.

    Args:
        channels: Number of input channels C.
        **kwargs: Arguments of timm's SEModule that replace or extend these.
    """
    return SqueezeExcite(channels, **_with_defaults(kwargs, max(1, channels // 24), act_layer=nn.ReLU6))


def cbam(channels: int, **kwargs) -> CbamModule:
    """CBAM, the paper's baseline: the hidden width and the biases of :func:`squeeze_excite`, and a 7x7 spatial gate.

    Args:
        channels: Number of input channels C.
        **kwargs: Arguments of timm's CbamModule that replace or extend these.
    """
    return CbamModule(channels, **_with_defaults(kwargs, max(1, channels // 24), mlp_bias=True))
