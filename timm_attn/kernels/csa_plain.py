"""CSA's product of the contiguity matrix and a vector by the plain formula: scripts, traces, ONNX, tests."""

from contextlib import AbstractContextManager, nullcontext

import torch

ROUNDING = 8
"""The squared distance of equal channels is a difference of equal numbers, each rounded: what is left of it, up to this
many units of rounding, counts as zero."""


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
