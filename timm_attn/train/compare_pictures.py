"""The images on which the networks of a comparison disagree, with their class activation maps."""

import io
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from ..explain.sheet import MOST_ROWS, draw_sheet, explain
from ..report import Block, Column, Picture, Table, Text
from .compare_results import Network, Results


def disagreements(results: Results, most: int) -> list[str]:
    """Names of test images that one network of its first seed gets right and another one gets wrong.

    Those that divide the reference from the others come first; which ones is drawn, the same ones each time.

    Args:
        results: The results.
        most: Most images to return.
    """
    first = [next(iter(network.answers.values())) for network in results.finished]
    common = set.intersection(*(set(answers.images) for answers in first))
    right = [dict(zip(answers.images, answers.right, strict=True)) for answers in first]
    divided = [name for name in sorted(common) if len({one[name] for one in right}) > 1]
    random.Random(0).shuffle(divided)
    apart = [name for name in divided if len({one[name] for one in right[1:]}) == 1]
    # as many that the reference gets right as that it gets wrong, as far as there are
    sides = [[name for name in apart if right[0][name] is side] for side in (True, False)]
    order = [name for pair in zip(*sides, strict=False) for name in pair]
    order += [name for name in (*apart, *divided) if name not in order]
    return list(dict.fromkeys(order))[:most]


def show_disagreements(
    results: Results, load: Callable[[Network], nn.Module], root: Path, most: int
) -> tuple[list[Block], dict[str, str]]:
    """Show the images on which the networks disagree.

    Args:
        results: The results.
        load: Loads a network, of its first seed.
        root: Folder of the test images.
        most: Most images to show.

    Returns:
        What the report shows, nothing if there are no such images; and the networks without maps: why they have none.
    """
    names = disagreements(results, most) if most and len(results.finished) > 1 else []
    if not names:
        return [], {}
    columns, without = {}, {}
    for network in results.finished:
        try:
            paths = [str(root / name) for name in names]
            columns[network.label] = [explanation for _, explanation in explain(load(network), paths)]
        except Exception as e:  # a transformer has no maps; the report must not be lost for it
            without[network.label] = str(e)
    text = 'Test images that one network gets right and another one wrong, in their first seed.'
    if not columns:
        return [Text(text), _table(results, names)], without
    rows = list(zip(names, zip(*columns.values(), strict=True), strict=True))
    pictures = []
    for start in range(0, len(rows), MOST_ROWS):
        file = io.BytesIO()
        draw_sheet(list(columns), rows[start : start + MOST_ROWS], file)
        alt = f'Grad-CAM of {", ".join(columns)} for the images in the table'
        pictures.append(Picture(file.getvalue(), alt))
    text += ' The Grad-CAM is that of the predicted class: red is where the network found evidence for it.'
    return [Text(text), *pictures, _table(results, names)], without


def _table(results: Results, names: Sequence[str]) -> Table:
    """What the networks answered, in words."""
    first = [next(iter(network.answers.values())) for network in results.finished]
    columns = [Column('image', 'image'), Column('true', 'class')]
    columns += [Column(f'answer {i}', network.label) for i, network in enumerate(results.finished)]
    rows = []
    for name in names:
        row = dict(image=name)
        for i, answers in enumerate(first):
            at = answers.images.index(name)
            row['true'] = answers.labels[answers.true[at]]
            row[f'answer {i}'] = f'{answers.labels[answers.predicted[at]]}, {100 * answers.confidence[at]:.0f} %'
        rows.append(row)
    return Table(columns, rows, 'Images on which the networks disagree, with their answers')
