"""Gated channel transformation. Not the Gaussian context transformer, which shares the abbreviation GCT.

Paper: `Gated Channel Transformation for Visual Recognition` - https://arxiv.org/abs/1909.11519
Original placement: before convolutions.
"""

import torch
from timm.models import register_notrace_function
from torch import nn

from .registry import Attention, register_attention

torch.fx.wrap('wide')  # a leaf of every torch.fx tracer, torchvision's included


@register_notrace_function
def wide(x: torch.Tensor) -> torch.Tensor:
    """A tensor in a type that holds its squares: float64 as it is, any other in float32."""
    return x if x.dtype == torch.float64 else x.float()


class GatedCT(nn.Module):
    """Gated channel transformation: channels compete or cooperate by the norms of their maps.

    e = alpha * norm of each channel's map, out = x * (1 + tanh(gamma * e / rms(e) + beta)), where rms is taken over the
    channels. gamma and beta start at zero, so that the layer starts as an identity.

    Source: Gated Channel Transformation (arXiv 1909.11519), with the L2 norm. Computed in float32 (float64 for float64
    input).

    Args:
        channels: Number of input channels C.
        eps: Added to the squared norms and to their mean.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Shape:
        (B, C, H, W) -> (B, C, H, W), any H and W from 1 up.
    """

    def __init__(self, channels: int, eps: float = 1e-5, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.eps = eps
        self.alpha = nn.Parameter(torch.ones(1, channels, 1, 1, **dd))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1, **dd))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1, **dd))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        f = wide(x)
        # Norms of the image divided by its largest value, eps with them: their ratio stays the same, and the squares of
        # large values within the range of floats.
        scale = f.detach().abs().flatten(1).amax(dim=1).clamp_min(1.0).view(-1, 1, 1, 1)
        sums = (f / scale).square().sum(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
        e = self.alpha * (sums + self.eps / scale / scale + 1e-36).sqrt()  # a channel of zeros has a finite gradient
        rms = (e.square().mean(dim=1, keepdim=True) + self.eps / scale / scale + 1e-36).sqrt()
        return x * (1 + (self.gamma * (e / rms) + self.beta).tanh()).to(x.dtype)


register_attention(
    Attention(
        name='gated_ct',
        title='Gated channel transformation',
        layer=GatedCT,
        layer_cls=GatedCT,
        paper='arXiv:1909.11519',
        placement='before convolutions',
        zeroed=('gamma', 'beta'),
    )
)
