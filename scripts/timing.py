"""Time and memory of what is compared: passes that take turns in one process."""

import datetime
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import timm
import torch

import timm_attn

Key = TypeVar('Key', str, int)


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
        timm_attn=timm_attn.__version__,
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
