"""Detectors and segmenters with every backbone of the zoo, readers of their data, and their metrics.

The builders return models of torchvision. Readers (:mod:`timm_attn.dense.data`) and metrics
(:mod:`timm_attn.dense.metrics`) need ``pip install "timm-attn[dense]"``.
"""

from .checkpoint import load, save
from .detection import fasterrcnn, maskrcnn, retinanet, ssdlite320
from .segmentation import deeplabv3

__all__ = ['deeplabv3', 'fasterrcnn', 'load', 'maskrcnn', 'retinanet', 'save', 'ssdlite320']
