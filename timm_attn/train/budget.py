"""Image size and epochs that a comparison has time for."""

import argparse
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from timm.data import create_transform, resolve_data_config
from torch import nn

from ..timing import inference, training
from .options import RunError

_SHARES = (1.0, 6 / 7, 5 / 7, 4 / 7, 3 / 7)
"""Image sizes to choose from, as shares of the models' own: 224, 192, 160, 128 and 96."""

_ENOUGH = 10
"""Epochs that a smaller image is chosen for."""

_FEWEST = 3
_START = 15.0
"""Seconds that a run needs to start and to end, besides its epochs."""

_SPARE = 0.9
"""Share of the time that is planned with: a machine is rarely as fast as when it was measured."""


@dataclass(frozen=True)
class Plan:
    """What fits into a budget.

    Attributes:
        image_size: Side of the images.
        epochs: Epochs of each run.
        minutes: Time for everything, as estimated.
    """

    image_size: int
    epochs: int
    minutes: float


def plan(
    minutes: float, seconds: Callable[[int], float], sizes: Sequence[int], epochs: int, runs: int, jobs: int
) -> Plan:
    """Choose the largest images that enough epochs fit with, and as many epochs as fit, up to a number.

    Args:
        minutes: The budget.
        seconds: Size of the images -> time of an epoch of all runs, one after the other; infinite where a model does
            not take them.
        sizes: Sizes to choose from, the largest first.
        epochs: Epochs that were asked for, which are not exceeded.
        runs: Number of runs.
        jobs: Runs at the same time.

    Raises:
        RunError: If not even a few epochs fit; the message says how many minutes would do.
    """
    rounds = math.ceil(runs / jobs)
    available = 60 * minutes * _SPARE - rounds * _START
    best, smallest, fastest = None, sizes[0], math.inf
    for size in sizes:
        epoch = seconds(size) * rounds / runs
        if epoch == math.inf:
            continue
        smallest, fastest = size, epoch
        fit = min(epochs, int(max(available, 0) / epoch))
        if best is None or fit > best.epochs:
            best = Plan(size, fit, (fit * epoch + rounds * _START) / 60)
        if fit >= min(_ENOUGH, epochs):
            break
    assert best is not None
    if best.epochs < min(_FEWEST, epochs):
        needed = math.ceil((_FEWEST * fastest + rounds * _START) / 60 / _SPARE)
        raise RunError(
            f'--minutes {minutes:g} is too short for {runs} runs: {_FEWEST} epochs at {smallest} px need about '
            f'{needed} minutes. Give more, or fewer --models or --seeds.'
        )
    return best


def sizes_of(models: Sequence[nn.Module], asked: int | None) -> list[int]:
    """Image sizes to choose from: the one that was asked for, or shares of the smallest of the models' own.

    Of a model that takes images of one size only, it is that one.
    """
    if asked:
        return [asked]
    own = min(model.pretrained_cfg['input_size'][-1] for model in models)
    if own <= 64 or any(model.pretrained_cfg.get('fixed_input_size') for model in models):
        return [own]
    return list(dict.fromkeys(32 * round(own * share / 32) for share in _SHARES))


def seconds_of_epoch(
    model: nn.Module,
    args: argparse.Namespace,
    counts: tuple[int, int],
    reading: float,
    size: int,
    device: torch.device,
    autocast: Callable,
) -> float:
    """Seconds of an epoch of a model: images read, trained on, and validated.

    Args:
        model: The model.
        args: Options.
        counts: Number of images to train on, and to validate on.
        reading: Seconds to read an image.
        size: Side of the images.
        device: Where it is trained.
        autocast: Context of mixed precision.
    """
    train, val = counts
    batch = max(2, min(args.batch_size, train, 32 if device.type == 'cpu' else args.batch_size))
    x = torch.randn(batch, 3, size, size, device=device)
    passes = ((training, train), (inference, val))
    return sum(count * (_seconds(make(model, x, autocast), device) / batch + reading) for make, count in passes)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])  # the first one allocates


def seconds_to_read(images: Sequence[str], size: int, args: argparse.Namespace) -> float:
    """Seconds to read and transform an image for training, shared by the workers.

    Args:
        images: Image files, of which a few are read.
        size: Side of the images.
        args: Options.
    """
    from ..image_files import open_image

    config = resolve_data_config(dict(vars(args), img_size=size))
    transform = create_transform(
        config['input_size'], is_training=True, scale=args.scale, hflip=args.hflip, color_jitter=args.color_jitter,
        auto_augment=args.aa, re_prob=args.reprob, mean=config['mean'], std=config['std'],
    )  # fmt: skip
    some = list(itertools.islice(images, 0, None, max(1, len(images) // 16)))
    start = time.perf_counter()
    for path in some:
        transform(open_image(path))
    return (time.perf_counter() - start) / len(some) / max(1, args.workers)
