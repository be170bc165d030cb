"""CSA's product of the contiguity matrix and a vector, without keeping a matrix.

The matrix (C, C) of one image follows from its Gram matrix, which serves distances and cosines, and it is symmetric:
one half is computed, strip by strip, each strip small enough to stay in the processor's cache while it goes through the
formula. No strip outlives the image (a few images where C is small). The operators are opaque to ``torch.compile``,
``torch.export`` and autocast, and compute in float32, or float64 for float64 input.

The matrix is a constant for the gradient, so the product is linear in the vector and its own transpose: the backward
pass is the same product with the gradient in the vector's place. It computes the matrix again, with the mean distance
that the forward pass found.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import library
from torch.utils.flop_counter import register_flop_formula

from . import csa_triton
from .csa_triton import ROUNDING

# Elements of a strip and rows of a strip: two strips of float32 (products, distances) fit into the level 2 caches of
# two current CPU cores. A GPU wants large pieces.
_STRIP = {'cpu': (2**19, 128)}
_STRIP_ELSEWHERE = (2**24, 2**13)


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Context in which operations keep their type; some devices have no autocast that could be switched off."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


def plain_neighbours(x: torch.Tensor, z: torch.Tensor, mode: str) -> torch.Tensor:
    """The sums of :func:`csa_neighbours` by the plain formula, for scripts, traces and ONNX."""
    f = x.detach().flatten(2)
    if mode == 'l1':
        dist = torch.cdist(f, f, p=1.0)
        v = torch.exp(-dist / dist.mean(dim=(1, 2), keepdim=True).clamp_min(1e-30))
    else:
        gram = f @ f.transpose(1, 2)  # serves the distance and the cosine
        sq_norm = gram.diagonal(dim1=1, dim2=2)  # (B, C)
        if mode == 'cosine':
            v = gram
        else:
            dist = (sq_norm.unsqueeze(2) + sq_norm.unsqueeze(1) - 2.0 * gram).clamp_min(0.0).sqrt()
            v = torch.exp(-dist / dist.mean(dim=(1, 2), keepdim=True).clamp_min(1e-30))
        if mode != 'l2':
            inv_norm = torch.where(sq_norm > 0, sq_norm, torch.ones_like(sq_norm)).rsqrt()  # 0 / 1 for a zero channel
            cos = gram * inv_norm.unsqueeze(2) * inv_norm.unsqueeze(1)
            v = cos if mode == 'cosine' else v * cos.clamp_min(0.0)
    v = v.masked_fill(torch.eye(f.shape[1], dtype=torch.bool, device=f.device), 0.0)  # (B, C, C)
    sums = (v @ z.unsqueeze(-1)).squeeze(-1)
    return sums * v.sum(dim=(1, 2)).sign().unsqueeze(-1) if mode == 'cosine' else sums


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
            few = max(1, _STRIP.get(x.device.type, _STRIP_ELSEWHERE)[0] // z.shape[1] ** 2)
            sums = [plain_neighbours(a.to(z.dtype), b, mode) for a, b in zip(x.split(few), z.split(few), strict=True)]
            return torch.cat(sums), z.new_zeros(z.shape[0])
        x = x.flatten(2)
        if mode in csa_triton.MODES and csa_triton.is_available(x):
            return csa_triton.neighbours(x, z, mode, mean_dist)
        return _by_strips(x, z, mode, mean_dist)


class _Strip:
    """Rows ``start`` to ``stop`` of the matrices of a few images, from column ``start`` on, and their vectors.

    The rest of these rows stands mirrored in the strips before. Everything is a view of shared buffers, cut only once.

    Args:
        start: First row.
        stop: Row behind the last.
        products, distances: Buffers for the strip's elements.
        square: Squared norms of the channels (images, C).
        z: The vector to multiply with (images, C).
        sums: The product to add to (images, C).
    """

    def __init__(self, start, stop, products, distances, square, z, sums):
        images, channels = z.shape
        self.rows, self.columns = slice(start, stop), slice(start, None)
        shape = (images, stop - start, channels - start)
        self.products, self.distances = products.view(shape), distances.view(shape)
        self.block = self.distances[:, :, : stop - start]  # on the diagonal; the rest stands for its mirror image too
        self.rest = self.distances[:, :, stop - start :] if stop < channels else None
        self.diagonal = self.distances.diagonal(dim1=1, dim2=2)
        self.row_square, self.column_square = square[:, start:stop, None], square[:, None, start:]
        self.row_z, self.column_z = z[:, None, start:stop], z[:, start:, None]
        self.row_sums, self.rest_sums = sums[:, start:stop, None], sums[:, None, stop:]

    def measure(self, f, mode):
        """Fill the strip with the distances, and the products of channels if they were needed for that."""
        if mode == 'l1':
            self.distances.copy_(torch.cdist(f[:, self.rows], f[:, self.columns], p=1.0))
        else:
            torch.bmm(f[:, self.rows], f[:, self.columns].transpose(1, 2), out=self.products)
            torch.add(self.column_square, self.products, alpha=-2, out=self.distances)
            self.distances.add_(self.row_square).clamp_min_(0.0).sqrt_()
            self.diagonal.zero_()

    def total(self):
        """Sum of the distances (images,), mirror image included."""
        return self.distances.flatten(1).sum(1).mul_(2).sub_(self.block.sum(dim=(1, 2)))

    def multiply(self, inv_mean, mode):
        """Turn the distances into weights and add their products with z to the sums."""
        weights = self.distances.mul_(inv_mean).exp_()
        if mode == 'hybrid':
            weights.mul_(self.products.clamp_min_(0.0))
        self.diagonal.zero_()
        self.row_sums.baddbmm_(weights, self.column_z)
        if self.rest is not None:
            self.rest_sums.baddbmm_(self.row_z, self.rest)


def _by_strips(x: torch.Tensor, z: torch.Tensor, mode: str, mean_dist: torch.Tensor | None):
    B, C, _ = x.shape
    elements, rows = _STRIP.get(x.device.type, _STRIP_ELSEWHERE)
    rows = min(max(rows, C // 8), C)  # of many narrow strips, the calls would cost more than the half that they save
    images = max(1, min(B, elements // (rows * C)))
    spans = [(i, min(i + rows, C)) for i in range(0, C, rows)]
    sizes = [(j - i) * (C - i) for i, j in spans]
    one_pass = mean_dist is not None  # else all strips are kept until the mean distance is known
    space = z.new_empty(2, images * (max(sizes) if one_pass else sum(sizes)))
    square, scaled_z, partial = z.new_empty(3, images, C)
    sums = torch.empty_like(z)
    means = z.new_zeros(B) if mean_dist is None else mean_dist
    strips: list[_Strip] = []
    for first in range(0, B, images):
        chunk = slice(first, first + images)
        f = x[chunk].to(z.dtype)
        n = f.shape[0]
        if not strips or n < images:
            flat = space[:, : n * max(sizes)] if one_pass else space[:, : n * sum(sizes)]
            parts = [flat[:, : n * s] for s in sizes] if one_pass else flat.split([n * s for s in sizes], dim=1)
            strips = [
                _Strip(i, j, *part, square[:n], scaled_z[:n], partial[:n])
                for (i, j), part in zip(spans, parts, strict=True)
            ]
        norm = torch.linalg.vector_norm(f, dim=2)
        square[:n] = norm.square() * (1 - ROUNDING * torch.finfo(z.dtype).eps)
        # The norms of the cosine stand outside of the sum: only the products of channels are needed in it.
        inv_norm = torch.where(norm > 0, norm, 1.0).reciprocal() if mode == 'hybrid' else torch.ones_like(norm)
        torch.mul(z[chunk], inv_norm, out=scaled_z[:n])
        if not one_pass:
            total = z.new_zeros(n)
            for strip in strips:
                strip.measure(f, mode)
                total += strip.total()  # while it is in the cache
            means[chunk] = total / C**2
        inv_mean = -means[chunk].clamp_min(1e-30).reciprocal().view(n, 1, 1)
        partial.zero_()
        for strip in strips:
            if one_pass:
                strip.measure(f, mode)
            strip.multiply(inv_mean, mode)
        torch.mul(partial[:n], inv_norm, out=sums[chunk])
    return sums, means
