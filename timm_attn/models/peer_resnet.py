"""ResNets with the channel and spatial attentions that CSA-Net compares itself with, each placed as its authors did.

Papers: `ECA-Net` - https://arxiv.org/abs/1910.03151, `CBAM` - https://arxiv.org/abs/1807.06521,
`BAM` - https://arxiv.org/abs/1807.06514, `FcaNet` - https://arxiv.org/abs/2012.11879,
`Gaussian Context Transformer`, CVPR 2021, `GSoP-Net` - https://arxiv.org/abs/1811.12006,
`Learning what and where to attend` (GALA) - https://arxiv.org/abs/1805.08819
"""

from collections.abc import Callable
from functools import partial

from timm.layers import create_attn
from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from ..layers import BAM, ECA, FCA, GALA, GCT, GSoP, cbam, get_attention
from ..weights import imagenet_cfg, pretrained_cfgs
from ..weights.convert import substitute
from .base import ZooModel
from .builder import build_model
from .csa_resnet import insert_attn

__all__ = ['BamResNet', 'CbamResNet', 'EcaResNet', 'FcaResNet', 'GalaResNet', 'GctResNet', 'GsopResNet']


class AttnResNet(ZooModel, ResNet):
    """Base: timm's ResNet with an attention after the last norm of its blocks, before the addition of the shortcut.

    Args:
        block: Residual block class.
        layers: Blocks of each stage.
        block_args: Further arguments of the blocks; ``attn_layer`` replaces the attention of every stage, for example
            by ``partial(GCT, learn_c=True)``.
        **kwargs: Arguments of ``timm.models.ResNet``.
    """

    absorbs_gate = {'se': ('bn3', 'bn2')}

    attn_layers: tuple[Callable[..., nn.Module], ...]
    """The attention of each stage."""

    attn_blocks = 'all'
    """The blocks of a stage that have it: ``all``, or the ``last`` one."""

    def __init__(self, block, layers, block_args: dict | None = None, **kwargs):
        block_args = dict(block_args or {})
        attn_layers = self.attn_layers
        if 'attn_layer' in block_args:
            attn_layers = (block_args.pop('attn_layer'),) * 4
        super().__init__(block, layers, block_args=block_args, **kwargs)
        for stage, attn_layer in zip((self.layer1, self.layer2, self.layer3, self.layer4), attn_layers, strict=True):
            insert_attn([stage], attn_layer, self.attn_blocks)


def _init_convs(layer: nn.Module) -> None:
    for module in layer.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')


def _advice(attention: str) -> str:
    return (
        f"timm_attn.attach(model, '{attention}') adds it to a pretrained plain network, behind a weight that starts at "
        'zero or with a gate that starts at one.'
    )


class EcaResNet(AttnResNet):
    """timm's ResNet with efficient channel attention in every block, the kernel sizes 3, 5, 5, 7 by stage."""

    rename_key = staticmethod(substitute((r'\beca\.', 'se.')))  # github.com/BangguWu/ECANet
    attn_layers = tuple(partial(ECA, kernel_size=k) for k in (3, 5, 5, 7))


def _cbam(channels: int, **kwargs) -> nn.Module:
    """CBAM with the arguments and initial values of its paper's code: the spatial gate starts at one half."""
    layer = cbam(channels, rd_ratio=1.0 / 16, bn_momentum=0.01, **kwargs)
    _init_convs(layer.spatial)
    nn.init.zeros_(layer.spatial.conv.bn.weight)
    nn.init.zeros_(layer.channel.fc1.bias)
    nn.init.zeros_(layer.channel.fc2.bias)
    return layer


class CbamResNet(AttnResNet):
    """timm's ResNet with CBAM in every block, reduction 16."""

    rename_key = staticmethod(substitute((r'\bcbam\.', 'se.')))  # github.com/Jongchan/attention-module
    attn_layers = (_cbam,) * 4


class FcaResNet(AttnResNet):
    """timm's ResNet with frequency channel attention in every block, 16 frequencies.

    The maps that it transforms have 56, 28, 14 and 7 pixels a side, those of images of 224x224 pixels; others are
    brought to these sizes by adaptive average pooling.
    """

    rename_key = staticmethod(substitute((r'\batt\.', 'se.')))  # github.com/cfzd/FcaNet
    attn_layers = tuple(partial(FCA, size=size, freq='top16') for size in (56, 28, 14, 7))


class GctResNet(AttnResNet):
    """timm's ResNet with the Gaussian context transformer in every block.

    Its keys are those of the plain ResNet, as the layer has no parameters: a checkpoint of the plain network can be
    loaded, but the attention is no identity.
    """

    attn_layers = (GCT,) * 4
    no_warm_start = (
        'The Gaussian context transformer has no start as an identity: it damps every channel whose mean is not the '
        f'average. {_advice("gct")}'
    )


def _gsop(channels: int, **kwargs) -> nn.Module:
    """Global second-order pooling with the initial values of its authors' code."""
    layer = GSoP(channels, **kwargs)
    _init_convs(layer)
    return layer


class GsopResNet(AttnResNet):
    """timm's ResNet with global second-order pooling in the last block of each stage, 128 reduced channels.

    The last stage keeps the resolution of the one before, as in GSoP-Net1: the total stride is 16.

    Args:
        block: Residual block class, timm's Bottleneck.
        layers: Blocks of each stage.
        **kwargs: Arguments of ``timm.models.ResNet``, and ``block_args`` as in :class:`AttnResNet`.

    Raises:
        ValueError: If the blocks are no bottlenecks, or ``avg_down``, ``aa_layer`` or ``down_kernel_size`` asks for
            another way to a lower resolution, which the last stage could not leave out.
    """

    # github.com/ZilinGao/Global-Second-order-Pooling-Convolutional-Networks, where the layers are the block's own
    rename_key = staticmethod(
        substitute(
            (r'^(layer\d+\.\d+\.)(?=(?:conv_for_DR|bn_for_DR|row_bn|row_conv_group|fc_adapt_channels)\.)', r'\1se.')
        )
    )
    attn_layers = (partial(_gsop, stride=2), _gsop, _gsop, _gsop)
    attn_blocks = 'last'
    no_warm_start = (
        "GSoP-Net keeps the resolution in its last stage, so that a plain ResNet's weights would not compute the same. "
        f'{_advice("gsop")}'
    )

    def __init__(self, block, layers, **kwargs):
        if not issubclass(block, Bottleneck):
            raise ValueError(f'The blocks of GSoP-Net must be bottlenecks; {block.__name__} is none.')
        for name, default in dict(avg_down=False, aa_layer=None, down_kernel_size=1).items():
            if kwargs.get(name, default) != default:
                raise ValueError(f'GSoP-Net keeps the resolution in its last stage: leave out {name}.')
        super().__init__(block, layers, **kwargs)
        # Whatever the output stride, the last stage goes on at the stride and dilation of the one before.
        dilation = self.layer3[-1].conv2.dilation
        for conv in (bottleneck.conv2 for bottleneck in self.layer4):
            conv.stride, conv.dilation, conv.padding = (1, 1), dilation, dilation
        self.layer4[0].downsample[0].stride = (1, 1)
        self.feature_info[-1]['reduction'] = self.feature_info[-2]['reduction']


class GalaResNet(AttnResNet):
    """timm's ResNet with global-and-local attention in every block, reduction 16; reconstructed from the paper."""

    attn_layers = (GALA,) * 4
    no_warm_start = (
        'The gate of global-and-local attention, tanh, is zero at zero, so that it has no start as an identity. '
        f'{_advice("gala")}'
    )


class BamResNet(ZooModel, ResNet):
    """timm's ResNet with a bottleneck attention module at the end of each stage but the last.

    In training the batch norms of the attention need two images or more.

    Args:
        block: Residual block class.
        layers: Blocks of each stage.
        block_args: Further arguments of the blocks; ``attn_layer`` replaces the attention, for example by
            ``partial(BAM, rd_ratio=1 / 8)``.
        **kwargs: Arguments of ``timm.models.ResNet``.
    """

    rename_key = staticmethod(substitute((r'^bam([123])\.', r'layer\1.bam.')))  # github.com/Jongchan/attention-module
    absorbs_gate = {'bam': ()}
    no_warm_start = (
        'The bottleneck attention module multiplies by 1 + sigmoid, so that it has no start as an identity. '
        f'{_advice("bam")}'
    )

    def __init__(self, block, layers, block_args: dict | None = None, **kwargs):
        block_args = dict(block_args or {})
        attn_layer = block_args.pop('attn_layer', BAM)
        super().__init__(block, layers, block_args=block_args, **kwargs)
        weight = self.conv1.weight
        for stage, info in zip((self.layer1, self.layer2, self.layer3), self.feature_info[1:], strict=False):
            attn = create_attn(attn_layer, info['num_chs'], device=weight.device, dtype=weight.dtype)
            if attn is not None:
                stage.add_module('bam', attn)  # a name, so that the blocks keep their numbers


def _cfg(attention: str, **kwargs) -> dict:
    return imagenet_cfg(first_conv='conv1', classifier='fc', paper_ids=get_attention(attention).paper, **kwargs)


def _create(model_cls: type[ZooModel], variant: str, pretrained: bool, layers: tuple[int, ...], **kwargs) -> nn.Module:
    return build_model(model_cls, variant, pretrained, **dict(dict(block=Bottleneck, layers=layers), **kwargs))


default_cfgs = generate_default_cfgs(
    {
        **pretrained_cfgs(_cfg('eca'), eca_resnet50='resnet50', eca_resnet101='resnet101'),
        **pretrained_cfgs(_cfg('cbam'), cbam_resnet50='resnet50', cbam_resnet101='resnet101'),
        **pretrained_cfgs(_cfg('bam'), warm_start=False, bam_resnet50='resnet50', bam_resnet101='resnet101'),
        **pretrained_cfgs(_cfg('fca'), fca_resnet50='resnet50', fca_resnet101='resnet101'),
        **pretrained_cfgs(_cfg('gct'), warm_start=False, gct_resnet50='resnet50', gct_resnet101='resnet101'),
        **pretrained_cfgs(
            _cfg('gsop', pool_size=(14, 14)),
            warm_start=False,
            gsop_resnet50='resnet50',
            gsop_resnet101='resnet101',
        ),
        **pretrained_cfgs(_cfg('gala'), warm_start=False, gala_resnet50='resnet50', gala_resnet101='resnet101'),
    }
)


@register_model
def eca_resnet50(pretrained: bool = False, **kwargs) -> EcaResNet:
    """ResNet-50 with efficient channel attention in every block, the kernel sizes 3, 5, 5, 7 by stage.

    The sizes are those of the authors' command for ResNet-50; timm derives 5, 5, 5, 7 from the widths.
    """
    return _create(EcaResNet, 'eca_resnet50', pretrained, (3, 4, 6, 3), **kwargs)


@register_model
def eca_resnet101(pretrained: bool = False, **kwargs) -> EcaResNet:
    """ResNet-101 with efficient channel attention in every block, the kernel sizes 3, 5, 5, 7 by stage.

    The sizes are those of the authors' command for ResNet-50; what they chose for ResNet-101 is doubtful.
    """
    return _create(EcaResNet, 'eca_resnet101', pretrained, (3, 4, 23, 3), **kwargs)


@register_model
def cbam_resnet50(pretrained: bool = False, **kwargs) -> CbamResNet:
    """ResNet-50 with CBAM in every block, reduction 16."""
    return _create(CbamResNet, 'cbam_resnet50', pretrained, (3, 4, 6, 3), **kwargs)


@register_model
def cbam_resnet101(pretrained: bool = False, **kwargs) -> CbamResNet:
    """ResNet-101 with CBAM in every block, reduction 16."""
    return _create(CbamResNet, 'cbam_resnet101', pretrained, (3, 4, 23, 3), **kwargs)


@register_model
def bam_resnet50(pretrained: bool = False, **kwargs) -> BamResNet:
    """ResNet-50 with a bottleneck attention module at the end of each stage but the last."""
    return _create(BamResNet, 'bam_resnet50', pretrained, (3, 4, 6, 3), **kwargs)


@register_model
def bam_resnet101(pretrained: bool = False, **kwargs) -> BamResNet:
    """ResNet-101 with a bottleneck attention module at the end of each stage but the last.

    It has 44.9M parameters; the 49.9M that CSA-Net's table reports cannot be met.
    """
    return _create(BamResNet, 'bam_resnet101', pretrained, (3, 4, 23, 3), **kwargs)


@register_model
def fca_resnet50(pretrained: bool = False, **kwargs) -> FcaResNet:
    """ResNet-50 with frequency channel attention in every block, 16 frequencies.

    It has 28.1M parameters; the 28.4M that CSA-Net's table reports cannot be met.
    """
    return _create(FcaResNet, 'fca_resnet50', pretrained, (3, 4, 6, 3), **kwargs)


@register_model
def fca_resnet101(pretrained: bool = False, **kwargs) -> FcaResNet:
    """ResNet-101 with frequency channel attention in every block, 16 frequencies."""
    return _create(FcaResNet, 'fca_resnet101', pretrained, (3, 4, 23, 3), **kwargs)


@register_model
def gct_resnet50(pretrained: bool = False, **kwargs) -> GctResNet:
    """ResNet-50 with the Gaussian context transformer (GCT-B0) in every block.

    Reconstructed, as the authors published no code; the placement is doubtful. Which of GCT-B0 and GCT-B1 a table means
    is often not said: ``block_args=dict(attn_layer=partial(GCT, learn_c=True))`` builds the other.
    """
    return _create(GctResNet, 'gct_resnet50', pretrained, (3, 4, 6, 3), **kwargs)


@register_model
def gct_resnet101(pretrained: bool = False, **kwargs) -> GctResNet:
    """ResNet-101 with the Gaussian context transformer (GCT-B0) in every block.

    Reconstructed, as the authors published no code; the placement is doubtful. Which of GCT-B0 and GCT-B1 a table means
    is often not said: ``block_args=dict(attn_layer=partial(GCT, learn_c=True))`` builds the other.
    """
    return _create(GctResNet, 'gct_resnet101', pretrained, (3, 4, 23, 3), **kwargs)


@register_model
def gsop_resnet50(pretrained: bool = False, **kwargs) -> GsopResNet:
    """ResNet-50 with global second-order pooling in the last block of each stage (GSoP-Net1).

    No activation stands between the last two convolutions of the attention, as in the authors' code; the paper's figure
    may show one (doubtful). Pooling is global, where the authors' fits images of 224x224 pixels alone.
    """
    return _create(GsopResNet, 'gsop_resnet50', pretrained, (3, 4, 6, 3), **kwargs)


@register_model
def gsop_resnet101(pretrained: bool = False, **kwargs) -> GsopResNet:
    """ResNet-101 with global second-order pooling in the last block of each stage (GSoP-Net1).

    It has 47.3M parameters; the 48.9M that CSA-Net's table reports cannot be met. Pooling is global, where the authors'
    fits images of 224x224 pixels alone.
    """
    return _create(GsopResNet, 'gsop_resnet101', pretrained, (3, 4, 23, 3), **kwargs)


@register_model
def gala_resnet50(pretrained: bool = False, **kwargs) -> GalaResNet:
    """ResNet-50 with global-and-local attention in every block, reduction 16.

    Reconstructed after the paper's formula, not the authors' code, which differs from it; the reduction, the biases and
    the placement rest on a reported parameter count alone.
    """
    return _create(GalaResNet, 'gala_resnet50', pretrained, (3, 4, 6, 3), **kwargs)


@register_model
def gala_resnet101(pretrained: bool = False, **kwargs) -> GalaResNet:
    """ResNet-101 with global-and-local attention in every block, reduction 16.

    Reconstructed after the paper's formula, not the authors' code, which differs from it; the reduction, the biases and
    the placement rest on a reported parameter count alone.
    """
    return _create(GalaResNet, 'gala_resnet101', pretrained, (3, 4, 23, 3), **kwargs)
