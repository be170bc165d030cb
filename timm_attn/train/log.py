"""The log of a training run, ``summary.csv`` as timm writes it: read it, cut it, draw it.

Epochs count from 0, as everywhere in timm.
"""

import csv
import os
from pathlib import Path

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


def cut_summary(path: Path, epochs: int) -> list[dict[str, float]]:
    """Remove the rows after a number of epochs, which a resumed run repeats.

    The file gets today's columns; earlier versions did not log the time.

    Args:
        path: The ``summary.csv``.
        epochs: Epochs to keep.

    Returns:
        The rows kept.
    """
    rows = [row for row in read_summary(path) if row['epoch'] < epochs]
    if not rows:
        path.unlink(missing_ok=True)
        return rows
    part = path.with_suffix('.part')
    with part.open('w', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS, restval='nan', extrasaction='ignore')
        writer.writeheader()
        writer.writerows({**row, 'epoch': int(row['epoch'])} for row in rows)
    os.replace(part, path)
    return rows


def draw_curves(rows: list[dict[str, float]], path: Path, title: str) -> bool:
    """Draw loss and accuracy over the epochs.

    Args:
        rows: Rows of the log.
        path: PNG file to write.
        title: Title of the figure.

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
    loss, accuracy = figure.subplots(1, 2)
    loss.plot(epochs, [row['train_loss'] for row in rows], marker='.', label='training')
    loss.plot(epochs, [row['eval_loss'] for row in rows], marker='.', label='validation')
    loss.set(xlabel='epoch', ylabel='loss')
    loss.legend()
    accuracy.plot(epochs, [row['eval_top1'] for row in rows], marker='.')
    best = max(rows, key=lambda row: row['eval_top1'])
    accuracy.plot(best['epoch'], best['eval_top1'], 'o', label=f'best: {best["eval_top1"]:.2f} %')
    accuracy.set(xlabel='epoch', ylabel='validation top-1 (%)')
    accuracy.legend()
    for axis in (loss, accuracy):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    return True
