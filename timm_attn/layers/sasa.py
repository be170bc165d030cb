"""SASA: stand-alone self-attention over the window around each pixel, in place of a convolution.

Paper: `Stand-Alone Self-Attention in Vision Models` - https://arxiv.org/abs/1906.05909
Original placement: ResNet, in place of the 3x3 convolution of every bottleneck.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .ranges import scaled_for_softmax
from .registry import Attention, register_attention

torch.fx.wrap('scaled_for_softmax')  # a leaf of every torch.fx tracer


class SASA(nn.Module):
    """Stand-alone self-attention: each pixel attends to the window around it.

    For the query q_i of a pixel, and the keys k_j and values v_j of the pixels j of its window, of one head,

        out_i = sum_j softmax_j(q_i (k_j + r_(j - i))) v_j

    where the first half of the channels of r depends on the offset in rows, the second half on that in columns. Pixels
    beyond the border have a key and a value of zero, and take part in the softmax. A stride is an average pooling after
    the attention.

    The rows of a window are worked on one after the other, and only sums over channels are kept: for a training step,
    kernel_size ** 2 values for each head and pixel, not for each channel.

    Source: Ramachandran et al. (arXiv 1906.05909), section 3; reconstructed from the paper, without authors' code. That
    queries, keys and values are each dense over all channels follows from the parameter count of the published network;
    the paper's formula would have them for each head alone. Undetermined by it: whether the heads share r, as here.
    Original placement: in place of the 3x3 convolutions of a ResNet.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels, as many as of the input if None.
        kernel_size: Side of the window, odd.
        stride: Step of the average pooling.
        dilation: Step between the pixels of a window.
        num_heads: Number of heads.
        bias: Biases of the queries, keys and values.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Raises:
        ValueError: If ``out_channels`` is no multiple of twice the heads, or ``kernel_size`` is even.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)), any H and W from 1 up.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: int = 7,
        stride: int = 1,
        dilation: int = 1,
        num_heads: int = 8,
        bias: bool = False,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        out_channels = out_channels or in_channels
        if out_channels % (2 * num_heads):
            raise ValueError(
                f'out_channels={out_channels} must be a multiple of {2 * num_heads}, twice num_heads={num_heads}: half '
                'of the channels of a head are for the rows of a window, half for its columns.'
            )
        if kernel_size % 2 == 0:
            raise ValueError(f'kernel_size={kernel_size} must be odd, so that a window has a centre.')
        self.num_heads = num_heads
        self.kernel_size, self.stride, self.dilation = kernel_size, stride, dilation
        d = out_channels // num_heads
        self.qkv = nn.Conv2d(in_channels, 3 * out_channels, 1, bias=bias, **dd)
        self.rel_h = nn.Parameter(torch.empty(kernel_size, d // 2, **dd))
        self.rel_w = nn.Parameter(torch.empty(kernel_size, d // 2, **dd))
        for table in (self.rel_h, self.rel_w):
            nn.init.normal_(table, std=d**-0.5)

    def _rows(self, x: torch.Tensor) -> list[torch.Tensor]:
        """For each row of the window, its pixels around every pixel: views (B, heads, d, H, W, kernel_size)."""
        H, reach = x.shape[2], self.dilation * (self.kernel_size - 1)
        x = F.pad(x, [reach // 2] * 4).unflatten(1, (self.num_heads, -1))
        starts = [i * self.dilation for i in range(self.kernel_size)]
        return [x.narrow(3, start, H).unfold(4, reach + 1, 1)[..., :: self.dilation] for start in starts]

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        """Attention without the pooling, (B, in_channels, H, W) -> (B, out_channels, H, W)."""
        q, k, v = self.qkv(x).chunk(3, dim=1)
        q = scaled_for_softmax(q, k, q.shape[1] // self.num_heads).unflatten(1, (self.num_heads, -1))
        of_rows, of_columns = q.chunk(2, dim=2)
        rows = torch.einsum('bndhw,kd->bnhwk', of_rows, self.rel_h)
        columns = torch.einsum('bndhw,kd->bnhwk', of_columns, self.rel_w)
        logits = torch.stack([(q.unsqueeze(5) * row).sum(dim=2) for row in self._rows(k)], dim=4)
        logits = logits + rows.unsqueeze(5) + columns.unsqueeze(4)  # (B, heads, H, W, kernel_size, kernel_size)
        weights = logits.flatten(4).softmax(dim=4).unflatten(4, (self.kernel_size, self.kernel_size)).to(v.dtype)
        out = torch.zeros_like(v).unflatten(1, (self.num_heads, -1))
        for i, row in enumerate(self._rows(v)):
            out = out + (weights[:, :, None, :, :, i] * row).sum(dim=5)
        return out.flatten(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.attend(x)
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, self.stride, ceil_mode=True, count_include_pad=False)
        return x

    def extra_repr(self) -> str:
        return f'kernel_size={self.kernel_size}, num_heads={self.num_heads}, stride={self.stride}'


register_attention(
    Attention(
        name='sasa',
        title='Stand-alone self-attention',
        layer=SASA,
        layer_cls=SASA,
        paper='arXiv:1906.05909',
        placement='in place of the 3x3 convolution of every bottleneck',
        slots=('mid',),
        part_of='the arguments of the convolution that it replaces',
    )
)
