"""The grid pointing game: whether the map of a class stays in the image of that class, and a sanity check of maps."""

import copy
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..predict import classify, preparation
from .cam import class_activation_maps
from .target import as_it_was

_CELLS = 4


@dataclass(frozen=True)
class Mosaic:
    """Four images of different classes that become one, two by two.

    Attributes:
        paths: Image files, by rows.
        classes: Index of the class of each.
    """

    paths: tuple[str, ...]
    classes: tuple[int, ...]


@dataclass(frozen=True)
class PointingGame:
    """How much of the maps lies where it belongs.

    Attributes:
        share: Share of a map's energy inside its own cell: the mean over the maps of a mosaic, and then over the
            mosaics. Chance is 0.25. NaN if no map has any energy.
        std_error: Standard error of the mean, over the mosaics, whose four maps are not independent.
        maps: Number of maps that count.
        empty: Number of maps without energy, which are left out.
        mosaics: The mosaics, with which another model can play the same game.
    """

    share: float
    std_error: float
    maps: int
    empty: int
    mosaics: tuple[Mosaic, ...]


def choose_mosaics(
    model: nn.Module,
    samples: Sequence[tuple[str, int]],
    mosaics: int = 25,
    seed: int = 0,
    batch_size: int = 32,
    on_unreadable: Callable[[str, str], None] | None = None,
) -> list[Mosaic]:
    """Put images together of which a model is certain, and right.

    Only images that the model classifies correctly are taken, of each class those first that it is most confident of,
    as in the paper of the game. The classes of a mosaic are drawn at random. Images are used again once there are no
    others of four classes left.

    Args:
        model: The classifier.
        samples: Path of each image and index of its class.
        mosaics: Number of mosaics.
        seed: Seed of what is drawn.
        batch_size: Images in a batch.
        on_unreadable: As for :func:`~timm_attn.predict.classify`.

    Raises:
        ValueError: If the model is right on images of fewer than four classes.
    """
    true = dict(samples)
    right: dict[int, list[tuple[float, str]]] = defaultdict(list)
    with as_it_was(model):
        for answer in classify(model, list(true), str, 1, batch_size, on_unreadable):
            path, first = answer['image'], answer['classes'][0]
            if first['index'] == true[path]:
                right[true[path]].append((-first['probability'], path))
    if len(right) < _CELLS:
        raise ValueError(
            f'A mosaic needs images of {_CELLS} classes that the model classifies correctly; there are {len(right)}.'
        )
    draw = random.Random(seed)
    unused: dict[int, list[str]] = {}
    chosen = []
    for _ in range(mosaics):
        if len(unused) < _CELLS:
            unused = {index: [path for _, path in sorted(images)] for index, images in sorted(right.items())}
        classes = draw.sample(list(unused), _CELLS)
        chosen.append(Mosaic(tuple(unused[index].pop(0) for index in classes), tuple(classes)))
        unused = {index: paths for index, paths in unused.items() if paths}
    return chosen


def grid_pointing_game(
    model: nn.Module,
    samples: Sequence[tuple[str, int]] = (),
    mosaics: int | Sequence[Mosaic] = 25,
    method: str = 'gradcam',
    seed: int = 0,
    layer: str | None = None,
) -> PointingGame:
    """Play the grid pointing game.

    Four images of different classes, each prepared as the model takes it, become one of twice the size. The map of
    each of the four classes should lie in the cell of that class: its score is the share of its energy that does. A
    map that knows nothing of the class, such as a centred Gaussian, has 0.25 on average.

    Source: Böhle et al., `Convolutional Dynamic Alignment Networks for Interpretable Classifications`
    (arXiv 2104.00032). The images are those of :func:`choose_mosaics`. One difference: maps are not negative and have
    their smallest value at zero, since grad-cam scales them so.

    Args:
        model: A CNN of timm, which takes images of twice its usual size.
        samples: Path of each image and index of its class; not needed if the mosaics are given.
        mosaics: Number of mosaics, or those of another game.
        method: As for :func:`class_activation_maps`.
        seed: Seed of the choice of the mosaics.
        layer: As for :func:`class_activation_maps`.

    Raises:
        ValueError: As :func:`choose_mosaics` and :func:`class_activation_maps` do, or if no map has any energy.
    """
    chosen = choose_mosaics(model, samples, mosaics, seed) if isinstance(mosaics, int) else list(mosaics)
    game = score(chosen, [energy_shares(maps) for maps in mosaic_maps(model, chosen, method, layer)])
    if not game.maps:
        raise ValueError(
            'None of the maps has any energy: nothing speaks for the classes. Try another method or layer.'
        )
    return game


def mosaic_maps(
    model: nn.Module, mosaics: Iterable[Mosaic], method: str = 'gradcam', layer: str | None = None
) -> Iterator[torch.Tensor]:
    """Maps (4, 2H, 2W) of the four classes of each mosaic."""
    if (getattr(model, 'pretrained_cfg', None) or {}).get('fixed_input_size'):
        raise ValueError(f'{type(model).__name__} takes images of one size only, but a mosaic has twice its size.')
    prepare = preparation(model)
    for mosaic in mosaics:
        a, b, c, d = (prepare(path) for path in mosaic.paths)
        image = torch.cat([torch.cat([a, b], dim=2), torch.cat([c, d], dim=2)], dim=1)
        yield class_activation_maps(model, image.expand(_CELLS, -1, -1, -1), mosaic.classes, method, layer)[0]


def score(mosaics: Sequence[Mosaic], shares: Sequence[torch.Tensor]) -> PointingGame:
    """Score a game.

    Args:
        mosaics: The mosaics.
        shares: What :func:`energy_shares` returns for the maps of each.
    """
    table = torch.stack(list(shares))
    each = table.nanmean(dim=1)
    each = each[each.isfinite()]
    error = each.std().item() / len(each) ** 0.5 if len(each) > 1 else float('nan')
    count = int(table.isfinite().sum())
    return PointingGame(each.mean().item(), error, count, table.numel() - count, tuple(mosaics))


def energy_shares(maps: torch.Tensor) -> torch.Tensor:
    """Share of the positive energy of each of four maps (4, 2H, 2W) inside its own cell: (4,); NaN without any."""
    energy = maps.double().clamp(min=0)
    height, width = energy.shape[1] // 2, energy.shape[2] // 2
    cells = energy.unfold(1, height, height).unfold(2, width, width).sum(dim=(3, 4)).flatten(1)  # (4, 4)
    return cells.diagonal() / energy.sum(dim=(1, 2))


def centred_gaussian(height: int, width: int) -> torch.Tensor:
    """A Gaussian (H, W) around the centre of an image, its std a quarter of each side."""
    y, x = ((torch.arange(n, dtype=torch.float64) + 0.5 - n / 2) / (n / 4) for n in (height, width))
    return torch.exp(-(y[:, None].square() + x.square()) / 2)


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Copy of a model with all its weights drawn anew.

    Maps that show what a model has learned must change with its weights: the sanity check of Adebayo et al.
    (arXiv 1810.03292), here of all layers at once.

    Each layer is initialised by its own ``reset_parameters``, as PyTorch builds it, running statistics included. The
    values of all other parameters, and of batch norms that are frozen, are shuffled.

    Args:
        model: The model, which is not changed.
        seed: Seed of the weights.
    """
    other = copy.deepcopy(model)
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == 'cuda'})
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        for module in other.modules():
            reset = getattr(module, 'reset_parameters', None)
            if callable(reset):
                reset()
                continue
            is_frozen_norm = type(module).__name__.startswith('FrozenBatchNorm')  # its weights are buffers
            buffers = module.buffers(recurse=False) if is_frozen_norm else ()
            for p in (*module.parameters(recurse=False), *buffers):
                p.copy_(p.flatten()[torch.randperm(p.numel()).to(p.device)].view_as(p))
    return other


def similarity(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Spearman rank correlation between the values of maps.

    Args:
        a: Maps (B, H, W).
        b: As many others.

    Returns:
        The correlation of each pair (B,), 1 for maps that order all positions in the same way; NaN where one is
        constant.
    """
    from scipy.stats import rankdata

    ranks = [torch.from_numpy(rankdata(maps.flatten(1).cpu().numpy(), axis=1)) for maps in (a, b)]
    x, y = (r - r.mean(dim=1, keepdim=True) for r in ranks)
    return (x * y).sum(dim=1) / (x.square().sum(dim=1) * y.square().sum(dim=1)).sqrt()
