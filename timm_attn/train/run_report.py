"""The report of a single run."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..report import Block, Code, Column, Page, Section, Table, Text
from ..timing import machine
from .answers import Answers
from .log import Metric
from .report_blocks import class_blocks, confusion_figures, curves_figures, recipe_table, reliability_figures


def make_page(
    model: str,
    options: Mapping[str, Any],
    rows: Sequence[Mapping[str, float]],
    metric: Metric,
    answers: Answers,
    command: Sequence[str] | None,
    device: Any,
) -> Page:
    """The report of a run of ``timm-attn finetune``.

    Args:
        model: Name of the model.
        options: Options of the run.
        rows: Its log.
        metric: What decided which epoch is the best.
        answers: What the model of that epoch answered for the validation images.
        command: Words of the command, if there was one.
        device: Where it ran.
    """
    best = max(rows, key=lambda row: row[f'eval_{metric.name}'])
    seconds = sum(row['train_time'] + row['eval_time'] for row in rows)
    data = Path(options['data_dir']).name
    each = {model: [answers]}
    columns = [
        *(Column('epoch', 'best epoch'), Column('epochs', 'epochs'), Column('top1', 'top-1', 2, '%')),
        *(Column('loss', 'loss', 3), Column('error', 'expected calibration error', 2, '%')),
        *(Column('images', 'images'), Column('minutes', 'trained for', 1, 'minutes')),
    ]
    row = dict(
        epoch=int(best['epoch']), epochs=len(rows), top1=answers.top1, loss=best['eval_loss'],
        error=answers.calibration_error, images=len(answers.images), minutes=seconds / 60,
    )  # fmt: skip
    note = (
        'The best epoch was chosen on these images, which flatters it a little: measure on others what counts. Epochs '
        'count from 0; the accuracy is that of float32.'
    )
    how: list[Block] = [Code(shlex.join(command))] if command else []
    how += [recipe_table({'model': model, **_shown(options)}, 'Options of the run')]
    sections = [
        Section('Result', [Table(columns, [row], 'On the validation images', sortable=False), Text(note)]),
        Section('Over the epochs', curves_figures({model: [rows]})),
        Section('By class', class_blocks(each)),
        Section('Confusion', confusion_figures(each)),
        Section('Calibration', reliability_figures(each)),
        Section('How it was made', how),
    ]
    where = ', '.join(f'{key} {value}' for key, value in machine(device).items() if value)
    return Page(
        title=f'{model} on {data}',
        lead=f'Top-1 **{answers.top1:.2f} %** on {len(answers.images)} validation images of {len(answers.labels)} '
        f'classes, after epoch {int(best["epoch"])} of {len(rows)}.',
        sections=[section for section in sections if section.blocks],
        footer=f'Made by timm-attn {__version__} on {where}.',
    )


def _shown(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that tell something: neither the names of the classes nor where the run is."""
    hidden = {'model', 'class_names', 'num_classes', 'resume', 'config', 'output', 'experiment', 'data_dir', 'workers'}
    return {key: value for key, value in options.items() if key not in hidden and value not in (None, False, {}, [])}
