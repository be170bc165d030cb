"""BAM: bottleneck attention module.

Paper: `BAM: Bottleneck Attention Module` - https://arxiv.org/abs/1807.06514
Original placement: after each stage but the last.
"""

import torch
from timm.layers import ConvNormAct, create_act_layer
from torch import nn

from .registry import Attention, register_attention


class BAM(nn.Module):
    """Bottleneck attention module: one factor for each value, from a channel branch and a spatial branch.

    out = x * (1 + sigmoid(channel(mean of x) * spatial(x))). The channel branch is a two-layer MLP, the spatial branch
    two dilated 3x3 convolutions between two 1x1 convolutions, the last of them to one channel.

    Source: BAM (arXiv 1807.06514), after the authors' code, which multiplies the branches; the paper may add them
    (doubtful). No weights make it an identity: even at zero, x is scaled by 1.5.

    Args:
        channels: Number of input channels C.
        rd_ratio: Width of the hidden layers as a share of C.
        rd_channels: Width of the hidden layers, overrides ``rd_ratio``.
        dilation: Dilation of the 3x3 convolutions.
        gate_layer: Activation of the gate.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Shape:
        (B, C, H, W) -> (B, C, H, W), any H and W from 1 up; in training B from 2 up, as the norm of the channel branch
        needs two values.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1.0 / 16,
        rd_channels: int | None = None,
        dilation: int = 4,
        gate_layer='sigmoid',
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        rd_channels = rd_channels or max(1, int(channels * rd_ratio))
        dilated = dict(dilation=dilation, bias=True, **dd)
        self.channel = nn.Sequential(
            ConvNormAct(channels, rd_channels, 1, bias=True, **dd),
            nn.Conv2d(rd_channels, channels, 1, **dd),
        )
        self.spatial = nn.Sequential(
            ConvNormAct(channels, rd_channels, 1, bias=True, **dd),
            ConvNormAct(rd_channels, rd_channels, 3, **dilated),
            ConvNormAct(rd_channels, rd_channels, 3, **dilated),
            nn.Conv2d(rd_channels, 1, 1, **dd),
        )
        self.gate = create_act_layer(gate_layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        channel = self.channel(x.mean(dim=(2, 3), keepdim=True))  # (B, C, 1, 1)
        gate = self.gate(channel * self.spatial(x))
        return x * (1 + gate.to(x.dtype))


def _authors_tensor(key: str, value: torch.Tensor) -> torch.Tensor:
    # linear layers in their code, 1x1 convolutions here
    return value[:, :, None, None] if key.startswith('channel.') and value.ndim == 2 else value


register_attention(
    Attention(
        name='bam',
        title='Bottleneck attention module',
        layer=BAM,
        layer_cls=BAM,
        paper='arXiv:1807.06514',
        placement='after each stage but the last',
        between_stages=True,
        # github.com/Jongchan/attention-module
        authors_keys=(
            (r'^channel_att\.gate_c\.gate_c_fc_0\.', 'channel.0.conv.'),
            (r'^channel_att\.gate_c\.gate_c_bn_1\.', 'channel.0.bn.'),
            (r'^channel_att\.gate_c\.gate_c_fc_final\.', 'channel.1.'),
            (r'^spatial_att\.gate_s\.gate_s_(conv|bn)_reduce0\.', r'spatial.0.\1.'),
            (r'^spatial_att\.gate_s\.gate_s_(conv|bn)_di_0\.', r'spatial.1.\1.'),
            (r'^spatial_att\.gate_s\.gate_s_(conv|bn)_di_1\.', r'spatial.2.\1.'),
            (r'^spatial_att\.gate_s\.gate_s_conv_final\.', 'spatial.3.'),
        ),
        authors_tensor=_authors_tensor,
    )
)
