"""Time and memory of passes that take turns in one process, over models whose values stay in range."""

import datetime
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

import timm
import torch
import torch.nn.functional as F
from torch import nn

from . import __version__

Key = TypeVar('Key', str, int)


def calibrate_norms(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """Give the batch norms random weights and the statistics of some images.

    timm's norms start with weights of zero at the end of a block, which would switch its attention off; without
    statistics, values fade into denormal numbers, which are slow.

    Args:
        model: The model, which is changed.
        images: (B, C, H, W). Of a single one, a second is made: batch norm cannot train on one value for a channel.

    Returns:
        The model, in eval mode.
    """
    if len(images) == 1:
        images = torch.cat([images, torch.randn_like(images)])
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.0)
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def inference(model: nn.Module, images: torch.Tensor, autocast=nullcontext) -> Callable[[], object]:
    """A forward pass, to be timed.

    Args:
        model: The model.
        images: (B, C, H, W).
        autocast: Context of mixed precision.
    """

    def run():
        with torch.inference_mode(), autocast():
            return model(images)

    return run


def training(model: nn.Module, images: torch.Tensor, autocast=nullcontext) -> Callable[[], object]:
    """Forward, backward and optimizer step of a classifier, to be timed; the arguments are those of a forward pass."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with torch.no_grad():
        labels = torch.arange(len(images), device=images.device) % model(images[:2]).shape[1]

    def run():
        with autocast():
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()  # at the end, so that the memory of a step includes its gradients

    return run


def take_turns(passes: dict[Key, Callable[[], object]], turns: int, device: torch.device) -> dict[Key, list[float]]:
    """Seconds of each pass in each turn.

    Args:
        passes: What to run, by name, in the order of a turn.
        turns: Number of turns, after one that warms up.
        device: Where they run.
    """
    seconds: dict[Key, list[float]] = {name: [] for name in passes}
    for turn in range(turns + 1):
        for name, run in passes.items():
            _synchronize(device)
            start = time.perf_counter()
            run()
            _synchronize(device)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: list[float], reference: list[float]) -> dict[str, float]:
    """Median, smallest and largest of the ratios of each turn."""
    ratios = [a / b for a, b in zip(seconds, reference, strict=True)]
    return {key: round(f(ratios), 3) for key, f in (('ratio', statistics.median), ('least', min), ('most', max))}


def peak_memory(run: Callable[[], object], device: torch.device) -> int:
    """Largest number of bytes that a pass allocates at once, beyond what was allocated before."""
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    # the profiler reports each start and stop on stderr
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == '[memory]']
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def machine(device: torch.device) -> dict:
    """What the figures depend on."""
    return dict(
        device=torch.cuda.get_device_name(device) if device.type == 'cuda' else _processor(),
        threads=torch.get_num_threads(),
        system=f'{platform.system()}, Python {platform.python_version()}',
        torch=torch.__version__.partition('+')[0],
        timm=timm.__version__,
        timm_attn=__version__,
        # the C library's memory settings change the times of large tensors on a CPU by a third
        allocator=' '.join(f'{k}={v}' for k, v in sorted(os.environ.items()) if k.startswith('MALLOC_')),
        date=datetime.date.today().isoformat(),
    )


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(':')[2].strip() for line in lines if line.startswith('model name')), platform.machine())


def _synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
