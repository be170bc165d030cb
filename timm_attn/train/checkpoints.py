"""The folder of a fine-tuning run: its options, its checkpoints, and what an interruption leaves of them."""

import logging
import math
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import yaml
from timm import utils
from timm.task import resume_task_checkpoint
from timm.utils import CheckpointSaver

from .log import cut_summary
from .options import FinetuneError

_logger = logging.getLogger(__name__)


def find_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, newest first; ``tmp`` may be a complete one that has not been renamed yet."""
    files = sorted(folder.glob('*.pth.tar'), key=lambda file: file.stat().st_mtime, reverse=True)
    return [] if [file.name for file in files] == ['tmp.pth.tar'] else files


def load_newest(folder: Path, task, optimizer, scaler) -> tuple[Path | None, int]:
    """Load the newest complete checkpoint of a run.

    Args:
        folder: Folder of the run.
        task: timm's training task.
        optimizer: Optimizer, whose state is loaded.
        scaler: Loss scaler, whose state is loaded, or None.

    Returns:
        The checkpoint and the number of epochs done; None and 0 if the run was interrupted in its first epoch.

    Raises:
        FinetuneError: If there are checkpoints and none of them can be loaded.
    """
    files = find_checkpoints(folder)
    for file in files:
        try:
            return file, resume_task_checkpoint(task, str(file), optimizer, scaler, log_info=False)
        except Exception as e:  # whatever a file raises that was being written when the run was killed
            problem = f'{file.name} cannot be used: {e}'
            _logger.warning(f'{folder}: {problem}')
    if files:
        raise FinetuneError(f'Cannot resume {folder}: {problem}. Start a new run.')
    return None, 0


def check_folder(folder: Path, tensors: int, copies: int) -> None:
    """Check that a new run can be written to a folder.

    Args:
        folder: Folder of the run.
        tensors: Bytes of the model's tensors.
        copies: How many times these may be written.

    Raises:
        FinetuneError: If it has a run already, or the disk has no space for the checkpoints.
    """
    if find_checkpoints(folder):
        raise FinetuneError(
            f'{folder} has a run already: resume it with --resume {folder}, or name another --experiment.'
        )
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < tensors * copies:
        needed = math.ceil(tensors * copies / 2**20)
        raise FinetuneError(f'{folder} has no space for the checkpoints, which take up to {needed} MiB.')


def write_options(folder: Path, options: dict) -> None:
    """Write ``args.yaml``; a crash leaves the old one complete."""
    part = folder / 'args.part'
    part.write_text(yaml.safe_dump(options, sort_keys=False), encoding='utf-8')
    os.replace(part, folder / 'args.yaml')


def restore_saver(saver: CheckpointSaver, folder: Path, checkpoint: Path | None, start: int) -> None:
    """Bring a saver, the log and the checkpoints to the state after a number of epochs.

    Args:
        saver: Saver of the run.
        folder: Folder of the run.
        checkpoint: Checkpoint that was loaded.
        start: Epochs done.
    """
    rows = cut_summary(folder / 'summary.csv', start)
    if not checkpoint or not start:
        return
    if checkpoint.name == 'tmp.pth.tar':  # complete, but killed before it was renamed
        os.replace(checkpoint, folder / 'last.pth.tar')
    # The run may have ended after its last epoch was logged and before all files of that epoch were written: the saver
    # takes the state of the epoch before, and saves that one again.
    top1 = rows.pop()['eval_top1'] if rows and rows[-1]['epoch'] == start - 1 else 0.0
    if rows:
        best = max(rows, key=lambda row: row['eval_top1'])
        saver.best_metric, saver.best_epoch = best['eval_top1'], int(best['epoch'])
    files = [(str(folder / f'checkpoint-{int(row["epoch"])}.pth.tar'), row['eval_top1']) for row in rows]
    kept = [(file, top1) for file, top1 in files if os.path.exists(file)]
    saver.checkpoint_files = sorted(kept, key=lambda pair: pair[1], reverse=True)
    with saving(folder):
        saver.save_checkpoint(start - 1, metric=top1)


def log_and_save(saver: CheckpointSaver, folder: Path, epoch: int, loss: float, metrics: dict, lr: float) -> None:
    """Append an epoch to ``summary.csv`` and save its checkpoint.

    Args:
        saver: Saver of the run.
        folder: Folder of the run.
        epoch: Epoch, counted from 0.
        loss: Mean training loss.
        metrics: Validation metrics by name; ``top1`` decides which checkpoint is the best.
        lr: Learning rate.
    """
    summary = folder / 'summary.csv'
    with saving(folder):
        utils.update_summary(epoch, dict(loss=loss), metrics, summary, lr, write_header=not summary.exists())
        saver.save_checkpoint(epoch, metric=metrics['top1'])


@contextmanager
def saving(folder: Path):
    """Say what to do where a disk is full, which torch reports as a RuntimeError."""
    try:
        yield
    except (OSError, RuntimeError) as e:
        (folder / 'tmp.pth.tar').unlink(missing_ok=True)
        raise FinetuneError(
            f'Cannot write to {folder}: {e}. What was saved before is complete: free some space, then resume with: '
            f'timm-attn finetune --resume {folder}'
        ) from e
