"""The computations behind the attention layers, as PyTorch operators under ``torch.ops.timm_attn``."""
