"""DIANet: ResNet with dense-and-implicit attention.

Paper: `DIANet: Dense-and-Implicit Attention Network` - https://arxiv.org/abs/1905.10671
"""

from functools import partial

import torch
from timm.layers import get_act_layer, get_norm_act_layer, get_norm_layer
from timm.models import checkpoint, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet, make_blocks
from torch import nn

from ..layers.dia import DIA
from ..weights import imagenet_cfg, pretrained_cfgs
from ..weights.convert import substitute
from .base import ZooModel
from .builder import build_model
from .cifar_resnet import CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD, CifarResNet
from .staged import StagedNet

__all__ = ['DiaBottleneck', 'DiaCifarResNet', 'DiaResNet', 'DiaStage']

State = tuple[torch.Tensor, torch.Tensor]


class DiaBottleneck(Bottleneck):
    """timm's Bottleneck in two halves, between which a stage gates the features."""

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """Block input -> features after the last norm."""
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.aa(self.act2(self.drop_block(self.bn2(self.conv2(x)))))
        return self.bn3(self.conv3(x))

    def join(self, x: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
        """Gated features and block input -> block output."""
        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        if self.drop_path is not None:
            x = self.drop_path(x)
        x += shortcut
        return self.act3(x)


class DiaStage(nn.Sequential):
    """Stage of blocks that share one attention, whose state goes from block to block.

    The children are the blocks, under their numbers, and ``dia``. The halves of a block are called by themselves: a
    hook that is to see the output of a block belongs on its last activation, ``act3``.

    Args:
        blocks: Blocks of the stage.
        dia: The attention.
    """

    def __init__(self, blocks: nn.Sequential, dia: nn.Module):
        super().__init__(*blocks)
        self.dia = dia
        self.grad_checkpointing = False

    def _step(self, block: DiaBottleneck, x: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        y, state = self.dia(block.residual(x), state)
        return block.join(y, x), state

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state: tuple[torch.Tensor, torch.Tensor] | None = None  # not by its other name: TorchScript reads this line
        for block in self:
            if hasattr(block, 'residual'):  # all but the attention; TorchScript knows no other way to tell
                if self.grad_checkpointing and not torch.jit.is_scripting():
                    x, state = checkpoint(self._step, block, x, state, use_reentrant=False)
                else:
                    y, state = self.dia(block.residual(x), state)
                    x = block.join(y, x)
        return x


def dia_stage(blocks: nn.Sequential, attn_layer) -> DiaStage:
    """Put one attention into a stage of blocks.

    Args:
        blocks: Stage of :class:`DiaBottleneck`.
        attn_layer: As :class:`DIA`.
    """
    conv = blocks[-1].conv3
    return DiaStage(blocks, attn_layer(conv.out_channels, device=conv.weight.device, dtype=conv.weight.dtype))


def _stages(model: nn.Module) -> list[DiaStage]:
    return [m for m in model.modules() if isinstance(m, DiaStage)]


class DiaResNet(ZooModel, ResNet):
    """timm's ResNet with dense-and-implicit attention, one for each stage.

    The authors published no network for ImageNet; this one is reconstructed. Its reduction of 20 is taken from the
    reported parameter count, and doubtful.

    Args:
        block: Residual block class, in halves as :class:`DiaBottleneck`.
        layers: Blocks of each stage.
        block_args: Further arguments of the blocks; ``attn_layer`` replaces the attention, for example by
            ``partial(DIA, reduction=4)``.
        **kwargs: Arguments of ``timm.models.ResNet``.
    """

    absorbs_gate = {'dia': ('*.bn3',)}

    def __init__(self, block, layers, block_args: dict | None = None, **kwargs):
        block_args = dict(block_args or {})
        attn_layer = block_args.pop('attn_layer', partial(DIA, reduction=20))
        super().__init__(block, layers, block_args=block_args, **kwargs)
        for name in ('layer1', 'layer2', 'layer3', 'layer4'):
            setattr(self, name, dia_stage(getattr(self, name), attn_layer))

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory in training: recompute each block in the backward pass."""
        for stage in _stages(self):
            stage.grad_checkpointing = enable


class DiaCifarResNet(ZooModel, StagedNet):
    """ResNet of bottlenecks with dense-and-implicit attention, for 32x32 images.

    Source: the authors' code, the only network of theirs that is published: three stages at strides 1, 2 and 4 after a
    3x3 stem, shortcuts by 1x1 convolutions.

    Args:
        layers: Blocks of each stage.
        channels: Channels of the 3x3 convolutions of each stage; a block outputs 4 times as many.
        num_classes: Number of classes, 0 for none.
        in_chans: Number of input channels.
        output_stride: Total stride at most; beyond it stages are dilated instead.
        global_pool: Pooling before the classifier, any of timm's.
        act_layer: Activation.
        norm_layer: Norm.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth, rising linearly to this rate.
        zero_init_last: Start each residual branch at zero.
        block_args: Further arguments of the blocks; ``attn_layer`` replaces the attention.
        device: Device of the parameters.
        dtype: Type of the parameters.
    """

    # github.com/gbup-group/DIANet
    rename_key = staticmethod(
        substitute(
            (r'^layer(\d)\.', lambda m: f'stages.{int(m[1]) - 1}.'),
            (r'^(stages\.\d\.)ModuleList\.', r'\1'),
            (r'^(stages\.\d\.)lstm\.', r'\1dia.'),
            (r'^conv1\.', 'conv_stem.'),
            (r'^fc\.', 'classifier.'),
        )
    )
    absorbs_gate = {'dia': ('*.bn3',)}

    def __init__(
        self,
        layers: tuple[int, ...],
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
        block_args = dict(block_args or {})
        attn_layer = block_args.pop('attn_layer', DIA)
        act_layer, norm_layer = get_act_layer(act_layer), get_norm_layer(norm_layer)
        conv_stem = nn.Conv2d(in_chans, channels[0], 3, padding=1, bias=False, **dd)
        bn1 = get_norm_act_layer(norm_layer, act_layer)(channels[0], inplace=True, **dd)
        named_stages, info = make_blocks(
            (DiaBottleneck,) * len(channels),
            channels,
            layers,
            channels[0],
            output_stride=4 * output_stride,  # timm counts from a stem of stride 4
            drop_path_rate=drop_path_rate,
            act_layer=act_layer,
            norm_layer=norm_layer,
            **block_args,
            **dd,
        )
        stages = [dia_stage(stage, attn_layer) for _, stage in named_stages]
        feature_info = [
            dict(num_chs=f['num_chs'], reduction=f['reduction'] // 4, module=f'stages.{i}', stage=i + 1)
            for i, f in enumerate(info)
        ]
        super().__init__(conv_stem, bn1, stages, feature_info, num_classes, in_chans, global_pool, drop_rate, **dd)
        self.init_weights(zero_init_last)

    init_weights = CifarResNet.init_weights

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory in training: recompute each block in the backward pass."""
        for stage in _stages(self):
            stage.grad_checkpointing = enable


def _create_dia_resnet(variant: str, pretrained: bool = False, **kwargs) -> DiaResNet:
    return build_model(DiaResNet, variant, pretrained, **kwargs)


default_cfgs = generate_default_cfgs(
    {
        **pretrained_cfgs(
            imagenet_cfg(first_conv='conv1', classifier='fc', paper_ids='arXiv:1905.10671'),
            dia_resnet50='resnet50',
            dia_resnet101='resnet101',
        ),
        **pretrained_cfgs(
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
                paper_ids='arXiv:1905.10671',
            ),
            dia_resnet29_cifar='dia_resnet29_cifar',  # the zoo has no such network without attention
        ),
    }
)


@register_model
def dia_resnet50(pretrained: bool = False, **kwargs) -> DiaResNet:
    """ResNet-50 with dense-and-implicit attention; reduction 20 is reconstructed from the parameter count."""
    model_args = dict(block=DiaBottleneck, layers=(3, 4, 6, 3))
    return _create_dia_resnet('dia_resnet50', pretrained, **dict(model_args, **kwargs))


@register_model
def dia_resnet101(pretrained: bool = False, **kwargs) -> DiaResNet:
    """ResNet-101 with dense-and-implicit attention; reduction 20 is reconstructed from the parameter count."""
    model_args = dict(block=DiaBottleneck, layers=(3, 4, 23, 3))
    return _create_dia_resnet('dia_resnet101', pretrained, **dict(model_args, **kwargs))


@register_model
def dia_resnet29_cifar(pretrained: bool = False, **kwargs) -> DiaCifarResNet:
    """ResNet-29 of bottlenecks for 32x32 images with dense-and-implicit attention, as in the authors' code."""
    feature_cfg = dict(out_indices=(0, 1, 2), flatten_sequential=True)
    model_args = dict(dict(layers=(3, 3, 3)), **kwargs)
    return build_model(DiaCifarResNet, 'dia_resnet29_cifar', pretrained, feature_cfg=feature_cfg, **model_args)
