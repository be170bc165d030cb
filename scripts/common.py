"""What the maintainers' scripts share: paths in the repository, atomic writes, plots that know their data."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
CARDS = ROOT / 'model_cards'
DATA = CARDS / 'data'  # figures, logs and measurements that scripts write
LOGS = DATA / 'logs'
RECIPES = Path('timm_attn/train/recipes')  # from the root of the repository


def write_text(path: Path, text: str) -> None:
    """Write a text file; a crash leaves the old one complete."""
    part = path.with_name(f'{path.name}.part')
    part.write_text(text, encoding='utf-8')
    os.replace(part, path)


def _digest(data: list[dict]) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


def plot_is_stale(path: Path, data: list[dict]) -> bool:
    """Whether a plot shows other data than these; without data there need not be one.

    Args:
        path: The PNG file.
        data: What it should show.
    """
    return bool(data) and (not path.exists() or Image.open(path).info.get('Description') != _digest(data))


def save_plot(path: Path, data: list[dict], draw: Callable) -> None:
    """Draw a plot and write it with a digest of its data.

    Args:
        path: The PNG file to write.
        data: What it shows.
        draw: Takes ``matplotlib.pyplot`` and returns the figure.
    """
    import matplotlib as mpl

    mpl.use('agg')
    import matplotlib.pyplot as plt

    figure = draw(plt)
    figure.savefig(path, dpi=110, metadata={'Description': _digest(data), 'Software': None})
    plt.close(figure)
