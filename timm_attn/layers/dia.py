"""DIA: dense-and-implicit attention, one recurrent cell that gates the channels of all blocks of a stage.

Paper: `DIANet: Dense-and-Implicit Attention Network` - https://arxiv.org/abs/1905.10671
Original placement: after the last norm of every residual block, before the addition of the shortcut.
"""

import torch
from timm.layers import create_act_layer
from torch import nn

from .registry import Attention, register_attention


class DIA(nn.Module):
    """Dense-and-implicit attention: gates each channel by the hidden state of a cell that the blocks of a stage share.

    The cell is an LSTM of two differences: its inputs pass through a narrow hidden layer each, and a sigmoid stands in
    place of the last tanh. With q the means of x, and i, f, g, o the four chunks of
    fc2(relu(fc1(q))) + state_fc2(relu(state_fc1(h))), a step is

        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * sigmoid(c)
        out = x * h

    Source: DIANet (arXiv 1905.10671) and the authors' code. Original placement: after the last norm of a residual
    block.

    Args:
        channels: Number of input channels C.
        reduction: The hidden layers have C // reduction units. 4 is that of the authors' code, which is for CIFAR; 20
            for ImageNet is reconstructed from the parameter count, and doubtful.
        act_layer: Activation of the hidden layers.
        gate_layer: Activation of the two gates of h.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Raises:
        ValueError: If ``reduction`` is not from 1 to C.

    Shape:
        x (B, C, H, W) and the state, h and c (B, C) each, or None at the first block -> (B, C, H, W) and the new state.
        Any H and W from 1 up.
    """

    def __init__(
        self, channels: int, reduction: int = 4, act_layer=nn.ReLU, gate_layer='sigmoid', device=None, dtype=None
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        if not 1 <= reduction <= channels:
            raise ValueError(f'reduction={reduction} must be from 1 to the number of channels, here {channels}.')
        hidden = channels // reduction
        self.fc1 = nn.Linear(channels, hidden, **dd)
        self.fc2 = nn.Linear(hidden, 4 * channels, **dd)
        self.state_fc1 = nn.Linear(channels, hidden, **dd)
        self.state_fc2 = nn.Linear(hidden, 4 * channels, **dd)
        self.act = create_act_layer(act_layer)
        self.gate = create_act_layer(gate_layer)

    def step(self, q: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of the cell.

        Args:
            q: Means of the map (B, C).
            h: Hidden state (B, C).
            c: Cell state (B, C).

        Returns:
            The new h and c.
        """
        parts = self.fc2(self.act(self.fc1(q))) + self.state_fc2(self.act(self.state_fc1(h)))
        i, f, g, o = parts.chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return self.gate(o) * self.gate(c), c

    def forward(
        self, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        q = x.mean(dim=(2, 3))
        if state is None:
            state = (torch.zeros_like(q), torch.zeros_like(q))
        h, c = self.step(q, state[0], state[1])
        return x * h.to(x.dtype)[:, :, None, None], (h, c)


register_attention(
    Attention(
        name='dia',
        title='Dense-and-implicit attention',
        layer=DIA,
        layer_cls=DIA,
        paper='arXiv:1905.10671',
        placement='after the last norm of a residual block, before the addition of the shortcut, one cell for all '
        'blocks of a stage',
        zeroed=('fc2', 'state_fc2'),  # the cell state is then zero too
        gates=2,
        slots=('out',),
        part_of='the state that it returned in the block before',
        # github.com/gbup-group/DIANet
        authors_keys=(
            (r'^w_ih\.0\.seq\.0\.', 'fc1.'),
            (r'^w_ih\.0\.seq\.2\.', 'fc2.'),
            (r'^w_hh\.0\.seq\.0\.', 'state_fc1.'),
            (r'^w_hh\.0\.seq\.2\.', 'state_fc2.'),
        ),
    )
)
