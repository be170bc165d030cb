"""The passes of fine-tuning over the images: one to train, one to validate."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from timm import utils
from timm.task import ClassificationTask
from tqdm import tqdm

from .log import COLUMNS
from .options import RunError
from .run import Run


@dataclass
class ClassifierRun(Run):
    """Fine-tuning of a classifier.

    Attributes:
        task: timm's training task: the model, its loss and its averaged weights.
        loader: Training batches.
        val_loader: Validation batches.
        autocast: Context of mixed precision.
        scaler: Loss scaler for float16 on a GPU.
    """

    task: ClassificationTask
    loader: Any
    val_loader: Any
    autocast: Callable = nullcontext
    scaler: utils.NativeScaler | None = None

    columns = COLUMNS

    @property
    def module(self) -> torch.nn.Module:
        """The model that is trained."""
        return self.task.get_trainable_module()

    @property
    def result(self) -> torch.nn.Module:
        """The model whose numbers count: that of the averaged weights if there are any."""
        return self.task.get_eval_model(ema=self.args.model_ema)

    @property
    def updates(self) -> int:
        """Steps of the optimizer in an epoch."""
        return len(self.loader)

    @property
    def precision(self) -> str:
        """Precision of the passes, in words."""
        return 'float32' if self.autocast is nullcontext else f'{self.args.amp_dtype} mixed precision'

    @property
    def advice(self) -> str:
        """Option that may help where a loss is not finite, besides a smaller learning rate."""
        return super().advice if self.autocast is nullcontext else '--no-amp'

    def make_saver(self) -> utils.CheckpointSaver:
        """Saver of the run's checkpoints."""
        return utils.CheckpointSaver(
            self.module, self.optimizer, amp_scaler=self.scaler, task=self.task, checkpoint_dir=str(self.folder),
            recovery_dir=str(self.folder), max_history=self.args.checkpoint_hist,
        )  # fmt: skip

    def train_epoch(self, epoch: int) -> tuple[dict[str, float], float]:
        """One pass over the training images; returns the mean loss, and the learning rate of the last step."""
        args = self.args
        if args.distributed:
            self.loader.sampler.set_epoch(epoch)
        module = self.module.train()
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
                raise RunError(f'The loss became {losses.val} in epoch {epoch}: try a smaller --lr or --clip-grad 1.')
        mean = torch.tensor(losses.avg, device=self.device)
        return dict(loss=(utils.reduce_tensor(mean, args.world_size) if args.distributed else mean).item()), lr

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Loss, top-1 and top-5 (%) over the validation images, of the averaged weights if there are any."""
        model = self.result.eval()
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
