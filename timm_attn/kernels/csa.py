"""CSA's product of the contiguity matrix and a vector as an operator of PyTorch, without keeping a matrix.

The matrix is a constant for the gradient, so the product is linear in the vector and its own transpose: the backward
pass is the same product with the gradient in the vector's place. It computes the matrix again, with the mean distance
that the forward pass found. The operators are opaque to ``torch.compile``, ``torch.export`` and autocast, and compute
in float32, or float64 for float64 input.
"""

import torch
from torch import library
from torch.utils.flop_counter import register_flop_formula

from . import csa_strips, csa_triton
from .csa_plain import plain_neighbours, without_autocast


@library.custom_op('timm_attn::csa_neighbours', mutates_args=())
def csa_neighbours(x: torch.Tensor, z: torch.Tensor, mode: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the other channels' z, weighted with their contiguity.

    Source: CSA-Net (arXiv 2405.05755); the modes are those of :func:`timm_attn.layers.csa_descriptor`.

    Args:
        x: Feature map (B, C, H, W), any floating type and layout; a constant for the gradient.
        z: Value of each channel (B, C), float32, or float64 if x is.
        mode: ``hybrid``, ``l2``, ``l1`` or ``cosine``. In ``cosine`` the sum has the sign of the sum of all weights,
            as if they had been divided by it.

    Returns:
        The sums (B, C), and the mean distance between channels (B,), 0 in ``cosine``.
    """
    return _neighbours(x, z, mode, None)


@library.custom_op('timm_attn::csa_neighbours_at_scale', mutates_args=())
def csa_neighbours_at_scale(x: torch.Tensor, z: torch.Tensor, mean_dist: torch.Tensor, mode: str) -> torch.Tensor:
    """:func:`csa_neighbours` with the mean distance (B,) given: the product in the backward pass."""
    return _neighbours(x, z, mode, mean_dist)[0]


@csa_neighbours.register_fake
def _(x, z, mode):
    return torch.empty_like(z, memory_format=torch.contiguous_format), z.new_empty(z.shape[0])


@csa_neighbours_at_scale.register_fake
def _(x, z, mean_dist, mode):
    return torch.empty_like(z, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output):
    x, _, mode = inputs
    ctx.save_for_backward(x, output[1])
    ctx.mode = mode
    ctx.mark_non_differentiable(output[1])


def _save_at_scale(ctx, inputs, output):
    x, _, mean_dist, mode = inputs
    ctx.save_for_backward(x, mean_dist)
    ctx.mode = mode


def _grad(ctx, grad, *_):
    x, mean_dist = ctx.saved_tensors
    return None, csa_neighbours_at_scale(x, grad, mean_dist, ctx.mode), None


csa_neighbours.register_autograd(_grad, setup_context=_save)
csa_neighbours_at_scale.register_autograd(lambda ctx, grad: (*_grad(ctx, grad), None), setup_context=_save_at_scale)


@register_flop_formula([torch.ops.timm_attn.csa_neighbours, torch.ops.timm_attn.csa_neighbours_at_scale])
def _flops(x_shape, *args, out_shape=None, **kwargs) -> int:
    """One half of the products between channels, and the matrix times the vector."""
    B, C, H, W = x_shape
    return B * C * ((C + 1) * H * W + 2 * C)


def _neighbours(x, z, mode, mean_dist):
    with without_autocast(x.device), torch.no_grad():
        z = z.contiguous()
        if mode == 'cosine':  # no mean distance, so one product of matrices; a few images at a time
            few = csa_strips.images_at_once(x.device, z.shape[1])
            sums = [plain_neighbours(a.to(z.dtype), b, mode) for a, b in zip(x.split(few), z.split(few), strict=True)]
            return torch.cat(sums), z.new_zeros(z.shape[0])
        x = x.flatten(2)
        if mode in csa_triton.MODES and csa_triton.is_available(x):
            return csa_triton.neighbours(x, z, mode, mean_dist)
        return csa_strips.neighbours(x, z, mode, mean_dist)
