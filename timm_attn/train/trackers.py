"""Where a run logs besides its ``summary.csv``: TensorBoard and Weights & Biases."""

import argparse
from contextlib import ExitStack
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .options import RunError


def check_trackers(args: argparse.Namespace) -> None:
    """Check, before any work, that the packages for the trackers that are asked for are installed.

    Raises:
        RunError: If one is missing.
    """
    for package in ('tensorboard', 'wandb'):
        if getattr(args, f'log_{package}') and not find_spec(package):
            raise RunError(f'--log-{package} needs the package {package}: pip install {package}')


def open_tensorboard(folder: Path, start: int) -> Any:
    """Writer of TensorBoard's files in the folder of a run; what a killed run wrote after an epoch is hidden."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / 'tensorboard'), purge_step=start)


def open_wandb(folder: Path, options: dict, stack: ExitStack) -> None:
    """Begin a run of Weights & Biases, or continue the one of a resumed run.

    Args:
        folder: Folder of the run.
        options: Its options, which get the identifier ``wandb_resume_id``.
        stack: What ends the run of Weights & Biases.

    Raises:
        RunError: If there is no connection or no account.
    """
    wandb: Any = import_module('wandb')
    resumed = options.get('wandb_resume_id')
    try:
        run = wandb.init(
            project=options['wandb_project'], name=folder.name, dir=str(folder), config=options, id=resumed,
            resume='allow' if resumed else None,
        )  # fmt: skip
    except Exception as e:  # wandb has many, of no common base
        raise RunError(
            f'Cannot log to Weights & Biases: {e}. Log in with "wandb login", or set WANDB_MODE=offline.'
        ) from e
    stack.enter_context(run)
    options['wandb_resume_id'] = run.id
