"""The images on which the networks of a comparison disagree, with their class activation maps."""

import io
import random
from collections.abc import Callable
from pathlib import Path

from torch import nn

from ..explain.sheet import draw_sheet, explain
from ..report import Picture
from .compare_results import Results


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


def draw_disagreements(
    results: Results, load: Callable[[str], nn.Module], root: Path, most: int
) -> tuple[list[Picture], dict[str, str]]:
    """Draw the images on which the networks disagree.

    Args:
        results: The results.
        load: Loads the network with a label, of its first seed.
        root: Folder of the test images.
        most: Most images to draw.

    Returns:
        The picture, if there is one, and the networks without maps: why they have none.
    """
    names = disagreements(results, most) if most and len(results.finished) > 1 else []
    paths = [str(root / name) for name in names]
    columns, without = {}, {}
    for network in results.finished if names else ():
        try:
            columns[network.label] = [explanation for _, explanation in explain(load(network.label), paths)]
        except Exception as e:  # a transformer has no maps; the report must not be lost for it
            without[network.label] = str(e)
    if not columns:
        return [], without
    file = io.BytesIO()
    draw_sheet(list(columns), list(zip(names, zip(*columns.values(), strict=True), strict=True)), file)
    alt = f'Images on which the networks disagree, each with the Grad-CAM of {", ".join(columns)}'
    return [Picture(file.getvalue(), alt)], without
