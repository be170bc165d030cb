"""ResNets whose 3x3 convolutions are self-attention, in part or as a whole.

Papers: `Attention Augmented Convolutional Networks` - https://arxiv.org/abs/1904.09925;
`Stand-Alone Self-Attention in Vision Models` - https://arxiv.org/abs/1906.05909
"""

from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from ..layers.aa import AttentionAugmentedConv2d
from ..layers.sasa import SASA
from ..weights import imagenet_cfg, pretrained_cfgs
from .base import ZooModel
from .builder import build_model

__all__ = ['AaResNet', 'SasaResNet']


def replace_convs(stage: nn.Sequential, layer, **kwargs) -> None:
    """Put attention in place of the 3x3 convolutions of timm's bottlenecks.

    Args:
        stage: Stage of timm ResNet blocks.
        layer: Class of the attention, with the arguments of a convolution.
        **kwargs: Further arguments of the attention.

    Raises:
        ValueError: If the blocks are no bottlenecks, or their convolutions are grouped.
    """
    for block in stage:
        if not isinstance(block, Bottleneck):
            raise ValueError(
                f'The blocks must be bottlenecks, with one 3x3 convolution; {type(block).__name__} is none.'
            )
        conv = block.conv2
        if conv.groups != 1:
            raise ValueError(f'cardinality={conv.groups} must be 1: the attention is not grouped.')
        dd = {'device': conv.weight.device, 'dtype': conv.weight.dtype}
        arguments = dict(stride=conv.stride[0], dilation=conv.dilation[0], **kwargs)
        block.conv2 = layer(conv.in_channels, conv.out_channels, **arguments, **dd)
        for m in block.conv2.modules():
            if isinstance(m, nn.Conv2d):  # as timm's ResNet starts its convolutions
                nn.init.kaiming_normal_(m.weight, mode='fan_out', nonlinearity='relu')


class AaResNet(ZooModel, ResNet):
    """timm's ResNet with attention-augmented convolutions in stages 2 to 4.

    Reconstructed from the paper, without authors' code; the parameters agree with the reported number. The attention of
    stage 2 works at half the resolution of its convolution. The tables of relative positions are made for images of
    224x224 pixels, and interpolated for others.

    Args:
        block: Residual block class, timm's Bottleneck.
        layers: Blocks of each stage.
        block_args: Further arguments of the blocks; ``attn_layer`` replaces the attention-augmented convolution, for
            example by ``partial(AttentionAugmentedConv2d, num_heads=4)``.
        **kwargs: Arguments of ``timm.models.ResNet``.
    """

    no_warm_start = (
        'Attention takes the place of some channels of the 3x3 convolutions, which cannot start as they were.'
    )

    def __init__(self, block, layers, block_args: dict | None = None, **kwargs):
        block_args = dict(block_args or {})
        attn_layer = block_args.pop('attn_layer', AttentionAugmentedConv2d)
        super().__init__(block, layers, block_args=block_args, **kwargs)
        replace_convs(self.layer2, attn_layer, feat_size=14, attn_stride=2)
        replace_convs(self.layer3, attn_layer, feat_size=14)
        replace_convs(self.layer4, attn_layer, feat_size=7)


class SasaResNet(ZooModel, ResNet):
    """timm's ResNet with stand-alone self-attention in place of every 3x3 convolution; the stem is convolutional.

    Reconstructed from the paper, without authors' code; the parameters agree with the reported number. Doubtful: the
    top-1 error of 22.40 % that is reported in comparisons may be that of the network with a stem of attention.

    Args:
        block: Residual block class, timm's Bottleneck.
        layers: Blocks of each stage.
        block_args: Further arguments of the blocks; ``attn_layer`` replaces the self-attention, for example by
            ``partial(SASA, kernel_size=5)``.
        **kwargs: Arguments of ``timm.models.ResNet``.
    """

    no_warm_start = 'Attention takes the place of the 3x3 convolutions, and cannot start as they were.'

    def __init__(self, block, layers, block_args: dict | None = None, **kwargs):
        block_args = dict(block_args or {})
        attn_layer = block_args.pop('attn_layer', SASA)
        super().__init__(block, layers, block_args=block_args, **kwargs)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            replace_convs(stage, attn_layer)


default_cfgs = generate_default_cfgs(
    {
        **pretrained_cfgs(
            imagenet_cfg(first_conv='conv1', classifier='fc', paper_ids='arXiv:1904.09925'),
            warm_start=False,
            aa_resnet50='resnet50',
            aa_resnet101='resnet101',
        ),
        **pretrained_cfgs(
            imagenet_cfg(first_conv='conv1', classifier='fc', paper_ids='arXiv:1906.05909'),
            warm_start=False,
            sasa_resnet50='resnet50',
            sasa_resnet101='resnet101',
        ),
    }
)


@register_model
def aa_resnet50(pretrained: bool = False, **kwargs) -> AaResNet:
    """ResNet-50 with attention-augmented convolutions in stages 2 to 4, reconstructed from the paper."""
    return build_model(
        AaResNet, 'aa_resnet50', pretrained, **dict(dict(block=Bottleneck, layers=(3, 4, 6, 3)), **kwargs)
    )


@register_model
def aa_resnet101(pretrained: bool = False, **kwargs) -> AaResNet:
    """ResNet-101 with attention-augmented convolutions in stages 2 to 4, reconstructed from the paper."""
    return build_model(
        AaResNet, 'aa_resnet101', pretrained, **dict(dict(block=Bottleneck, layers=(3, 4, 23, 3)), **kwargs)
    )


@register_model
def sasa_resnet50(pretrained: bool = False, **kwargs) -> SasaResNet:
    """ResNet-50 with stand-alone self-attention in place of every 3x3 convolution, reconstructed from the paper."""
    return build_model(
        SasaResNet, 'sasa_resnet50', pretrained, **dict(dict(block=Bottleneck, layers=(3, 4, 6, 3)), **kwargs)
    )


@register_model
def sasa_resnet101(pretrained: bool = False, **kwargs) -> SasaResNet:
    """ResNet-101 with stand-alone self-attention in place of every 3x3 convolution, reconstructed from the paper."""
    return build_model(
        SasaResNet, 'sasa_resnet101', pretrained, **dict(dict(block=Bottleneck, layers=(3, 4, 23, 3)), **kwargs)
    )
