"""Maps of very large values, scaled so that what is computed of them stays within the range of their type."""

import torch
from timm.models import register_notrace_function


@register_notrace_function
def scaled_for_softmax(q: torch.Tensor, k: torch.Tensor, channels: int) -> torch.Tensor:
    """Scale an image's queries down where their products with the keys could overflow; others keep every bit.

    A softmax of infinite values would be NaN. Of values so large it picks the largest one, scaled or not.

    Args:
        q: Queries (B, ...).
        k: Keys (B, ...).
        channels: Number of products in a sum.

    Returns:
        The queries; their products with the keys, and with relative positions of up to one, are sums in range.
    """
    limit = 1e4 if q.dtype == torch.float16 else 1e37
    q_max, k_max = [x.detach().flatten(1).abs().amax(dim=1) for x in (q, k)]
    scale = (limit / channels / k_max.clamp_min(1.0) / q_max).clamp_max(1.0)
    return q * scale.to(q.dtype).view([-1] + [1] * (q.ndim - 1))


def scaled_for_norm(x: torch.Tensor) -> torch.Tensor:
    """Scale an image's features down where a norm could not square them; others keep every bit.

    A norm does not depend on the scale of values so large that its epsilon does not count.

    Args:
        x: Features (B, C, H, W).
    """
    if x.dtype == torch.float16:  # ends long before
        return x
    largest = x.detach().abs().amax(dim=(1, 2, 3), keepdim=True)  # many times as fast as the norm of order infinity
    return x * (2.0**20 / largest.clamp_min(2.0**20))
