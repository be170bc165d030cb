"""The epochs of a run, whatever it trains: validate, log, save, and stop where there is nothing more to gain."""

import argparse
import math
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from timm import utils
from timm.scheduler import create_scheduler_v2, scheduler_kwargs

from .checkpoints import check_new, check_space, restore_saver, save_checkpoint, saving, write_options, write_text
from .log import TOP1, Metric
from .options import RunError
from .run_lock import lock_folder
from .split import Split
from .trackers import open_tensorboard, open_wandb


class Interrupted(KeyboardInterrupt):
    """A run was stopped by the user; the message says how to resume it."""


@contextmanager
def interruptible(folder: Path):
    """Tell the user who stops a run how to resume it."""
    try:
        yield
    except KeyboardInterrupt:
        advice = f'resume with --resume {folder}' if (folder / 'args.yaml').exists() else 'nothing was written'
        raise Interrupted(f'stopped; {advice}') from None


def leave_processes(error_type: type[BaseException] | None, *_: Any) -> None:
    """Leave the process group at the end of a run; for ``ExitStack.push``.

    After an error the others may be waiting for this process. NCCL would wait for them here, and the error message and
    the exit status, on which the launcher ends them, would only come after its timeout.
    """
    if not error_type:
        dist.destroy_process_group()


@dataclass
class Run(ABC):
    """One process's part of a run.

    Attributes:
        args: Options.
        folder: Folder of the run.
        device: Device to train on.
        optimizer: Optimizer.
        scheduler: Schedule of the learning rate.
        epochs: Epochs in all.
        start: Epochs done before.
        saver: Checkpoints; only in the first process.
        tensorboard: Writer of TensorBoard, if it is asked for; only in the first process.
        metric: What decides which epoch is the best.
        columns: Columns of the log; those of the first epoch if None.
    """

    args: argparse.Namespace
    folder: Path
    device: torch.device
    optimizer: torch.optim.Optimizer
    scheduler: Any = field(default=None, init=False)
    epochs: int = field(default=0, init=False)
    start: int = field(default=0, init=False)
    saver: utils.CheckpointSaver | None = field(default=None, init=False)
    tensorboard: Any = field(default=None, init=False)

    metric: ClassVar[Metric] = TOP1
    columns: ClassVar[tuple[str, ...] | None] = None

    @property
    @abstractmethod
    def module(self) -> torch.nn.Module:
        """The model that is trained."""

    @property
    @abstractmethod
    def result(self) -> torch.nn.Module:
        """The model whose numbers count: that of the averaged weights if there are any."""

    @property
    @abstractmethod
    def updates(self) -> int:
        """Steps of the optimizer in an epoch."""

    @property
    @abstractmethod
    def precision(self) -> str:
        """Precision of the passes, in words."""

    @abstractmethod
    def train_epoch(self, epoch: int) -> tuple[dict[str, float], float]:
        """One pass over the training images; returns the mean losses, and the learning rate of the last step."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Numbers on the validation images, of the averaged weights if there are any."""

    @abstractmethod
    def make_saver(self) -> utils.CheckpointSaver:
        """Saver of the run's checkpoints."""

    def before_saving(self, epoch: int, metrics: dict[str, float]) -> None:
        """Called in the first process before an epoch is saved."""
        return

    def schedule(self) -> None:
        """Make the schedule of the learning rate, and bring it to the epoch that the run starts with.

        Raises:
            RunError: If no epoch is left by far.
        """
        args = self.args
        kwargs = scheduler_kwargs(args)
        self.scheduler, self.epochs = create_scheduler_v2(self.optimizer, **kwargs, updates_per_epoch=self.updates)
        if self.start > self.epochs:
            raise RunError(f'{self.folder} has {self.start} epochs already, more than --epochs {self.epochs}.')
        if self.start:
            if args.sched_on_updates:
                self.scheduler.step_update(self.start * self.updates)
            else:
                self.scheduler.step(self.start)

    def open_folder(self, options: dict, split: Split, checkpoint: Path | None, stack: ExitStack) -> None:
        """Prepare the folder: its lock, its options and images, its log and checkpoints.

        Args:
            options: Options as they were given, for ``args.yaml``.
            split: Names of the images.
            checkpoint: Checkpoint that was loaded, if any.
            stack: What ends with the run.
        """
        args, folder = self.args, self.folder
        if not args.resume:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as e:
                raise RunError(f'Cannot create {folder}: {e.strerror}. Name another --output.') from e
            stack.enter_context(lock_folder(folder))
        if not self.start:
            check_new(folder)
            tensors = sum(t.numel() * t.element_size() for t in self.module.state_dict().values())
            # weights, two moments of the optimizer and the average; the last, the best and one that is being written
            check_space(folder, tensors, (4 if args.model_ema else 3) * (args.checkpoint_hist + 2))
        if args.log_wandb:
            open_wandb(folder, options, stack)
        if args.log_tensorboard:
            self.tensorboard = open_tensorboard(folder, self.start)
            stack.callback(self.tensorboard.close)
        write_text(folder / 'split.json', split.as_text())
        write_options(folder, options)  # last: what can be resumed has all of it
        self.saver = self.make_saver()
        column = f'eval_{self.metric.name}'
        restore_saver(self.saver, folder, checkpoint, self.start, column, self.columns)

    def fit(self) -> None:
        """Train the remaining epochs; log and save each."""
        args, metric = self.args, self.metric
        for epoch in range(self.start, self.epochs):
            if args.patience and self._is_out_of_patience(epoch):
                if self.saver:
                    print(f'stops: no better {metric.label} in {args.patience} epochs ({self.best})', flush=True)
                break
            # a resumed run draws the same images in the same order as one that was not interrupted
            utils.random_seed(args.seed + epoch * args.world_size, args.rank)
            clock = time.perf_counter()
            losses, lr = self.train_epoch(epoch)
            if args.distributed:
                for model in (self.module, self.result) if args.model_ema else (self.module,):
                    utils.distribute_bn(model, args.world_size, reduce=True)
            trained = time.perf_counter()
            train = dict(losses, time=round(trained - clock, 3))
            metrics = self.validate()
            loss = metrics.get('loss')
            if loss is not None and not math.isfinite(loss):
                raise RunError(
                    f'The loss on the validation images became {loss} in epoch {epoch}: try a smaller --lr or '
                    f'{self.advice}.'
                )
            metrics['time'] = round(time.perf_counter() - trained, 3)
            self.scheduler.step(epoch + 1, metrics[metric.name])
            if self.saver:
                self._log(epoch, train, metrics, lr)
                with saving(self.folder):
                    self.before_saving(epoch, metrics)
                save_checkpoint(self.saver, self.folder, epoch, metrics[metric.name])
                validation = f'loss {loss:.3f}, ' if loss is not None else ''
                print(
                    f'epoch {epoch} ({epoch + 1} of {self.epochs})  loss {losses["loss"]:.3f}  validation: {validation}'
                    f'{metric.label} {metric.show(metrics[metric.name])}  ({self.best})  lr {lr:.2e}  '
                    f'{train["time"] + metrics["time"]:.1f} s',
                    flush=True,
                )

    @property
    def advice(self) -> str:
        """Option that may help where a loss is not finite, besides a smaller learning rate."""
        return '--clip-grad 1'

    @property
    def best(self) -> str:
        """The best result so far, in words."""
        if not self.saver or self.saver.best_metric is None:
            return ''
        return f'best {self.metric.show(self.saver.best_metric)} in epoch {self.saver.best_epoch}'

    def _is_out_of_patience(self, epoch: int) -> bool:
        """Whether the epochs before this one brought nothing better for too long, which the first process knows."""
        waited = epoch - 1 - self.saver.best_epoch if self.saver and epoch else 0
        stops = torch.tensor(waited >= self.args.patience, dtype=torch.uint8, device=self.device)
        if self.args.distributed:
            dist.broadcast(stops, 0)
        return bool(stops)

    def _log(self, epoch: int, train: dict, metrics: dict, lr: float) -> None:
        """Append an epoch to the logs."""
        summary = self.folder / 'summary.csv'
        with saving(self.folder):
            utils.update_summary(
                epoch, train, metrics, summary, lr, write_header=not summary.exists(), log_wandb=self.args.log_wandb
            )
            if self.tensorboard:
                for group, values in (('train_', train), ('eval_', metrics), ('', dict(lr=lr))):
                    for name, value in values.items():
                        self.tensorboard.add_scalar(group + name, value, epoch)
                self.tensorboard.flush()
