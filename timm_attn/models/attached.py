"""Any CNN of timm with any attention of the registry, as one registered model.

``timm_attn.attach`` adds an attention to a model that exists. Under the name ``attached`` timm builds both, so that
what works by name works for them too: ``features_only``, ``local-dir:`` and ``hf-hub:``, torch.hub, training scripts.
"""

import dataclasses
import difflib
from functools import partial
from typing import Any

import timm
import torch
from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    clean_state_dict,
    generate_default_cfgs,
    is_model,
    register_model,
    resolve_pretrained_cfg,
    split_model_name_tag,
)
from torch import nn

from .._compat import FeatureGetterNet, FeatureHookNet
from ..layers.attach import AttachError, attach, check_places, resolve_attention
from ..weights.convert import check_fit, unwrap
from .builder import load_fetched, source_of
from .trainable import train_only, trainable_parts

__all__ = ['attached']

_OF_ATTACH = ('where', 'blocks', 'start', 'stages', 'replace')


default_cfgs = generate_default_cfgs({'attached': {}})  # its backbone's are what counts


@register_model
def attached(pretrained: bool = False, **kwargs) -> nn.Module:
    """A CNN of timm with an attention attached: `backbone='regnety_032', attention='scsa'`.

    Args:
        pretrained: Load weights: those of the backbone, which the attention at its start leaves as they are, or those
            of the attached model where they come from ``local-dir:``, ``hf-hub:`` or a file.
        **kwargs: ``backbone``, a name of timm with or without a tag; ``attention``, ``where``, ``blocks``, ``start``,
            ``stages`` and ``replace`` of :func:`timm_attn.attach`; ``attention_args``, a dict of arguments of the
            layer; ``trainable`` as for every model here. All others are arguments of the backbone.

    Raises:
        AttachError: If the backbone or the attention is missing or unknown, or they do not fit.
        CheckpointError: If weights of the attached model do not fit.
    """
    backbone, attention = kwargs.pop('backbone', None), kwargs.pop('attention', None)
    if backbone is None or attention is None:
        raise AttachError(
            "'attached' needs the names of a backbone and of an attention, such as "
            "timm.create_model('attached', backbone='resnet50', attention='scsa')."
        )
    _check_backbone(backbone)
    how = {key: kwargs.pop(key) for key in _OF_ATTACH if key in kwargs}
    check_places(**how)
    resolve_attention(attention)  # before anything is downloaded
    attention_args = kwargs.pop('attention_args', None) or {}
    if not isinstance(attention_args, dict):
        raise AttachError(f"attention_args={attention_args!r} must be a dict, such as {{'rd_ratio': 0.125}}.")
    how |= attention_args
    trainable = kwargs.pop('trainable', None)
    parts = None if trainable is None else trainable_parts(trainable)
    given, overlay = kwargs.pop('pretrained_cfg', None), kwargs.pop('pretrained_cfg_overlay', None) or {}
    if isinstance(given, str):
        raise AttachError(f"'attached' has no tag {given!r}: the tag belongs to the backbone, {backbone}.{given}.")
    given = PretrainedCfg(**given) if isinstance(given, dict) else given
    # Weights of the attached model, from a folder, the Hub or a file; otherwise those of the backbone.
    own = any(cfg is not None and source_of(cfg) for cfg in (given, PretrainedCfg(**overlay)))
    base = given or resolve_pretrained_cfg(*split_model_name_tag(backbone))
    cfg = dataclasses.replace(base, **overlay, architecture='attached')
    of_backbone = None if own else overlay
    build = partial(
        build_model_with_cfg,
        partial(_build, backbone, attention, how, pretrained, of_backbone, kwargs.get('cache_dir')),
        'attached',
        pretrained and own,
        pretrained_cfg=cfg.to_dict(remove_null=False),
        pretrained_filter_fn=partial(_fit, with_head=not kwargs.get('features_only', False)),
        feature_cfg=dict(feature_cls=partial(_features, 'out_indices' in kwargs)),
        **kwargs,
    )
    if own and pretrained:
        model = load_fetched(cfg, kwargs.get('cache_dir'), None, lambda o: build(pretrained_cfg_overlay=o))
    else:
        model = build()
    if parts:
        train_only(model, parts, set(attached_names(model)).__contains__)
    return model


def attached_names(model: nn.Module) -> list[str]:
    """Names of what was attached to a model, also inside a feature extractor; empty for a model without."""
    for prefix, module in model.named_modules():
        if names := getattr(module, 'attached_names', ()):
            return [f'{prefix}.{name}' if prefix else name for name in names]
    return []


def _check_backbone(backbone: str) -> None:
    arch = split_model_name_tag(backbone)[0]
    if arch == 'attached' or not is_model(arch):
        near = [] if arch == 'attached' else difflib.get_close_matches(arch, timm.list_models(), n=3)
        hint = f'did you mean {" or ".join(near)}?' if near else 'it must be a CNN that timm.list_models() names.'
        raise AttachError(f'Unknown backbone {backbone!r}: {hint}')


def _build(
    backbone: str,
    attention: Any,
    how: dict,
    pretrained: bool,
    overlay: dict | None,
    cache_dir: str | None,
    **kwargs,
) -> nn.Module:
    """Build the backbone, with its own weights where an overlay of their cfg is given, and attach the attention."""
    pretrained = pretrained and overlay is not None
    build = partial(timm.create_model, backbone, pretrained, cache_dir=cache_dir, **kwargs)
    cfg = resolve_pretrained_cfg(*split_model_name_tag(backbone), overlay)
    try:
        if pretrained and not cfg.custom_load:
            model = load_fetched(cfg, cache_dir, overlay, lambda o: build(pretrained_cfg_overlay=o))
        else:
            model = build(pretrained_cfg_overlay=overlay)
    except TypeError as e:
        raise AttachError(f'{e}. Arguments of the attention go into attention_args, all others to the backbone.') from e
    attach(model, attention, **how)
    model.attached_args['backbone'] = backbone
    return model


def _features(indices_given: bool, model: nn.Module, out_indices, **kwargs) -> nn.Module:
    """Feature extractor: all levels where none are named, as many as the backbone has."""
    if not indices_given:
        out_indices = tuple(range(len(model.feature_info)))
    if hasattr(model, 'forward_intermediates'):
        return FeatureGetterNet(model, out_indices=out_indices, **kwargs)
    return FeatureHookNet(model, out_indices=out_indices, **kwargs)


def _fit(state_dict: dict, model: nn.Module, with_head: bool) -> dict[str, torch.Tensor]:
    """Weights of the attached model as they are; to those of the plain backbone the attention is added as it starts."""
    state_dict = clean_state_dict(unwrap(state_dict))
    own = model.state_dict()
    new = {key for key in own if key.startswith(tuple(f'{name}.' for name in model.attached_names))}
    if new.isdisjoint(state_dict):
        state_dict = {**state_dict, **{key: own[key] for key in new}}
    check_fit(state_dict, model, with_head)
    return state_dict
