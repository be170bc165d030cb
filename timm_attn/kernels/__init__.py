"""The computations behind the attention layers, as PyTorch operators under ``torch.ops.timm_attn``."""

import torch

from .._compat import in_function_transform


def needs_plain_formula() -> bool:
    """Whether an operator of this package has no place: in traces, ONNX, ``torch.func`` and forward-mode gradients."""
    if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export():
        return True
    if torch.compiler.is_compiling():
        return False
    return in_function_transform()
