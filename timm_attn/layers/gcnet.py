"""GC: the global context block of GCNet, timm's layer with the published arguments.

Paper: `GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond` - https://arxiv.org/abs/1904.11492
Original placement: after the last norm of a residual block, before the addition of the shortcut, in the last three
stages.
"""

import torch
from timm.layers import GlobalContext as TimmGlobalContext
from torch import nn

from .ranges import scaled_for_norm
from .registry import Attention, register_attention

torch.fx.wrap('scaled_for_norm')  # a leaf of every torch.fx tracer, torchvision's included


class GlobalContext(TimmGlobalContext):
    """Global context block: adds the same vector, a function of an attention-weighted mean, at every position.

    context = sum over positions of x * softmax(conv(x)), out = x + fc2(relu(norm(fc1(context)))). The layer ``fc2``
    starts at zero, so that the block starts as an identity.

    Source: GCNet (arXiv 1904.11492), the form that its authors use: attention pooling and fusion by addition. timm's
    name ``gc`` is the form that multiplies, ``gca`` is this one with other arguments.

    Args:
        channels: Number of input channels C.
        rd_ratio: Width of the hidden layer as a share of C; the authors also use 1 / 4.
        rd_channels: Width of the hidden layer, overrides ``rd_ratio``. With a width of one the norm leaves only its
            bias, so that the vector does not depend on the image.
        rd_divisor: The width from ``rd_ratio`` is rounded to a multiple of this.
        act_layer: Activation of the hidden layer.
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
        rd_divisor: int = 1,
        act_layer=nn.ReLU,
        device=None,
        dtype=None,
    ):
        super().__init__(
            channels,
            fuse_add=True,
            fuse_scale=False,
            rd_ratio=rd_ratio,
            rd_channels=rd_channels,
            rd_divisor=rd_divisor,
            act_layer=act_layer,
            device=device,
            dtype=dtype,
        )
        del self.gate  # of the form that multiplies
        self.mlp_add.norm.eps = 1e-5  # as in the authors' code, timm's is 1e-6
        nn.init.zeros_(self.mlp_add.fc2.bias)  # timm starts with the weight at zero, the authors with both

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attn = self.conv_attn(x).flatten(2).softmax(dim=-1)  # (B, 1, H * W)
        context = x.flatten(2) @ attn.transpose(1, 2).to(x.dtype)  # (B, C, 1)
        y = self.mlp_add.fc1(context.unsqueeze(3))
        y = self.mlp_add.act(self.mlp_add.norm(scaled_for_norm(y)))
        return x + self.mlp_add.fc2(y).to(x.dtype)


def _authors_tensor(key: str, value: torch.Tensor) -> torch.Tensor:
    return value.flatten() if key.startswith('mlp_add.norm.') else value  # (C, 1, 1) in their code


register_attention(
    Attention(
        name='gc',
        title='Global context',
        layer=GlobalContext,
        layer_cls=GlobalContext,
        paper='arXiv:1904.11492',
        placement='after the last norm of each residual block of the last three stages, before the addition of the '
        'shortcut',
        zeroed=('mlp_add.fc2',),
        slots=('out',),
        # github.com/xvjiarui/GCNet
        authors_keys=(
            (r'^conv_mask\.', 'conv_attn.'),
            (r'^channel_add_conv\.0\.', 'mlp_add.fc1.'),
            (r'^channel_add_conv\.1\.', 'mlp_add.norm.'),
            (r'^channel_add_conv\.3\.', 'mlp_add.fc2.'),
        ),
        authors_tensor=_authors_tensor,
    )
)
