"""Attention layers. Each takes the number of channels first, as timm's attention layers do."""

import importlib
import pkgutil

from .aa import AttentionAugmentedConv2d
from .ba import BridgeAttention
from .bam import BAM
from .cbam import CbamChannel, cbam
from .coord_attn import coord_attn
from .csa import CSA, csa_descriptor
from .dia import DIA
from .eca import ECA
from .fca import FCA
from .gala import GALA
from .gated_ct import GatedCT
from .gcnet import GlobalContext
from .gct import GCT
from .gsop import GSoP
from .registry import Attention, attention_of, get_attention, list_attentions, register_attention
from .sasa import SASA
from .scsa import SCSA
from .squeeze_excite import squeeze_excite

__all__ = [
    'BAM',
    'CSA',
    'DIA',
    'ECA',
    'FCA',
    'GALA',
    'GCT',
    'SASA',
    'SCSA',
    'Attention',
    'AttentionAugmentedConv2d',
    'BridgeAttention',
    'CbamChannel',
    'GSoP',
    'GatedCT',
    'GlobalContext',
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
