"""A timm model as the backbone of a detector or a segmenter: its feature maps at given strides."""

import difflib
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import freeze_batch_norm_2d
from torch import nn

from .. import models  # noqa: F401  registers the zoo
from .._compat import BatchNormBase

BatchNormMode = Literal['train', 'eval', 'frozen']


class FeatureMaps(nn.Module):
    """Feature maps of a timm model at given strides, as torchvision's detectors and segmenters take them.

    Args:
        model: A model of timm, from this zoo or any other with ``forward_intermediates``. It is taken over: its
            classifier, and whatever the maps do not need, is removed.
        strides: Strides of the maps, ascending. Of several levels with one stride, as in dilated networks, the last is
            taken.
        names: Key of each map; ``'0'``, ``'1'`` and so on by default.
        final: The last map is the model's final one, as ``forward_features`` returns it. In MobileNetV2 and
            EfficientNet that is the map behind the last 1x1 convolution, with 1280 channels and not 320.
        trainable_layers: Number of resolution stages, counted from the last, that are trained. The stages before them
            are frozen, with their attention; the norms of frozen stages stay in evaluation mode. None trains all.
        batch_norm: Of the whole model, attention included. ``'train'`` leaves batch norm as it is; ``'eval'`` keeps the
            statistics and trains weight and bias (mmdetection's ``norm_eval``, as in CSA's detectors); ``'frozen'``
            keeps both, as torchvision's detectors do with pretrained weights.

    Attributes:
        in_chans: Channels of the images.
        out_channels: Channels of each map.
        strides: Stride of each map.
        strides_of_model: Stride of each level of the model.
        mean: Mean of the images that the model was trained on, by channel, for images in 0..1.
        std: Standard deviation of the same.

    Raises:
        ValueError: If the model has no map of a stride, or an argument is out of its range.
    """

    def __init__(
        self,
        model: nn.Module,
        strides: Sequence[int] = (4, 8, 16, 32),
        names: Sequence[str] | None = None,
        final: bool = False,
        trainable_layers: int | None = None,
        batch_norm: BatchNormMode = 'train',
    ):
        super().__init__()
        if batch_norm not in ('train', 'eval', 'frozen'):
            raise ValueError(f"batch_norm={batch_norm!r} must be one of 'train', 'eval', 'frozen'.")
        name = _name(model)
        if not hasattr(model, 'forward_intermediates') or not hasattr(model, 'feature_info'):
            raise ValueError(
                f'{name} has no forward_intermediates: its feature maps are not accessible. Of a timm model pass the '
                'whole network, without features_only.'
            )
        levels = [dict(level) for level in _feature_info(model)]
        reductions = [level['reduction'] for level in levels]
        if missing := [stride for stride in strides if stride not in reductions]:
            raise ValueError(
                f'{name} has no feature map of stride {", ".join(map(str, missing))}; it has: '
                f'{", ".join(map(str, dict.fromkeys(reductions)))}.'
            )
        cfg = getattr(model, 'pretrained_cfg', None) or {}
        self.mean = tuple(cfg.get('mean', IMAGENET_DEFAULT_MEAN))
        self.std = tuple(cfg.get('std', IMAGENET_DEFAULT_STD))
        self.strides = tuple(strides)
        self.strides_of_model = tuple(reductions)
        self.names = tuple(names or map(str, range(len(strides))))
        self.final = final
        self.batch_norm = batch_norm
        self.indices = [len(reductions) - 1 - reductions[::-1].index(stride) for stride in strides]
        if trainable_layers is not None:
            _freeze(model, [level['module'] for level in levels], trainable_layers, name)
        if final:
            model.reset_classifier(0)
        else:
            model.prune_intermediate_layers(self.indices, prune_norm=True, prune_head=True)
        self.model = freeze_batch_norm_2d(model) if batch_norm == 'frozen' else model
        self.in_chans = getattr(model, 'in_chans', 3)
        self.out_channels = self._probe(name, levels[-1]['num_chs'], cfg.get('input_size', (3, 224, 224))[-1])

    def train(self, mode: bool = True):
        """As ``torch.nn.Module.train``; batch norm that keeps its statistics stays in evaluation mode."""
        super().train(mode)
        if mode:
            for module in self.modules():
                if isinstance(module, BatchNormBase):
                    trained = [p.requires_grad for p in module.parameters()]
                    if self.batch_norm == 'eval' or (trained and not any(trained)):
                        module.eval()
        return self

    def forward(self, x: torch.Tensor) -> 'OrderedDict[str, torch.Tensor]':
        """Images (B, 3, H, W) -> maps (B, C, H / stride, W / stride) by name, in the order of the strides."""
        return OrderedDict(zip(self.names, self.maps(x), strict=True))

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The maps alone."""
        if not self.final:
            return self.model.forward_intermediates(x, self.indices, stop_early=True, intermediates_only=True)
        last, maps = self.model.forward_intermediates(x, self.indices)
        return [*maps[:-1], last]

    def _probe(self, name: str, channels: int, usual_size: int) -> list[int]:
        """Channels of each map, from a forward pass; what the maps do not depend on is frozen.

        Distributed training refuses parameters without a gradient. The model ends in the mode that it had, with the
        norms that keep their statistics in evaluation mode.
        """
        was_training = self.training
        first = next(self.model.parameters())
        trained = [p for p in self.model.parameters() if p.requires_grad and not p.is_inference()]
        for size in (64, usual_size):  # some networks take only their own size
            x = torch.zeros(1, self.in_chans, size, size, device=first.device, dtype=first.dtype)
            try:
                with torch.enable_grad():
                    maps = self.eval().maps(x)
                    total = sum(m.sum() for m in maps)
                break
            except (AssertionError, RuntimeError):
                if size == usual_size:
                    raise
        if maps[-1].shape[1] != channels and maps[-1].shape[-1] == channels:
            raise ValueError(f'The final map of {name} has the shape {tuple(maps[-1].shape)}, not (B, C, H, W).')
        gradients = torch.autograd.grad(total, trained, allow_unused=True) if trained else ()
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)
        self.train(was_training)
        return [m.shape[1] for m in maps]


def maps_of(model: nn.Module) -> FeatureMaps:
    """The feature maps inside a detector or a segmenter."""
    return next(module for module in model.modules() if isinstance(module, FeatureMaps))


def make_backbone(
    backbone: str | nn.Module,
    pretrained: bool = False,
    trainable_layers: int | None = None,
    backbone_args: dict | None = None,
) -> tuple[nn.Module, int | None]:
    """Model behind the feature maps, and the number of its stages that are trained.

    Args:
        backbone: Name of a timm model, or the model itself.
        pretrained: Load the model's weights; only with a name.
        trainable_layers: As in :class:`FeatureMaps`. Stages of random weights are not frozen: with a name and without
            ``pretrained``, all are trained, as in torchvision.
        backbone_args: Further arguments of ``timm.create_model``; only with a name.

    Returns:
        The model, and ``trainable_layers`` or None for all.

    Raises:
        ValueError: If arguments are given that need a name, or there is no model of that name.
    """
    if isinstance(backbone, nn.Module):
        if pretrained or backbone_args:
            raise ValueError(
                'pretrained_backbone and backbone_args go with the name of a backbone; a model that is built already '
                'keeps its own weights and arguments.'
            )
        return backbone, trainable_layers
    if not isinstance(backbone, str):
        raise ValueError(f'backbone must be the name of a timm model or a model, not {type(backbone).__name__}.')
    if trainable_layers is not None and not pretrained:
        warnings.warn(
            f'trainable_layers={trainable_layers} has no effect without pretrained_backbone=True: stages of random '
            'weights are trained too. To freeze stages of weights of your own, pass the model and not its name.',
            stacklevel=4,
        )
        trainable_layers = None
    if ':' not in backbone and not timm.is_model(backbone):
        near = difflib.get_close_matches(backbone.partition('.')[0], timm.list_models(), n=3)
        hint = f'Did you mean {" or ".join(near)}?' if near else 'timm.list_models() has all names.'
        raise ValueError(f'Unknown model {backbone!r}. {hint}')
    args = dict(backbone_args or {})
    if 'pretrained' in args:
        raise ValueError('Pass pretrained_backbone instead of pretrained in backbone_args.')
    return timm.create_model(backbone, pretrained=pretrained, **args), trainable_layers


def _name(model: nn.Module) -> str:
    return (getattr(model, 'pretrained_cfg', None) or {}).get('architecture') or type(model).__name__


def _feature_info(model: nn.Module) -> list[dict]:
    info = model.feature_info
    return info if isinstance(info, list) else info.get_dicts()


def _freeze(model: nn.Module, levels: list[str], trainable_layers: int, name: str) -> None:
    """Freeze everything up to the last stage that is not trained."""
    if not 0 <= trainable_layers <= len(levels):
        raise ValueError(f'trainable_layers={trainable_layers} must be in 0..{len(levels)}, the stages of {name}.')
    if trainable_layers == len(levels):
        return
    if trainable_layers == 0:
        model.requires_grad_(False)
        return
    # A network registers its layers in the order in which they run; a level may be an activation or a pooling layer.
    last_frozen = levels[len(levels) - trainable_layers - 1]
    order = [key for key, _ in model.named_modules()]
    if last_frozen not in order:
        raise ValueError(f'{name} does not tell where its stages end: trainable_layers must be 0 or {len(levels)}.')
    inside = [i for i, key in enumerate(order) if key == last_frozen or key.startswith(f'{last_frozen}.')]
    for key in order[1 : max(inside) + 1]:
        for parameter in model.get_submodule(key).parameters(recurse=False):
            parameter.requires_grad_(False)
