"""What every entrypoint shares: timm's builder, after checks whose messages say what to do next."""

from collections.abc import Callable
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
    """Names of this package's models, as ``timm.list_models`` gives them, but for ``attached``, which needs arguments.

    Args:
        filter: Wildcard.
        **kwargs: Arguments of ``timm.list_models``.
    """
    package = __name__.split('.')[0] + '.'
    names = list_models(filter, **kwargs)
    modules = {n: model_entrypoint(n.partition('.')[0]).__module__ for n in names}
    return [n for n, module in modules.items() if module.startswith(package) and n != 'attached']


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
    train_only(model, parts, lambda name: name.rpartition('.')[2] in model_cls.absorbs_gate)
    return model


def _build_and_load(model_cls: type[nn.Module], variant: str, pretrained: bool, **kwargs) -> nn.Module:
    cfg = _resolve_cfg(
        model_cls, variant, pretrained, kwargs.get('pretrained_cfg'), kwargs.get('pretrained_cfg_overlay')
    )
    features_only = kwargs.get('features_only', False)
    strict = kwargs.get('pretrained_strict', True)
    if pretrained and not strict and source_of(cfg) in ('hf-hub', 'local-dir') and cfg.source:
        raise ValueError(
            'pretrained_strict=False does not go with hf-hub: and local-dir:, whose config.json could ask for it. Load '
            'the file by pretrained_cfg_overlay=dict(file=PATH).'
        )
    kwargs.setdefault('pretrained_filter_fn', partial(checkpoint_filter_fn, with_head=not features_only, strict=strict))
    if not pretrained:
        return build_model_with_cfg(model_cls, variant, pretrained, **kwargs)
    overlay = kwargs.pop('pretrained_cfg_overlay', None)
    return load_fetched(
        cfg,
        kwargs.get('cache_dir'),
        overlay,
        lambda overlay: build_model_with_cfg(model_cls, variant, True, pretrained_cfg_overlay=overlay, **kwargs),
    )


def load_fetched(
    cfg: PretrainedCfg, cache_dir: str | None, overlay: dict | None, build: Callable[[dict | None], nn.Module]
) -> nn.Module:
    """Build a model with weights that are fetched and checked first, where they come from the network.

    Args:
        cfg: Says where the weights come from.
        cache_dir: Folder to keep them in, that of the client if None.
        overlay: Entries of the cfg that the user replaced.
        build: Builds the model and loads its weights, given such an overlay.

    Raises:
        CheckpointError: If the file cannot be read, or ``build`` finds that it does not fit.
        DownloadError: If it cannot be fetched, or is not what was asked for.
    """
    file = fetch(cfg, cache_dir)
    if file:  # timm loads just these bytes, and the model's cfg still names where they came from
        overlay = {**(overlay or {}), 'file': file, 'source': None}
    try:
        model = build(overlay)
    except CheckpointError:
        raise
    except Exception:
        if file or source_of(cfg) == 'file':
            explain_unreadable(file or cfg.file)
        raise
    if file:
        for key in ('file', 'source'):
            model.pretrained_cfg.pop(key, None)
            if getattr(cfg, key) is not None:
                model.pretrained_cfg[key] = getattr(cfg, key)
    return model


def fetch(cfg: PretrainedCfg, cache_dir: str | None) -> str | None:
    """Download weights and check them; None where timm reads them by itself."""
    source = source_of(cfg)
    if source == 'hf-hub':
        return fetch_from_hub(cfg.hf_hub_id, cfg.hf_hub_filename, cache_dir)
    if source == 'url':
        for weight in weights().values():
            if weight.url == cfg.url and weight.git_blob_sha1:
                return fetch_url(cfg.url, weight.git_blob_sha1, cache_dir, weight.file_size)
    return None


def source_of(cfg: PretrainedCfg) -> str | None:
    """Where timm will take the weights from."""
    if cfg.source in ('hf-hub', 'local-dir'):
        return cfg.source
    by_priority = dict(state_dict=cfg.state_dict, file=cfg.file, **{'hf-hub': cfg.hf_hub_id}, url=cfg.url)
    return next((source for source, where in by_priority.items() if where), None)


def _resolve_cfg(model_cls, variant, pretrained, pretrained_cfg, overlay):
    if isinstance(pretrained_cfg, str):
        tags = {name.partition('.')[2]: cfg.has_weights for name, cfg in get_arch_pretrained_cfgs(variant).items()}
        if pretrained_cfg not in tags:
            usable = ', '.join(tag for tag, has_weights in tags.items() if has_weights) or 'none'
            raise RuntimeError(f'Unknown tag {pretrained_cfg!r} for {variant}; it has: {usable}.')
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, overlay)
    if pretrained and not source_of(cfg):
        family = [n for n in zoo_models(pretrained=True) if _module(n) == _module(variant)]
        reason = getattr(model_cls, 'no_warm_start', None)
        raise RuntimeError(
            f'No pretrained weights exist for {variant}. {f"{reason} " if reason else ""}'
            f'Of its family they exist for: {", ".join(family) or "none"} '
            f'(timm-attn list shows all). Use pretrained=False, or load a file of your own with '
            f'pretrained_cfg_overlay=dict(file=PATH).'
        )
    return cfg


def _module(name: str) -> str:
    return model_entrypoint(name.partition('.')[0]).__module__
