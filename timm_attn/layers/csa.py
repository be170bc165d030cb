"""CSA: channel-wise spatially autocorrelated attention.

Paper: `CSA-Net: Channel-wise Spatially Autocorrelated Attention Networks` - https://arxiv.org/abs/2405.05755
Original placement: after the last norm of a residual block, before the addition of the shortcut.
"""

import torch
from timm.layers import create_act_layer, make_divisible
from timm.models import register_notrace_function
from torch import nn

from ..kernels import needs_plain_formula
from ..kernels.csa import csa_neighbours
from ..kernels.csa_plain import plain_neighbours, without_autocast
from .axes import fixed_size
from .registry import Attention, register_attention

torch.fx.wrap('csa_descriptor')  # a leaf of every torch.fx tracer, torchvision's included

CSA_MODES = ('hybrid', 'l2', 'l1', 'cosine')


def _standardize(x: torch.Tensor) -> torch.Tensor:
    """Shift and scale the last axis of (B, C) to mean 0 and unbiased std 1.

    Values that agree to within rounding carry no signal: they become exact zeros with zero gradient, where a plain
    division by the std would blow rounding noise up to unit variance, or give NaN.
    """
    eps = 1e-6 if x.dtype == torch.float32 else 1e-14
    centered = x - x.mean(dim=-1, keepdim=True)
    varies = centered.abs().amax(dim=-1, keepdim=True) > eps * x.abs().amax(dim=-1, keepdim=True)
    # Both sides of a division are made safe, so that no NaN reaches the gradient through the discarded branch.
    one = torch.ones_like(centered[..., :1])
    centered = torch.where(varies, centered, torch.zeros_like(centered))
    # The squares of very small and very large values, and the gradient of rsqrt, would leave the range of floats.
    centered = centered / torch.where(varies, centered.detach().abs().amax(dim=-1, keepdim=True), one)
    var = centered.square().sum(dim=-1, keepdim=True) / max(fixed_size(x.shape[-1]) - 1, 1)
    return centered * torch.where(varies, var, one).rsqrt()


def _neighbours(x: torch.Tensor, z: torch.Tensor, mode: str, portable: bool) -> torch.Tensor:
    """sum_j v_ij z_j (eq. 2) with the contiguity v between channels, zero for i = j: (B, C, H, W), (B, C) -> (B, C)."""
    if torch.jit.is_scripting():
        # A script can neither leave autocast nor, on the CPU, ask for it; but autocast leaves float64 alone.
        maybe_autocast = not x.is_cuda or torch.is_autocast_enabled()
        dtype = torch.float64 if maybe_autocast else z.dtype
        return plain_neighbours(x.to(dtype), z.to(dtype), mode).to(z.dtype)
    elif portable or needs_plain_formula():
        with without_autocast(x.device):
            return plain_neighbours(x.to(z.dtype), z, mode)
    else:
        return csa_neighbours(x.detach(), z, mode)[0]


@register_notrace_function
def csa_descriptor(x: torch.Tensor, mode: str = 'hybrid', portable: bool = False) -> torch.Tensor:
    """Standardised local Moran's I of every channel: how each channel's mean agrees with those of similar channels.

    Computed in float32 (float64 for float64 input) whatever the input or autocast type: squared norms of a feature
    map overflow float16. Source: CSA-Net (arXiv 2405.05755). The default
    ``hybrid`` weights are those of the authors' code.

    Args:
        x: Feature map (B, C, H, W).
        mode: Contiguity between channels f_i and f_j, where d_ij is their distance and dbar the mean of all d_ij:
            ``hybrid`` exp(-d_ij / dbar) * max(cos, 0), ``l2`` exp(-d_ij / dbar), ``l1`` the same with the L1
            distance (without ONNX export), ``cosine`` cos(f_i, f_j).
        portable: Use PyTorch's own operations, which need more time and memory than the operator of this package, and
            lose more digits where all channels share an offset.

    Returns:
        (B, C), mean 0 and std 1 over the channels; all zeros where the channels cannot be told apart. The magnitude of
        x does not matter, as long as the sum of a map is finite. But float32 rounds the means of channels: with an
        offset that all channels share, of 1, 10 or 100 times their spread, errors of up to 1e-3, 2e-2 and 0.2 are seen
        on a CPU, in values of up to 10.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    # Divided after the sum: the gradient of a mean writes a whole map of its own, that of a sum does not.
    z = _standardize(x.sum(dim=(2, 3), dtype=dtype) / (x.shape[2] * x.shape[3]))  # (B, C)
    # I_i = z_i * sum_j v_ij z_j. Dividing v by its sum cannot change the standardised result; only the sign remains.
    return _standardize(z * _neighbours(x, z, mode, portable))


class CSA(nn.Module):
    """Channel-wise spatially autocorrelated attention: gates each channel by its local Moran's I.

    out = x * sigmoid(fc2(relu(fc1(q)))) with q = :func:`csa_descriptor` of x, computed per image.

    Source: CSA-Net (arXiv 2405.05755). Original placement: after the last norm of the residual block.

    Args:
        channels: Number of input channels C.
        rd_ratio: Width of the hidden layer as a share of C.
        rd_channels: Width of the hidden layer, overrides ``rd_ratio``.
        rd_divisor: The width from ``rd_ratio`` is rounded to a multiple of this.
        mode: Contiguity between channels, one of ``hybrid``, ``l2``, ``l1``, ``cosine`` (see :func:`csa_descriptor`).
        act_layer: Activation of the hidden layer.
        gate_layer: Activation of the gate.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Raises:
        ValueError: If ``mode`` is not one of the four.

    Shape:
        (B, C, H, W) -> (B, C, H, W), any H and W from 1 up.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1.0 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 1,
        mode: str = 'hybrid',
        act_layer=nn.ReLU,
        gate_layer='sigmoid',
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        if mode not in CSA_MODES:
            raise ValueError(f'CSA mode {mode!r} is unknown; it must be one of {", ".join(CSA_MODES)}.')
        self.mode = mode
        self.portable = False  # see timm_attn.optimize
        if not rd_channels:
            rd_channels = make_divisible(channels * rd_ratio, rd_divisor, round_limit=0.0)
        self.fc1 = nn.Linear(channels, rd_channels, **dd)
        self.act = create_act_layer(act_layer, inplace=True)
        self.fc2 = nn.Linear(rd_channels, channels, **dd)
        self.gate = create_act_layer(gate_layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = csa_descriptor(x, self.mode, self.portable).to(x.dtype)  # (B, C)
        gate = self.gate(self.fc2(self.act(self.fc1(q))))
        return x * gate.to(x.dtype)[:, :, None, None]

    def extra_repr(self) -> str:
        return f'mode={self.mode}'


register_attention(
    Attention(
        name='csa',
        title='Channel-wise spatially autocorrelated attention',
        layer=CSA,
        layer_cls=CSA,
        paper='arXiv:2405.05755',
        placement='after the last norm of a residual block, before the addition of the shortcut, in the last block of '
        'each stage',
        zeroed=('fc2',),
        gates=1,
        slots=('out',),
        blocks='last',
        formula='csa',
        # github.com/nick-nikzad/CSA-Net
        authors_keys=((r'\bmlp_D\.1\.', 'fc1.'), (r'\bmlp_U\.', 'fc2.')),
    )
)
