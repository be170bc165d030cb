"""ECA: efficient channel attention, timm's layer with a kernel size that can be chosen.

Paper: `ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks` - https://arxiv.org/abs/1910.03151
Original placement: after the last norm of a residual block, before the addition of the shortcut.
"""

import torch
from timm.layers import EcaModule

from .registry import Attention, register_attention


class ECA(EcaModule):
    """Efficient channel attention: a 1-D convolution over the channels' means gates each channel.

    out = x * sigmoid(conv(mean of x)), one kernel for all channels, padded with zeros, without bias.

    Source: ECA-Net (arXiv 1910.03151).

    Args:
        channels: Number of input channels C.
        kernel_size: Size of the kernel, an odd number; None derives it from C by the paper's rule (eq. 12): the odd
            number near (log2(C) + beta) / gamma, at least 3. The authors' ResNet-50 sets 3, 5, 5, 7 by stage.
        gamma: Constant of the rule.
        beta: Constant of the rule.
        gate_layer: Activation of the gate.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Raises:
        ValueError: If ``kernel_size`` is not an odd number.

    Shape:
        (B, C, H, W) -> (B, C, H, W), any H and W from 1 up.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int | None = None,
        gamma: float = 2,
        beta: float = 1,
        gate_layer='sigmoid',
        device=None,
        dtype=None,
    ):
        if kernel_size is not None and (kernel_size < 1 or kernel_size % 2 == 0):
            raise ValueError(
                f'ECA kernel_size={kernel_size} must be an odd number, or None to derive it from the channels.'
            )
        # timm's layer takes a kernel size only where it knows no number of channels.
        super().__init__(
            channels if kernel_size is None else None,
            kernel_size or 3,
            gamma=gamma,
            beta=beta,
            gate_layer=gate_layer,
            device=device,
            dtype=dtype,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # timm's own forward cannot view an empty batch.
        gate = self.gate(self.conv(x.mean(dim=(2, 3)).unsqueeze(1)))  # (B, 1, C)
        return x * gate.to(x.dtype).squeeze(1)[:, :, None, None]


register_attention(
    Attention(
        name='eca',
        title='Efficient channel attention',
        layer=ECA,
        layer_cls=ECA,
        paper='arXiv:1910.03151',
        placement='after the last norm of each residual block, before the addition of the shortcut',
        zeroed=('conv',),
        gates=1,
        slots=('out',),
        same_as=('EcaModule', 'CecaModule'),
    )
)
