"""Measured facts about the registered models."""

import timm
import torch
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg, model_entrypoint
from torch.utils.flop_counter import FlopCounterMode


def count_gmacs(model: torch.nn.Module, input_size: tuple[int, int, int]) -> float:
    """Multiply-adds of one forward pass in billions: those of convolutions and matrix products, counted by torch.

    Args:
        model: The model, best on the ``meta`` device, where nothing is computed.
        input_size: Channels, height and width of the image.
    """
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.empty(1, *input_size, device=next(model.parameters()).device))
    return counter.get_total_flops() / 2e9


def describe(name: str) -> dict:
    """Measured and declared facts about a registered model, the former without allocating its weights.

    Args:
        name: Model, with or without a tag.

    Returns:
        ``model``, ``about``, ``params``, ``gmacs`` (at ``input_size``), ``input_size`` (C, H, W), ``num_classes``,
        ``weights`` (the tags that can be loaded), ``features`` (channels at each stride), and the evaluation settings
        of the weight or, without weights, the default ones.
    """
    arch = name.partition('.')[0]
    cfg = get_pretrained_cfg(name)
    model = timm.create_model(name, device='meta').eval()
    return dict(
        model=name,
        about=model_entrypoint(arch).__doc__.strip(),
        params=sum(p.numel() for p in model.parameters()),
        gmacs=count_gmacs(model, cfg.input_size),
        input_size=cfg.input_size,
        num_classes=cfg.num_classes,
        weights=[n.partition('.')[2] for n, c in get_arch_pretrained_cfgs(arch).items() if c.has_weights],
        features=[f'{f["num_chs"]} at stride {f["reduction"]}' for f in model.feature_info],
        mean=cfg.mean,
        std=cfg.std,
        crop_pct=cfg.crop_pct,
        interpolation=cfg.interpolation,
        license=cfg.license,
        paper=cfg.paper_ids,
    )
