"""CSA's product of the contiguity matrix and a vector by the plain formula: scripts, traces, ONNX, tests."""

from contextlib import AbstractContextManager, nullcontext

import torch

ROUNDING = 8
"""The squared distance of equal channels is a difference of equal numbers, each rounded: what is left of it, up to this
many units of rounding, counts as zero."""


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Context in which operations keep their type, empty where they do so anyway: converters know no autocast."""
    enabled = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if enabled else nullcontext()


def largest_magnitude(f: torch.Tensor) -> torch.Tensor:
    """Largest magnitude of each image's flattened map (B, C, N), 1 where there is none: (B, 1, 1).

    The sums do not depend on the scale, but squares of very small and very large numbers leave the range of floats.
    """
    largest = f.abs().amax(dim=(1, 2), keepdim=True)
    return torch.where(largest > 0, largest, torch.ones_like(largest))


def plain_neighbours(x: torch.Tensor, z: torch.Tensor, mode: str, rounding: int = ROUNDING) -> torch.Tensor:
    """The sums of :func:`csa_neighbours` by the plain formula, for scripts, traces and exports.

    It consists of operations that converters know: no diagonal, no identity matrix. In float32, an offset that all
    channels share costs accuracy, as their distances are differences of products. ``rounding`` is an argument since
    scripts know no global numbers.
    """
    f = x.detach().flatten(2)
    f = f / largest_magnitude(f)
    index = torch.arange(f.shape[1], device=f.device)
    same = index.unsqueeze(0) == index.unsqueeze(1)  # (C, C)
    tiny = 1e-300 if f.dtype == torch.float64 else 1e-30
    if mode == 'l1':
        dist = torch.cdist(f, f, p=1.0)
        v = torch.exp(-dist / dist.mean(dim=(1, 2), keepdim=True).clamp_min(tiny))
    else:
        gram = f @ f.transpose(1, 2)  # serves the distance and the cosine
        sq_norm = gram.masked_fill(~same, 0.0).sum(dim=2)  # (B, C), exactly the diagonal
        if mode == 'cosine':
            v = gram
        else:
            near = sq_norm * (1.0 - rounding * (2.0**-52 if f.dtype == torch.float64 else 2.0**-23))
            dist = (near.unsqueeze(2) + near.unsqueeze(1) - 2.0 * gram).clamp_min(0.0).sqrt()
            v = torch.exp(-dist / dist.mean(dim=(1, 2), keepdim=True).clamp_min(tiny))
        if mode != 'l2':
            inv_norm = torch.where(sq_norm > 0, sq_norm, torch.ones_like(sq_norm)).rsqrt()  # 0 / 1 for a zero channel
            cos = gram * inv_norm.unsqueeze(2) * inv_norm.unsqueeze(1)
            v = cos if mode == 'cosine' else v * cos.clamp_min(0.0)
    v = v.masked_fill(same, 0.0)  # (B, C, C)
    sums = (v @ z.unsqueeze(-1)).squeeze(-1)
    return sums * v.sum(dim=(1, 2)).sign().unsqueeze(-1) if mode == 'cosine' else sums
