"""Attention-augmented CNNs inside timm: ``import timm_attn`` registers the models with ``timm.create_model``."""

from . import models

__version__ = '0.2.0'
__all__ = ['models']
