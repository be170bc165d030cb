"""What networks of a comparison cost: parameters, multiply-adds, and time and memory relative to the first."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from ..models.info import count_cost
from ..timing import calibrate_norms, inference, machine, peak_memory, ratio, take_turns, training
from ..whole_file import write_json
from .contestants import Contestant

_logger = logging.getLogger(__name__)

_TURNS = 5
_IMAGES_OF_224 = 4  # in a batch; of smaller images there are more


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        params: Number of parameters.
        size: Side of its images.
        gmacs: Multiply-adds of an image in billions.
        inference: Median of the time of a forward pass, relative to the first network.
        inference_range: Smallest and largest in the turns.
        training: The same of a training step.
        training_range: Smallest and largest in the turns.
        memory: Peak memory of a training step, relative to the first network.
        relative: Whether there is another network to be relative to.
    """

    params: int
    size: int
    gmacs: float
    inference: float
    inference_range: tuple[float, float]
    training: float
    training_range: tuple[float, float]
    memory: float
    relative: bool


def read_or_measure(
    file: Path,
    sizes: Mapping[Contestant, int],
    build: Callable[[Contestant], nn.Module],
    device: torch.device,
) -> dict[str, Cost]:
    """Costs of networks, from a file if it has those of the same networks, in this order and on this device.

    Args:
        file: Where they are kept.
        sizes: The networks, each with the side of its images; the others are relative to the first.
        build: Builds a network.
        device: Where they run.

    Returns:
        The cost by label; a network that cannot be measured is left out with a warning, and measured again next time.
    """
    key = dict(sizes=[[one.label, size] for one, size in sizes.items()], device=machine(device)['device'])
    try:
        kept = json.loads(file.read_text(encoding='utf-8'))
        if kept['key'] == key:
            return {label: Cost(**cost) for label, cost in kept['costs'].items()}
    except (OSError, ValueError, TypeError, KeyError):
        pass
    costs = _measure(sizes, build, device)
    if len(costs) == len(sizes):
        write_json(file, dict(key=key, costs={label: asdict(cost) for label, cost in costs.items()}), indent=1)
    return costs


def _measure(
    sizes: Mapping[Contestant, int], build: Callable[[Contestant], nn.Module], device: torch.device
) -> dict[str, Cost]:
    largest = max(sizes.values())
    batch = max(2, min(64, _IMAGES_OF_224 * 224**2 // largest**2))
    counted: dict[str, tuple[int, int, float]] = {}
    forward_passes, steps = {}, {}
    for one, size in sizes.items():
        images = torch.randn(batch, 3, size, size, device=device)
        try:
            model = build(one)
            gmacs = count_cost(model.eval(), (3, size, size))[0]
            # two copies, as one trains; calibrated, so that no map is zero, whose time would be another one
            passes = [make(calibrate_norms(build(one), images), images) for make in (inference, training)]
            for run in passes:
                run()
        except Exception as e:  # whatever one network raises must not keep the results of the others
            _logger.warning(f'The cost of {one.label} cannot be measured: {e}')
            continue
        counted[one.label] = (sum(p.numel() for p in model.parameters()), size, gmacs)
        forward_passes[one.label], steps[one.label] = passes
    forward = take_turns(forward_passes, _TURNS, device)
    backward = take_turns(steps, _TURNS, device)
    memory = {label: peak_memory(step, device) for label, step in steps.items()}
    costs: dict[str, Cost] = {}
    for label, (params, size, gmacs) in counted.items():
        first = next(iter(counted))
        times = [ratio(seconds[label], seconds[first]) for seconds in (forward, backward)]
        (once, once_range), (step, step_range) = [(t['ratio'], (t['least'], t['most'])) for t in times]
        share = round(memory[label] / memory[first], 3)
        costs[label] = Cost(params, size, gmacs, once, once_range, step, step_range, share, label != first)
    return costs
