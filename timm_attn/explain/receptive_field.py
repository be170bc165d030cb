"""Effective receptive fields: which part of an image the centre of a map depends on."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from .target import as_input, as_it_was, check_map, target_layer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARES = (0.5, 0.9, 0.99)
_COLOURS = ('cyan', 'deepskyblue', 'white')


def receptive_field(model: nn.Module, batches: Iterable[torch.Tensor], layer: str | None = None) -> torch.Tensor:
    """Measure the effective receptive field of the centre of a map.

    It is the mean over the images of the absolute gradient of the sum of all channels at the map's centre, summed over
    the channels of the image. The model is left as it was.

    Source: Luo et al. (arXiv 1701.04128). RepLKNet (arXiv 2203.06717) and SCSA (arXiv 2407.05128) measure it in this
    way, up to a detail: RepLKNet takes the positive part of the map and of the gradient, where this takes the map as
    it is and the absolute gradient.

    Args:
        model: A CNN of timm.
        batches: Images as the model takes them, (B, 3, H, W) each.
        layer: Dotted name of the layer; by default the last level of ``model.feature_info``.

    Returns:
        The field (H, W), on the CPU, in float64.

    Raises:
        ValueError: If there is no such layer, its output is no map, or there are no images.
    """
    name, module = target_layer(model, layer)
    outputs: list[torch.Tensor] = []

    def keep(module, args, output):
        check_map(output, name, model)
        outputs.append(output[:, :, output.shape[2] // 2, output.shape[3] // 2].sum())

    total, count = torch.zeros(()), 0
    with torch.inference_mode(False), torch.enable_grad(), as_it_was(model):
        handle = module.register_forward_hook(keep)
        try:
            for images in batches:
                outputs.clear()
                x = as_input(model, images)
                model(x)
                if not outputs:
                    raise ValueError(f'The layer {name} does not run for an image: name another one.')
                (gradient,) = torch.autograd.grad(outputs[-1], x)
                total = total + gradient.double().abs().sum(dim=(0, 1)).cpu()
                count += len(images)
        finally:
            handle.remove()
    if not count:
        raise ValueError('There are no images to measure the receptive field with.')
    if not total.isfinite().all() or not total.any():
        raise ValueError(f'The centre of {name} does not depend on the image, or its gradient is no number.')
    return total / count


def centred_squares(field: torch.Tensor, shares: Sequence[float] = SHARES) -> list[tuple[float, int, float]]:
    """Smallest squares around the middle of a field that hold some shares of it.

    The middle is the pixel with half of the field on either side. It need not be that of the image: the central
    position of a ResNet's 7 x 7 map looks at pixel 96 of 224. The squares have odd sides, as in the analysis of
    RepLKNet (arXiv 2203.06717), which takes the logarithm of the field first. What they have beyond the image is cut
    off.

    Args:
        field: The field (H, W), not negative.
        shares: Shares of its sum.

    Returns:
        For each share itself, the side of the square in pixels, and the share of the area of the image that it covers.
    """
    height, width = field.shape
    total, middle = field.sum(), _middle(field)
    found = []
    for share in shares:
        for radius in range(max(height, width)):
            inside = _square(field, middle, radius)
            if inside.sum() >= share * total or inside.numel() == field.numel():
                break
        found.append((share, min(2 * radius + 1, max(height, width)), inside.numel() / field.numel()))
    return found


def _middle(field: torch.Tensor) -> tuple[int, int]:
    """Row and column that have half of a field on either side; unlike its mean, they ignore what is far away."""
    y, x = (int((sums.cumsum(0) >= sums.sum() / 2).nonzero()[0]) for sums in (field.sum(1), field.sum(0)))
    return y, x


def _square(field: torch.Tensor, middle: tuple[int, int], radius: int) -> torch.Tensor:
    y, x = middle
    return field[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]


def plot_fields(fields: Sequence[tuple[str, torch.Tensor]]) -> 'Figure':
    """Draw fields side by side, with the squares of :func:`centred_squares`.

    Args:
        fields: Name and field of each model.

    Returns:
        A figure of matplotlib, which needs no display. The colours show the fourth root of the field, since most of it
        is far below its maximum.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(3.2 * len(fields) + 0.8, 4.1), layout='constrained')
    axes = figure.subplots(1, len(fields), squeeze=False)[0]
    for ax, (name, field) in zip(axes, fields, strict=True):
        image = ax.imshow((field / field.max()).pow(0.25).numpy(), cmap='magma', vmin=0, vmax=1)
        lines = []
        y, x = _middle(field)
        for (share, side, area), colour in zip(centred_squares(field), _COLOURS, strict=True):
            corner = (x - side / 2, y - side / 2)
            ax.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=colour, linewidth=1, linestyle='--'))
            lines.append(f'{100 * share:g} %: {side} px, {100 * area:.1f} % of the area')
        ax.set(xlim=(-0.5, field.shape[1] - 0.5), ylim=(field.shape[0] - 0.5, -0.5))
        ax.set_title(name.replace('$', r'\$'), fontsize=9)
        ax.set_xlabel('\n'.join(lines), fontsize=8)
        ax.tick_params(labelsize=7)
    figure.colorbar(image, ax=list(axes), shrink=0.7, label='(gradient / its maximum) ** 0.25')
    return figure
