"""ResNet with spatial and channel synergistic attention.

Paper: `SCSA: Exploring the Synergistic Effects Between Spatial and Channel Attention` -
https://arxiv.org/abs/2407.05128
"""

from functools import partial

import torch
from timm.layers import create_attn
from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from ..layers import SCSA
from ..weights import imagenet_cfg, pretrained_cfgs
from ..weights.convert import substitute
from .base import ZooModel
from .builder import build_model

__all__ = ['ScsaBasicBlock', 'ScsaBottleneck', 'ScsaResNet']


class ScsaBasicBlock(BasicBlock):
    """timm's BasicBlock with attention after the first convolution, norm and activation.

    Args:
        inplanes: Input channels.
        planes: Channels of the block.
        *args: As timm's BasicBlock.
        attn_layer: Attention class, channels first, or a name that timm knows; None for none.
        **kwargs: As timm's BasicBlock.
    """

    def __init__(self, inplanes: int, planes: int, *args, attn_layer=SCSA, **kwargs):
        super().__init__(inplanes, planes, *args, **kwargs)
        dd = dict(device=self.conv1.weight.device, dtype=self.conv1.weight.dtype)
        self.attn = create_attn(attn_layer, self.conv1.out_channels, **dd) or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.aa(self.act1(self.drop_block(self.bn1(self.conv1(x)))))
        x = self.attn(x)
        x = self.bn2(self.conv2(x))
        if self.drop_path is not None:
            x = self.drop_path(x)
        x += shortcut
        return self.act2(x)


class ScsaBottleneck(Bottleneck):
    """timm's Bottleneck with attention after the 3x3 convolution, norm and activation.

    Args:
        inplanes: Input channels.
        planes: Channels of the 3x3 convolution; the block outputs 4 times as many.
        *args: As timm's Bottleneck.
        attn_layer: Attention class, channels first, or a name that timm knows; None for none.
        **kwargs: As timm's Bottleneck.
    """

    def __init__(self, inplanes: int, planes: int, *args, attn_layer=SCSA, **kwargs):
        super().__init__(inplanes, planes, *args, **kwargs)
        dd = dict(device=self.conv2.weight.device, dtype=self.conv2.weight.dtype)
        self.attn = create_attn(attn_layer, self.conv2.out_channels, **dd) or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.aa(self.act2(self.drop_block(self.bn2(self.conv2(x)))))
        x = self.attn(x)
        x = self.bn3(self.conv3(x))
        if self.drop_path is not None:
            x = self.drop_path(x)
        x += shortcut
        return self.act3(x)


class ScsaResNet(ZooModel, ResNet):
    """timm's ResNet, built from blocks with SCSA on their middle channels."""

    # mmpretrain, github.com/HZAI-ZJNU/SCSA
    rename_key = staticmethod(substitute((r'^head\.fc\.', 'fc.')))
    absorbs_gate = {'attn': ('conv3', 'conv2')}


def _create_scsa_resnet(variant: str, pretrained: bool = False, **kwargs) -> ScsaResNet:
    return build_model(ScsaResNet, variant, pretrained, **kwargs)


default_cfgs = generate_default_cfgs(
    pretrained_cfgs(
        imagenet_cfg(first_conv='conv1', classifier='fc'),
        scsa_resnet18='resnet18',
        scsa_resnet34='resnet34',
        scsa_resnet50='resnet50',
        scsa_resnet101='resnet101',
    )
)


@register_model
def scsa_resnet18(pretrained: bool = False, **kwargs) -> ScsaResNet:
    """ResNet-18 with SCSA in every block."""
    model_args = dict(block=ScsaBasicBlock, layers=(2, 2, 2, 2))
    return _create_scsa_resnet('scsa_resnet18', pretrained, **dict(model_args, **kwargs))


@register_model
def scsa_resnet34(pretrained: bool = False, **kwargs) -> ScsaResNet:
    """ResNet-34 with SCSA in every block."""
    model_args = dict(block=ScsaBasicBlock, layers=(3, 4, 6, 3))
    return _create_scsa_resnet('scsa_resnet34', pretrained, **dict(model_args, **kwargs))


@register_model
def scsa_resnet50(pretrained: bool = False, **kwargs) -> ScsaResNet:
    """ResNet-50 with SCSA in every block."""
    model_args = dict(block=ScsaBottleneck, layers=(3, 4, 6, 3))
    return _create_scsa_resnet('scsa_resnet50', pretrained, **dict(model_args, **kwargs))


@register_model
def scsa_resnet101(pretrained: bool = False, **kwargs) -> ScsaResNet:
    """ResNet-101 with SCSA in every block; its authors train it with attention dropout 0.1, the default here."""
    block_args = dict(attn_layer=partial(SCSA, attn_drop=0.1))
    model_args = dict(block=ScsaBottleneck, layers=(3, 4, 23, 3), block_args=block_args)
    return _create_scsa_resnet('scsa_resnet101', pretrained, **dict(model_args, **kwargs))
