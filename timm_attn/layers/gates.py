"""Gates that are exactly one where their input is zero: an attention that ends in one can start as an identity."""

import torch
from torch import nn


class DoubleSigmoid(nn.Module):
    """2 * sigmoid(x), in place of sigmoid: one at zero, and at most two."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x.sigmoid()


class OnePlusTanh(nn.Module):
    """1 + tanh(x), in place of tanh: one at zero, and at most two."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1 + x.tanh()
