"""What every entrypoint shares: timm's builder, after checks whose messages say what to do next."""

from functools import partial

from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    get_arch_pretrained_cfgs,
    list_models,
    model_entrypoint,
    resolve_pretrained_cfg,
)
from torch import nn

from ..weights import CheckpointError, weights
from ..weights.convert import checkpoint_filter_fn, explain_unreadable
from ..weights.download import fetch_from_hub, fetch_url
from .trainable import train_only, trainable_parts


def zoo_models(filter: str = '', **kwargs) -> list[str]:
    """Names of this package's models, as ``timm.list_models`` gives them.

    Args:
        filter: Wildcard.
        **kwargs: Arguments of ``timm.list_models``.
    """
    package = __name__.split('.')[0] + '.'
    names = list_models(filter, **kwargs)
    return [n for n in names if model_entrypoint(n.split('.')[0]).__module__.startswith(package)]


def build_model(model_cls: type[nn.Module], variant: str, pretrained: bool, **kwargs) -> nn.Module:
    """Build a registered model with timm's builder.

    Args:
        model_cls: Class of the model.
        variant: Registered name.
        pretrained: Load weights.
        **kwargs: Arguments of the entrypoint, for the builder and the class. ``trainable``, which every model takes, is
            ``'attention'``, ``'head'`` or ``'attention,head'``: these parts can be trained, all others are frozen.

    Raises:
        RuntimeError: If the tag is unknown, or ``pretrained`` is asked for where no weights exist.
        CheckpointError: If a weight file cannot be read or does not fit.
        DownloadError: If weights cannot be fetched, or are not what was asked for.
        ValueError: If ``trainable`` names no part of the model.
    """
    trainable = kwargs.pop('trainable', None)
    if trainable is None:
        return _build_and_load(model_cls, variant, pretrained, **kwargs)
    parts = trainable_parts(trainable)
    model = _build_and_load(model_cls, variant, pretrained, **kwargs)
    train_only(model, parts, model_cls.absorbs_gate)
    return model


def _build_and_load(model_cls: type[nn.Module], variant: str, pretrained: bool, **kwargs) -> nn.Module:
    cfg = _resolve_cfg(variant, pretrained, kwargs.get('pretrained_cfg'), kwargs.get('pretrained_cfg_overlay'))
    features_only = kwargs.get('features_only', False)
    strict = kwargs.get('pretrained_strict', True)
    if pretrained and not strict and _source(cfg) in ('hf-hub', 'local-dir') and cfg.source:
        raise ValueError(
            'pretrained_strict=False does not go with hf-hub: and local-dir:, whose config.json could ask for it. Load '
            'the file by pretrained_cfg_overlay=dict(file=PATH).'
        )
    kwargs.setdefault('pretrained_filter_fn', partial(checkpoint_filter_fn, with_head=not features_only, strict=strict))
    if not pretrained:
        return build_model_with_cfg(model_cls, variant, pretrained, **kwargs)
    file = _fetch(cfg, kwargs.get('cache_dir'))
    if file:  # timm loads just these bytes, and the model's cfg still names where they came from
        kwargs['pretrained_cfg_overlay'] = {
            **(kwargs.get('pretrained_cfg_overlay') or {}),
            'file': file,
            'source': None,
        }
    try:
        model = build_model_with_cfg(model_cls, variant, pretrained, **kwargs)
    except CheckpointError:
        raise
    except Exception:
        if file or _source(cfg) == 'file':
            explain_unreadable(file or cfg.file)
        raise
    if file:
        for key in ('file', 'source'):
            model.pretrained_cfg.pop(key, None)
            if getattr(cfg, key) is not None:
                model.pretrained_cfg[key] = getattr(cfg, key)
    return model


def _fetch(cfg: PretrainedCfg, cache_dir: str | None) -> str | None:
    """Download weights and check them; None where timm reads them by itself."""
    source = _source(cfg)
    if source == 'hf-hub':
        return fetch_from_hub(cfg.hf_hub_id, cfg.hf_hub_filename, cache_dir)
    if source == 'url':
        for weight in weights().values():
            if weight.url == cfg.url and weight.git_blob_sha1:
                return fetch_url(cfg.url, weight.git_blob_sha1, cache_dir, weight.file_size)
    return None


def _source(cfg: PretrainedCfg) -> str | None:
    """Where timm will take the weights from."""
    if cfg.source in ('hf-hub', 'local-dir'):
        return cfg.source
    by_priority = dict(state_dict=cfg.state_dict, file=cfg.file, **{'hf-hub': cfg.hf_hub_id}, url=cfg.url)
    return next((source for source, where in by_priority.items() if where), None)


def _resolve_cfg(variant, pretrained, pretrained_cfg, overlay):
    if isinstance(pretrained_cfg, str):
        tags = [name.partition('.')[2] for name in get_arch_pretrained_cfgs(variant)]
        if pretrained_cfg not in tags:
            raise RuntimeError(f'Unknown tag {pretrained_cfg!r} for {variant}; it has: {", ".join(tags)}.')
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, overlay)
    if pretrained and not _source(cfg):
        family = [n for n in zoo_models(pretrained=True) if _module(n) == _module(variant)]
        raise RuntimeError(
            f'No pretrained weights exist for {variant}. Of its family they exist for: {", ".join(family) or "none"} '
            f'(timm-attn list shows all). Use pretrained=False, or load a file of your own with '
            f'pretrained_cfg_overlay=dict(file=PATH).'
        )
    return cfg


def _module(name: str) -> str:
    return model_entrypoint(name.partition('.')[0]).__module__
