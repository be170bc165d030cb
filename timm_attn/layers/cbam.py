"""CBAM: timm's layer with the arguments of the coordinate attention paper, and its channel half alone.

Papers: `CBAM: Convolutional Block Attention Module` - https://arxiv.org/abs/1807.06521; the baseline of
`Coordinate Attention for Efficient Mobile Network Design` - https://arxiv.org/abs/2103.02907
"""

import torch
from timm.layers.cbam import CbamModule, ChannelAttn

from .defaults import with_defaults
from .registry import Attention, register_attention


def cbam(channels: int, bn_momentum: float = 0.1, **kwargs) -> CbamModule:
    """CBAM, the paper's baseline: the hidden width and the biases of :func:`squeeze_excite`, and a 7x7 spatial gate.

    The CBAM paper's own is ``cbam(C, rd_ratio=1 / 16, bn_momentum=0.01)``.

    Args:
        channels: Number of input channels C.
        bn_momentum: Momentum of the norm in the spatial gate.
        **kwargs: Arguments of timm's CbamModule that replace or extend these.
    """
    layer = CbamModule(channels, **with_defaults(kwargs, max(1, channels // 24), mlp_bias=True))
    layer.spatial.conv.bn.momentum = bn_momentum
    return layer


class CbamChannel(ChannelAttn):
    """The channel half of CBAM: out = x * sigmoid(mlp(mean of x) + mlp(max of x)), one MLP for both.

    Source: CBAM (arXiv 1807.06521), eq. 2. A class of its own, so that the half inside a CBAM does not count as an
    attention.

    Args:
        channels: Number of input channels C.
        mlp_bias: Whether the MLP has biases; the authors' code has them.
        **kwargs: Arguments of timm's ChannelAttn; its hidden width is C / 16 by default, as published.

    Shape:
        (B, C, H, W) -> (B, C, H, W), any H and W from 1 up.
    """

    def __init__(self, channels: int, mlp_bias: bool = True, **kwargs):
        super().__init__(channels, mlp_bias=mlp_bias, **kwargs)


def _authors_tensor(key: str, value: torch.Tensor) -> torch.Tensor:
    if key.endswith(('fc1.weight', 'fc2.weight')):  # linear layers in their code, 1x1 convolutions in timm's
        return value[:, :, None, None]
    if key == 'spatial.conv.conv.weight':  # they stack the maximum and the mean, timm the mean and the maximum
        return value.flip(1)
    return value


register_attention(
    Attention(
        name='cbam',
        title='CBAM',
        layer=cbam,
        layer_cls=CbamModule,
        paper='arXiv:1807.06521',
        placement='after the last norm of a residual block, before the addition of the shortcut; MobileNetV2: after '
        'the depthwise convolution of each block that expands',
        # Of the spatial gate, the norm after the convolution: a zero convolution would give the norm a variance of
        # zero, and with that a gradient some hundred times too large.
        zeroed=('channel.fc2', 'spatial.conv.bn'),
        gates=2,
        slots=('out', 'mid'),
        attach_args=dict(rd_ratio=1.0 / 16),  # that of its own paper
        # github.com/Jongchan/attention-module
        authors_keys=(
            (r'^ChannelGate\.mlp\.1\.', 'channel.fc1.'),
            (r'^ChannelGate\.mlp\.3\.', 'channel.fc2.'),
            (r'^SpatialGate\.spatial\.', 'spatial.conv.'),
        ),
        authors_tensor=_authors_tensor,
    )
)

register_attention(
    Attention(
        name='cbam_channel',
        title='Channel attention of CBAM',
        layer=CbamChannel,
        layer_cls=CbamChannel,
        paper='arXiv:1807.06521',
        placement='after the last norm of each residual block, before the addition of the shortcut',
        zeroed=('fc2',),
        gates=1,
        slots=('out',),
        # github.com/Jongchan/attention-module
        authors_keys=((r'^ChannelGate\.mlp\.1\.', 'fc1.'), (r'^ChannelGate\.mlp\.3\.', 'fc2.')),
        authors_tensor=_authors_tensor,
    )
)
