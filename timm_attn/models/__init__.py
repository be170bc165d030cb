"""The model families. Importing this package registers every model in timm."""

from . import cifar_resnet, csa_resnet, mbv2_attn, mobilenext, scsa_resnet
from ._build import zoo_models

__all__ = ['cifar_resnet', 'csa_resnet', 'mbv2_attn', 'mobilenext', 'scsa_resnet', 'zoo_models']
