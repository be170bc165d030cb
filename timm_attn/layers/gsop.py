"""GSoP: global second-order pooling, the channel attention of GSoP-Net1.

Paper: `Global Second-order Pooling Convolutional Networks` - https://arxiv.org/abs/1811.12006
Original placement: after the last norm of a residual block, before the addition of the shortcut, in the last block of
each stage.
"""

import torch
from timm.layers import create_act_layer
from timm.models import register_notrace_function
from torch import nn

from ..kernels.csa_plain import without_autocast
from .registry import Attention, register_attention

torch.fx.wrap('channel_covariance')  # a leaf of every torch.fx tracer, torchvision's included


@register_notrace_function
def channel_covariance(x: torch.Tensor) -> torch.Tensor:
    """Covariance of the channels over the positions of a map.

    Computed in float32 (float64 for float64 input) whatever the input or autocast type.

    Args:
        x: Feature map (B, C, H, W). Images with values beyond 2 ** 40 (128 in float16) are scaled down to that, so that
            the covariance stays within the range of their type.

    Returns:
        (B, C, C), in the type of ``x``; zeros for a single position.
    """
    largest = x.detach().abs().flatten(1).amax(dim=1)
    # Not one variable for the limit: a saved script holds large numbers as whole ones, which are of another type.
    scale = 128.0 / largest.clamp_min(128.0) if x.dtype == torch.float16 else 2.0**40 / largest.clamp_min(2.0**40)
    x = x * scale.view(-1, 1, 1, 1)
    if torch.jit.is_scripting():
        # A script can neither leave autocast nor, on the CPU, ask for it; but autocast leaves float64 alone.
        return _covariance(x.double()).to(x.dtype)
    else:
        with without_autocast(x.device):
            return _covariance(x if x.dtype == torch.float64 else x.float()).to(x.dtype)


def _covariance(x: torch.Tensor) -> torch.Tensor:
    x = x.flatten(2)
    x = x - x.mean(dim=2, keepdim=True)
    return x @ x.transpose(1, 2) / x.shape[2]


class GSoP(nn.Module):
    """Global second-order pooling: gates each channel by a function of the covariances between reduced channels.

    z = relu(bn(reduce(relu(x)))) has few channels, S is their covariance over positions, and
    out = x * sigmoid(fc(row_conv(row_bn(S)))). The norm takes the rows of S for channels, and the convolution turns
    each row into four numbers.

    Source: GSoP-Net1 (arXiv 1811.12006), after the authors' code. No activation follows the row convolution there; the
    paper's figure may show one (doubtful).

    Args:
        channels: Number of input channels C.
        cov_channels: Number of reduced channels.
        stride: Stride of the reducing convolution; the authors use 2 in the first stage, whose map is large.
        gate_layer: Activation of the gate.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Shape:
        (B, C, H, W) -> (B, C, H, W), any H and W from 1 up.
    """

    def __init__(
        self,
        channels: int,
        cov_channels: int = 128,
        stride: int = 1,
        gate_layer='sigmoid',
        device=None,
        dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        self.reduce = nn.Conv2d(channels, cov_channels, 1, stride=stride, **dd)
        self.bn = nn.BatchNorm2d(cov_channels, **dd)
        self.act = nn.ReLU(inplace=True)
        self.row_bn = nn.BatchNorm2d(cov_channels, **dd)
        self.row_conv = nn.Conv2d(cov_channels, 4 * cov_channels, (cov_channels, 1), groups=cov_channels, **dd)
        self.fc = nn.Conv2d(4 * cov_channels, channels, 1, **dd)
        self.gate = create_act_layer(gate_layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.act(self.bn(self.reduce(x.relu())))
        rows = channel_covariance(z).unsqueeze(3)  # (B, d, d, 1)
        gate = self.gate(self.fc(self.row_conv(self.row_bn(rows))))  # (B, C, 1, 1)
        return x * gate.to(x.dtype)


register_attention(
    Attention(
        name='gsop',
        title='Global second-order pooling',
        layer=GSoP,
        layer_cls=GSoP,
        paper='arXiv:1811.12006',
        placement='after the last norm of a residual block, before the addition of the shortcut, in the last block of '
        'each stage',
        zeroed=('fc',),
        gates=1,
        slots=('out',),
        blocks='last',
        # github.com/ZilinGao/Global-Second-order-Pooling-Convolutional-Networks
        authors_keys=(
            (r'^conv_for_DR\.', 'reduce.'),
            (r'^bn_for_DR\.', 'bn.'),
            (r'^row_conv_group\.', 'row_conv.'),
            (r'^fc_adapt_channels\.', 'fc.'),
        ),
    )
)
