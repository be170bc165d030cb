"""Plots that know the data they show, so that an old one is noticed."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image


def _digest(data: list[dict]) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


def is_stale(path: Path, data: list[dict]) -> bool:
    """Whether a plot shows other data than these; without data there need be none.

    Args:
        path: The PNG file.
        data: What it should show.
    """
    return bool(data) and (not path.exists() or Image.open(path).info.get('Description') != _digest(data))


def save(path: Path, data: list[dict], draw: Callable) -> None:
    """Draw a plot and write it with a digest of its data.

    Args:
        path: The PNG file to write.
        data: What it shows.
        draw: Gets ``matplotlib.pyplot``, returns the figure.
    """
    import matplotlib as mpl

    mpl.use('agg')
    import matplotlib.pyplot as plt

    figure = draw(plt)
    figure.savefig(path, dpi=110, metadata={'Description': _digest(data), 'Software': None})
    plt.close(figure)
