"""Attention layers. Each takes the number of channels first, as timm's attention layers do."""

import importlib
import pkgutil

from .cbam import cbam
from .coord_attn import coord_attn
from .csa import CSA, csa_descriptor
from .registry import Attention, attention_of, get_attention, list_attentions, register_attention
from .scsa import SCSA
from .squeeze_excite import squeeze_excite

__all__ = [
    'CSA',
    'SCSA',
    'Attention',
    'attention_of',
    'cbam',
    'coord_attn',
    'csa_descriptor',
    'get_attention',
    'list_attentions',
    'register_attention',
    'squeeze_excite',
]

# Every file here is imported, so that a new attention is registered without a line in this one.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f'{__name__}.{_module.name}')
