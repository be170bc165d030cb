"""The loop over the epochs of a run: train, validate, log, save, and stop where there is nothing more to gain."""

import argparse
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm import utils
from timm.task import ClassificationTask
from tqdm import tqdm

from .checkpoints import save_checkpoint, saving
from .options import FinetuneError


@dataclass
class Run:
    """One process's part of a run.

    Attributes:
        args: Options.
        folder: Folder of the run.
        device: Device to train on.
        task: timm's training task: the model, its loss and its averaged weights.
        loader: Training batches.
        val_loader: Validation batches.
        optimizer: Optimizer.
        autocast: Context of mixed precision.
        scaler: Loss scaler for float16 on a GPU.
        scheduler: Schedule of the learning rate.
        epochs: Epochs in all.
        start: Epochs done before.
        saver: Checkpoints; only in the first process.
        tensorboard: Writer of TensorBoard, if it is asked for; only in the first process.
    """

    args: argparse.Namespace
    folder: Path
    device: torch.device
    task: ClassificationTask
    loader: Any
    val_loader: Any
    optimizer: torch.optim.Optimizer
    autocast: Callable = nullcontext
    scaler: utils.NativeScaler | None = None
    scheduler: Any = field(default=None, init=False)
    epochs: int = field(default=0, init=False)
    start: int = field(default=0, init=False)
    saver: utils.CheckpointSaver | None = field(default=None, init=False)
    tensorboard: Any = field(default=None, init=False)

    def fit(self) -> None:
        """Train the remaining epochs; log and save each."""
        args = self.args
        for epoch in range(self.start, self.epochs):
            if args.patience and self._is_out_of_patience(epoch):
                if self.saver:
                    print(f'stops: no better top-1 in {args.patience} epochs ({self.best})', flush=True)
                break
            # a resumed run draws the same images in the same order as one that was not interrupted
            utils.random_seed(args.seed + epoch * args.world_size, args.rank)
            clock = time.perf_counter()
            loss, lr = self.train_epoch(epoch)
            if args.distributed:
                utils.distribute_bn(self.task.get_trainable_module(), args.world_size, reduce=True)
            trained = time.perf_counter()
            train = dict(loss=loss, time=round(trained - clock, 3))
            metrics = self.validate()
            if not math.isfinite(metrics['loss']):
                advice = '--clip-grad 1' if self.autocast is nullcontext else '--no-amp'
                raise FinetuneError(
                    f'The loss on the validation images became {metrics["loss"]} in epoch {epoch}: try a smaller --lr '
                    f'or {advice}.'
                )
            metrics['time'] = round(time.perf_counter() - trained, 3)
            self.scheduler.step(epoch + 1, metrics['top1'])
            if self.saver:
                self._log(epoch, train, metrics, lr)
                save_checkpoint(self.saver, self.folder, epoch, metrics['top1'])
                print(
                    f'epoch {epoch} ({epoch + 1} of {self.epochs})  loss {loss:.3f}  validation: loss '
                    f'{metrics["loss"]:.3f}, top-1 {metrics["top1"]:.2f} %  ({self.best})  lr {lr:.2e}  '
                    f'{train["time"] + metrics["time"]:.1f} s',
                    flush=True,
                )

    def train_epoch(self, epoch: int) -> tuple[float, float]:
        """One pass over the training images; returns the mean loss, and the learning rate of the last step."""
        args = self.args
        if args.distributed:
            self.loader.sampler.set_epoch(epoch)
        module = self.task.get_trainable_module().train()
        losses = utils.AverageMeter()
        updates = epoch * len(self.loader)
        lr = 0.0
        hidden = None if utils.is_primary(args) else True  # None: hidden where there is no terminal
        bar = tqdm(self.loader, f'epoch {epoch}', leave=False, disable=hidden)
        for images, target in bar:
            if args.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with self.autocast():
                loss = self.task(images, target)['loss']
            if self.scaler:
                self.scaler(loss, self.optimizer, clip_grad=args.clip_grad, parameters=module.parameters())
            else:
                loss.backward()
                if args.clip_grad is not None:
                    utils.dispatch_clip_grad(module.parameters(), args.clip_grad)
                self.optimizer.step()
            self.optimizer.zero_grad()
            lr = max(group['lr'] for group in self.optimizer.param_groups)
            updates += 1
            self.task.update_ema(step=updates)
            self.scheduler.step_update(updates)
            losses.update(loss.item(), len(images))
            bar.set_postfix(loss=f'{losses.avg:.3f}', refresh=False)
            if not math.isfinite(losses.val):
                raise FinetuneError(
                    f'The loss became {losses.val} in epoch {epoch}: try a smaller --lr or --clip-grad 1.'
                )
        mean = torch.tensor(losses.avg, device=self.device)
        return (utils.reduce_tensor(mean, args.world_size) if args.distributed else mean).item(), lr

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Loss, top-1 and top-5 (%) over the validation images, of the averaged weights if there are any."""
        model = self.task.get_eval_model(ema=self.args.model_ema).eval()
        totals = torch.zeros(4, device=self.device)
        for images, target in self.val_loader:
            with self.autocast():
                logits = model(images).float()
            loss = torch.nn.functional.cross_entropy(logits, target)
            top1, top5 = utils.accuracy(logits, target, topk=(1, 5))
            totals += len(images) * torch.stack([loss, top1, top5, torch.ones_like(loss)])
        if self.args.distributed:
            dist.all_reduce(totals)
        loss, top1, top5 = (totals[:3] / totals[3]).tolist()
        return dict(loss=loss, top1=top1, top5=top5)

    @property
    def best(self) -> str:
        """The best result so far, in words."""
        return f'best {self.saver.best_metric:.2f} % in epoch {self.saver.best_epoch}' if self.saver else ''

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
