"""FCA: frequency channel attention, the multi-spectral channel attention of FcaNet.

Paper: `FcaNet: Frequency Channel Attention Networks` - https://arxiv.org/abs/2012.11879
Original placement: after the last norm of a residual block, before the addition of the shortcut.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import create_act_layer, make_divisible
from timm.models import register_notrace_function
from torch import nn

from .axes import fixed_size
from .registry import Attention, register_attention

torch.fx.wrap('frequency_coefficients')  # a leaf of every torch.fx tracer, torchvision's included

TOP_FREQUENCIES = (
    (0, 0), (0, 1), (6, 0), (0, 5), (0, 2), (1, 0), (1, 2), (4, 0),
    (5, 0), (1, 6), (3, 0), (0, 4), (0, 6), (0, 3), (3, 5), (2, 2),
)  # fmt: skip
"""The authors' frequencies on a 7x7 map, along the height and along the width, the best first."""


def dct_table(frequencies: Sequence[tuple[int, int]], size: int) -> torch.Tensor:
    """Bases of the two-dimensional discrete cosine transform of a square map.

    Args:
        frequencies: Pairs (u, v), along the height and along the width.
        size: Height and width of the map.

    Returns:
        (len(frequencies), size, size), orthonormal, in float64.
    """
    position = (torch.arange(size, dtype=torch.float64) + 0.5) * (math.pi / size)
    waves = {f: (position * f).cos() * math.sqrt((2 if f else 1) / size) for pair in frequencies for f in pair}
    return torch.stack([waves[u][:, None] * waves[v] for u, v in frequencies])


def resize_by_averages(x: torch.Tensor, size: int) -> torch.Tensor:
    """Bring (B, C, H, W) to (B, C, size, size) by adaptive average pooling; a map of that size is returned as it is."""
    if fixed_size(x.shape[2]) == size and fixed_size(x.shape[3]) == size:
        return x
    return F.adaptive_avg_pool2d(x, size)


@register_notrace_function
def frequency_coefficients(x: torch.Tensor, table: torch.Tensor, size: int) -> torch.Tensor:
    """Coefficients of the channels of (B, C, H, W) at their frequencies, whose bases are :func:`dct_table`: (B, C)."""
    groups = resize_by_averages(x, size).unflatten(1, [table.shape[0], -1])  # (B, n, C / n, size, size)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32  # the sum of a half type could overflow
    return (groups * table.to(x.dtype).unsqueeze(1)).sum(dim=(3, 4), dtype=dtype).flatten(1)


def _frequencies(channels: int, freq: str | Sequence[tuple[int, int]] | None) -> list[tuple[int, int]]:
    if freq is None:
        most = min(len(TOP_FREQUENCIES), channels)
        return list(TOP_FREQUENCIES[: next(n for n in range(most, 0, -1) if channels % n == 0)])
    if isinstance(freq, str):
        number = freq.removeprefix('top')
        if not number.isdecimal() or not 1 <= int(number) <= len(TOP_FREQUENCIES) or f'top{number}' != freq:
            raise ValueError(
                f'FCA freq={freq!r} must be one of top1 to top{len(TOP_FREQUENCIES)}, pairs of frequencies, or None.'
            )
        chosen = list(TOP_FREQUENCIES[: int(number)])
    else:
        chosen = [(int(u), int(v)) for u, v in freq]
        if not chosen or any(not 0 <= f <= 6 for pair in chosen for f in pair):
            raise ValueError(f'FCA freq={freq!r} must hold pairs of frequencies from 0 to 6, those of a 7x7 map.')
    if channels % len(chosen):
        raise ValueError(
            f'FCA gives each of {len(chosen)} frequencies the same number of channels, and channels={channels} is not '
            f'a multiple of {len(chosen)}: choose another freq, or None for as many as divide the channels.'
        )
    return chosen


class FCA(nn.Module):
    """Frequency channel attention: squeeze-and-excitation over coefficients of a cosine transform instead of means.

    The channels are split into equal groups, one for each frequency, and the coefficient q of a channel is the sum of
    its map times the basis of its group's frequency; out = x * sigmoid(fc2(relu(fc1(q)))), without biases. The first
    frequency, (0, 0), is the mean times the side of the map.

    Source: FcaNet (arXiv 2012.11879), after the authors' code.

    Args:
        channels: Number of input channels C.
        size: Side of the map that is transformed, from 7 up; any other map is first brought to it by adaptive average
            pooling, smaller ones too. The authors' networks set 56, 28, 14, 7 by stage.
        freq: ``top1`` to ``top16``, the authors' best frequencies, ``top16`` as published; or pairs (u, v) of
            frequencies from 0 to 6, which are those of a 7x7 map and grow with its side. None takes as many of
            the 16 as divide C: all of them where C is a multiple of 16, as it is in any ResNet, and 12 of 24 channels.
        rd_ratio: Width of the hidden layer as a share of C.
        rd_channels: Width of the hidden layer, overrides ``rd_ratio``.
        rd_divisor: The width from ``rd_ratio`` is rounded to a multiple of this.
        act_layer: Activation of the hidden layer.
        gate_layer: Activation of the gate.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Raises:
        ValueError: If C is not a multiple of the number of frequencies, ``freq`` is not one of those above, or ``size``
            is below 7.

    Shape:
        (B, C, H, W) -> (B, C, H, W), any H and W from 1 up.
    """

    def __init__(
        self,
        channels: int,
        size: int = 7,
        freq: str | Sequence[tuple[int, int]] | None = None,
        rd_ratio: float = 1.0 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 1,
        act_layer=nn.ReLU,
        gate_layer='sigmoid',
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        if size < 7:
            raise ValueError(f'FCA size={size} must be 7 or more: a smaller map does not have all the frequencies.')
        frequencies = _frequencies(channels, freq)
        if not rd_channels:
            rd_channels = make_divisible(channels * rd_ratio, rd_divisor, round_limit=0.0)
        self.size = size
        self.frequencies = [(u * (size // 7), v * (size // 7)) for u, v in frequencies]
        self.register_buffer('table', torch.empty(len(frequencies), size, size, **dd), persistent=False)
        self.init_non_persistent_buffers()
        self.fc1 = nn.Linear(channels, rd_channels, bias=False, **dd)
        self.act = create_act_layer(act_layer, inplace=True)
        self.fc2 = nn.Linear(rd_channels, channels, bias=False, **dd)
        self.gate = create_act_layer(gate_layer)

    @torch.jit.ignore
    def init_non_persistent_buffers(self) -> None:
        """Fill the table of cosines, which no checkpoint holds."""
        if not self.table.is_meta:
            self.table.copy_(dct_table(self.frequencies, self.size))

    def _apply(self, *args, **kwargs):
        super()._apply(*args, **kwargs)
        self.init_non_persistent_buffers()  # after to_empty() the table holds anything
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = frequency_coefficients(x, self.table, self.size).to(x.dtype)  # (B, C)
        gate = self.gate(self.fc2(self.act(self.fc1(q))))
        return x * gate.to(x.dtype)[:, :, None, None]

    def extra_repr(self) -> str:
        return f'size={self.size}, frequencies={self.table.shape[0]}'


register_attention(
    Attention(
        name='fca',
        title='Frequency channel attention',
        layer=FCA,
        layer_cls=FCA,
        paper='arXiv:2012.11879',
        placement='after the last norm of each residual block, before the addition of the shortcut',
        zeroed=('fc2',),
        gates=1,
        slots=('out',),
        size_arg='size',
        # github.com/cfzd/FcaNet; the table of cosines is computed here
        authors_keys=((r'^dct_layer\.weight$', ''), (r'^fc\.0\.', 'fc1.'), (r'^fc\.2\.', 'fc2.')),
    )
)
