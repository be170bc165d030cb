"""Squeeze-and-excitation: timm's layer with the arguments of the coordinate attention paper.

Papers: `Squeeze-and-Excitation Networks` - https://arxiv.org/abs/1709.01507; the baseline of
`Coordinate Attention for Efficient Mobile Network Design` - https://arxiv.org/abs/2103.02907
"""

from timm.layers import SEModule
from torch import nn

from .defaults import with_defaults
from .registry import Attention, register_attention


def squeeze_excite(channels: int, **kwargs) -> SEModule:
    """Squeeze-and-excitation, the paper's baseline: two 1x1 convolutions with bias, hidden width C // 24, ReLU6.

    Args:
        channels: Number of input channels C.
        **kwargs: Arguments of timm's SEModule that replace or extend these.
    """
    return SEModule(channels, **with_defaults(kwargs, max(1, channels // 24), act_layer=nn.ReLU6))


register_attention(
    Attention(
        name='se',
        title='Squeeze-and-excitation',
        layer=squeeze_excite,
        layer_cls=SEModule,
        paper='arXiv:1709.01507',
        placement='after the last norm of a residual block, before the addition of the shortcut; MobileNetV2: after '
        'the depthwise convolution of each block that expands',
        zeroed=('fc2',),
        gates=1,
        slots=('out', 'mid'),
        same_as=('SqueezeExcite', 'SEModule', 'EffectiveSEModule', 'SEWithNorm'),
        attach_args=dict(rd_ratio=1.0 / 16, act_layer=nn.ReLU),  # those of its own paper
        authors_keys=((r'^conv\.0\.', 'fc1.'), (r'^conv\.2\.', 'fc2.')),
    )
)
