"""The images of a training run: read, checked, described, and compared with those that it began with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..printable import printable
from ..train.checkpoints import saving, write_text
from ..train.options import RunError
from ..train.split import Split
from .data import Annotations, Defect, check_pair
from .data.open import DefectsError, limit, names
from .data.records import count_by_kind
from .tasks import Task

_MOST_NAMES = 16  # of classes in a line


@dataclass
class Data:
    """Images of a run.

    Attributes:
        train: Images to train on; None where nothing is trained.
        val: Images to validate on.
        defects: What was left out.
        split: Names of the images.
    """

    train: Annotations | None
    val: Annotations
    defects: list[Defect]
    split: Split

    @property
    def file_names(self) -> dict[int, str]:
        """Name of each image to validate on by its id."""
        return {record.image_id: name for record, name in zip(self.val.records, self.split.val, strict=True)}


def open_data(task: Task, folder: Path) -> Data:
    """Read and check the images, and write down their defects."""
    args = task.args
    train, val = task.open()
    if args.limit:
        train, val = train and limit(train, args.limit), limit(val, args.limit)
    try:
        train, val, defects = check_pair(train, val, args.check, args.skip_invalid)
    except DefectsError as e:
        if e.has_more:
            with saving(folder):
                folder.mkdir(parents=True, exist_ok=True)
                e.file = write_defects(folder, e.defects)
        raise
    return Data(train, val, defects, Split(names(train) if train else [], names(val)))


def write_defects(folder: Path, defects: Any) -> Path:
    """Write all defects of a data set to ``defects.txt``."""
    path = folder / 'defects.txt'
    write_text(path, ''.join(f'{defect}\n' for defect in defects))
    return path


def describe_data(task: Task, data: Data) -> str:
    """The images in a line, and in a second one what was left out."""
    classes = data.val.classes
    shown = ', '.join(printable(name) for name in classes[:_MOST_NAMES])
    parts = dict(train=data.train, validate=data.val)
    counts = [f'to {use}: {len(part.records)}{task.describe_objects(part)}' for use, part in parts.items() if part]
    left_out = f'\nleft out, see defects.txt: {count_by_kind(data.defects)}' if data.defects else ''
    return (
        f'{printable(data.val.source)}: {len(classes)} classes ({shown}{", ..." * (len(classes) > _MOST_NAMES)}); '
        f'images {", ".join(counts)}{left_out}'
    )


def check_unchanged(task: Task, classes: list[str], data: Data, folder: Path) -> None:
    """Check that the data are still those of a run that is resumed."""
    if classes != list(data.val.classes):
        raise RunError(
            f'The run in {folder} has the classes {", ".join(classes[:_MOST_NAMES])}; the data now have '
            f'{", ".join(data.val.classes[:_MOST_NAMES])}. Restore them, or start a new run.'
        )
    before = Split.read(folder)
    if before:
        source = task.args.data_dir or data.val.source
        before.check(data.split, folder, source, f'--initial-checkpoint {folder}')
