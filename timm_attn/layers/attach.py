"""Attention for any CNN of timm, which at the start changes nothing that the network computes."""

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from timm.models import FeatureDictNet, get_pretrained_cfg, is_model_pretrained
from torch import nn

from .._compat import FeatureGetterNet, FeatureHookNet, record_model_args
from .groups import without_attention
from .places import SLOT_FAMILIES, STAGE_FAMILIES, Place, count_stages, find_slots, find_stages
from .registry import Attention, attention_of, get_attention, list_attentions

WHERE = ('slot', 'stage')
BLOCKS = ('all', 'last')
START = ('identity', 'fresh')


class AttachError(ValueError):
    """An attention cannot be attached; the model is as it was."""


class FromIdentity(nn.Module):
    """An attention behind a residual weight: x + weight * (attn(x) - x), the attention itself where the weight is one.

    The weight starts at zero, so that the module starts as an identity. The attention's own parameters get gradients as
    soon as the weight has left zero.

    Args:
        attn: The attention, (B, C, H, W) -> (B, C, H, W).
        device: Device of the weight.
        dtype: Type of the weight.
    """

    def __init__(self, attn: nn.Module, device=None, dtype=None):
        super().__init__()
        self.attn = attn
        self.weight = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight.to(x.dtype) * (self.attn(x).to(x.dtype) - x)


def attach(
    model: nn.Module,
    attention: str | Callable[..., nn.Module],
    where: str | None = None,
    blocks: str | None = None,
    start: str = 'identity',
    stages: int | Iterable[int] | None = None,
    replace: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Add an attention to a CNN of timm, pretrained or not.

    With ``start='identity'`` the model computes in evaluation mode what it did before, bit for bit, and the attention
    learns from the first step on: the gates of the attention are ``2 * sigmoid`` (or as like it as theirs allow, see
    :attr:`Attention.identity_gate`) of a layer that starts at zero. An attention without such a gate gets a residual
    weight that starts at zero (:class:`FromIdentity`). No weight of the model is touched, and every key of its state
    dict stays what it was.

    Args:
        model: The model, which is changed. Its maps must be (B, C, H, W): a transformer of tokens has no place.
        attention: Name (see :func:`list_attentions`), or a class or function that builds the layer from the number of
            channels, ``device`` and ``dtype``.
        where: ``slot`` uses the place that the family's residual blocks have for an attention; ``stage`` puts it at the
            end of each stage. By default the attention's published place where the family has that slot, else the end
            of each stage.
        blocks: For slots: ``all`` blocks or the ``last`` of each stage; by default as published, ``all`` for a layer
            that is not registered.
        start: ``identity``, or ``fresh`` for the published gates and initial values.
        stages: Number or numbers of the stages that get it, from 0, by falling resolution of the maps, or from -1, the
            last one; by default all (as published for an attention that leaves out the last one).
        replace: Take out an attention that stands in a slot, such as squeeze-and-excitation, which changes what the
            model computes. Otherwise it stays, and the new one follows it.
        **kwargs: Arguments of the layer.

    Returns:
        ``model``. What was attached is in its ``attached_args``, the arguments with which
        ``timm.create_model('attached', ...)`` builds it again.

    Raises:
        AttachError: If there is no such attention or place, the channels do not fit, or the model has it already.

    Example:
        >>> model = timm_attn.attach(timm.create_model('regnety_032', pretrained=True), 'scsa')
        >>> model = timm_attn.attach(timm.create_model('resnet50', pretrained=True), 'cbam', blocks='last')
    """
    check_places(where, blocks, start)
    row, build, bound = resolve_attention(attention)
    kwargs = {**bound, **kwargs}
    if isinstance(stages, str):
        raise AttachError(f'stages={stages!r} must be a number or several, such as -1 for the last stage.')
    if isinstance(stages, int):
        stages = [stages]
    stages = None if stages is None else list(stages)
    _check_model(model)
    places, where, blocks = _choose(model, row, where, blocks, stages)
    _check_twice(model, row, places if replace else [])
    layers = [_build(build, row, place, start, kwargs, model) for place in places]
    names = [_insert(model, place, layer, replace) for place, layer in zip(places, layers, strict=True)]
    args = dict(where=where, blocks=blocks, start=start, stages=stages, replace=replace, attention_args=kwargs)
    _record(model, names, dict(attention=row.name if row else attention, **args))
    return model


def check_places(where: str | None = None, blocks: str | None = None, start: str = 'identity', **_: Any) -> None:
    """Check the arguments of :func:`attach` that have a few values.

    Raises:
        AttachError: If one has another value.
    """
    options = (('where', where, (None, *WHERE)), ('blocks', blocks, (None, *BLOCKS)), ('start', start, START))
    for name, value, allowed in options:
        if value not in allowed:
            raise AttachError(f'{name}={value!r} must be one of {", ".join(map(repr, filter(None, allowed)))}.')


def resolve_attention(
    attention: str | Callable[..., nn.Module],
) -> tuple[Attention | None, Callable[..., nn.Module], dict]:
    """What an attention's name stands for.

    Args:
        attention: Name, or a class or function that builds the layer.

    Returns:
        Row of the table, None for a layer that is not registered; what builds the layer; and the arguments that are
        bound to a registered one.

    Raises:
        AttachError: If there is no attention of that name, or it is no layer of its own.
    """
    if isinstance(attention, nn.Module):
        raise AttachError(f'Pass the class {type(attention).__name__}, not a layer: each place gets one of its own.')
    if not isinstance(attention, str) and not callable(attention):
        raise AttachError(f'attention={attention!r} must be a name, or a class or function that builds the layer.')
    if not isinstance(attention, str):
        function: Any = attention
        arguments: dict = {}
        while isinstance(function, partial) and not function.args:
            function, arguments = function.func, {**function.keywords, **arguments}
        rows = [get_attention(name) for name in list_attentions()]
        row = next((row for row in rows if function is row.layer), None)
        return (row, row.layer, arguments) if row else (None, attention, {})
    try:
        row = get_attention(attention)
    except ValueError as e:
        raise AttachError(str(e)) from None
    if row.part_of:
        raise AttachError(
            f'{attention!r} is no layer of its own: it needs {row.part_of}. Use a model that is built with it, such as '
            f'{attention}_resnet50, or attach one of {", ".join(list_attentions())}.'
        )
    return row, row.layer, {}


def _check_model(model: nn.Module) -> None:
    wrapped = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.jit.ScriptModule)
    if not isinstance(model, nn.Module):
        raise AttachError(f'model={model!r} must be a model, such as timm.create_model gives.')
    name = type(model).__name__
    if isinstance(model, wrapped) or hasattr(model, '_orig_mod'):  # the latter is what torch.compile returns
        raise AttachError(f'This model is wrapped in {name}: attach before it is compiled or wrapped.')
    if isinstance(model, FeatureDictNet | FeatureGetterNet | FeatureHookNet):
        raise AttachError(
            f'{name} is a feature extractor: attach to the whole model, or build both with '
            "timm.create_model('attached', backbone=..., attention=..., features_only=True)."
        )
    if args := getattr(model, 'attached_args', None):
        raise AttachError(
            f'This model has {args["attention"]!r} attached already, and takes no second attention: attach to a model '
            'without.'
        )


def _check_twice(model: nn.Module, row: Attention | None, replaced: list[Place]) -> None:
    """Check that an attention is in no other place than those where it is replaced."""
    if row is None:
        return
    gone = {f'{place.owner}.{place.slot}' for place in replaced if place.slot}
    for name, module in model.named_modules():
        is_same = attention_of(module) is row or type(module).__name__ in row.same_as
        if is_same and name not in gone:
            raise AttachError(
                f'This model has {row.name!r} already, in {name}. replace=True takes out what is in the slots that it '
                "uses (blocks='all' uses those of all blocks)."
            )


def _choose(
    model: nn.Module, row: Attention | None, where: str | None, blocks: str | None, stages: list[int] | None
) -> tuple[list[Place], str, str | None]:
    """Places for an attention, whether they are slots or ends of stages, and which blocks of a stage they are in."""
    name = type(model).__name__
    published = row.slots if row else ()
    if where != 'stage':
        places = find_slots(model, published if where is None else (*published, 'mid', 'out'))
        # By default no stage is left out: some networks have slots in the blocks of their first stages alone.
        in_all = len({place.stage for place in places}) >= max(count_stages(model), 1)
        where = 'slot' if where or in_all else 'stage'
        blocks = blocks or (row.blocks if row else 'all')
    if where == 'stage':
        places, blocks = find_stages(model), None
    if not places and where == 'slot':
        raise AttachError(
            f'The blocks of {name} have no slot for an attention. The families of timm that have one: {SLOT_FAMILIES}. '
            "where='stage' puts it at the end of each stage."
        )
    if not places:
        raise AttachError(
            f'{name} has no stages with maps (B, C, H, W) in its feature_info, at whose ends an attention could stand. '
            f'The families of timm that have them: {STAGE_FAMILIES}.'
        )
    number = max(count_stages(model), *(place.stage + 1 for place in places))
    if stages is None:
        stages = list(range(number))
        if row and row.between_stages and where == 'stage':
            stages = stages[:-1]
    bad = [n for n in stages if not isinstance(n, int) or not -number <= n < number]
    if bad or not stages:
        raise AttachError(
            f'stages={stages} must name some of the {number} stages of {name}, 0 to {number - 1}'
            f'{f"; there is no {bad[0]!r}" if bad else ""}.'
        )
    taken = {n % number for n in stages}
    places = [place for place in places if place.stage in taken]
    if not places:
        raise AttachError(f"The blocks of {name} have no slot in stages {stages}. where='stage' puts it at their ends.")
    if blocks == 'last':
        places = list({place.stage: place for place in places}.values())
    return places, where, blocks


def _build(
    build: Callable[..., nn.Module], row: Attention | None, place: Place, start: str, kwargs: dict, model: nn.Module
) -> nn.Module:
    """Build the layer for a place, in the model's type and on its device."""
    weight = next(model.parameters())
    dd = dict(device=weight.device, dtype=weight.dtype)
    identity = start == 'identity'
    if identity and row and row.gates:
        if 'gate_layer' in kwargs:
            raise AttachError("start='identity' chooses the gate itself: leave out gate_layer, or pass start='fresh'.")
        kwargs = {**kwargs, 'gate_layer': row.identity_gate}
    if row and row.size_arg:
        kwargs = {row.size_arg: max(_usual_size(model) // place.reduction, 7), **kwargs}
    if row:
        kwargs = {**row.attach_args, **kwargs}
    name = row.name if row else getattr(build, '__name__', repr(build))
    try:
        layer = build(place.channels, **kwargs, **dd)
    except TypeError as e:
        raise AttachError(
            f'{name} cannot be built: {e}. It must take the number of channels, device and dtype; what attach() itself '
            'takes is where, blocks, start, stages and replace.'
        ) from e
    except ValueError as e:
        raise AttachError(f'{name} cannot be built for the {place.channels} channels of {place.owner}: {e}') from e
    if identity and row and row.zeroed:
        with torch.no_grad():
            for key, parameter in layer.named_parameters():
                if row.is_zeroed(key):
                    parameter.zero_()
    elif identity:
        x, y = _try(layer, place, weight)
        layer = FromIdentity(layer, **dd) if y.shape == x.shape else layer
    x, y = _try(layer, place, weight)
    if y.shape != x.shape:
        raise AttachError(
            f'{name} must return a map of the same shape as its input: {tuple(x.shape)} -> {tuple(y.shape)}.'
        )
    if identity and not x.is_meta and not torch.equal(x, y):
        given = ', '.join(f'{key}={value!r}' for key, value in kwargs.items() if key != 'gate_layer')
        raise AttachError(f"{name} cannot start as an identity with {given or 'its arguments'}; pass start='fresh'.")
    return layer.train(model.training)


def _usual_size(model: nn.Module) -> int:
    """Side of the images that the architecture is made for, 224 at most; saving and training do not change it."""
    arch = (getattr(model, 'pretrained_cfg', None) or {}).get('architecture')
    cfg = get_pretrained_cfg(arch) if arch else None
    return min(224, cfg.input_size[-1] if cfg else 224)


@torch.no_grad()
def _try(layer: nn.Module, place: Place, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A small map, and what a layer makes of it in evaluation mode."""
    x = torch.arange(2 * place.channels * 16, device=weight.device).cos().reshape(2, -1, 4, 4).to(weight.dtype)
    return x, layer.eval()(x)


def _insert(model: nn.Module, place: Place, layer: nn.Module, replace: bool) -> str:
    """Put a layer into its place.

    Returns:
        Name of the layer in the model.
    """
    owner = model.get_submodule(place.owner)
    if place.slot is None:
        if type(owner).forward is nn.Sequential.forward:
            name = str(len(owner))
        elif type(owner).__name__ == 'RegStage':  # runs its children in their order
            name = 'attached'
        else:
            return _follow(model, place.owner, layer)
        owner.add_module(name, layer)
        return f'{place.owner}.{name}'
    present = getattr(owner, place.slot)
    if not (replace or present is None or isinstance(present, nn.Identity)):
        return _follow(model, f'{place.owner}.{place.slot}', layer)
    setattr(owner, place.slot, layer)
    return f'{place.owner}.{place.slot}'


def _follow(model: nn.Module, name: str, layer: nn.Module) -> str:
    """Let a layer follow a module, under whose keys it must not change any."""
    module = model.get_submodule(name)
    if isinstance(module, nn.ModuleDict | nn.ModuleList):  # may run its children, as DenseNet's blocks do
        key = name.replace('.', '_')
        if not hasattr(model, 'attached'):
            model.attached = nn.ModuleDict()
        model.attached[key] = layer
        module.register_forward_hook(partial(_then, layer))
        return f'attached.{key}'
    module.attached = layer
    module.register_forward_hook(_then_attached)
    return f'{name}.attached'


def _then_attached(self, input: tuple[torch.Tensor], output: torch.Tensor):
    """Forward hook; its names and types are those that TorchScript wants."""
    return self.attached(output)


def _then(layer: nn.Module, module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
    return layer(output)


def _record(model: nn.Module, names: list[str], args: dict) -> None:
    """Note in the model what was attached, where timm looks for the arguments of a model as well."""
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    backbone, tag = cfg.get('architecture'), cfg.get('tag')
    if tag and is_model_pretrained(f'{backbone}.{tag}'):  # others, of weights from elsewhere, timm would not know
        backbone = f'{backbone}.{tag}'
    defaults: dict = dict(stages=None, blocks=None, replace=False, attention_args={})
    args = {key: value for key, value in args.items() if key not in defaults or value != defaults[key]}
    model.attached_args = dict(backbone=backbone, **args)
    model.attached_names = tuple(names)
    if cfg:
        model.pretrained_cfg = model.default_cfg = {**cfg, 'architecture': 'attached'}
    record_model_args(model, model.attached_args)
    if hasattr(model, 'group_matcher'):
        model.group_matcher = partial(_group_matcher, model)


def _group_matcher(model: nn.Module, coarse: bool = False) -> dict:
    """The model's own groups of parameters, without the attention.

    timm counts what no group has as the last one, so that a learning rate that falls with the depth leaves the
    attention, which is what has to be learned, the full rate.
    """
    attached = '|'.join(map(re.escape, model.attached_names))
    return without_attention(type(model).group_matcher(model, coarse=coarse), rf'(?:{attached})\.')
