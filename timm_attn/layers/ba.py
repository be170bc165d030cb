"""Bridge attention: gates the channels of a block by the features of all of its convolutions.

Paper: `BA-Net: Bridge Attention for Deep Convolutional Neural Networks` - https://arxiv.org/abs/2112.04150
Original placement: after the last norm of a residual block, before the addition of the shortcut.
"""

from collections.abc import Sequence

import torch
from timm.layers import create_act_layer, make_divisible
from timm.models import register_notrace_function
from torch import nn

from .registry import Attention, register_attention

torch.fx.wrap('_check_batch')  # a leaf of every torch.fx tracer


@register_notrace_function
def _check_batch(size: int) -> None:
    if size == 1:
        raise ValueError(
            'BridgeAttention normalizes pooled features over the images of a batch, so that training needs two images '
            'or more; this batch has one. Use a larger batch, leave out an incomplete last one (drop_last=True of the '
            'data loader), or freeze the batch norms (eval()).'
        )


class _Squeeze(nn.Module):
    """Pooled features (B, C, 1, 1) -> (B, hidden, 1, 1): a linear layer without bias and a batch norm.

    The linear layer is a convolution, into which the norm can be folded.
    """

    def __init__(self, channels: int, hidden: int, norm_layer, device=None, dtype=None):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.fc = nn.Conv2d(channels, hidden, 1, bias=False, **dd)
        self.bn = norm_layer(hidden, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # SyncBatchNorm, which is no BatchNorm2d, counts the images of all processes.
        if not torch.jit.is_scripting() and self.bn.training and isinstance(self.bn, nn.BatchNorm2d):
            _check_batch(x.shape[0])
        return self.bn(self.fc(x))


class BridgeAttention(nn.Module):
    """Bridge attention: gates each channel by the pooled features of all convolutions of its block.

    out = x * sigmoid(fc2(relu(sum_i BN_i(V_i f_i)))), where f_i are the means of the maps after each convolution of the
    block, x among them, and V_i are linear layers to one hidden width; no linear layer has a bias.

    Source: BA-Net (arXiv 2112.04150) and the authors' code. Original placement: after the last norm of a residual
    block, with the features after the activations of the convolutions before.

    Args:
        channels: Number of input channels C.
        prev_channels: Channels of the features that are bridged to here, one number for each convolution before.
        rd_ratio: Width of the hidden layer as a share of C.
        rd_channels: Width of the hidden layer, overrides ``rd_ratio``.
        rd_divisor: The width from ``rd_ratio`` is rounded to a multiple of this.
        act_layer: Activation of the hidden layer.
        norm_layer: Norm of each summand of the hidden layer.
        gate_layer: Activation of the gate.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Raises:
        ValueError: By a forward pass in training if the batch norms are given a single image.

    Shape:
        (B, C, H, W) and the means (B, C_i, 1, 1) of the earlier features -> (B, C, H, W), any H and W from 1 up.
    """

    def __init__(
        self,
        channels: int,
        prev_channels: Sequence[int] = (),
        rd_ratio: float = 1.0 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 1,
        act_layer=nn.ReLU,
        norm_layer=nn.BatchNorm2d,
        gate_layer='sigmoid',
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        if not rd_channels:
            rd_channels = make_divisible(channels * rd_ratio, rd_divisor, round_limit=0.0)
        self.prev = nn.ModuleList(_Squeeze(c, rd_channels, norm_layer, **dd) for c in prev_channels)
        self.own = _Squeeze(channels, rd_channels, norm_layer, **dd)
        self.act = create_act_layer(act_layer, inplace=True)
        self.fc2 = nn.Linear(rd_channels, channels, bias=False, **dd)
        self.gate = create_act_layer(gate_layer)

    def channel_gate(self, own: torch.Tensor, prev: list[torch.Tensor]) -> torch.Tensor:
        """Gate of each channel.

        Args:
            own: Means of the map that is gated (B, C, 1, 1).
            prev: Means of the earlier features, each (B, C_i, 1, 1).

        Returns:
            (B, C, 1, 1).
        """
        hidden = self.own(own)
        for i, squeeze in enumerate(self.prev):
            hidden = hidden + squeeze(prev[i])
        return self.gate(self.fc2(self.act(hidden).flatten(1)))[:, :, None, None]

    def forward(self, x: torch.Tensor, prev: list[torch.Tensor]) -> torch.Tensor:
        return x * self.channel_gate(x.mean(dim=(2, 3), keepdim=True), prev).to(x.dtype)


def _authors_tensor(key: str, value: torch.Tensor) -> torch.Tensor:
    """Weight of a linear layer -> that of a 1x1 convolution."""
    return value[:, :, None, None] if key.endswith('.fc.weight') else value


register_attention(
    Attention(
        name='ba',
        title='Bridge attention',
        layer=BridgeAttention,
        layer_cls=BridgeAttention,
        paper='arXiv:2112.04150',
        placement='after the last norm of a residual block, before the addition of the shortcut',
        zeroed=('fc2',),
        gates=1,
        slots=('out',),
        part_of='the means of the maps after each earlier convolution of the block',
        # github.com/zhaoy376/Bridge-Attention
        authors_keys=(
            (r'^pre_fusions\.(\d+)\.0\.', r'prev.\1.fc.'),
            (r'^pre_fusions\.(\d+)\.1\.', r'prev.\1.bn.'),
            (r'^cur_fusion\.0\.', 'own.fc.'),
            (r'^cur_fusion\.1\.', 'own.bn.'),
            (r'^generation\.1\.', 'fc2.'),
        ),
        authors_tensor=_authors_tensor,
    )
)
