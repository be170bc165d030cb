"""What every entrypoint shares: timm's builder, behind checks whose messages say what to do next."""

from functools import partial

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import (
    build_model_with_cfg,
    get_arch_pretrained_cfgs,
    list_models,
    model_entrypoint,
    resolve_pretrained_cfg,
)
from torch import nn

from ..pretrained import CheckpointError, checkpoint_filter_fn, explain_unreadable


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
        **kwargs: Arguments of the entrypoint, for the builder and the class.

    Raises:
        RuntimeError: If the tag is unknown, or ``pretrained`` is asked for where no weights exist.
        CheckpointError: If a weight file cannot be read or does not fit.
    """
    cfg = _resolve_cfg(variant, pretrained, kwargs.get('pretrained_cfg'), kwargs.get('pretrained_cfg_overlay'))
    features_only = kwargs.get('features_only', False)
    strict = kwargs.get('pretrained_strict', True)
    kwargs.setdefault('pretrained_filter_fn', partial(checkpoint_filter_fn, with_head=not features_only, strict=strict))
    try:
        return build_model_with_cfg(model_cls, variant, pretrained, **kwargs)
    except CheckpointError:
        raise
    except Exception:
        if pretrained and cfg.file and cfg.source not in ('hf-hub', 'local-dir'):
            explain_unreadable(cfg.file)
        raise


def _resolve_cfg(variant, pretrained, pretrained_cfg, overlay):
    if isinstance(pretrained_cfg, str):
        tags = [name.partition('.')[2] for name in get_arch_pretrained_cfgs(variant)]
        if pretrained_cfg not in tags:
            raise RuntimeError(f'Unknown tag {pretrained_cfg!r} for {variant}; it has: {", ".join(tags)}.')
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, overlay)
    if pretrained and not (cfg.has_weights or cfg.state_dict or cfg.source in ('hf-hub', 'local-dir')):
        raise RuntimeError(
            f'No pretrained weights exist for {variant}. Weights exist for: {", ".join(zoo_models(pretrained=True))}. '
            f'Use pretrained=False, or load a file of your own with pretrained_cfg_overlay=dict(file=PATH).'
        )
    return cfg


def imagenet_cfg(**kwargs) -> dict:
    """Pretrained cfg of a network made for ImageNet-1k at 224x224.

    Args:
        **kwargs: Entries that replace or extend these.
    """
    return {
        'num_classes': 1000,
        'input_size': (3, 224, 224),
        'pool_size': (7, 7),
        'crop_pct': 0.875,
        'interpolation': 'bicubic',
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        'license': 'apache-2.0',
        **kwargs,
    }
