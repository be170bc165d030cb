"""Parts that the reports of a comparison and of a single run share."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..report import Block, Column, Table
from ..report.figures import bars, confusion, has_matplotlib, lines, reliability
from .answers import Answers, mean_per_class

_MOST_CLASSES = 30
"""Classes that are drawn; of more, the table alone tells."""


def curves_figures(logs: Mapping[str, Sequence[Sequence[Mapping[str, float]]]]) -> list[Block]:
    """Accuracy and training loss over the epochs.

    Args:
        logs: Name -> the logs of its runs, whose mean is drawn.
    """
    if not has_matplotlib():
        return []
    figures: list[Block] = []
    for column, label in (('eval_top1', 'top-1 (%)'), ('train_loss', 'training loss')):
        series = {}
        for name, runs in logs.items():
            full = [rows for rows in runs if rows]
            epochs = min((len(rows) for rows in full), default=0)
            means = [statistics.fmean(rows[i][column] for rows in full) for i in range(epochs)]
            if means:
                series[name] = ([float(i) for i in range(epochs)], means)
        if series:
            figures.append(lines(series, 'epoch', label))
    return figures


def class_blocks(answers: Mapping[str, Sequence[Answers]]) -> list[Block]:
    """Accuracy by class: a drawing where there are few, and a table.

    Args:
        answers: Name of a network -> the answers of its runs, whose mean counts.
    """
    shares = {name: mean_per_class(runs) for name, runs in answers.items()}
    classes = list(next(iter(shares.values())))
    counts = _images_per_class(next(iter(answers.values()))[0])
    columns = [
        Column('class', 'class'),
        Column('images', 'images', help='Test images of the class.'),
        *(Column(f'top1 {i}', name, 2, '%') for i, name in enumerate(shares)),
    ]
    rows: list[dict[str, Any]] = [
        {'class': name, 'images': counts[name], **{f'top1 {i}': one[name] for i, one in enumerate(shares.values())}}
        for name in classes
    ]
    table = Table(columns, rows, 'Accuracy by class', filters=('class',) if len(rows) > 15 else ())
    if not has_matplotlib() or len(classes) > _MOST_CLASSES:
        return [table]
    series = {name: [one[c] for c in classes] for name, one in shares.items()}
    return [bars(classes, series, 'right answers (%)'), table]


def confusion_figures(answers: Mapping[str, Sequence[Answers]]) -> list[Block]:
    """Confusion matrix of each network, summed over its runs.

    Args:
        answers: Name of a network -> the answers of its runs.
    """
    figures: list[Block] = []
    for name, runs in answers.items():
        counts = torch.stack([one.confusion for one in runs]).sum(0)
        kept = [i for i, row in enumerate((counts + counts.T).sum(1).tolist()) if row]
        if not has_matplotlib() or len(kept) > _MOST_CLASSES:
            continue
        matrix = counts[kept][:, kept].tolist()
        caption = f'{name}, {len(runs)} run{"s" * (len(runs) > 1)}'
        labels = [runs[0].labels[i] for i in kept]
        figures.append(confusion(matrix, labels, caption=caption))
    return figures


def reliability_figures(answers: Mapping[str, Sequence[Answers]]) -> list[Block]:
    """How often answers of a confidence are right, over all runs of each network.

    Args:
        answers: Name of a network -> the answers of its runs.
    """
    if not has_matplotlib():
        return []
    models = {name: _joined(runs).reliability for name, runs in answers.items()}
    return [reliability(models)]


def _joined(runs: Sequence[Answers]) -> Answers:
    """The answers of several runs as those of one."""
    parts = ('images', 'true', 'predicted', 'confidence')
    return Answers(runs[0].labels, *([value for one in runs for value in getattr(one, part)] for part in parts))


def _images_per_class(answers: Answers) -> dict[str, int]:
    return {answers.labels[i]: int(n) for i, n in enumerate(answers.confusion.sum(1).tolist()) if n}


def recipe_table(recipe: Mapping[str, Any], caption: str) -> Table:
    """Options of a run and their values.

    Args:
        recipe: The options.
        caption: What they are.
    """
    rows = [
        {'option': f'--{name.replace("_", "-")}', 'value': _shown(value)}
        for name, value in recipe.items()
        if value is not None
    ]
    return Table([Column('option', 'option'), Column('value', 'value')], rows, caption, sortable=False)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ' '.join(f'{key}={one}' for key, one in value.items()) or 'none'
    return ' '.join(map(str, value)) if isinstance(value, list | tuple) else str(value)
