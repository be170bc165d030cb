"""GALA: global-and-local attention.

Paper: `Learning what and where to attend` - https://arxiv.org/abs/1805.08819
Original placement: after the last norm of a residual block, before the addition of the shortcut.
"""

import torch
from timm.layers import create_act_layer
from torch import nn

from .gates import OnePlusTanh
from .registry import Attention, register_attention


class GALA(nn.Module):
    """Global-and-local attention: gates each value by the sum and the product of a channel and a spatial score.

    g = fc2(relu(fc1(mean of x))) is a score of each channel, s = conv2(relu(conv1(x))), two 1x1 convolutions, one of
    each position; out = x * tanh(a * (g + s) + m * (g * s)) with learned a and m for each channel.

    Source: Learning what and where to attend (arXiv 1805.08819). Reconstructed after the paper's formula, not the
    authors' code, which differs from it; the reduction of 16 and the biases rest on a reported parameter count alone.
    The start of a and m, a normal distribution of variance one, is doubtful. With a and m at zero the gate is
    tanh(0) = 0 and cuts the map off.

    Args:
        channels: Number of input channels C.
        rd_ratio: Width of the hidden layers as a share of C.
        rd_channels: Width of the hidden layers, overrides ``rd_ratio``.
        gate_layer: Activation of the gate.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Shape:
        (B, C, H, W) -> (B, C, H, W), any H and W from 1 up.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1.0 / 16,
        rd_channels: int | None = None,
        gate_layer='tanh',
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        rd_channels = rd_channels or max(1, int(channels * rd_ratio))
        self.fc1 = nn.Conv2d(channels, rd_channels, 1, **dd)
        self.fc2 = nn.Conv2d(rd_channels, channels, 1, **dd)
        self.conv1 = nn.Conv2d(channels, rd_channels, 1, **dd)
        self.conv2 = nn.Conv2d(rd_channels, 1, 1, **dd)
        self.act = nn.ReLU(inplace=True)
        self.sum_weight = nn.Parameter(torch.randn(channels, **dd))
        self.product_weight = nn.Parameter(torch.randn(channels, **dd))
        self.gate = create_act_layer(gate_layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        g = self.fc2(self.act(self.fc1(x.mean(dim=(2, 3), keepdim=True))))  # (B, C, 1, 1)
        s = self.conv2(self.act(self.conv1(x)))  # (B, 1, H, W)
        a, m = self.sum_weight.view(-1, 1, 1), self.product_weight.view(-1, 1, 1)
        # In this order a product of large scores that leaves the range of floats never meets a weight of zero.
        gate = self.gate(a * (g + s) + (m * g) * s)
        return x * gate.to(x.dtype)


register_attention(
    Attention(
        name='gala',
        title='Global-and-local attention',
        layer=GALA,
        layer_cls=GALA,
        paper='arXiv:1805.08819',
        placement='after the last norm of each residual block, before the addition of the shortcut',
        zeroed=('sum_weight', 'product_weight'),
        gates=1,
        identity_gate=OnePlusTanh,
        slots=('out',),
    )
)
