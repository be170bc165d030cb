"""The oldest torch that reads weight files safely, checked again because ``torch.hub`` and ``--no-deps`` bypass pip."""

import torch

_OLDEST = (2, 10)


def check_torch() -> None:
    """Raise ImportError if this torch is too old to read weight files of strangers."""
    release = torch.__version__.split('+')[0]
    if tuple(int(number) for number in release.split('.')[:2]) < _OLDEST:
        raise ImportError(
            f'timm-attn needs torch {".".join(map(str, _OLDEST))} or newer, and this is torch {release}: in older '
            'versions, loading a weight file can run code (CVE-2025-32434) or corrupt memory (CVE-2026-24747). '
            "Upgrade with 'pip install --upgrade torch torchvision'."
        )
