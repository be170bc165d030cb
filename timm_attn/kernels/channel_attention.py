"""Self-attention between channels on a CPU, averaged over positions, as an operator that keeps no matrix.

PyTorch's fused attention never holds the matrix (C, C) of an image, but takes contiguous tensors only: given others, it
falls back to a plain form. The operator makes them contiguous when they arrive, since ``torch.compile`` chooses their
strides after it has chosen the form of the attention.
"""

import torch
import torch.nn.functional as F
from torch import library
from torch.utils.flop_counter import register_flop_formula

from .._compat import fused_attention, fused_attention_gradients


@library.custom_op('timm_attn::channel_attention', mutates_args=())
def channel_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention between the channels of each head, averaged over positions.

    Source: the channel attention of SCSA (arXiv 2407.05128).

    Args:
        q: Queries (B, heads, C, N) of N positions, any strides.
        k: Keys (B, heads, C, N).
        v: Values (B, heads, C, N).
        scale: Factor on the products of queries and keys.

    Returns:
        (B, heads, C, 1).
    """
    return fused_attention(q.contiguous(), k.contiguous(), v.contiguous(), scale)[0].mean(dim=3, keepdim=True)


@library.custom_op('timm_attn::channel_attention_backward', mutates_args=())
def channel_attention_backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of :func:`channel_attention`, which is computed again."""
    q, k, v = [x.contiguous() for x in (q, k, v)]
    out, logsumexp = fused_attention(q, k, v, scale)
    grad = (grad.to(out.dtype) / q.shape[3]).expand_as(out).contiguous()
    grads = fused_attention_gradients(grad, q, k, v, out, logsumexp, scale)
    return tuple(grad.contiguous() for grad in grads)  # of several heads, they are not


@channel_attention.register_fake
def _(q, k, v, scale):
    return q.new_empty(*q.shape[:-1], 1)


@channel_attention_backward.register_fake
def _(grad, q, k, v, scale):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


def plain_channel_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, drop: float = 0.0
) -> torch.Tensor:
    """:func:`channel_attention` by the plain formula, for scripts, traces, exports, and dropout of the matrix.

    The mean over positions commutes with the matrix, so that its product is one with a single column.
    """
    attn = ((q * scale) @ k.transpose(2, 3)).softmax(dim=-1)  # (B, heads, C, C)
    attn = F.dropout(attn, drop)
    return attn @ v.mean(dim=3, keepdim=True).to(attn.dtype)


def _save(ctx, inputs, output):
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _grad(ctx, grad):
    tensors = ctx.saved_tensors
    if torch.is_grad_enabled():  # fused attention has no second derivative
        out = plain_channel_attention(*tensors, ctx.scale)
        found = iter(torch.autograd.grad(out, [x for x in tensors if x.requires_grad], grad, create_graph=True))
        return *(next(found) if x.requires_grad else None for x in tensors), None
    return *channel_attention_backward(grad, *tensors, ctx.scale), None


channel_attention.register_autograd(_grad, setup_context=_save)


@register_flop_formula(torch.ops.timm_attn.channel_attention)
def _flops(q_shape, *args, out_shape=None, **kwargs) -> int:
    """The products of queries and keys, and the matrix times one column, as in the plain formula."""
    B, heads, C, N = q_shape
    return 2 * B * heads * C * C * (N + 1)


@register_flop_formula(torch.ops.timm_attn.channel_attention_backward)
def _backward_flops(grad_shape, q_shape, *args, out_shape=None, **kwargs) -> int:
    """The matrix once more, its gradient, and three products with it."""
    B, heads, C, N = q_shape
    return 2 * B * heads * C * C * 5 * N
