"""Which images a run trains on and which it validates on: the draw, and the record that a resumed run is held to."""

import hashlib
import json
import random
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from .options import RunError

Draw = Callable[[list[str], float], set[str]]
"""Names ``class/file`` in their order, and the share to hold out -> the names that are held out."""


def hold_out(names: list[str], fraction: float) -> set[str]:
    """Draw images for validation from every class, the same ones on every machine.

    The order of the draw is that of a hash of each name, so that one more file moves no other one, except at most one
    to keep the share.
    """

    def order(name: str) -> bytes:
        return hashlib.sha256(unicodedata.normalize('NFC', name).encode('utf-8', 'surrogateescape')).digest()

    return {name for of_class in _by_class(names) for name in _share(sorted(of_class, key=order), fraction)}


def hold_out_of_earlier_versions(names: list[str], fraction: float) -> set[str]:
    """The draw of runs that recorded no split: it depends on the list of all files."""
    held_out: set[str] = set()
    for of_class in _by_class(names):
        random.Random(0).shuffle(of_class)
        held_out.update(_share(of_class, fraction))
    return held_out


def _by_class(names: list[str]) -> Iterable[list[str]]:
    by_class = defaultdict(list)
    for name in names:
        by_class[name.partition('/')[0]].append(name)
    return by_class.values()


def _share(names: list[str], fraction: float) -> list[str]:
    """The first of the names: at least one, and not all."""
    return names[: min(max(1, round(fraction * len(names))), len(names) - 1)]


@dataclass
class Split:
    """Images of a run, by name in the folder of its data.

    Attributes:
        train: Images to train on.
        val: Images to validate on.
    """

    train: list[str]
    val: list[str]

    def as_text(self) -> str:
        """Content of the file ``split.json``."""
        return json.dumps(asdict(self), indent=0)

    @classmethod
    def read(cls, folder: Path) -> 'Split | None':
        """Split of the run in a folder; None if its version recorded none.

        Raises:
            RunError: If the file is damaged.
        """
        path = folder / 'split.json'
        if not path.exists():
            return None
        try:
            split = cls(**json.loads(path.read_text(encoding='utf-8')))
            if all(isinstance(name, str) for name in [*split.train, *split.val]):
                return split
            problem = 'it holds more than names'
        except (OSError, ValueError, TypeError) as e:
            problem = str(e)
        raise RunError(f'Cannot read {path}, the images of the run: {problem}. Start a new run.')

    def draw(self, names: list[str], fraction: float) -> set[str]:
        """Hold out the images of this split again."""
        return {'/'.join(name.split('/')[-2:]) for name in self.val}

    def check(self, now: 'Split', folder: Path, data_dir: str, otherwise: str) -> None:
        """Check that a folder of data still has the images of a run.

        Args:
            now: Its images.
            folder: Folder of the run.
            data_dir: The folder of data.
            otherwise: What else the user can do.

        Raises:
            RunError: If images appeared or are gone; the message names the first of them.
        """
        before, after = {*self.train, *self.val}, {*now.train, *now.val}
        changes = [
            f'{len(names)} {what} ({", ".join(sorted(names)[:3])}{", ..." if len(names) > 3 else ""})'
            for names, what in ((after - before, 'new'), (before - after, 'gone'))
            if names
        ]
        if changes:
            raise RunError(
                f'{data_dir} has other images than when the run in {folder} began: {" and ".join(changes)}. Restore '
                f'them to resume, or {otherwise}.'
            )
