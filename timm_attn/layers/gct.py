"""GCT: the Gaussian context transformer. Not the gated channel transformation, which shares the abbreviation.

Paper: `Gaussian Context Transformer` -
https://openaccess.thecvf.com/content/CVPR2021/html/Ruan_Gaussian_Context_Transformer_CVPR_2021_paper.html
Original placement: after the last norm of a residual block, before the addition of the shortcut (doubtful: taken from a
third party's network).
"""

import torch
from timm.models import register_notrace_function
from torch import nn

from .registry import Attention, register_attention

torch.fx.wrap('gaussian_context')  # a leaf of every torch.fx tracer, torchvision's included


@register_notrace_function
def gaussian_context(x: torch.Tensor, eps: float = 1e-5, correction: int = 0) -> torch.Tensor:
    """Means of the channels, standardised over the channels of an image.

    Computed in float32 (float64 for float64 input).

    Args:
        x: Feature map (B, C, H, W).
        eps: Added to the standard deviation.
        correction: Subtracted from C in the denominator of the variance.

    Returns:
        (B, C), zeros where the means agree.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    s = x.mean(dim=(2, 3), dtype=dtype)  # (B, C)
    s = s - s[:, :1]  # means that agree become exact zeros, not rounding noise that the division would magnify
    s = s - s.mean(dim=1, keepdim=True)
    # z does not depend on the scale of s and eps; squares of large numbers would leave the range of floats.
    scale = s.detach().abs().amax(dim=1, keepdim=True).clamp_min(1.0)
    s = s / scale
    var = s.square().sum(dim=1, keepdim=True) / max(s.shape[1] - correction, 1)
    varies = var > 0
    # Safe on both sides, so that no infinite derivative of a root reaches the gradient through the discarded branch.
    std = torch.where(varies, torch.where(varies, var, torch.ones_like(var)).sqrt(), torch.ones_like(var))
    return s / (std + eps / scale)


class GCT(nn.Module):
    """Gaussian context transformer: a Gaussian of each channel's standardised mean gates it.

    out = x * exp(-z^2 / (2 c^2)), where z is the channel's mean minus the mean of all, divided by their standard
    deviation: channels near the average are kept, others are damped. Without parameters c is fixed (GCT-B0); with one,
    c = 3 * sigmoid(theta) + 1 (GCT-B1).

    Source: Gaussian Context Transformer (Ruan et al., CVPR 2021). Reconstructed from a reading note and two third
    parties' code, as the authors published none: eps and the constants 3 and 1 are doubtful. Many copies compute
    exp(-c z^2 / 2) instead.

    Args:
        channels: Number of input channels C; the layer does not depend on it.
        c: Width of the Gaussian in GCT-B0.
        learn_c: Learn the width, one number a layer (GCT-B1).
        eps: Added to the standard deviation.
        correction: 0 for the population's deviation, as the method has it; 1 divides by C - 1, as some copies do.
        device: Device of the parameter.
        dtype: Type of the parameter.

    Raises:
        ValueError: If ``c`` is not positive.

    Shape:
        (B, C, H, W) -> (B, C, H, W), any H and W from 1 up.
    """

    def __init__(
        self,
        channels: int,
        c: float = 2.0,
        learn_c: bool = False,
        eps: float = 1e-5,
        correction: int = 0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        if not c > 0:
            raise ValueError(f'GCT c={c} must be positive: it is the width of a Gaussian.')
        self.c = c
        self.eps = eps
        self.correction = correction
        self.theta = nn.Parameter(torch.zeros((), device=device, dtype=dtype)) if learn_c else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = gaussian_context(x, self.eps, self.correction)  # (B, C)
        exponent = -0.5 * z.square()
        theta = self.theta
        if theta is not None:
            c = 3 * theta.to(z.dtype).sigmoid() + 1
            exponent = exponent / c.square()
        else:
            exponent = exponent / self.c**2
        return x * exponent.exp().to(x.dtype)[:, :, None, None]

    def extra_repr(self) -> str:
        return 'learn_c=True' if self.theta is not None else f'c={self.c}'


register_attention(
    Attention(
        name='gct',
        title='Gaussian context transformer',
        layer=GCT,
        layer_cls=GCT,
        paper='https://openaccess.thecvf.com/content/CVPR2021/html/'
        'Ruan_Gaussian_Context_Transformer_CVPR_2021_paper.html',
        placement='after the last norm of each residual block, before the addition of the shortcut (doubtful)',
        slots=('out',),
        # github.com/iN8mare/GCT-Gaussian-Context-Transformer, not by the authors
        authors_keys=((r'^c$', 'theta'),),
    )
)
