"""Packages of the extra ``explain``."""

from importlib.util import find_spec

PACKAGES = dict(pytorch_grad_cam='grad-cam', matplotlib='matplotlib', scipy='scipy')
"""Name to import -> name to install."""


def missing_packages(*modules: str) -> str:
    """Advice to install what is missing, of these modules or of all; empty if nothing is.

    Args:
        *modules: Names to import.
    """
    missing = [PACKAGES[module] for module in modules or PACKAGES if not find_spec(module)]
    return f'needs {", ".join(missing)}: pip install "timm-attn[explain]"' if missing else ''
