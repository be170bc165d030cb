"""Means along the axes of a feature map, and the gates that come of them.

Source: coordinate attention (arXiv 2103.02907); SCSA (arXiv 2407.05128) has the same two steps.
"""

import warnings

import torch
import torch.nn.functional as F
from timm.models import register_notrace_function


@register_notrace_function
def axis_means(x: torch.Tensor, gap: int = 0) -> torch.Tensor:
    """Means over the width, and after them those over the height.

    Args:
        x: Feature map (B, C, H, W).
        gap: Zeros between the two.

    Returns:
        (B, C, 1, H + gap + W), in channels_last where convolutions of it are faster so.
    """
    # Divided after the sum: the gradient of a mean writes a whole map of its own, that of a sum does not. The sum of a
    # half type could overflow.
    dtype = torch.float32 if x.dtype == torch.float16 or x.dtype == torch.bfloat16 else x.dtype
    H, W = x.shape[2], x.shape[3]
    if x.stride(1) == 1:  # channels_last: torch is several times faster if the axes are in order
        rows = x.permute(0, 2, 3, 1)
        sums = [rows.sum(dim=2, dtype=dtype), rows.sum(dim=1, dtype=dtype)]
        axis = 1
    else:
        sums = [x.sum(dim=3, dtype=dtype), x.sum(dim=2, dtype=dtype)]
        axis = 2
    h, w = (sums[0] / W).to(x.dtype), (sums[1] / H).to(x.dtype)
    if gap:
        h = F.pad(h, [0, gap] if axis == 2 else [0, 0, 0, gap])
    means = torch.cat([h, w], dim=axis)
    if axis == 1:
        return means.transpose(1, 2).unsqueeze(2)
    means = means.unsqueeze(2)
    if _are_tall(x):
        means = means.contiguous(memory_format=torch.channels_last)
    return means


def _are_tall(x: torch.Tensor) -> bool:
    """Whether the means are so many channels of so few positions that a CPU convolves them faster in channels_last."""
    if torch.jit.is_scripting():  # noqa: SIM114  scripts know nothing of the other conditions
        return False
    elif torch.jit.is_tracing() or torch.compiler.is_compiling():
        return False
    return x.device.type == 'cpu' and x.shape[1] >= 32 * (x.shape[2] + x.shape[3])


@register_notrace_function
def gate_axes(x: torch.Tensor, gate_h: torch.Tensor, gate_w: torch.Tensor) -> torch.Tensor:
    """Multiply each row and each column by its gate.

    Args:
        x: Feature map (B, C, H, W).
        gate_h: Gate of each row (B, C, H, 1).
        gate_w: Gate of each column (B, C, 1, W).

    Returns:
        A new map, as ``x``.
    """
    return gate_own(x * _as_map(gate_h, x), gate_w)


@register_notrace_function
def gate_own(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Multiply a map that nobody else uses by a gate: in place unless autograd needs the map, or it is traced.

    Args:
        x: Feature map (B, C, H, W).
        gate: Gate that broadcasts to it.

    Returns:
        ``x`` itself, or a new map.
    """
    gate = _as_map(gate, x)
    keep = torch.is_grad_enabled()
    if not torch.jit.is_scripting() and torch.jit.is_tracing():  # one graph, whether gradients were enabled or not
        keep = True
    return x * gate if keep else x.mul_(gate)


def _as_map(gate: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A gate in the type and the layout of the map: in another layout, the product would take several times as long."""
    gate = gate.to(x.dtype)
    return gate.contiguous(memory_format=torch.channels_last) if x.stride(1) == 1 else gate.contiguous()


def fixed_size(size: int) -> int:
    """Size as a Python number, which a trace holds as a constant: few converters know a pooling window that varies."""
    if torch.jit.is_scripting():
        return size
    elif torch.jit.is_tracing():
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', torch.jit.TracerWarning)  # meant
            return int(size)
    else:
        return size
