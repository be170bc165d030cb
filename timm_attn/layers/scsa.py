"""SCSA: spatial and channel synergistic attention.

Paper: `SCSA: Exploring the Synergistic Effects Between Spatial and Channel Attention` -
https://arxiv.org/abs/2407.05128
Original placement: ResNet, after the middle convolution of a block; MobileNetV2, after the depthwise convolution.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import create_act_layer
from timm.models import register_notrace_function
from torch import nn

from ..kernels import needs_plain_formula
from ..kernels.channel_attention import channel_attention, plain_channel_attention
from .axes import axis_means, fixed_size, gate_axes, gate_own
from .ranges import scaled_for_norm
from .registry import Attention, register_attention

for _name in (
    'attend_to_channels',
    'axis_means',
    'gate_axes',
    'gate_own',
    'scaled_for_norm',
    'window_pool',
):  # leaves of every torch.fx tracer
    torch.fx.wrap(_name)

_SMALL = 2**18
"""Elements of the matrices of a batch up to which the plain formula, which has fewer steps, is faster."""

SCSA_POOLS = ('avg', 'max', 'recombination')


@register_notrace_function
def window_pool(x: torch.Tensor, window: int, mode: str) -> torch.Tensor:
    """Pool (B, C, H, W) over windows that do not overlap, each cut to the map where the map is smaller.

    Args:
        x: Feature map (B, C, H, W).
        window: Side of the window in pixels, -1 for the whole map.
        mode: ``avg``, ``max``, or ``recombination``, which keeps every pixel: it moves the pixels of a window to
            channels, (B, C * window ** 2, H // window, W // window), a smaller map being padded with zeros.
    """
    H, W = fixed_size(x.shape[2]), fixed_size(x.shape[3])
    if window == -1 or (mode == 'avg' and max(H, W) <= window):
        return x.mean(dim=(2, 3), keepdim=True)
    if mode == 'recombination':
        x = F.pad(x, [0, max(window - W, 0), 0, max(window - H, 0)])
        rows, columns = max(H, window) // window, max(W, window) // window
        x = x[:, :, : rows * window, : columns * window]
        # pixel_unshuffle, which returns an empty batch as it is
        x = x.reshape(x.shape[0], x.shape[1], rows, window, columns, window)
        return x.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
    height, width = min(window, H), min(window, W)
    if mode == 'max':
        return F.max_pool2d(x, [height, width], [height, width])
    if torch.jit.is_scripting():  # noqa: SIM114  scripts know nothing of the other conditions
        return F.avg_pool2d(x, [height, width], [height, width])
    elif torch.jit.is_tracing() or torch.compiler.is_exporting():
        return F.avg_pool2d(x, [height, width], [height, width])
    elif torch.compiler.is_compiling():  # of a pooling, inductor writes out every pixel of a window
        return _windows(x, height, width).mean(dim=(3, 5))
    elif x.device.type == 'cpu' and x.dtype == torch.float32 and x.is_contiguous():
        # one axis after the other, which takes half the time of a pooling
        sums = _windows(x, height, width).sum(dim=3).sum(dim=4)
        return sums / (height * width)
    else:
        return F.avg_pool2d(x, [height, width], [height, width])


def _windows(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Whole windows of a map: (B, C, H, W) -> (B, C, H // height, height, W // width, width)."""
    rows, columns = x.shape[2] // height, x.shape[3] // width
    x = x[:, :, : rows * height, : columns * width]
    return x.unflatten(3, [columns, width]).unflatten(2, [rows, height])


def scale_channels(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Depthwise 1x1 convolution as a product: on small maps, the call of a convolution takes several times as long.

    Args:
        x: Channels after positions (B, N, C).
        weight: Weight of the convolution (C, 1, 1, 1).
        bias: Its bias (C,).
    """
    x = x * weight.flatten()
    return x if bias is None else x + bias


@register_notrace_function
def attend_to_channels(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, drop: float) -> torch.Tensor:
    """Attention between the channels of each head: values averaged over positions -> the same.

    Args:
        q: Queries (B, heads, N, C).
        k: Keys (B, heads, N, C).
        v: Values, averaged over positions (B, heads, 1, C).
        scale: Factor on the products of queries and keys.
        drop: Dropout of the attention matrix.
    """
    if torch.jit.is_scripting():  # noqa: SIM114  scripts know nothing of the other conditions
        return plain_channel_attention(q, k, v, scale, drop)
    elif drop > 0 or _keeps_matrix(v):
        return plain_channel_attention(q, k, v, scale, drop)
    else:
        return channel_attention(q, k, v, scale)


def _keeps_matrix(v: torch.Tensor) -> bool:
    """Whether the plain formula is the way: elsewhere than on a CPU, for converters, and where matrices are small."""
    if v.device.type != 'cpu' or needs_plain_formula() or torch.compiler.is_exporting():
        return True
    return not torch.compiler.is_compiling() and v.numel() * v.shape[3] <= _SMALL


class SCSA(nn.Module):
    """Spatial and channel synergistic attention.

    Spatial: the means over W and over H each pass four depthwise 1-D convolutions, one for each quarter of the
    channels, a group norm and a gate; x' = x * gate_h * gate_w. Channel: self-attention between the channels of the
    pooled x', averaged over positions, gates x'.

    Source: SCSA (arXiv 2407.05128).

    Args:
        channels: Number of input channels C, a multiple of 4 and of ``num_heads``.
        num_heads: Heads of the channel attention; each attends over C / num_heads channels.
        window_size: Side in pixels of the pooling window before the channel attention; -1 pools the whole map.
        kernel_sizes: Kernel of the 1-D convolution of each quarter of the channels, odd numbers.
        qkv_bias: Whether query, key and value have a bias.
        pool_type: Pooling of the windows: ``avg``, ``max`` or ``recombination`` (pixels to channels, then a 1x1
            convolution back to C).
        gate_layer: Activation of the gates; ``softmax`` is taken along the axis (spatial) and over C (channel).
        attn_drop: Dropout of the channel attention matrix.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Raises:
        ValueError: If C is not a multiple of 4 and of ``num_heads``, or an option is not one of those above.

    Shape:
        (B, C, H, W) -> (B, C, H, W), any H and W from 1 up.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int = 1,
        window_size: int = 7,
        kernel_sizes: Sequence[int] = (3, 5, 7, 9),
        qkv_bias: bool = False,
        pool_type: str = 'avg',
        gate_layer='sigmoid',
        attn_drop: float = 0.0,
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        if channels % 4:
            raise ValueError(f'SCSA splits the channels into 4 groups: channels={channels} is not a multiple of 4.')
        if num_heads < 1 or channels % num_heads:
            raise ValueError(f'SCSA: channels={channels} is not a multiple of num_heads={num_heads}.')
        if len(kernel_sizes) != 4 or any(k % 2 == 0 for k in kernel_sizes):
            raise ValueError(f'SCSA needs four odd kernel_sizes, one for each quarter; got {tuple(kernel_sizes)}.')
        if pool_type not in SCSA_POOLS:
            raise ValueError(f'SCSA pool_type {pool_type!r} is unknown; it must be one of {", ".join(SCSA_POOLS)}.')
        if window_size != -1 and window_size < 1:
            raise ValueError(f'SCSA window_size must be 1 or more, or -1 for the whole map; got {window_size}.')
        if window_size == -1 and pool_type == 'recombination':
            raise ValueError("SCSA pool_type 'recombination' needs a window; got window_size=-1.")
        self.num_heads = num_heads
        self.window_size = window_size
        self.pool_type = pool_type
        self.scale = (channels // num_heads) ** -0.5

        self.max_kernel = max(kernel_sizes)

        group = channels // 4
        self.dwc = nn.ModuleList([nn.Conv1d(group, group, k, padding=k // 2, groups=group, **dd) for k in kernel_sizes])
        self.norm_h = nn.GroupNorm(4, channels, **dd)
        self.norm_w = nn.GroupNorm(4, channels, **dd)
        softmax = gate_layer == 'softmax'
        self.spatial_gate = nn.Softmax(dim=3) if softmax else create_act_layer(gate_layer)

        if pool_type == 'recombination':
            self.reduce = nn.Conv2d(channels * window_size**2, channels, 1, bias=False, **dd)
        else:
            self.reduce = nn.Identity()
        self.norm = nn.GroupNorm(1, channels, **dd)
        self.q = nn.Conv2d(channels, channels, 1, groups=channels, bias=qkv_bias, **dd)
        self.k = nn.Conv2d(channels, channels, 1, groups=channels, bias=qkv_bias, **dd)
        self.v = nn.Conv2d(channels, channels, 1, groups=channels, bias=qkv_bias, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.channel_gate = nn.Softmax(dim=1) if softmax else create_act_layer(gate_layer)

    def _axis_features(self, means: torch.Tensor) -> torch.Tensor:
        """Multi-scale depthwise convolution along both axes, which a gap keeps apart: (B, C, 1, L) -> the same."""
        # One convolution for all: the kernels padded to the longest.
        pad = self.max_kernel // 2
        weights: list[torch.Tensor] = []
        biases: list[torch.Tensor] = []
        for conv in self.dwc:
            weight, bias = conv.weight, conv.bias
            assert bias is not None  # for TorchScript
            zeros = pad - conv.kernel_size[0] // 2
            if zeros:  # not pad, after which an ONNX trace knows no shape
                gap = weight.new_zeros(fixed_size(weight.shape[0]), 1, zeros)
                weight = torch.cat([gap, weight, gap], dim=2)
            weights.append(weight)
            biases.append(bias)
        weight = torch.cat(weights).unsqueeze(2)
        means = F.conv2d(means, weight, torch.cat(biases), padding=[0, pad], groups=fixed_size(means.shape[1]))
        return scaled_for_norm(means)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gap = self.max_kernel // 2
        features = self._axis_features(axis_means(x, gap))
        h, _, w = torch.split(features, [x.shape[2], gap, x.shape[3]], dim=3)
        gate_h = self.spatial_gate(self.norm_h(h)).transpose(2, 3)  # (B, C, H, 1)
        gate_w = self.spatial_gate(self.norm_w(w))  # (B, C, 1, W)
        x = gate_axes(x, gate_h, gate_w)

        y = self.norm(scaled_for_norm(self.reduce(window_pool(x, self.window_size, self.pool_type))))
        y = y.flatten(2).transpose(1, 2)  # (B, N, C)
        q = self._heads(scale_channels(y, self.q.weight, self.q.bias))
        k = self._heads(scale_channels(y, self.k.weight, self.k.bias))
        # the mean over positions, moved to where it is cheapest
        v = self._heads(scale_channels(y.mean(dim=1, keepdim=True), self.v.weight, self.v.bias))
        y = attend_to_channels(q, k, v, self.scale, self.attn_drop.p if self.training else 0.0)  # (B, heads, 1, ...)
        return gate_own(x, self.channel_gate(y.flatten(1).unsqueeze(2).unsqueeze(3)))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, C) -> (B, heads, N, C / heads)."""
        return x.unflatten(2, [self.num_heads, -1]).transpose(1, 2)


register_attention(
    Attention(
        name='scsa',
        title='Spatial and channel synergistic attention',
        layer=SCSA,
        layer_cls=SCSA,
        paper='arXiv:2407.05128',
        placement='ResNet: after the middle convolution of each block; MobileNetV2: after the depthwise convolution of '
        'each block',
        zeroed=('norm_h', 'norm_w', 'v'),
        gates=3,
        slots=('mid',),
        formula='scsa',
        # github.com/HZAI-ZJNU/SCSA
        authors_keys=(
            (r'\blocal_dwc\.', 'dwc.0.'),
            (r'\bglobal_dwc_s\.', 'dwc.1.'),
            (r'\bglobal_dwc_m\.', 'dwc.2.'),
            (r'\bglobal_dwc_l\.', 'dwc.3.'),
            (r'\bconv_d\.', 'reduce.'),
        ),
    )
)
