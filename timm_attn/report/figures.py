"""Drawings for a page: their text and axes take the colours of the page, light or dark.

They are as wide as a column on a phone, where their labels stay readable. All need matplotlib.
"""

import importlib.util
from collections.abc import Mapping, Sequence

from .drawing import (
    HEAT,
    MARKERS,
    PAGE,
    QUIET,
    SERIES,
    colour,
    finish,
    label_axes,
    legend,
    log_x_axis,
    name_points,
    name_rows,
    new_axes,
    plain,
    series_style,
    short,
    styled,
    whole_ticks,
)
from .page import Figure

_MOST_NUMBERED, _MOST_NAMED = 12, 20  # classes of a confusion matrix


def has_matplotlib() -> bool:
    """Whether figures can be drawn."""
    return importlib.util.find_spec('matplotlib') is not None


@styled
def intervals(
    rows: Sequence[tuple[str, float, float, float]],
    xlabel: str,
    reference: float | None = None,
    *,
    caption: str = '',
) -> Figure:
    """Values with their intervals, one row each, from the top.

    Args:
        rows: Label, value, and the ends of its interval.
        xlabel: What the values are.
        reference: Where to draw a line to compare with.
        caption: Caption of the figure.
    """
    figure, axes = new_axes(45 + 26 * len(rows))
    for y, (_, value, low, high) in enumerate(rows):
        axes.plot([low, high], [y, y], color=SERIES[0], linewidth=2, solid_capstyle='round')
        axes.plot([low, high], [y, y], '|', color=SERIES[0], markersize=8, markeredgewidth=1.5)
        axes.plot(value, y, 'o', color=SERIES[0], markersize=7, markeredgecolor=PAGE)
    if reference is not None:
        axes.axvline(reference, color=QUIET, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    name_rows(axes, [label for label, *_ in rows])
    label_axes(axes, xlabel)
    said = '; '.join(f'{label} {value:.4g} ({low:.4g} to {high:.4g})' for label, value, low, high in rows)
    return finish(figure, f'{xlabel}: {said}', caption)


@styled
def scatter(
    points: Sequence[tuple[str, float, float, float | None, float | None, str]],
    xlabel: str,
    ylabel: str,
    *,
    log_x: bool = False,
    caption: str = '',
) -> Figure:
    """Points with their names and, if known, intervals.

    Args:
        points: Label, x, y, the ends of the interval of y or None, and the group, which decides colour and marker.
        xlabel: What x is.
        ylabel: What y is.
        log_x: Whether x is logarithmic.
        caption: Caption of the figure.
    """
    figure, axes = new_axes(290)
    groups = list(dict.fromkeys(group for *_, group in points))
    for i, group in enumerate(groups):
        mine = [point for point in points if point[-1] == group]
        for _, x, _, low, high, _ in mine:
            if low is not None and high is not None:
                axes.plot([x, x], [low, high], color=colour(i), linewidth=1.5)
        axes.plot(
            [p[1] for p in mine],
            [p[2] for p in mine],
            MARKERS[i % len(MARKERS)],
            color=colour(i),
            markeredgecolor=PAGE,
            markersize=8,
            label=plain(group),
        )
    if log_x:
        log_x_axis(axes)
    label_axes(axes, xlabel, ylabel)
    axes.margins(x=0.12, y=0.12)
    if len(groups) > 1:
        legend(figure, axes)
    name_points(figure, axes, points)
    said = '; '.join(f'{label} ({x:.4g}, {y:.4g})' for label, x, y, *_ in points)
    return finish(figure, f'{ylabel} over {xlabel}: {said}', caption)


@styled
def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
    *,
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    caption: str = '',
) -> Figure:
    """Curves.

    Args:
        series: Label -> x and y.
        xlabel: What x is.
        ylabel: What y is.
        bands: Label -> lower and upper ends of y, at the same x.
        caption: Caption of the figure.
    """
    figure, axes = new_axes(250)
    for i, (label, (xs, ys)) in enumerate(series.items()):
        if bands and label in bands:
            axes.fill_between(xs, *bands[label], color=colour(i), alpha=0.18, linewidth=0)
        axes.plot(xs, ys, **series_style(i), markevery=max(1, len(xs) // 12), label=plain(label))
    label_axes(axes, xlabel, ylabel)
    whole_ticks(axes, [x for xs, _ in series.values() for x in xs])
    legend(figure, axes)
    said = '; '.join(f'{label} ends at {ys[-1]:.4g}' for label, (_, ys) in series.items() if len(ys))
    return finish(figure, f'{ylabel} over {xlabel}: {said}', caption)


@styled
def confusion(
    matrix: Sequence[Sequence[float]],
    labels: Sequence[str],
    *,
    xlabel: str = 'predicted',
    ylabel: str = 'label',
    caption: str = '',
) -> Figure:
    """How the images of each class, one row each, were classified: colour and, of few classes, percent of the row.

    Args:
        matrix: Counts, one row for each true class.
        labels: Names of the classes.
        xlabel: What the columns are.
        ylabel: What the rows are.
        caption: Caption of the figure.
    """
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    shares = [[count / total if (total := sum(row)) else 0.0 for count in row] for row in matrix]
    n = max(1, len(labels))
    figure, axes = new_axes(360)
    squares: dict[int, list] = {}  # by strength; shapes, whose colours the page can change, not an image
    for y, row in enumerate(shares):
        for x, share in enumerate(row):
            if share >= 0.005:
                corners = [(x - 0.5, y - 0.5), (x + 0.5, y - 0.5), (x + 0.5, y + 0.5), (x - 0.5, y + 0.5)]
                squares.setdefault(round(20 * share**0.7), []).append([*corners, corners[0]])
                if n <= _MOST_NUMBERED:
                    axes.text(x, y, f'{100 * share:.0f}', ha='center', va='center')
    for strength, outlines in squares.items():
        path = Path.make_compound_path(*(Path(outline, closed=True) for outline in outlines))
        axes.add_patch(PathPatch(path, color=HEAT, alpha=0.75 * strength / 20, linewidth=0))  # the text stays readable
    axes.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5), aspect='equal')
    step = -(-n // _MOST_NAMED)  # of many classes, not all have room for their names
    names = [short(label, 14) for label in labels][::step]
    axes.set_xticks(range(0, len(labels), step), names, rotation=90)
    axes.set_yticks(range(0, len(labels), step), names)
    label_axes(axes, xlabel, ylabel)
    axes.grid(False)
    said = '; '.join(f'{label} {100 * shares[i][i]:.0f} % right' for i, label in enumerate(labels))
    return finish(figure, f'Confusion matrix: {said}', caption)


@styled
def reliability(
    models: Mapping[str, Sequence[tuple[float, float, int]]],
    *,
    xlabel: str = 'confidence',
    ylabel: str = 'accuracy',
    caption: str = '',
) -> Figure:
    """Whether models are right as often as they are confident, with the diagonal where both are equal.

    Args:
        models: Label -> bins: mean confidence, accuracy, both from 0 to 1, and the number of images.
        xlabel: What x is.
        ylabel: What y is.
        caption: Caption of the figure.
    """
    figure, axes = new_axes(310)
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    for i, (label, bins) in enumerate(models.items()):
        filled = [b for b in bins if b[2]]
        axes.plot([b[0] for b in filled], [b[1] for b in filled], **series_style(i), label=plain(label))
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect='equal')
    label_axes(axes, xlabel, ylabel)
    legend(figure, axes)
    said = '; '.join(
        f'{label}: ' + ', '.join(f'{accuracy:.2f} at {confidence:.2f}' for confidence, accuracy, count in bins if count)
        for label, bins in models.items()
    )
    return finish(figure, f'{ylabel} at each {xlabel}. {said}', caption)


@styled
def bars(
    labels: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    xlabel: str,
    *,
    caption: str = '',
) -> Figure:
    """Horizontal bars, in groups, such as the accuracy on each class of several models.

    Args:
        labels: Labels of the groups, from the top.
        series: Label -> a value for each group, or None.
        xlabel: What the values are.
        caption: Caption of the figure.
    """
    thick = 0.8 / max(1, len(series))
    figure, axes = new_axes(45 + len(labels) * max(20, 4 + 11 * len(series)))
    for i, (label, values) in enumerate(series.items()):
        kept = [(y - 0.4 + (i + 0.5) * thick, value) for y, value in enumerate(values) if value is not None]
        axes.barh([y for y, _ in kept], [v for _, v in kept], 0.9 * thick, color=colour(i), label=plain(label))
    name_rows(axes, labels)
    label_axes(axes, xlabel)
    if len(series) > 1:
        legend(figure, axes)
    said = '; '.join(
        f'{label}: '
        + ', '.join(f'{name} {value:.4g}' for name, value in zip(labels, values, strict=True) if value is not None)
        for label, values in series.items()
    )
    return finish(figure, f'{xlabel}. {said}', caption)
