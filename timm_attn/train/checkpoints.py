"""The folder of a training run: its options, its checkpoints, and what an interruption leaves of them."""

import errno
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml
from safetensors import SafetensorError
from timm.utils import CheckpointSaver

from .log import cut_summary
from .options import RunError

_logger = logging.getLogger(__name__)

_LAST = 'last.pth.tar'


def find_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, newest first; ``tmp`` may be a complete one that has not been renamed yet.

    Names of one file, as the newest has several, begin with ``last``.
    """
    files = sorted(folder.glob('*.pth.tar'), key=lambda file: (file.stat().st_mtime, file.name == _LAST), reverse=True)
    return [] if [file.name for file in files] == ['tmp.pth.tar'] else files


def load_newest(folder: Path, load: Callable[[str], int]) -> tuple[Path | None, int]:
    """Load the newest complete checkpoint of a run.

    Args:
        folder: Folder of the run.
        load: Loads the checkpoint in a file, and returns the number of epochs done.

    Returns:
        The checkpoint and the number of epochs done; None and 0 if the run was interrupted in its first epoch.

    Raises:
        RunError: If there are checkpoints and none of them can be loaded.
    """
    files = find_checkpoints(folder)
    for file in files:
        try:
            return file, load(str(file))
        except Exception as e:  # whatever a file raises that was being written when the run was killed
            problem = f'{file.name} cannot be used: {e}'
            _logger.warning(f'{folder}: {problem}')
    if files:
        raise RunError(f'Cannot resume {folder}: {problem}. Start a new run.')
    return None, 0


def check_new(folder: Path) -> None:
    """Check that a folder has no run yet, whose checkpoints a new one would replace."""
    if find_checkpoints(folder):
        raise RunError(f'{folder} has a run already: resume it with --resume {folder}, or name another --experiment.')


def check_space(folder: Path, tensors: int, copies: int) -> None:
    """Check that a folder has space for the checkpoints of a new run.

    Args:
        folder: Folder of the run.
        tensors: Bytes of the model's tensors.
        copies: How many times these may be written.

    Raises:
        RunError: If the disk has not.
    """
    if shutil.disk_usage(folder).free < tensors * copies:
        needed = math.ceil(tensors * copies / 2**20)
        raise RunError(f'{folder} has no space for the checkpoints, which take up to {needed} MiB.')


def write_options(folder: Path, options: dict) -> None:
    """Write ``args.yaml``."""
    write_text(folder / 'args.yaml', yaml.safe_dump(options, sort_keys=False))


def write_text(path: Path, text: str) -> None:
    """Write a file; a crash leaves the old one complete."""
    part = path.with_suffix('.part')
    part.write_text(text, encoding='utf-8')
    os.replace(part, path)


def restore_saver(
    saver: CheckpointSaver,
    folder: Path,
    checkpoint: Path | None,
    start: int,
    column: str,
    columns: Sequence[str] | None = None,
) -> None:
    """Bring a saver, the log and the checkpoints to the state after a number of epochs.

    Args:
        saver: Saver of the run.
        folder: Folder of the run.
        checkpoint: Checkpoint that was loaded.
        start: Epochs done.
        column: Column of the log that tells the best epoch.
        columns: All columns of the log; those of the file if None.
    """
    rows = cut_summary(folder / 'summary.csv', start, columns)
    if not checkpoint or not start:
        return
    if checkpoint.name == 'tmp.pth.tar':  # complete, but killed before it was renamed
        os.replace(checkpoint, folder / _LAST)
    # The run may have ended after its last epoch was logged and before all files of that epoch were written: the saver
    # takes the state of the epoch before, and saves that one again.
    metric = rows.pop()[column] if rows and rows[-1]['epoch'] == start - 1 else 0.0
    if rows:
        best = max(rows, key=lambda row: row[column])
        saver.best_metric, saver.best_epoch = best[column], int(best['epoch'])
    files = [(str(folder / f'checkpoint-{int(row["epoch"])}.pth.tar'), row[column]) for row in rows]
    kept = [(file, value) for file, value in files if os.path.exists(file)]
    saver.checkpoint_files = sorted(kept, key=lambda pair: pair[1], reverse=True)
    save_checkpoint(saver, folder, start - 1, metric)


def save_checkpoint(saver: CheckpointSaver, folder: Path, epoch: int, metric: float) -> None:
    """Save a checkpoint; what could not be written to its end is removed, since its space is needed."""
    with saving(folder):
        try:
            saver.save_checkpoint(epoch, metric=metric)
        except BaseException:
            with suppress(OSError):
                (folder / 'tmp.pth.tar').unlink(missing_ok=True)
            raise


@contextmanager
def saving(folder: Path):
    """Say what to do where a file cannot be written, which torch and safetensors report as errors of their own."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as e:
        if isinstance(e, RunError):
            raise
        raise RunError(f'Cannot write to {folder}: {_advice(e, folder)}') from e


_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, 'EDQUOT', errno.ENOSPC)}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_WRITERS = re.compile('PytorchStreamWriter|inline_container|iostream error|os error (27|28|122)')
"""torch's writer and that of safetensors, which hide the number of the error: they fail where there is no space."""


def _advice(error: Exception, folder: Path) -> str:
    """What happened to a folder, and the next step."""
    command = f'--resume {folder}'
    reason = str(error).splitlines()[0]
    code = getattr(error, 'errno', None)
    if not folder.exists() and isinstance(error, FileNotFoundError | RuntimeError):
        return f'it was deleted or renamed. Start a new run, or give it back its name and resume with {command}'
    if code in _FORBIDDEN or (not code and folder.exists() and not os.access(folder, os.W_OK)):
        return f'no permission ({reason}). Allow it, or name another --output.'
    if code in _FULL or _WRITERS.search(str(error)):
        problem, step = f'no space ({reason})', 'free some space, then '
    else:
        problem, step = reason, ''
    if not os.path.isfile(folder / 'args.yaml'):
        return f'{problem}. Nothing was saved: {step}start again, or name another --output.'
    return f'{problem}. What was saved before is complete: {step}resume with {command}'
