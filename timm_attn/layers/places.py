"""Places for an attention in a CNN of timm: the slots of its blocks, and the ends of its stages.

Where they are is found by running the model once on an image without data, so that nothing is assumed of a family but
what its blocks call their attention.
"""

import bisect
import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .._compat import FakeTensorMode, copy_forward_hooks

# What a block calls its attention, by the place in the block as in `Attention.slots`. Left out are the blocks of NFNet,
# which scale their attention's output, and with it what passes an identity.
SLOTS: dict[str, dict[str, str]] = {
    'resnet.BasicBlock': dict(out='se'),
    'resnet.Bottleneck': dict(out='se'),
    'res2net.Bottle2neck': dict(out='se'),
    'sknet.SelectiveKernelBasic': dict(out='se'),
    'sknet.SelectiveKernelBottleneck': dict(out='se'),
    'tresnet.BasicBlock': dict(out='se'),
    'tresnet.Bottleneck': dict(mid='se'),
    'senet.SEBottleneck': dict(out='se_module'),
    'senet.SEResNetBottleneck': dict(out='se_module'),
    'senet.SEResNeXtBottleneck': dict(out='se_module'),
    'senet.SEResNetBlock': dict(out='se_module'),
    'regnet.Bottleneck': dict(mid='se'),
    'regnet.PreBottleneck': dict(mid='se'),
    '_efficientnet_blocks.DepthwiseSeparableConv': dict(mid='se'),
    '_efficientnet_blocks.InvertedResidual': dict(mid='se'),
    '_efficientnet_blocks.UniversalInvertedResidual': dict(mid='se'),
    '_efficientnet_blocks.EdgeResidual': dict(mid='se'),
    'byobnet.BasicBlock': dict(mid='attn', out='attn_last'),
    'byobnet.BottleneckBlock': dict(mid='attn', out='attn_last'),
    'byobnet.DarkBlock': dict(mid='attn', out='attn_last'),
    'byobnet.EdgeBlock': dict(mid='attn', out='attn_last'),
    'byobnet.RepVggBlock': dict(out='attn'),
    'byobnet.MobileOneBlock': dict(out='attn'),
    'cspnet.BottleneckBlock': dict(mid='attn2', out='attn3'),
    'cspnet.DarkBlock': dict(mid='attn'),
    'cspnet.EdgeBlock': dict(mid='attn'),
    'vovnet.OsaBlock': dict(out='attn'),
    'ghostnet.GhostBottleneck': dict(mid='se'),
    'ghostnet.GhostBottleneckV3': dict(mid='se'),
    'repghost.RepGhostBottleneck': dict(mid='se'),
    'rexnet.LinearBottleneck': dict(mid='se'),
    'repvit.RepViTBlock': dict(mid='se'),
    'lcnetv2.RepDepthwiseSeparable': dict(mid='se'),
}

SLOT_FAMILIES = (
    'ResNet, ResNeXt, Res2Net, SKNet, SENet, TResNet, RegNet, EfficientNet, MobileNetV2, V3 and V4, MNASNet, FBNet, '
    'LCNet, ByobNet (RepVGG, MobileOne, GENet), CSPNet, VovNet, GhostNet, RepGhost, ReXNet, RepViT and HRNet'
)
STAGE_FAMILIES = (
    f'{SLOT_FAMILIES}, and ResNetV2, ResNeSt, NFNet, ConvNeXt, InceptionNeXt, DenseNet, DLA, VGG, Inception, Xception, '
    'HGNet, FasterNet, StarNet and others whose levels are maps (B, C, H, W)'
)


@dataclass(frozen=True)
class Place:
    """Where an attention can stand.

    Attributes:
        owner: Name of the module that gets it: the block of a slot, or the end of a stage.
        slot: What the block calls its attention; None at the end of a stage.
        channels: Channels of the map there.
        stage: Number of the stage, from 0.
        reduction: Total stride there, where no stride is replaced by dilation.
    """

    owner: str
    slot: str | None
    channels: int
    stage: int
    reduction: int


def find_slots(model: nn.Module, kinds: Iterable[str]) -> list[Place]:
    """Slots of the model's blocks, in the order of the forward pass.

    Args:
        model: A model of timm.
        kinds: ``mid`` and ``out``, as in :attr:`Attention.slots`; of a block that has both, the first is taken.
    """
    kinds = tuple(kinds)
    slots: dict[str, str] = {}
    for name, block in model.named_modules():
        of_block = {} if name.startswith('stem') else _slots_of(block)
        if slot := next((of_block[kind] for kind in kinds if kind in of_block), None):
            slots[name] = slot
    if not slots:
        return []
    model = _shadow(model)
    for name, slot in slots.items():
        block = model.get_submodule(name)
        if getattr(block, slot) is None:  # so that there is something to watch
            setattr(block, slot, nn.Identity())
    stages, reductions = _stages(model)
    seen = _watch(model, [*(f'{name}.{slot}' for name, slot in slots.items()), *stages])
    maps = {name: (when, output) for name, (when, output) in seen.items() if name not in stages and _is_map(output)}
    if stages and all(name in seen for name in stages):
        ends = [seen[name][0] for name in stages]
        stage_of = {name: min(bisect.bisect(ends, when), len(ends) - 1) for name, (when, _) in maps.items()}
    else:  # by the size of the map, as in HRNet, whose stages have several
        sizes = sorted({output.shape[2] for _, output in maps.values()}, reverse=True)
        stage_of = {name: sizes.index(output.shape[2]) for name, (_, output) in maps.items()}
        reductions = [_input_size(model)[1] // size for size in sizes]
    return [
        Place(name, slots[name], output.shape[1], stage_of[path], reductions[stage_of[path]])
        for path, (_, output) in maps.items()
        for name in [path.rpartition('.')[0]]
    ]


def find_stages(model: nn.Module) -> list[Place]:
    """Ends of the model's stages, in the order of the forward pass; none where they are no maps (B, C, H, W).

    Args:
        model: A model of timm, whose ``feature_info`` names them.
    """
    model = _shadow(model)
    names, reductions = _stages(model)
    inner = {
        name: f'{name}.blocks'
        for name in names
        if isinstance(getattr(model.get_submodule(name), 'blocks', None), nn.Sequential)
    }
    maps = _watch(model, [*names, *inner.values()]) if names else {}
    channels = {level['module']: level['num_chs'] for level in _levels(model)}
    places = []
    for stage, (name, reduction) in enumerate(zip(names, reductions, strict=True)):
        output = maps[name][1] if name in maps else None
        if output is None or not _is_map(output) or output.shape[1] != channels.get(name, output.shape[1]):
            return []  # the tokens of a transformer, maps (B, H, W, C), or several maps at once
        # the blocks of a stage, where nothing follows them
        blocks = inner.get(name)
        owner = blocks if blocks in maps and maps[blocks][1] is output else name
        places.append(Place(owner, None, output.shape[1], stage, reduction))
    return places


def count_stages(model: nn.Module) -> int:
    """Number of the model's stages, 0 where ``feature_info`` does not tell."""
    return len(_stages(model)[0])


def _slots_of(block: nn.Module) -> dict[str, str]:
    for cls in type(block).__mro__:
        key = f'{cls.__module__.rpartition(".")[2]}.{cls.__name__}'
        if key in SLOTS:
            return {kind: slot for kind, slot in SLOTS[key].items() if hasattr(block, slot)}
    return {}


def _levels(model: nn.Module) -> list[dict]:
    info = getattr(model, 'feature_info', None) or []
    return [dict(level) for level in getattr(info, 'info', info)]


def _stages(model: nn.Module) -> tuple[list[str], list[int]]:
    """Names of the modules at whose ends the stages are, without stems, and their total strides without dilation."""
    modules, levels = dict(model.named_modules()), _levels(model)
    if not levels or any(level['module'] not in modules for level in levels if level['reduction'] >= 4):
        return [], []
    names = [level['module'] for level in levels]
    kept = {}
    for name, neighbours, level in zip(
        names, zip(['', *names[:-1]], [*names[1:], ''], strict=True), levels, strict=True
    ):
        # Below stride 4 a level is a stem, unless one of the same kind stands beside it.
        siblings = [n for n in neighbours if n and n.rpartition('.')[0] == name.rpartition('.')[0] != '']
        if level['reduction'] >= 4 or any(type(modules[n]) is type(modules[name]) for n in siblings):
            kept[name] = level['reduction']
    for parent in {name.rpartition('.')[0] for name in kept} - {''}:
        inside = [name for name in kept if name.rpartition('.')[0] == parent]
        children = [f'{parent}.{name}' for name, _ in modules[parent].named_children()]
        # ByobNet and others name a convolution after the stages in place of the last stage.
        if len(inside) > 1 and children[:-1] == inside:
            kept = {name: kept.get(name, levels[-1]['reduction']) for name in children}
    reductions = list(kept.values())
    return list(kept), [max(reduction, reductions[0] * 2**i) for i, reduction in enumerate(reductions)]


def _is_map(output: Any) -> bool:
    return isinstance(output, torch.Tensor) and output.ndim == 4


def _input_size(model: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width of the model's images."""
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    channels, height, width = cfg.get('input_size', (3, 224, 224))
    return getattr(model, 'in_chans', None) or channels, height, width


def _shadow(model: nn.Module) -> nn.Module:
    """Copy of a model that shares its tensors, in evaluation mode and without the user's hooks.

    What a pass leaves in the copy, such as the caches of some families, does not come to the model.
    """
    copied = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
    for module in copied.modules():
        copy_forward_hooks(nn.Module(), module)
    return copied.eval()


def _watch(model: nn.Module, names: Iterable[str]) -> dict[str, tuple[int, Any]]:
    """Outputs of modules, by name, in one forward pass without data; those that do not run once are left out.

    Returns:
        For each name, in their order, when it ended, counted from 0, and its output.
    """
    outputs: dict[str, list[tuple[int, Any]]] = {}
    ended = 0

    def watch(name: str):
        def hook(module, args, output):
            nonlocal ended
            outputs.setdefault(name, []).append((ended, output))
            ended += 1

        return hook

    for name in names:
        model.get_submodule(name).register_forward_hook(watch(name))
    weight = next(model.parameters())
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model(torch.empty(2, *_input_size(model), device=weight.device, dtype=weight.dtype))
    return {name: seen[0] for name, seen in outputs.items() if len(seen) == 1}
