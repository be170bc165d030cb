"""Facts about the registered models and their weights: size, cost, origin, quality."""

import inspect

import timm
import torch
from timm.models import PretrainedCfg, get_arch_pretrained_cfgs, get_pretrained_cfg, model_entrypoint
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from .._compat import TorchDispatchMode, operator_of, tree_leaves
from ..weights import Weight, weights
from .builder import zoo_models


class _OutputCounter(TorchDispatchMode):
    """Counts the output elements of the operations that multiply and add."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if operator_of(func) in flop_registry:
            self.elements += tree_leaves(out)[0].numel()
        return out


def count_cost(model: torch.nn.Module, input_size: tuple[int, int, int]) -> tuple[float, float]:
    """What one forward pass costs in convolutions and matrix products, counted by torch.

    Args:
        model: The model, best on the ``meta`` device, where nothing is computed.
        input_size: Channels, height and width of the image.

    Returns:
        Their multiply-adds in billions, and their output elements in millions.
    """
    flops, outputs = FlopCounterMode(display=False), _OutputCounter()
    with flops, outputs, torch.no_grad():
        model(torch.empty(1, *input_size, device=next(model.parameters()).device))
    return flops.get_total_flops() / 2e9, outputs.elements / 1e6


def find_weight(name: str) -> Weight:
    """Row of the manifest for a model.

    Args:
        name: Model with a tag, or without one for its default weight.
    """
    cfg = get_pretrained_cfg(name)
    full_name = f'{cfg.architecture}.{cfg.tag or "untrained"}'
    return weights().get(full_name) or _measured(full_name, cfg)


def _measured(name: str, cfg: PretrainedCfg) -> Weight:
    """Row for a model that the manifest does not list yet."""
    model = timm.create_model(cfg.architecture, device='meta').eval()
    gmacs, activations = count_cost(model, cfg.input_size)
    return Weight(
        name=name,
        kind='warm_start' if cfg.has_weights else 'untrained',
        base_weight=cfg.hf_hub_id and cfg.hf_hub_id.removeprefix('timm/'),
        license=cfg.license or 'other',
        paper=cfg.paper_ids or '-',
        params=sum(p.numel() for p in model.parameters()),
        gmacs=gmacs,
        activations=activations,
        input_size=tuple(cfg.input_size),
    )


def summarize(model: torch.nn.Module, name: str) -> str:
    """What a loaded classifier is, in one line: classes, size of its images, parameters and, if known, accuracy.

    Args:
        model: The model.
        name: Its name: of a registered model with the tag of its weights, or any other.
    """
    weight = weights().get(name)
    metric = weight.top1 if weight else None
    height, width = model.pretrained_cfg['input_size'][1:]
    facts = [
        f'{model.num_classes} classes{f" of {metric.dataset}" if metric else ""}',
        f'{height} px' if height == width else f'{height} x {width} px',
        f'{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters',
    ]
    if metric:
        kind = 'measured' if metric.measured else 'reported'
        size = f' at {metric.input_size} px' if metric.input_size not in (None, height) else ''
        facts.append(f'top-1 {metric.value:.1f} % on its {metric.split} images{size} ({kind})')
    return f'{name}: {", ".join(facts)}'


def describe(name: str) -> dict:
    """Facts about a registered model and one of its weights, from the manifest and the registry.

    Args:
        name: Model, with or without a tag; of a model of timm itself less is known.

    Returns:
        Facts by name, in an order to read them: ``model``, ``about``, size and cost, ``tags`` that can be loaded,
        origin and quality of the weight, settings of its images, ``features`` (channels at each stride).
    """
    if name.partition('.')[0] not in zoo_models():
        return _describe_foreign(name)
    weight, cfg = find_weight(name), get_pretrained_cfg(name)
    arch_cfgs = get_arch_pretrained_cfgs(weight.arch)
    facts = dict(
        model=name,
        about=summary(weight.arch),
        **_fields(weight, 'paper', 'params', 'gmacs'),
        activations=f'{weight.activations:.3f} M',
        tags=[n.partition('.')[2] for n, c in arch_cfgs.items() if c.has_weights],
        weights='none' if weight.kind == 'untrained' else f'{weight.tag}: {weight.kind.replace("_", " ")}',
        **_fields(weight, 'origin', 'base_weight', 'license', 'dataset', 'recipe', 'file_size', 'sha256'),
        quality=[str(metric) for metric in weight.metrics],
        **_fields(cfg, 'num_classes', 'input_size', 'mean', 'std', 'crop_pct', 'interpolation'),
        features=_features(weight.arch),
        notes=weight.notes,
    )
    return {key: value for key, value in facts.items() if value is not None}


def summary(arch: str) -> str:
    """First paragraph of the docstring of a model's entrypoint."""
    doc = inspect.getdoc(model_entrypoint(arch)) or ''
    return ' '.join(doc.partition('\n\n')[0].split())


def _describe_foreign(name: str) -> dict:
    """Facts about a model of timm itself, as far as timm states them."""
    cfg = get_pretrained_cfg(name)
    model = timm.create_model(cfg.architecture, device='meta')
    facts = dict(
        model=name,
        about=f'a model of timm {timm.__version__}, not of this package',
        params=sum(p.numel() for p in model.parameters()),
        tags=[n.partition('.')[2] for n, c in get_arch_pretrained_cfgs(cfg.architecture).items() if c.has_weights],
        weights=cfg.tag if cfg.has_weights else 'none',
        paper=cfg.paper_ids,
        origin=f'https://huggingface.co/{cfg.hf_hub_id}' if cfg.hf_hub_id else cfg.url,
        **_fields(cfg, 'license', 'num_classes', 'input_size', 'mean', 'std', 'crop_pct', 'interpolation'),
    )
    return {key: value for key, value in facts.items() if value is not None}


def _fields(source: object, *names: str) -> dict:
    return {name: getattr(source, name) for name in names}


def _features(arch: str) -> list[str]:
    info = timm.create_model(arch, device='meta').feature_info
    return [f'{f["num_chs"]} at stride {f["reduction"]}' for f in info]
