"""Self-attention between channels on a CPU, averaged over positions, as an operator that keeps no matrix.

The mean over positions commutes with the matrix. So all that the attention needs, and its gradient too, are products
of the matrix of exponentials with a few vectors. Its rows are computed in strips that stay in the processor's cache,
and again in the backward pass. Of a single position, as on the last maps of a network, it holds the exponentials of an
outer product: unless they are large, a Taylor series makes it the product of two narrow matrices.

Positions come before channels: products of short and wide matrices with a strip are several times as fast as those of
tall and narrow ones.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import library
from torch.utils.flop_counter import register_flop_formula

from .csa_plain import without_autocast

_STRIP = 2**20
"""Elements of a strip, of one or more images."""

_LARGE = 60.0
"""Exponents up to which exponentials, and sums of them, stay within the range of float32."""

# Terms of the Taylor series of exp, and the exponents up to which the terms left out are below 1e-9. In float64, what
# the terms lose in cancelling each other is below that, too.
_SERIES = ((16, 1.8), (24, 4.1), (32, 6.6), (40, 9.3), (48, 12.1), (64, 17.0))
_MANY = 256
"""Channels from which the series is faster than the matrix."""

_Matrix = tuple[torch.Tensor, torch.Tensor | None]
"""A matrix (B, rows, C) and None, or two matrices of which it is the product."""


@library.custom_op('timm_attn::channel_attention', mutates_args=())
def channel_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention between the channels of each head.

    Source: the channel attention of SCSA (arXiv 2407.05128).

    Args:
        q: Queries (B, heads, N, C) of N positions, any floating type and strides.
        k: Keys (B, heads, N, C).
        v: Values, averaged over positions (B, heads, 1, C).
        scale: Factor on the products of queries and keys.

    Returns:
        (B, heads, 1, C), of v's type.
    """
    with without_autocast(q.device):
        q_, k_, v_ = [_one_batch(x) for x in (q, k, v)]
        vectors = torch.cat([v_, torch.ones_like(v_)], dim=1)
        out = torch.empty_like(v_)
        for images, rows, strip in _strips(q_, k_, scale):
            weighted, total = _times(strip, vectors[images]).split(1, dim=1)
            torch.div(weighted, total, out=out[images, :, rows])
        return out.to(v.dtype).view(v.shape)


@library.custom_op('timm_attn::channel_attention_backward', mutates_args=())
def channel_attention_backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of :func:`channel_attention`, which is computed again."""
    with without_autocast(q.device):
        grad_, q_, k_, v_ = [_one_batch(x) for x in (grad, q, k, v)]
        grads = _gradients(grad_, q_, k_, v_, scale)
        grad_q, grad_k, grad_v = [part.to(x.dtype).view(x.shape) for part, x in zip(grads, (q, k, v), strict=True)]
        return grad_q, grad_k, grad_v


@channel_attention.register_fake
def _(q, k, v, scale):
    return torch.empty_like(v, memory_format=torch.contiguous_format)


@channel_attention_backward.register_fake
def _(grad, q, k, v, scale):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


def plain_channel_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, drop: float = 0.0
) -> torch.Tensor:
    """:func:`channel_attention` by the plain formula: small matrices, dropout of a matrix, scripts, traces, exports."""
    attn = ((q.transpose(2, 3) * scale) @ k).softmax(dim=-1)  # (B, heads, C, C)
    attn = F.dropout(attn, drop)
    return v.to(attn.dtype) @ attn.transpose(2, 3)


def _one_batch(x: torch.Tensor) -> torch.Tensor:
    """Images and heads in one dimension, float32 or float64: (B, heads, N, C) -> (B * heads, N, C), contiguous."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.to(dtype).contiguous().view(-1, x.shape[2], x.shape[3]) if x.numel() else x.new_empty(0, *x.shape[2:])


def _strips(q: torch.Tensor, k: torch.Tensor, scale: float) -> Iterator[tuple[slice, slice, _Matrix]]:
    """Strips of the matrix exp(scale * q_i * k_j) for queries and keys (B, N, C), each of its rows up to a factor.

    Yields:
        The images of a strip, its rows, and what it holds until the next one.
    """
    B, N, C = q.shape
    if not q.numel():
        return
    if N == 1:
        k = k - k.mean(dim=2, keepdim=True)  # a factor on each row, which makes the exponents smaller
    q_norm, k_norm = [x.square().sum(dim=1, keepdim=True).amax(dim=2, keepdim=True).sqrt() for x in (q, k)]
    largest = float((q_norm * k_norm).amax()) * scale  # bounds the exponents, without a look at the matrix
    if N == 1 and C >= _MANY and q.dtype == torch.float32:
        for terms, limit in _SERIES:
            if largest <= limit:
                images = max(1, _STRIP // (4 * terms * C))
                space = q.new_empty(2, min(images, B), terms, C, dtype=torch.float64)
                for i in range(0, B, images):
                    few = slice(i, i + images)
                    yield few, slice(C), _series(q[few], k[few] * scale, q_norm[few], space)
                return
    rows = min(C, max(1, _STRIP // C))
    images = min(B, max(1, _STRIP // (rows * C)))
    space = q.new_empty(images * rows * C)
    q = q * (scale / math.log(2))
    for i in range(0, B, images):
        for j in range(0, C, rows):
            part = q[i : i + images, :, j : j + rows]
            shape = (part.shape[0], part.shape[2], C)
            strip = torch.bmm(part.mT, k[i : i + images], out=space[: math.prod(shape)].view(shape))
            if not largest <= _LARGE:  # nor where it is NaN
                strip -= strip.amax(dim=2, keepdim=True)
            strip.exp2_()  # in torch, three times as fast as exp
            yield slice(i, i + images), slice(j, j + rows), (strip, None)


def _series(q: torch.Tensor, k: torch.Tensor, q_norm: torch.Tensor, space: torch.Tensor) -> _Matrix:
    """Matrices whose product is exp(q_i * k_j), for one position and queries of the magnitude ``q_norm`` (B, 1, 1).

    Args:
        q: Queries (B, 1, C).
        k: Keys (B, 1, C).
        q_norm: Largest magnitude of an image's queries.
        space: Where to write the two (2, B or more, terms, C).
    """
    queries, keys = space[:, : len(q)]
    unit = torch.where(q_norm > 0, q_norm, 1.0).double()  # goes from the queries to the keys: no power leaves the range
    _write_powers(q / unit, queries)
    _write_powers(k * unit, keys)
    factorials = [math.factorial(i) for i in range(keys.shape[1])]
    keys /= keys.new_tensor(factorials).unsqueeze(1)
    return queries.mT, keys


def _write_powers(x: torch.Tensor, out: torch.Tensor) -> None:
    """Write the powers of (B, 1, C), from 0 on: (B, terms, C)."""
    out[:, 0] = 1
    done, terms = 1, out.shape[1]
    while done < terms:
        more = min(done, terms - done)
        torch.mul(out[:, :more], x, out=out[:, done : done + more])
        done += more
        x = x * x


def _times(matrix: _Matrix, vectors: torch.Tensor) -> torch.Tensor:
    """Product of a matrix (B, rows, C) and vectors (B, n, C): (B, n, rows)."""
    left, right = matrix
    if right is None:
        return vectors @ left.mT
    return (vectors.double() @ right.mT @ left.mT).to(vectors.dtype)


def _transposed_times(matrix: _Matrix, vectors: torch.Tensor) -> torch.Tensor:
    """Product of the transpose of a matrix (B, rows, C) and vectors (B, n, rows): (B, n, C)."""
    left, right = matrix
    if right is None:
        return vectors @ left
    return (vectors.double() @ left @ right).to(vectors.dtype)


def _gradients(grad, q, k, v, scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of queries, keys (B, N, C) and values from that of the attention, both (B, 1, C)."""
    N = q.shape[1]
    grad_q, sums = torch.empty_like(q), q.new_zeros(q.shape[0], 2 * N + 1, q.shape[2])
    vectors = torch.cat([v, torch.ones_like(v), k * v, k], dim=1)
    for images, rows, strip in _strips(q, k, scale):
        weighted, total, weighted_keys, sum_of_keys = _times(strip, vectors[images]).split([1, 1, N, N], dim=1)
        out, factor = weighted / total, grad[images, :, rows] / total
        grad_q[images, :, rows] = (scale * factor) * (weighted_keys - out * sum_of_keys)
        factors = factor * q[images, :, rows]
        sums[images] += _transposed_times(strip, torch.cat([factors, factors * out, factor], dim=1))
    to_v, to_out, grad_v = sums.split([N, N, 1], dim=1)
    return grad_q, scale * (v * to_v - to_out), grad_v.contiguous()


def _save(ctx, inputs, output):
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _grad(ctx, grad):
    tensors = ctx.saved_tensors
    if torch.is_grad_enabled():  # the operator of the gradients has none itself
        out = plain_channel_attention(*tensors, ctx.scale)
        found = iter(torch.autograd.grad(out, [x for x in tensors if x.requires_grad], grad, create_graph=True))
        return *(next(found) if x.requires_grad else None for x in tensors), None
    return *channel_attention_backward(grad, *tensors, ctx.scale), None


channel_attention.register_autograd(_grad, setup_context=_save)


@register_flop_formula(torch.ops.timm_attn.channel_attention)
def _flops(q_shape, *args, out_shape=None, **kwargs) -> int:
    """The products of queries and keys, and the matrix times one column, as in the plain formula."""
    B, heads, N, C = q_shape
    return 2 * B * heads * C * C * (N + 1)


@register_flop_formula(torch.ops.timm_attn.channel_attention_backward)
def _backward_flops(grad_shape, q_shape, *args, out_shape=None, **kwargs) -> int:
    """The matrix once more, and its products with the columns of the gradients."""
    B, heads, N, C = q_shape
    return 2 * B * heads * C * C * (5 * N + 3)
