"""Attention-augmented CNNs inside timm: ``import timm_attn`` registers the models with ``timm.create_model``."""

from . import models
from .fold_batch_norm import optimize

__version__ = '0.5.0'
__all__ = ['models', 'optimize']
