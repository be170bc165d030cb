"""Checkpoints of other code bases and of plain backbones: their keys renamed to ours, every key accounted for.

A model class names the function that renames its keys, and the row of an attention its layer's. Renaming leaves our own
keys alone, so that it can be applied to every checkpoint and twice to the same one.
"""

import logging
import os
import pickle
import re
from collections.abc import Callable

import torch
from timm.models import clean_state_dict, load_state_dict
from torch import nn

from ..layers import attention_of
from .warm_start import attention_keys, attention_sites, warm_start

_logger = logging.getLogger(__name__)

_WRAPPERS = ('state_dict_ema', 'model_ema', 'state_dict', 'model')


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read, or does not fit the model."""


def _cfg(model: nn.Module) -> dict:
    return getattr(model, 'pretrained_cfg', None) or {}  # absent where a class was called directly


def _name(model: nn.Module) -> str:
    return _cfg(model).get('architecture') or type(model).__name__


def head_keys(model: nn.Module) -> tuple[str, ...]:
    """Keys of the classifier; none where the model declares none."""
    head = _cfg(model).get('classifier')
    return (f'{head}.weight', f'{head}.bias') if head else ()


def has_new_head(model: nn.Module) -> bool:
    """Whether the model was made for another number of classes than its weights are declared to have."""
    return model.num_classes != _cfg(model).get('num_classes', model.num_classes)


def keep_fresh_head(state_dict: dict[str, torch.Tensor], model: nn.Module) -> None:
    """Put the model's own classifier into a state dict that holds none that fits."""
    own = model.state_dict()
    keys = head_keys(model)
    if all(key in own and getattr(state_dict.get(key), 'shape', None) == own[key].shape for key in keys):
        return
    for key in keys:
        state_dict.pop(key, None)
        if key in own:
            state_dict[key] = own[key]
    if model.num_classes:
        _logger.warning(f'The classifier for {model.num_classes} classes is not in the checkpoint: it starts fresh.')


def rename_keys(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Rename the keys of a checkpoint to the model's; our own are returned as they are.

    Tensors of the attention that the authors hold in another form are converted.

    Args:
        state_dict: Tensors by key. Of a whole OpenMMLab classifier or detector only the backbone and ``head.fc`` are
            kept.
        model: The model that is to load it.
    """
    if any(key.startswith('backbone.') for key in state_dict):
        kept = ('backbone.', 'head.fc.')
        state_dict = {k.removeprefix('backbone.'): v for k, v in state_dict.items() if k.startswith(kept)}
    rows = list(dict.fromkeys(row for _, attn, *_ in attention_sites(model) if (row := attention_of(attn))))
    of_attention = _in_attention(model)

    renamed = {}
    for key, value in state_dict.items():
        key = model.rename_key(key)
        if match := of_attention(key):
            tensor: tuple[str, torch.Tensor] | None = (match[2], value)
            for row in rows:
                tensor = tensor and row.convert(*tensor)
            if tensor is None:
                continue
            key, value = match[1] + tensor[0], tensor[1]
        renamed[key] = value
    return renamed


def checkpoint_filter_fn(
    state_dict: dict, model: nn.Module, with_head: bool = True, strict: bool = True
) -> dict[str, torch.Tensor]:
    """The hook of timm between reading a checkpoint and loading it: our keys, all of them, and no others.

    timm itself loads without checks as soon as the number of classes differs, so the check is here. The weights of the
    plain backbone, which know nothing of the attention, become a warm start: the attention starts as an exact identity.

    Args:
        state_dict: The checkpoint, plain or inside ``state_dict``, ``model`` or their EMA, with or without the
            prefixes of DDP and ``torch.compile``.
        model: The model that is to load it.
        with_head: Whether the classifier is wanted; False for feature extractors.
        strict: Raise where the checkpoint does not fit.

    Returns:
        The state dict in our keys; its classifier is still that of the checkpoint.

    Raises:
        CheckpointError: With ``strict``, if the checkpoint does not fit the model.
    """
    renamed = rename_keys(clean_state_dict(unwrap(state_dict)), model)
    attention = attention_keys(model)
    is_plain = bool(attention) and attention.isdisjoint(renamed)
    if is_plain:
        try:
            renamed = warm_start(renamed, model)
        except ValueError as e:
            if strict:
                raise CheckpointError(f'These weights of a plain backbone fit no warm start: {e}') from e
            is_plain = False
    if strict:
        check_fit(renamed, model, with_head)
    if is_plain:
        _logger.info(f'{_name(model)}: weights of the plain backbone; the attention starts as an exact identity.')
    return renamed


def unwrap(state_dict: dict) -> dict:
    """The tensors of a checkpoint that holds more than them."""
    return next((state_dict[key] for key in _WRAPPERS if isinstance(state_dict.get(key), dict)), state_dict)


def check_fit(state_dict: dict[str, torch.Tensor], model: nn.Module, with_head: bool = True) -> None:
    """Check that tensors are those of a model, under its keys.

    Args:
        state_dict: Tensors by key.
        model: The model that is to load them.
        with_head: Whether the classifier is wanted; False for feature extractors.

    Raises:
        CheckpointError: If they do not fit; the message says where and what to do.
    """
    ignore = head_keys(model) if not with_head or has_new_head(model) else ()
    # The stem may still be converted to another number of input channels.
    stem = (f'{_cfg(model).get("first_conv")}.weight',)
    message = describe_misfit(state_dict, model, ignore, stem) or _describe_values(state_dict, model, ignore)
    if message is not None:
        raise CheckpointError(message)


def describe_misfit(
    state_dict: dict, model: nn.Module, ignore: tuple[str, ...] = (), any_channels: tuple[str, ...] = ()
) -> str | None:
    """Message on what keeps a state dict from being loaded, None if it fits."""
    own = {k: v.shape for k, v in model.state_dict().items() if k not in ignore}
    given = {k: getattr(v, 'shape', None) for k, v in state_dict.items() if k not in ignore}
    # torch fills in the counter of batch norm, which old checkpoints lack
    missing = [k for k in own if k not in given and not k.endswith('.num_batches_tracked')]
    unexpected = [k for k in given if k not in own]
    misshaped = [
        k
        for k in own
        if k in given and own[k] != given[k]
        if k not in any_channels or _without_channels(given[k]) != _without_channels(own[k])
    ]
    if not (missing or unexpected or misshaped):
        return None
    wrong = {'missing': missing, 'unexpected': unexpected}
    parts = [f'{len(keys)} {what} ({_some(keys)})' for what, keys in wrong.items() if keys]
    if misshaped:
        shapes = [f'{k}: {_shape(given[k])} in the checkpoint, {_shape(own[k])} in the model' for k in misshaped]
        parts.append(f'{len(misshaped)} of another shape ({_some(shapes, "; ")})')
    hint = _hint(missing, [*missing, *unexpected, *misshaped], own, given, model)
    return f'This checkpoint does not fit {_name(model)}. Tensors: {", ".join(parts)}. {hint}'


def _without_channels(shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    return None if shape is None else (*shape[:1], *shape[2:])


def _describe_values(state_dict: dict[str, torch.Tensor], model: nn.Module, ignore: tuple[str, ...]) -> str | None:
    """Message on tensors that fit in name and shape but hold no values for the model, None if there are none."""
    own = model.state_dict()
    given = {k: v for k, v in state_dict.items() if k in own and k not in ignore and own[k].is_floating_point()}
    if odd := [k for k, v in given.items() if not v.is_floating_point() or v.layout != torch.strided or v.is_meta]:
        return f'{len(odd)} tensors of this checkpoint are not dense floating point numbers ({_some(odd)}).'
    if odd := [k for k, v in given.items() if not v.float().isfinite().all()]:
        return (
            f'This checkpoint holds values that are not finite, in {len(odd)} tensors ({_some(odd)}): its training '
            'diverged, or it is damaged. Take an earlier one; pretrained_strict=False loads it as it is.'
        )
    return None


def _some(items: list[str], separator: str = ', ', most: int = 3) -> str:
    more = f'{separator}and {len(items) - most} more' if len(items) > most else ''
    return separator.join(item[:200] for item in items[:most]) + more


def _shape(shape) -> str:
    return 'no tensor' if shape is None else 'x'.join(map(str, shape)) or 'a single number'


def _hint(missing: list[str], wrong: list[str], own: dict, given: dict, model: nn.Module) -> str:
    """The next step, derived from what does not fit."""
    of_head = head_keys(model)
    if set(wrong) <= set(of_head):
        classes = given.get(of_head[0])
        if not classes:
            return (
                'It holds no classifier: pass num_classes=0 for pooled features or your own number of classes for a '
                'fresh classifier, or, with pretrained_cfg_overlay=dict(file=PATH), features_only=True.'
            )
        if of_head[0] in own:
            return (
                f'It was trained for {classes[0]} classes: pass num_classes={classes[0]}, and with pretrained=True '
                f'also pretrained_cfg_overlay=dict(file=PATH, num_classes={classes[0]}).'
            )
        return 'The model has no classifier; pretrained_cfg_overlay=dict(file=PATH) leaves out that of the checkpoint.'
    misfit_hint = getattr(model, 'misfit_hint', None)  # which models of timm itself lack
    if misfit_hint and (hint := misfit_hint(wrong, own, given)):
        return hint
    of_attention = _in_attention(model)
    if not any(map(of_attention, given)) and missing == wrong and all(map(of_attention, missing)):
        return (
            'It looks like the checkpoint of the plain backbone, without the attention. For a warm start from it pass '
            'pretrained=True and pretrained_cfg_overlay=dict(file=PATH).'
        )
    if len(own) - len(set(wrong) & own.keys()) < len(own) // 2:
        return 'It looks like the checkpoint of another architecture.'
    return 'Check that it belongs to this model and was made with the same arguments.'


def _in_attention(model: nn.Module) -> Callable[[str], re.Match | None]:
    """Function that matches the keys of attention layers; its groups are the key up to the layer and within it."""
    if not getattr(model, 'absorbs_gate', None):
        return lambda key: None
    return re.compile(rf'(.*?\.(?:{"|".join(model.absorbs_gate)})\.)(.*)').fullmatch


def explain_unreadable(path: str) -> None:
    """Read a checkpoint file again after a failure, to distinguish an unreadable file from one that does not fit.

    Args:
        path: File that was to be loaded.

    Raises:
        CheckpointError: If the file itself is the reason; returns where it can be read.
    """
    if not os.path.exists(path):
        raise CheckpointError(f'There is no checkpoint at {path!r}.')
    if os.path.isdir(path):
        raise CheckpointError(f"{path!r} is a directory, not a checkpoint file. Load a model folder by 'local-dir:'.")
    if not os.path.isfile(path):
        raise CheckpointError(f'{path!r} is no regular file.')
    try:
        load_state_dict(path, weights_only=True)
        return
    except Exception as e:
        reason = _why_unreadable(e)
    # Not chained: torch and timm advise to load the file with code and all.
    raise CheckpointError(
        f'Cannot read the checkpoint {path!r}: {reason}. Fetch it again, or ask its author for a safetensors file.'
    ) from None


def _why_unreadable(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError) or isinstance(error.__cause__, pickle.UnpicklingError):
        found = re.search(
            r'Unsupported globals?: (?:GLOBAL )?(\w+(?:\.\w+)*(?:, \w+(?:\.\w+)*)*)', f'{error} {error.__cause__}'
        )
        refers = f'it refers to {found[1][:200]}' if found else 'or it is damaged'
        return f'loading it could run code, which is refused ({refers})'
    if 'weights_only' in str(error):
        return 'it is a TorchScript archive, or of a format that could run code when loaded, which is refused'
    lines = str(error).splitlines()[:1] or ['']
    return f'it is truncated, damaged, or not a checkpoint ({type(error).__name__}: {lines[0][:200]})'


def substitute(*rules: tuple[str, str | Callable[[re.Match], str]]) -> Callable[[str], str]:
    """Function that applies rules, each a pattern and its replacement, to a key in their order."""
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def rename(key: str) -> str:
        for pattern, replacement in compiled:
            key = pattern.sub(replacement, key)
        return key

    return rename


def block_name(index: int, depths: tuple[int, ...]) -> str:
    """Running number of a block, from 0 -> ``stage.block``."""
    for stage, depth in enumerate(depths):
        if index < depth:
            return f'{stage}.{index}'
        index -= depth
    return f'{len(depths)}.{index}'  # no such block: reported as unexpected
