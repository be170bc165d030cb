"""Descriptor curves: what an attention sees of each channel, and what it makes of it, by class.

They are of the kind that CSA-Net (arXiv 2405.05755) shows in its figures 3 and 5.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..layers import CSA, attention_of, csa_descriptor, get_attention, list_attentions
from ..layers.places import find_slots, find_stages
from .images import load_batches
from .target import as_it_was

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMOOTHING = 0.3
_QUANTITIES = ('z', 'q', 'p')


@dataclass(frozen=True)
class StageCurves:
    """Means over the images of each class, at one place of each stage.

    Attributes:
        stage: Number of the stage, from 0.
        place: Name of the module at whose input z and q are taken: the last attention of the stage; without one the
            empty slot of its last block, where an attention would stand; without slots the end of the stage, whose
            output it is.
        kind: Name of the attention, ``slot`` or ``end``.
        classes: Names of the classes.
        images: Number of images of each class.
        z: Standardised means of the channels (K, C).
        q: :func:`~timm_attn.layers.csa_descriptor` (K, C).
        p: Values of the attention's gate (K, C); None without one that has a single value for each channel.
    """

    stage: int
    place: str
    kind: str
    classes: tuple[str, ...]
    images: tuple[int, ...]
    z: torch.Tensor
    q: torch.Tensor
    p: torch.Tensor | None

    def correlations(self) -> dict[str, tuple[float, list[float]]]:
        """Spearman rank correlations over the channels.

        Returns:
            For each pair, such as ``q~p``, the correlation of the means over all images, and that of each class. NaN
            where one side is constant.
        """
        from scipy.stats import spearmanr

        def spearman(a: torch.Tensor, b: torch.Tensor) -> float:
            if any(side.min() == side.max() for side in (a, b)):  # scipy warns, too
                return float('nan')
            return float(spearmanr(a.numpy(), b.numpy()).statistic)

        weights = torch.tensor(self.images, dtype=torch.float64)[:, None] / sum(self.images)
        present = [name for name in _QUANTITIES if getattr(self, name) is not None]
        found = {}
        for one, other in combinations(present, 2):
            a, b = getattr(self, one), getattr(self, other)
            of_classes = [spearman(*rows) for rows in zip(a, b, strict=True)]
            found[f'{one}~{other}'] = (spearman((weights * a).sum(0), (weights * b).sum(0)), of_classes)
        return found


def descriptor_curves(
    model: nn.Module,
    samples: Sequence[tuple[str, str]],
    batch_size: int = 32,
    on_unreadable: Callable[[str, str], None] | None = None,
) -> list[StageCurves]:
    """Measure z, q and p of the last attention of each stage, by class.

    They are taken from the forward pass itself, by hooks: q is computed from the map that the attention got, and p is
    what its gate returned. z and q need no parameters, so that they can be compared with those of networks with
    another attention, or with none.

    Args:
        model: A CNN of timm whose stages end in maps (B, C, H, W).
        samples: Path and class of each image, as :func:`find_samples` gives them.
        batch_size: Images in a batch; the result does not depend on it.
        on_unreadable: As for :func:`~timm_attn.predict.classify`.

    Returns:
        The curves of each stage.

    Raises:
        ValueError: If the model has no such stages, or a file cannot be read.
    """
    class_of = dict(samples)
    classes = tuple(dict.fromkeys(label for _, label in samples))
    sums: list[dict[str, torch.Tensor]] = []
    seen: list[_Seen] = []
    counts = torch.zeros(len(classes), dtype=torch.int64)
    with torch.no_grad(), as_it_was(model), _watching(model) as watch:
        for paths, images in load_batches(model, list(class_of), batch_size, on_unreadable):
            rows = torch.tensor([classes.index(class_of[path]) for path in paths])
            counts += rows.bincount(minlength=len(classes))
            seen = watch(images)
            sums = sums or [{} for _ in seen]
            for of_stage, one in zip(sums, seen, strict=True):
                for name, values in one.values().items():
                    total = of_stage.setdefault(name, values.new_zeros(len(classes), values.shape[1]))
                    total.index_add_(0, rows, values)
    kept = counts > 0
    if not kept.any():
        raise ValueError('None of the images can be read.')
    names = tuple(name for name, keep in zip(classes, kept.tolist(), strict=True) if keep)
    divisor = counts[kept][:, None]
    return [
        StageCurves(
            stage,
            one.place,
            one.kind,
            names,
            tuple(counts[kept].tolist()),
            **{name: of_stage[name][kept] / divisor if name in of_stage else None for name in _QUANTITIES},
        )
        for stage, (one, of_stage) in enumerate(zip(seen, sums, strict=True))
    ]


@dataclass
class _Seen:
    """What passed a place in one forward pass."""

    place: str
    kind: str
    layer: nn.Module
    x: torch.Tensor
    gates: list[torch.Tensor]

    def values(self) -> dict[str, torch.Tensor]:
        """z, q, and p if there is one, of each image (B, C), on the CPU."""
        args = dict(mode=self.layer.mode, portable=self.layer.portable) if isinstance(self.layer, CSA) else {}
        found = dict(z=standardized_means(self.x), q=csa_descriptor(self.x, **args))
        if len(self.gates) == 1 and self.gates[0].numel() == found['z'].numel():  # once, and one value for a channel
            found['p'] = self.gates[0].reshape(found['z'].shape)
        return {name: values.detach().double().cpu() for name, values in found.items()}


def standardized_means(x: torch.Tensor) -> torch.Tensor:
    """Means of the channels of (B, C, H, W), shifted and scaled to mean 0 and std 1 over the channels: (B, C).

    Source: z in eq. 1 and 2 of CSA-Net (arXiv 2405.05755). Zeros where all means are the same.
    """
    means = x.double().mean(dim=(2, 3))
    means = means - means.mean(dim=1, keepdim=True)
    std = means.std(dim=1, keepdim=True)
    return torch.where(std > 0, means / std.clamp(min=torch.finfo(std.dtype).tiny), 0.0)


@contextmanager
def _watching(model: nn.Module) -> Iterator[Callable[[torch.Tensor], list[_Seen]]]:
    """Context with a function that runs the model and returns what passed the last attention of each stage."""
    ends = [place.owner for place in find_stages(model)]
    if not ends:
        raise ValueError(f'{type(model).__name__} has no stages with maps (B, C, H, W) in its feature_info.')
    attentions = dict(_attentions(model))
    places = [(place.owner, str(place.slot)) for place in find_slots(model, ('out', 'mid'))]
    open_: dict[str, _Seen] = {}  # the latest attention, and the latest slot, of the stage that is running
    done: list[_Seen] = []

    def enters(name: str, kind: str, role: str):
        def hook(module, args):
            # a copy: where nothing stands in a slot, the block adds its shortcut to this very tensor
            open_[role] = _Seen(name, kind, module, args[0].clone(), [])

        return hook

    def gates(name: str):
        def hook(module, args, output):
            if name == open_['attention'].place:
                open_['attention'].gates.append(output)

        return hook

    def stage_ends(name: str):
        def hook(module, args, output):
            end = _Seen(name, 'end', module, output, [])
            done.append(open_.get('attention') or open_.get('slot') or end)
            open_.clear()

        return hook

    handles = []
    empty = []
    try:
        for owner, slot in places:
            block = model.get_submodule(owner)
            if getattr(block, slot) is None:  # so that there is something to watch
                empty.append((block, slot))
                setattr(block, slot, nn.Identity())
            if (name := f'{owner}.{slot}') not in attentions:
                module = model.get_submodule(name)
                handles.append(module.register_forward_pre_hook(enters(name, 'slot', 'slot')))
        for name, (kind, layer) in attentions.items():
            handles.append(layer.register_forward_pre_hook(enters(name, kind, 'attention')))
            if isinstance(getattr(layer, 'gate', None), nn.Module):
                handles.append(layer.gate.register_forward_hook(gates(name)))
        for name in ends:
            handles.append(model.get_submodule(name).register_forward_hook(stage_ends(name)))

        def watch(images: torch.Tensor) -> list[_Seen]:
            open_.clear()
            done.clear()
            model(images)
            return list(done)

        yield watch
    finally:
        for handle in handles:
            handle.remove()
        for block, slot in empty:
            delattr(block, slot)
            setattr(block, slot, None)


def _attentions(model: nn.Module) -> Iterator[tuple[str, tuple[str, nn.Module]]]:
    """Name, kind and module of each attention that maps (B, C, H, W) to itself; of nested ones the outer one.

    An attention that was attached to another one follows it, and counts by itself.
    """
    rows = [get_attention(name) for name in list_attentions()]
    by_class = {cls: row for row in rows for cls in row.same_as}
    inside: list[str] = []
    for name, module in model.named_modules():
        row = attention_of(module) or by_class.get(type(module).__name__)
        outer = [parent for parent in inside if name.startswith(f'{parent}.')]
        if row is None or row.part_of or any(not name.startswith(f'{parent}.attached') for parent in outer):
            continue
        inside.append(name)
        yield name, (row.name, module)


def smooth(values: torch.Tensor, factor: float = SMOOTHING) -> torch.Tensor:
    """Exponential moving average along the last axis: each value counts by ``factor``, those before by the rest."""
    smoothed = values.clone()
    for i in range(1, values.shape[-1]):
        smoothed[..., i] = factor * values[..., i] + (1 - factor) * smoothed[..., i - 1]
    return smoothed


def curve_rows(model: str, curves: Sequence[StageCurves]) -> Iterator[tuple]:
    """Rows of a table, the header first: the values of each channel, not smoothed, and its rank by q in the class.

    Args:
        model: Name of the model.
        curves: What :func:`descriptor_curves` returned.
    """
    yield ('model', 'stage', 'place', 'class', 'channel', 'rank', *_QUANTITIES)
    for one in curves:
        ranks = one.q.argsort(dim=1, stable=True).argsort(dim=1)
        for k, name in enumerate(one.classes):
            for c in range(one.q.shape[1]):
                values = [one.z[k, c].item(), one.q[k, c].item(), '' if one.p is None else one.p[k, c].item()]
                yield (model, one.stage, one.place, name, c, ranks[k, c].item(), *values)


def plot_curves(results: Sequence[tuple[str, Sequence[StageCurves]]]) -> 'Figure':
    """Draw curves: a column for each stage, and for each model a row for z, q and p.

    The channels of each class are in the order of its q, and the values are smoothed by :func:`smooth`.

    Args:
        results: Name of each model, and what :func:`descriptor_curves` returned for it.

    Returns:
        A figure of matplotlib, which needs no display.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = list(dict.fromkeys(name for _, curves in results for one in curves for name in one.classes))
    colours = {name: colormaps['tab10' if len(names) <= 10 else 'turbo'](i if len(names) <= 10 else i / len(names))
               for i, name in enumerate(names)}  # fmt: skip
    rows = [
        (model, curves, quantity)
        for model, curves in results
        for quantity in _QUANTITIES
        if any(getattr(one, quantity) is not None for one in curves)
    ]
    columns = max(len(curves) for _, curves in results)
    figure = Figure(figsize=(2 + 2.8 * columns, 0.8 + 1.9 * len(rows)), layout='constrained')
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for panels, (model, curves, quantity) in zip(axes, rows, strict=True):
        for i, ax in enumerate(panels):
            values = getattr(curves[i], quantity) if i < len(curves) else None
            if values is None:
                ax.set_axis_off()
                continue
            one = curves[i]
            order = one.q.argsort(dim=1, stable=True)
            for name, line in zip(one.classes, smooth(values.gather(1, order)), strict=True):
                ax.plot(line.numpy(), color=colours[name], linewidth=1, label=name.replace('$', r'\$'))
            ax.margins(x=0.01)
            ax.tick_params(labelsize=8)
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            title = f'stage {one.stage}: {one.place} ({one.kind})'
            ax.set_title(f'{model}\n{title}'.replace('$', r'\$') if quantity == 'z' else '', fontsize=8)
        panels[0].set_ylabel(quantity)
        if quantity == rows[-1][2] and model == rows[-1][0]:
            for ax in panels:
                ax.set_xlabel('channels, by q; smoothed', fontsize=8)
    handles, labels = axes[0][0].get_legend_handles_labels()
    if len(labels) <= 20:
        figure.legend(handles, labels, loc='outside right upper', fontsize=8)
    return figure
