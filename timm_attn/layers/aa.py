"""Attention-augmented convolution: some of its channels come from self-attention over the whole map.

Paper: `Attention Augmented Convolutional Networks` - https://arxiv.org/abs/1904.09925
Original placement: ResNet, in place of the 3x3 convolution of the bottlenecks of stages 2 to 4.
"""

import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from timm.models import register_notrace_function
from torch import nn

from .axes import fixed_size
from .ranges import scaled_for_softmax
from .registry import Attention, register_attention

for _name in ('relative_vectors', 'scaled_for_softmax'):  # leaves of every torch.fx tracer
    torch.fx.wrap(_name)


@register_notrace_function
def relative_vectors(table: torch.Tensor, length: int) -> torch.Tensor:
    """Vectors of the offsets between the positions of an axis.

    Args:
        table: Vectors of the offsets 1 - S to S - 1 (2 * S - 1, d). For another length than S it is interpolated: the
            largest offsets of both lengths correspond.
        length: Number of positions L.

    Returns:
        (L, L, d), for a query's position and a key's.
    """
    L = fixed_size(length)
    if fixed_size(table.shape[0]) != 2 * L - 1:
        table = F.interpolate(table.t().unsqueeze(0), size=2 * L - 1, mode='linear', align_corners=True)[0].t()
    position = torch.arange(L, device=table.device)
    return table[position[None, :] - position[:, None] + L - 1]


class AttentionAugmentedConv2d(nn.Module):
    """Convolution of which some output channels come from multi-head self-attention.

    out = concat(conv(x), proj(MHA(x))). For queries q_i, keys k_j and values v_j of one head, at the positions i and j,

        MHA(x)_i = sum_j softmax_j(q_i (k_j + r^H_(row j - row i) + r^W_(column j - column i)) / sqrt(dk / heads)) v_j

    with learned vectors r^H and r^W of the offsets in rows and columns, which the heads share.

    Source: Bello et al. (arXiv 1904.09925), section 3; reconstructed from the paper, without authors' code. Doubtful:
    the default widths, which were not compared with the paper's text but fit its parameter counts. Undetermined by the
    counts: the rounding of ``dv``, biases, blocks with a stride, the order of queries, keys and values. Original
    placement: in place of the 3x3 convolutions of a ResNet.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels, those of the attention included; as many as of the input if None.
        kernel_size: Side of the convolution's window.
        stride: Step of the convolution; the attention works on a map that is average pooled (3x3) to the same size.
        dilation: Dilation of the convolution.
        num_heads: Number of heads.
        dk: Channels of the queries and of the keys in all heads; by default 0.2 of the output channels, rounded down to
            a multiple of the heads, at least 20 for each head.
        dv: Channels of the attention's output; by default 0.1 of the output channels, rounded down to a multiple of the
            heads, at least one for each head.
        attn_stride: Further step of the attention: its input is average pooled (3x3) once more, its output is
            interpolated to the size of the convolution's.
        feat_size: Height and width of the attention's maps that the tables of relative positions are made for. For maps
            of other sizes the tables are interpolated.
        bias: Biases of the convolutions.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Raises:
        ValueError: If ``dk`` or ``dv`` is no multiple of the heads, or ``dv`` leaves no channel to the convolution.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)) for odd ``kernel_size``, any H
        and W from 1 up. The attention holds (H * W) ** 2 weights for each head at its own resolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        num_heads: int = 8,
        dk: int | None = None,
        dv: int | None = None,
        attn_stride: int = 1,
        feat_size: int | tuple[int, int] = 14,
        bias: bool = False,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        out_channels = out_channels or in_channels
        if dk is None:
            dk = max(20, out_channels // 5 // num_heads) * num_heads
        if dv is None:
            dv = max(1, out_channels // 10 // num_heads) * num_heads
        for name, width in (('dk', dk), ('dv', dv)):
            if width < 1 or width % num_heads:
                raise ValueError(f'{name}={width} must be a multiple of num_heads={num_heads}.')
        if dv >= out_channels:
            raise ValueError(
                f'dv={dv} must be less than out_channels={out_channels}, so that the convolution keeps some of them: '
                'pass fewer heads (num_heads) or a smaller dv.'
            )
        self.dk, self.dv = dk, dv
        self.num_heads = num_heads
        self.stride, self.attn_stride = stride, attn_stride
        padding = dilation * (kernel_size // 2)
        self.conv = nn.Conv2d(
            in_channels, out_channels - dv, kernel_size, stride, padding, dilation=dilation, bias=bias, **dd
        )
        self.qkv = nn.Conv2d(in_channels, 2 * dk + dv, 1, bias=bias, **dd)
        self.proj = nn.Conv2d(dv, dv, 1, bias=bias, **dd)
        height, width = to_2tuple(feat_size)
        self.rel_h = nn.Parameter(torch.empty(2 * height - 1, dk // num_heads, **dd))
        self.rel_w = nn.Parameter(torch.empty(2 * width - 1, dk // num_heads, **dd))
        for table in (self.rel_h, self.rel_w):
            nn.init.normal_(table, std=(dk // num_heads) ** -0.5)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        """Self-attention over all positions, (B, in_channels, H, W) -> (B, dv, H, W)."""
        B, H, W = x.shape[0], x.shape[2], x.shape[3]
        q, k, v = self.qkv(x).split([self.dk, self.dk, self.dv], dim=1)
        d = self.dk // self.num_heads
        q = scaled_for_softmax(q * d**-0.5, k, d).reshape(B, self.num_heads, d, H, W)
        k, v = k.reshape(B, self.num_heads, d, H * W), v.reshape(B, self.num_heads, self.dv // self.num_heads, H * W)
        rows = torch.einsum('bndhw,hkd->bnhwk', q, relative_vectors(self.rel_h, H))
        columns = torch.einsum('bndhw,wkd->bnhwk', q, relative_vectors(self.rel_w, W))
        logits = q.flatten(3).transpose(2, 3) @ k  # (B, heads, H * W, H * W)
        logits = logits.view(B, self.num_heads, H, W, H, W) + rows.unsqueeze(5) + columns.unsqueeze(4)
        weights = logits.reshape(B, self.num_heads, H * W, H * W).softmax(dim=3)
        return self.proj((v @ weights.to(v.dtype).transpose(2, 3)).reshape(B, self.dv, H, W))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv(x)
        for step in (self.stride, self.attn_stride):
            if step > 1:
                x = F.avg_pool2d(x, 3, step, 1, count_include_pad=False)
        attn = self.attend(x)
        if self.attn_stride > 1:
            attn = F.interpolate(attn, size=out.shape[2:], mode='bilinear', align_corners=False)
        return torch.cat([out, attn], dim=1)

    def extra_repr(self) -> str:
        return f'num_heads={self.num_heads}, dk={self.dk}, dv={self.dv}, attn_stride={self.attn_stride}'


register_attention(
    Attention(
        name='aa',
        title='Attention-augmented convolution',
        layer=AttentionAugmentedConv2d,
        layer_cls=AttentionAugmentedConv2d,
        paper='arXiv:1904.09925',
        placement='in place of the 3x3 convolution of the bottlenecks of stages 2 to 4',
        slots=('mid',),
        part_of='the arguments of the convolution that it replaces',
    )
)
