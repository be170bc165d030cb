"""The log of a training run, ``summary.csv`` as timm writes it: read it, cut it, draw it.

Epochs count from 0, as everywhere in timm.
"""

import csv
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Metric:
    """The number that decides which epoch is the best; the larger the better.

    Attributes:
        name: Its name in the log, after ``eval_``.
        label: Its name for people.
        unit: What follows its value; the value is shown as it is.
        digits: Decimals to show.
    """

    name: str
    label: str
    unit: str = ''
    digits: int = 4

    def show(self, value: float) -> str:
        """A value with its unit."""
        return f'{value:.{self.digits}f}{self.unit}'


TOP1 = Metric('top1', 'top-1', ' %', 2)

COLUMNS = ('epoch', 'train_loss', 'train_time', 'eval_loss', 'eval_top1', 'eval_top5', 'eval_time', 'lr')
"""Columns of the log of a fine-tuning run; the times are seconds, the learning rate is that of the last step."""


def read_summary(path: Path) -> list[dict[str, float]]:
    """Rows of a log, one for each epoch; none where there is no log yet.

    Where timm's train.py was resumed, it wrote the header again, and possibly an epoch: the later row counts. A row
    that was cut off does not.

    Args:
        path: The ``summary.csv``.
    """
    if not path.exists():
        return []
    with path.open(newline='') as file:
        table = csv.DictReader(file)
        if 'epoch' not in (table.fieldnames or ['epoch']):
            raise ValueError(f'{path} is not the log of a training run: it has no column epoch.')
        rows = [row for row in table if row['epoch'] != 'epoch' and None not in row.values()]
    by_epoch = {row['epoch']: {key: float(value) for key, value in row.items()} for row in rows}
    return sorted(by_epoch.values(), key=lambda row: row['epoch'])


def cut_summary(path: Path, epochs: int, columns: Sequence[str] | None = None) -> list[dict[str, float]]:
    """Remove the rows after a number of epochs, which a resumed run repeats.

    Args:
        path: The ``summary.csv``.
        epochs: Epochs to keep.
        columns: Columns that the file gets, where earlier versions had others; its own if None.

    Returns:
        The rows kept.
    """
    rows = [row for row in read_summary(path) if row['epoch'] < epochs]
    if not rows:
        path.unlink(missing_ok=True)
        return rows
    part = path.with_suffix('.part')
    with part.open('w', newline='') as file:
        writer = csv.DictWriter(file, columns or list(rows[0]), restval='nan', extrasaction='ignore')
        writer.writeheader()
        writer.writerows({**row, 'epoch': int(row['epoch'])} for row in rows)
    os.replace(part, path)
    return rows


def draw_curves(rows: list[dict[str, float]], path: Path, title: str, metric: Metric = TOP1) -> bool:
    """Draw the losses and the metric over the epochs.

    Args:
        rows: Rows of the log.
        path: PNG file to write.
        title: Title of the figure.
        metric: What decides which epoch is the best.

    Returns:
        Whether it could be drawn, which needs matplotlib.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return False
    epochs = [row['epoch'] for row in rows]
    figure = Figure(figsize=(9, 3.5), layout='constrained')
    loss, result = figure.subplots(1, 2)
    for column, label in (('train_loss', 'training'), ('eval_loss', 'validation')):
        if column in rows[0]:
            loss.plot(epochs, [row[column] for row in rows], marker='.', label=label)
    loss.set(xlabel='epoch', ylabel='loss')
    loss.legend()
    values = [row[f'eval_{metric.name}'] for row in rows]
    result.plot(epochs, values, marker='.')
    best = max(range(len(rows)), key=lambda i: -math.inf if math.isnan(values[i]) else values[i])
    result.plot(epochs[best], values[best], 'o', label=f'best: {metric.show(values[best])}')
    unit = f' ({metric.unit.strip()})' if metric.unit else ''
    result.set(xlabel='epoch', ylabel=f'validation {metric.label}{unit}')
    result.legend()
    for axis in (loss, result):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    return True
