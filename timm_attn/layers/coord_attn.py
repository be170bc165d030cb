"""Coordinate attention: timm's layer with the published arguments.

Paper: `Coordinate Attention for Efficient Mobile Network Design` - https://arxiv.org/abs/2103.02907
"""

import torch
from timm.layers import coord_attn as timm_coord_attn

from .axes import axis_means, gate_axes
from .defaults import with_defaults
from .registry import Attention, register_attention

for _name in ('axis_means', 'gate_axes'):  # leaves of every torch.fx tracer, torchvision's included
    torch.fx.wrap(_name)


class CoordAttn(timm_coord_attn.CoordAttn):
    """timm's coordinate attention, computed with fewer passes over the feature map; the same arguments and weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.bn1(self.conv1(axis_means(x))))  # (B, C / r, 1, H + W)
        h, w = torch.split(y, [x.shape[2], x.shape[3]], dim=3)
        out = gate_axes(x, self.gate(self.conv_h(h)).transpose(2, 3), self.gate(self.conv_w(w)))
        return out + x if self.has_skip else out


def coord_attn(channels: int, **kwargs) -> CoordAttn:
    """Coordinate attention as published: hidden width max(8, C // 32), biases, hard swish.

    Args:
        channels: Number of input channels C.
        **kwargs: Arguments of timm's CoordAttn that replace or extend these. The variant with ReLU and reduction 16
            that is in circulation is ``coord_attn(C, rd_channels=max(8, C // 16), act_layer=nn.ReLU)``.
    """
    return CoordAttn(channels, **with_defaults(kwargs, max(8, channels // 32), bias=True))


register_attention(
    Attention(
        name='ca',
        title='Coordinate attention',
        layer=coord_attn,
        layer_cls=timm_coord_attn.CoordAttn,
        paper='arXiv:2103.02907',
        placement='MobileNetV2: after the depthwise convolution of each block that expands; '
        'MobileNeXt: after the first depthwise convolution of a block',
        zeroed=('conv_h', 'conv_w'),
        gates=2,
        slots=('mid',),
        formula='coord_attn',
        # github.com/houqb/CoordAttention
        authors_keys=((r'\bconv2\.', 'conv_h.'), (r'\bconv3\.', 'conv_w.')),
    )
)
