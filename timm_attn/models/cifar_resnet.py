"""ResNets for 32x32 images, plain and with some of the attentions.

Paper: `Deep Residual Learning for Image Recognition` - https://arxiv.org/abs/1512.03385, section 4.2
"""

from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import DropPath, SEModule, calculate_drop_path_rates, get_act_layer, get_norm_act_layer, get_norm_layer
from timm.layers.cbam import CbamModule
from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock
from torch import nn

from ..layers import CSA, coord_attn
from ..weights import pretrained_cfgs
from .base import ZooModel
from .builder import build_model
from .csa_resnet import insert_attn, misfit_hint
from .scsa_resnet import ScsaBasicBlock
from .staged import StagedNet

__all__ = ['CifarResNet', 'CsaCifarResNet']

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)
CIFAR10_CLASSES = (
    'airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck',
)  # fmt: skip


class PadShortcut(nn.Module):
    """Shortcut without parameters: every ``stride``-th pixel, the new channels filled with zeros (option A).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, no fewer.
        stride: Step between the pixels that are kept.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride = stride
        self.pad = out_channels - in_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], [0, 0, 0, 0, 0, self.pad])


class CifarResNet(ZooModel, StagedNet):
    """ResNet of basic blocks with a 3x3 stem, without stem pooling, for small images.

    Source: He et al. (arXiv 1512.03385), section 4.2: three stages of 16, 32 and 64 channels at strides 1, 2 and 4,
    shortcuts without parameters.

    Args:
        layers: Blocks of each stage.
        block: Residual block class, with the arguments of timm's BasicBlock.
        channels: Channels of each stage; the stem has as many as the first.
        num_classes: Number of classes, 0 for none.
        in_chans: Number of input channels.
        output_stride: Total stride at most; beyond it stages are dilated instead.
        global_pool: Pooling before the classifier, any of timm's.
        act_layer: Activation.
        norm_layer: Norm.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth, rising linearly to this rate.
        zero_init_last: Start each residual branch at zero.
        block_args: Further arguments of the blocks, such as ``attn_layer``.
        device: Device of the parameters.
        dtype: Type of the parameters.
    """

    absorbs_gate = {'se': ('bn2',), 'attn': ('conv2',)}

    def __init__(
        self,
        layers: tuple[int, ...],
        block=BasicBlock,
        channels: tuple[int, ...] = (16, 32, 64),
        num_classes: int = 10,
        in_chans: int = 3,
        output_stride: int = 32,
        global_pool: str = 'avg',
        act_layer=nn.ReLU,
        norm_layer=nn.BatchNorm2d,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        zero_init_last: bool = True,
        block_args: dict | None = None,
        device=None,
        dtype=None,
    ):
        if output_stride not in (1, 2, 4, 8, 16, 32):
            raise ValueError(f'output_stride={output_stride} must be one of 1, 2, 4, 8, 16, 32.')
        dd = {'device': device, 'dtype': dtype}
        act_layer, norm_layer = get_act_layer(act_layer), get_norm_layer(norm_layer)
        conv_stem = nn.Conv2d(in_chans, channels[0], 3, padding=1, bias=False, **dd)
        bn1 = get_norm_act_layer(norm_layer, act_layer)(channels[0], inplace=True, **dd)
        drop_path_rates = calculate_drop_path_rates(drop_path_rate, list(layers), stagewise=True)
        stages, feature_info = [], []
        in_channels, reduction, dilation = channels[0], 1, 1
        for i, (out_channels, depth) in enumerate(zip(channels, layers, strict=True)):
            stride = 1 if i == 0 else 2
            first_dilation = dilation
            if reduction * stride > output_stride:
                dilation *= stride
                stride = 1
            reduction *= stride
            blocks = []
            for j in range(depth):
                changes = j == 0 and (stride != 1 or in_channels != out_channels)
                blocks.append(
                    block(
                        in_channels,
                        out_channels,
                        stride if j == 0 else 1,
                        PadShortcut(in_channels, out_channels, stride) if changes else None,
                        dilation=dilation,
                        first_dilation=first_dilation if j == 0 else dilation,
                        act_layer=act_layer,
                        norm_layer=norm_layer,
                        drop_path=DropPath(drop_path_rates[i][j]) if drop_path_rates[i][j] > 0 else None,
                        **(block_args or {}),
                        **dd,
                    )
                )
                in_channels = out_channels
            stages.append(nn.Sequential(*blocks))
            feature_info.append(dict(num_chs=out_channels, reduction=reduction, module=f'stages.{i}', stage=i + 1))
        super().__init__(conv_stem, bn1, stages, feature_info, num_classes, in_chans, global_pool, drop_rate, **dd)
        self.init_weights(zero_init_last)

    @torch.jit.ignore
    def init_weights(self, zero_init_last: bool = True) -> None:
        """He initialisation of the convolutions; each residual branch starts at zero if ``zero_init_last``."""
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode='fan_out', nonlinearity='relu')
            if zero_init_last and hasattr(m, 'zero_init_last'):
                m.zero_init_last()


class CsaCifarResNet(CifarResNet):
    """CIFAR ResNet with CSA before the residual addition.

    Args:
        layers: Blocks of each stage.
        csa_blocks: ``last`` puts CSA into the last block of each stage, ``all`` into every block.
        block_args: Further arguments of the blocks; ``attn_layer`` replaces CSA.
        **kwargs: Arguments of :class:`CifarResNet`.
    """

    misfit_hint = misfit_hint

    def __init__(self, layers, csa_blocks: str = 'last', block_args: dict | None = None, **kwargs):
        block_args = dict(block_args or {})
        attn_layer = block_args.pop('attn_layer', partial(CSA, rd_divisor=8))
        super().__init__(layers, block_args=block_args, **kwargs)
        insert_attn(self.stages, attn_layer, csa_blocks)


def _create_cifar_resnet(variant: str, pretrained: bool = False, model_cls=CifarResNet, **kwargs) -> CifarResNet:
    feature_cfg = dict(out_indices=(0, 1, 2), flatten_sequential=True)
    return build_model(model_cls, variant, pretrained, feature_cfg=feature_cfg, **kwargs)


default_cfgs = generate_default_cfgs(
    pretrained_cfgs(
        dict(
            num_classes=10,
            label_names=CIFAR10_CLASSES,
            input_size=(3, 32, 32),
            pool_size=(8, 8),
            crop_pct=1.0,
            interpolation='bilinear',
            mean=CIFAR10_MEAN,
            std=CIFAR10_STD,
            first_conv='conv_stem',
            classifier='classifier',
        ),
        resnet20_cifar='resnet20_cifar',
        se_resnet20_cifar='resnet20_cifar',
        cbam_resnet20_cifar='resnet20_cifar',
        ca_resnet20_cifar='resnet20_cifar',
        csa_resnet20_cifar='resnet20_cifar',
        scsa_resnet20_cifar='resnet20_cifar',
    )
)


@register_model
def resnet20_cifar(pretrained: bool = False, **kwargs) -> CifarResNet:
    """ResNet-20 for 32x32 images."""
    return _create_cifar_resnet('resnet20_cifar', pretrained, **dict(dict(layers=(3, 3, 3)), **kwargs))


@register_model
def se_resnet20_cifar(pretrained: bool = False, **kwargs) -> CifarResNet:
    """ResNet-20 for 32x32 images with squeeze-and-excitation in every block."""
    model_args = dict(layers=(3, 3, 3), block_args=dict(attn_layer=SEModule))
    return _create_cifar_resnet('se_resnet20_cifar', pretrained, **dict(model_args, **kwargs))


@register_model
def cbam_resnet20_cifar(pretrained: bool = False, **kwargs) -> CifarResNet:
    """ResNet-20 for 32x32 images with CBAM in every block."""
    model_args = dict(layers=(3, 3, 3), block_args=dict(attn_layer=partial(CbamModule, rd_divisor=8)))
    return _create_cifar_resnet('cbam_resnet20_cifar', pretrained, **dict(model_args, **kwargs))


@register_model
def ca_resnet20_cifar(pretrained: bool = False, **kwargs) -> CifarResNet:
    """ResNet-20 for 32x32 images with coordinate attention in every block."""
    model_args = dict(layers=(3, 3, 3), block_args=dict(attn_layer=coord_attn))
    return _create_cifar_resnet('ca_resnet20_cifar', pretrained, **dict(model_args, **kwargs))


@register_model
def csa_resnet20_cifar(pretrained: bool = False, **kwargs) -> CsaCifarResNet:
    """ResNet-20 for 32x32 images with CSA in the last block of each stage."""
    model_args = dict(layers=(3, 3, 3), model_cls=CsaCifarResNet)
    return _create_cifar_resnet('csa_resnet20_cifar', pretrained, **dict(model_args, **kwargs))


@register_model
def scsa_resnet20_cifar(pretrained: bool = False, **kwargs) -> CifarResNet:
    """ResNet-20 for 32x32 images with SCSA in every block."""
    model_args = dict(layers=(3, 3, 3), block=ScsaBasicBlock)
    return _create_cifar_resnet('scsa_resnet20_cifar', pretrained, **dict(model_args, **kwargs))
