"""CSA-Net: ResNet with channel-wise spatially autocorrelated attention.

Paper: `CSA-Net: Channel-wise Spatially Autocorrelated Attention Networks` - https://arxiv.org/abs/2405.05755
"""

from collections.abc import Iterable

from timm.layers import create_attn
from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from ..layers import CSA
from ..weights import imagenet_cfg, pretrained_cfgs
from ..weights.convert import substitute
from .base import ZooModel
from .builder import build_model

__all__ = ['CsaResNet']

CSA_BLOCKS = ('last', 'all')

# mmdet, github.com/nick-nikzad/CSA-Net
_rename_key = substitute((r'\bcsa_att\.', 'se.'), (r'^head\.fc\.', 'fc.'))


def insert_attn(stages: Iterable[nn.Sequential], attn_layer, blocks: str) -> None:
    """Put ``attn_layer`` after the last norm of timm residual blocks.

    Args:
        stages: Stages of timm ResNet blocks.
        attn_layer: Attention class, channels first.
        blocks: ``last``, the last block of each stage (the paper), or ``all`` (the authors' detection code).

    Raises:
        ValueError: If ``blocks`` is not one of these.
    """
    if blocks not in CSA_BLOCKS:
        raise ValueError(f'csa_blocks={blocks!r} must be one of {", ".join(CSA_BLOCKS)}.')
    for stage in stages:
        for block in stage if blocks == 'all' else stage[-1:]:
            last_conv = block.conv3 if isinstance(block, Bottleneck) else block.conv2
            weight = last_conv.weight
            block.se = create_attn(attn_layer, last_conv.out_channels, device=weight.device, dtype=weight.dtype)


def misfit_hint(model: nn.Module, wrong: list[str], own: dict, given: dict) -> str | None:
    """Hint where only the placement of CSA differs between a checkpoint and a model; see ``ZooModel.misfit_hint``."""
    only_csa = all('.se.' in key and not (key in own and key in given) for key in wrong)
    if only_csa and any('.se.' in key for key in given):
        return "CSA is in other blocks than in this model: try csa_blocks='all' or csa_blocks='last'."
    return None


class CsaResNet(ZooModel, ResNet):
    """timm's ResNet with CSA before the residual addition.

    Args:
        block: Residual block class.
        layers: Blocks of each stage.
        csa_blocks: ``last`` puts CSA into the last block of each stage (the paper), ``all`` into every block (the
            authors' detection code).
        block_args: Further arguments of the blocks; ``attn_layer`` replaces CSA, for example by
            ``partial(CSA, mode='l2')``.
        **kwargs: Arguments of ``timm.models.ResNet``.

    Raises:
        ValueError: If ``csa_blocks`` is not ``last`` or ``all``.
    """

    rename_key = staticmethod(_rename_key)
    absorbs_gate = {'se': ('bn3', 'bn2')}

    misfit_hint = misfit_hint

    def __init__(self, block, layers, csa_blocks: str = 'last', block_args: dict | None = None, **kwargs):
        block_args = dict(block_args or {})
        attn_layer = block_args.pop('attn_layer', CSA)
        super().__init__(block, layers, block_args=block_args, **kwargs)
        insert_attn((self.layer1, self.layer2, self.layer3, self.layer4), attn_layer, csa_blocks)


def _create_csa_resnet(variant: str, pretrained: bool = False, **kwargs) -> CsaResNet:
    return build_model(CsaResNet, variant, pretrained, **kwargs)


default_cfgs = generate_default_cfgs(
    pretrained_cfgs(
        imagenet_cfg(first_conv='conv1', classifier='fc'),
        csa_resnet18='resnet18',
        csa_resnet34='resnet34',
        csa_resnet50='resnet50',
        csa_resnet101='resnet101',
    )
)


@register_model
def csa_resnet18(pretrained: bool = False, **kwargs) -> CsaResNet:
    """ResNet-18 with CSA in the last block of each stage."""
    model_args = dict(block=BasicBlock, layers=(2, 2, 2, 2))
    return _create_csa_resnet('csa_resnet18', pretrained, **dict(model_args, **kwargs))


@register_model
def csa_resnet34(pretrained: bool = False, **kwargs) -> CsaResNet:
    """ResNet-34 with CSA in the last block of each stage."""
    model_args = dict(block=BasicBlock, layers=(3, 4, 6, 3))
    return _create_csa_resnet('csa_resnet34', pretrained, **dict(model_args, **kwargs))


@register_model
def csa_resnet50(pretrained: bool = False, **kwargs) -> CsaResNet:
    """ResNet-50 with CSA in the last block of each stage."""
    model_args = dict(block=Bottleneck, layers=(3, 4, 6, 3))
    return _create_csa_resnet('csa_resnet50', pretrained, **dict(model_args, **kwargs))


@register_model
def csa_resnet101(pretrained: bool = False, **kwargs) -> CsaResNet:
    """ResNet-101 with CSA in the last block of each stage."""
    model_args = dict(block=Bottleneck, layers=(3, 4, 23, 3))
    return _create_csa_resnet('csa_resnet101', pretrained, **dict(model_args, **kwargs))
