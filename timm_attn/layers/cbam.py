"""CBAM: timm's layer with the arguments of the coordinate attention paper.

Papers: `CBAM: Convolutional Block Attention Module` - https://arxiv.org/abs/1807.06521; the baseline of
`Coordinate Attention for Efficient Mobile Network Design` - https://arxiv.org/abs/2103.02907
"""

from timm.layers.cbam import CbamModule

from .defaults import with_defaults
from .registry import Attention, register_attention


def cbam(channels: int, **kwargs) -> CbamModule:
    """CBAM, the paper's baseline: the hidden width and the biases of :func:`squeeze_excite`, and a 7x7 spatial gate.

    Args:
        channels: Number of input channels C.
        **kwargs: Arguments of timm's CbamModule that replace or extend these.
    """
    return CbamModule(channels, **with_defaults(kwargs, max(1, channels // 24), mlp_bias=True))


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
    )
)
