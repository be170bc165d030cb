"""BA-Net: ResNet with bridge attention.

Paper: `BA-Net: Bridge Attention for Deep Convolutional Neural Networks` - https://arxiv.org/abs/2112.04150
"""

import torch
from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet

from ..layers.ba import BridgeAttention
from ..weights import imagenet_cfg, pretrained_cfgs
from .base import ZooModel
from .builder import build_model

__all__ = ['BaBasicBlock', 'BaBottleneck', 'BaResNet']


class BaBasicBlock(BasicBlock):
    """timm's BasicBlock with bridge attention after the last norm.

    Args:
        inplanes: Input channels.
        planes: Channels of the block.
        *args: As timm's BasicBlock.
        attn_layer: Attention class, with the channels of the block and of its earlier features.
        **kwargs: As timm's BasicBlock.
    """

    def __init__(self, inplanes: int, planes: int, *args, attn_layer=BridgeAttention, **kwargs):
        super().__init__(inplanes, planes, *args, **kwargs)
        dd = dict(device=self.conv1.weight.device, dtype=self.conv1.weight.dtype)
        self.ba = attn_layer(self.conv2.out_channels, [self.conv1.out_channels], **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.drop_block(self.bn1(self.conv1(x))))
        prev = [x.mean(dim=(2, 3), keepdim=True)]
        x = self.bn2(self.conv2(self.aa(x)))
        x = self.ba(x, prev)
        if self.drop_path is not None:
            x = self.drop_path(x)
        x += shortcut
        return self.act2(x)


class BaBottleneck(Bottleneck):
    """timm's Bottleneck with bridge attention after the last norm.

    Args:
        inplanes: Input channels.
        planes: Channels of the 3x3 convolution; the block outputs 4 times as many.
        *args: As timm's Bottleneck.
        attn_layer: Attention class, with the channels of the block and of its earlier features.
        **kwargs: As timm's Bottleneck.
    """

    def __init__(self, inplanes: int, planes: int, *args, attn_layer=BridgeAttention, **kwargs):
        super().__init__(inplanes, planes, *args, **kwargs)
        dd = dict(device=self.conv1.weight.device, dtype=self.conv1.weight.dtype)
        prev_channels = [self.conv1.out_channels, self.conv2.out_channels]
        self.ba = attn_layer(self.conv3.out_channels, prev_channels, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        prev = [x.mean(dim=(2, 3), keepdim=True)]
        x = self.act2(self.drop_block(self.bn2(self.conv2(x))))
        prev.append(x.mean(dim=(2, 3), keepdim=True))
        x = self.bn3(self.conv3(self.aa(x)))
        x = self.ba(x, prev)
        if self.drop_path is not None:
            x = self.drop_path(x)
        x += shortcut
        return self.act3(x)


class BaResNet(ZooModel, ResNet):
    """timm's ResNet, built from blocks with bridge attention.

    In training the batch norms of the attention need two images or more.
    """

    # The authors' code (github.com/zhaoy376/Bridge-Attention) has timm's keys but for those of the attention.
    absorbs_gate = {'ba': ('bn3', 'bn2')}


def _create_ba_resnet(variant: str, pretrained: bool = False, **kwargs) -> BaResNet:
    return build_model(BaResNet, variant, pretrained, **kwargs)


default_cfgs = generate_default_cfgs(
    pretrained_cfgs(
        imagenet_cfg(first_conv='conv1', classifier='fc', paper_ids='arXiv:2112.04150'),
        ba_resnet18='resnet18',
        ba_resnet50='resnet50',
        ba_resnet101='resnet101',
    )
)


@register_model
def ba_resnet18(pretrained: bool = False, **kwargs) -> BaResNet:
    """ResNet-18 with bridge attention in every block."""
    model_args = dict(block=BaBasicBlock, layers=(2, 2, 2, 2))
    return _create_ba_resnet('ba_resnet18', pretrained, **dict(model_args, **kwargs))


@register_model
def ba_resnet50(pretrained: bool = False, **kwargs) -> BaResNet:
    """ResNet-50 with bridge attention in every block."""
    model_args = dict(block=BaBottleneck, layers=(3, 4, 6, 3))
    return _create_ba_resnet('ba_resnet50', pretrained, **dict(model_args, **kwargs))


@register_model
def ba_resnet101(pretrained: bool = False, **kwargs) -> BaResNet:
    """ResNet-101 with bridge attention in every block."""
    model_args = dict(block=BaBottleneck, layers=(3, 4, 23, 3))
    return _create_ba_resnet('ba_resnet101', pretrained, **dict(model_args, **kwargs))
