"""Attention layers. Each takes the number of channels first, as timm's attention layers do."""

from .coord_attn import cbam, coord_attn, squeeze_excite
from .csa import CSA, csa_descriptor
from .scsa import SCSA

__all__ = ['CSA', 'SCSA', 'cbam', 'coord_attn', 'csa_descriptor', 'squeeze_excite']
