"""Checkpoints of other code bases and of plain backbones: their keys renamed to ours, every key accounted for.

A model class names the function that renames its keys. Renaming leaves our own keys alone, so that it can be applied
to every checkpoint and twice to the same one.
"""

import logging
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from timm.models import clean_state_dict, load_state_dict
from torch import nn

from .warm_start import attention_keys, warm_start

_logger = logging.getLogger(__name__)

_WRAPPERS = ('state_dict_ema', 'model_ema', 'state_dict', 'model')


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read, or does not fit the model."""


class ZooModel(nn.Module):
    """Base of every model here: ``load_state_dict`` also takes checkpoints with the keys of the authors' code.

    With the authors' keys, a classifier for another number of classes is left out, as timm does, if the model was made
    for a number of classes that is not its default; the model then keeps its fresh classifier, and a warning says so.
    """

    rename_key: Callable[[str], str] = staticmethod(lambda key: key)
    """Key of a foreign checkpoint, without wrapper prefixes -> our key. Our own keys are returned as they are."""

    absorbs_gate: dict[str, tuple[str, ...]] = {}
    """For warm starts: what a block calls its attention -> the layers beside it that can take up a factor, the first
    that the block has."""

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are never decayed, besides biases and norms: none."""
        return set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Patterns that group the parameters by depth, for learning rates that fall from layer to layer.

        Attention does not count as part of its block but, as the classifier, of the last group: after a warm start it
        is what has to be learnt, so that timm's ``layer_decay`` leaves it the full learning rate.

        Args:
            coarse: Groups are stages, with their attention, instead of blocks.
        """
        matcher = super().group_matcher(coarse=coarse)
        if coarse or not self.absorbs_gate:
            return matcher
        not_attention = rf'(?!.*\.(?:{"|".join(self.absorbs_gate)})\.)'
        return {
            name: [(f'{not_attention}(?:{pattern})', order) for pattern, order in spec]
            if isinstance(spec, list | tuple)
            else f'{not_attention}(?:{spec})'
            for name, spec in matcher.items()
        }

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """As ``torch.nn.Module.load_state_dict``, with a short message where the checkpoint does not fit.

        Args:
            state_dict: Tensors by key, ours or the authors'.
            strict: Raise on a missing or an unexpected tensor.
            assign: Take over the tensors themselves, not their values.

        Returns:
            The missing and the unexpected keys.

        Raises:
            CheckpointError: If the checkpoint does not fit; the message says where and what to do.
        """
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except RuntimeError as e:
            message = _describe_misfit(rename_keys(state_dict, self), self)
            if message is None:
                raise
            raise CheckpointError(message) from e

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # torch's hook for reading older formats; here also where the model is part of another module
        own = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        renamed = rename_keys(own, self)
        if renamed.keys() != own.keys():
            if _has_new_head(self):
                _keep_fresh_head(renamed, self)
            for key in own:
                del state_dict[prefix + key]
            state_dict.update({prefix + key: value for key, value in renamed.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)


def _cfg(model: nn.Module) -> dict:
    return getattr(model, 'pretrained_cfg', None) or {}  # absent where a class was called directly


def _name(model: nn.Module) -> str:
    return _cfg(model).get('architecture') or type(model).__name__


def _head_keys(model: nn.Module) -> tuple[str, ...]:
    head = _cfg(model).get('classifier')
    return (f'{head}.weight', f'{head}.bias') if head else ()


def _has_new_head(model: nn.Module) -> bool:
    """Whether the model was made for another number of classes than its weights are declared to have."""
    return model.num_classes != _cfg(model).get('num_classes', model.num_classes)


def _keep_fresh_head(state_dict: dict[str, torch.Tensor], model: nn.Module) -> None:
    own = model.state_dict()
    keys = _head_keys(model)
    if all(key in own and getattr(state_dict.get(key), 'shape', None) == own[key].shape for key in keys):
        return
    for key in keys:
        state_dict.pop(key, None)
        if key in own:
            state_dict[key] = own[key]
    if model.num_classes:
        _logger.warning(f'The classifier for {model.num_classes} classes is not in the checkpoint: it starts fresh.')


def rename_keys(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Rename the keys of a checkpoint to the model's; our own come back as they are.

    Args:
        state_dict: Tensors by key. Of a whole OpenMMLab classifier or detector only the backbone and ``head.fc`` are
            kept.
        model: The model that is to load it.
    """
    if any(key.startswith('backbone.') for key in state_dict):
        kept = ('backbone.', 'head.fc.')
        state_dict = {k.removeprefix('backbone.'): v for k, v in state_dict.items() if k.startswith(kept)}
    return {model.rename_key(key): value for key, value in state_dict.items()}


def checkpoint_filter_fn(
    state_dict: dict, model: nn.Module, with_head: bool = True, strict: bool = True
) -> dict[str, torch.Tensor]:
    """Timm's hook between reading a checkpoint and loading it: our keys, all of them, and no others.

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
    for wrapper in _WRAPPERS:
        if isinstance(state_dict.get(wrapper), dict):
            state_dict = state_dict[wrapper]
            break
    renamed = rename_keys(clean_state_dict(state_dict), model)
    ignore = _head_keys(model) if not with_head or _has_new_head(model) else ()
    # The stem may still be converted to another number of input channels.
    stem = (f'{_cfg(model).get("first_conv")}.weight',)
    check = partial(_describe_misfit, model=model, ignore=ignore, any_shape=stem)
    attention = attention_keys(model)
    is_plain = bool(attention) and attention.isdisjoint(renamed)
    if is_plain:
        try:
            renamed = warm_start(renamed, model)
        except ValueError as e:
            if strict:
                raise CheckpointError(f'These weights of a plain backbone fit no warm start: {e}') from e
            is_plain = False
    message = check(renamed)
    if strict and message is not None:
        raise CheckpointError(message)
    if is_plain:
        _logger.info(f'{_name(model)}: weights of the plain backbone; the attention starts as an exact identity.')
    return renamed


def _describe_misfit(
    state_dict: dict, model: nn.Module, ignore: tuple[str, ...] = (), any_shape: tuple[str, ...] = ()
) -> str | None:
    """Message on what keeps a state dict from being loaded, None if it fits."""
    own = {k: v.shape for k, v in model.state_dict().items() if k not in ignore}
    given = {k: getattr(v, 'shape', None) for k, v in state_dict.items() if k not in ignore}
    # torch fills in the counter of batch norm, which old checkpoints lack
    missing = [k for k in own if k not in given and not k.endswith('.num_batches_tracked')]
    unexpected = [k for k in given if k not in own]
    misshaped = [k for k in own if k in given and k not in any_shape and own[k] != given[k]]
    if not (missing or unexpected or misshaped):
        return None
    wrong = {'missing': missing, 'unexpected': unexpected}
    parts = [f'{len(keys)} {what} ({_some(keys)})' for what, keys in wrong.items() if keys]
    if misshaped:
        shapes = [f'{k}: {_shape(given[k])} in the checkpoint, {_shape(own[k])} in the model' for k in misshaped]
        parts.append(f'{len(misshaped)} of another shape ({_some(shapes, "; ")})')
    hint = _hint(missing, [*missing, *unexpected, *misshaped], own, given, _head_keys(model))
    return f'This checkpoint does not fit {_name(model)}. Tensors: {", ".join(parts)}. {hint}'


def _some(items: list[str], separator: str = ', ', most: int = 3) -> str:
    more = f'{separator}and {len(items) - most} more' if len(items) > most else ''
    return separator.join(items[:most]) + more


def _shape(shape) -> str:
    return 'no tensor' if shape is None else 'x'.join(map(str, shape)) or 'a single number'


def _hint(missing: list[str], wrong: list[str], own: dict, given: dict, head_keys: tuple[str, ...]) -> str:
    """The next step, told from what does not fit."""
    if set(wrong) <= set(head_keys):
        classes = given.get(head_keys[0])
        if not classes:
            return (
                'It holds no classifier: pass num_classes=0 for pooled features or your own number of classes for a '
                'fresh classifier, or, with pretrained_cfg_overlay=dict(file=PATH), features_only=True.'
            )
        if head_keys[0] in own:
            return (
                f'It was trained for {classes[0]} classes: pass num_classes={classes[0]}, and with pretrained=True '
                f'also pretrained_cfg_overlay=dict(file=PATH, num_classes={classes[0]}).'
            )
        return 'The model has no classifier; pretrained_cfg_overlay=dict(file=PATH) leaves out that of the checkpoint.'
    of_attention = re.compile(r'\.(se|attn)\.')
    given_attention = [key for key in given if of_attention.search(key)]
    if given_attention and all('.se.fc' in key and not (key in own and key in given) for key in wrong):
        return "CSA may stand in other blocks than here: try csa_blocks='all' or csa_blocks='last'."
    if not given_attention and missing == wrong and all(of_attention.search(key) for key in missing):
        return (
            'It looks like the checkpoint of the plain backbone, without the attention. For a warm start from it pass '
            'pretrained=True and pretrained_cfg_overlay=dict(file=PATH).'
        )
    if len(own) - len(set(wrong) & own.keys()) < len(own) // 2:
        return 'It looks like the checkpoint of another architecture.'
    return 'Check that it belongs to this model and was made with the same arguments.'


def explain_unreadable(path: str) -> None:
    """Read a checkpoint file again after a failure, to tell an unreadable file from one that does not fit.

    Args:
        path: File that was to be loaded.

    Raises:
        CheckpointError: If the file itself is the reason; returns where it can be read.
    """
    if not Path(path).exists():
        raise CheckpointError(f'There is no checkpoint at {path!r}.')
    if Path(path).is_dir():
        raise CheckpointError(f"{path!r} is a directory, not a checkpoint file. Load a model folder by 'local-dir:'.")
    try:
        load_state_dict(path, weights_only=True)
    except Exception as e:
        raise CheckpointError(
            f'Cannot read the checkpoint {path!r}: it is cut off or damaged, no checkpoint at all, or would run code '
            f'when loaded, which is refused. Fetch it again, or ask its author for a safetensors file. ({e})'
        ) from e


def _substitute(*rules: tuple[str, str | Callable[[re.Match], str]]) -> Callable[[str], str]:
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]

    def rename(key: str) -> str:
        for pattern, replacement in compiled:
            key = pattern.sub(replacement, key)
        return key

    return rename


def _block_name(index: int, depths: tuple[int, ...]) -> str:
    """Running number of a block, from 0 -> ``stage.block``."""
    for stage, depth in enumerate(depths):
        if index < depth:
            return f'{stage}.{index}'
        index -= depth
    return f'{len(depths)}.{index}'  # no such block: reported as unexpected


_SCSA_RULES = (
    (r'\blocal_dwc\.', 'dwc.0.'),
    (r'\bglobal_dwc_s\.', 'dwc.1.'),
    (r'\bglobal_dwc_m\.', 'dwc.2.'),
    (r'\bglobal_dwc_l\.', 'dwc.3.'),
    (r'\bconv_d\.', 'reduce.'),
)

# mmdet, github.com/nick-nikzad/CSA-Net
rename_csa_resnet = _substitute(
    (r'\bcsa_att\.mlp_D\.1\.', 'se.fc1.'),
    (r'\bcsa_att\.mlp_U\.', 'se.fc2.'),
    (r'^head\.fc\.', 'fc.'),
)

# mmpretrain, github.com/HZAI-ZJNU/SCSA
rename_scsa_resnet = _substitute(*_SCSA_RULES, (r'^head\.fc\.', 'fc.'))

_MBV2_DEPTHS = (1, 2, 3, 4, 3, 3, 1)
_MBV2_FIRST = {'0': 'conv_dw', '1': 'bn1', '3': 'conv_pw', '4': 'bn2'}
_MBV2_OTHER = {'0': 'conv_pw', '1': 'bn1', '3': 'conv_dw', '4': 'bn2', '6': 'se', '7': 'conv_pwl', '8': 'bn3'}
_MM_FIRST = {'0.conv': 'conv_dw', '0.bn': 'bn1', '1': 'se', '2.conv': 'conv_pw', '2.bn': 'bn2'}
_MM_OTHER = {
    '0.conv': 'conv_pw', '0.bn': 'bn1', '1.conv': 'conv_dw', '1.bn': 'bn2', '2': 'se', '3.conv': 'conv_pwl',
    '3.bn': 'bn3',
}  # fmt: skip


def _houqb_mbv2_block(match: re.Match) -> str:
    index, layer = int(match[1]) - 1, match[2]
    names = _MBV2_FIRST if index == 0 else _MBV2_OTHER
    return f'blocks.{_block_name(index, _MBV2_DEPTHS)}.{names.get(layer, layer)}.'


def _mm_mbv2_block(match: re.Match) -> str:
    stage, block, layer = int(match[1]) - 1, match[2], match[3]
    names = _MM_FIRST if stage == 0 else _MM_OTHER
    return f'blocks.{stage}.{block}.{names.get(layer, layer)}.'


# github.com/houqb/CoordAttention, and mmpretrain from github.com/HZAI-ZJNU/SCSA
rename_mbv2 = _substitute(
    (r'^features\.0\.0\.', 'conv_stem.'),
    (r'^features\.0\.1\.', 'bn1.'),
    (r'^features\.(\d+)\.conv\.(\d+)\.', _houqb_mbv2_block),
    (r'^conv1\.conv\.', 'conv_stem.'),
    (r'^conv1\.bn\.', 'bn1.'),
    (r'^layer(\d+)\.(\d+)\.conv\.(\d+\.conv|\d+\.bn|\d+)\.', _mm_mbv2_block),
    (r'^(?:conv\.0|conv2\.conv)\.', 'conv_head.'),
    (r'^(?:conv\.1|conv2\.bn)\.', 'bn2.'),
    (r'\.se\.conv2\.', '.se.conv_h.'),
    (r'\.se\.conv3\.', '.se.conv_w.'),
    *_SCSA_RULES,
    (r'^(?:classifier\.1|head\.fc)\.', 'classifier.'),
)

_MNEXT_DEPTHS = (1, 1, 3, 3, 4, 4, 3, 1)
_MNEXT_POINTWISE = {'0': 'conv_reduce', '1': 'bn2', '2': 'conv_expand', '3': 'bn3', '5': 'conv_dw2', '6': 'bn4'}
_MNEXT_WHOLE = {
    '0': 'conv_dw1', '1': 'bn1', '3': 'conv_reduce', '4': 'bn2', '5': 'conv_expand', '6': 'bn3', '8': 'conv_dw2',
    '9': 'bn4',
}  # fmt: skip


def _mobilenext_block(match: re.Match) -> str:
    index, layer = int(match[1]) - 1, match[2]
    stage, block = _block_name(index, _MNEXT_DEPTHS).split('.')
    first_of_many = block == '0' and int(stage) < len(_MNEXT_DEPTHS) and _MNEXT_DEPTHS[int(stage)] > 1
    names = _MNEXT_POINTWISE if first_of_many else _MNEXT_WHOLE
    return f'stages.{stage}.{block}.{names.get(layer, layer)}.'


# github.com/Andrew-Qibin/ssdlite-pytorch-mobilenext
rename_mobilenext = _substitute(
    (r'^features\.0\.0\.', 'conv_stem.'),
    (r'^features\.0\.1\.', 'bn1.'),
    (r'^features\.(\d+)\.conv\.(\d+)\.', _mobilenext_block),
    (r'^classifier\.1\.', 'classifier.'),
)
