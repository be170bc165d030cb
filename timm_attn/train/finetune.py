"""Fine-tune a model on a folder of images: a thin layer over timm's datasets, loaders, optimizers and checkpoints.

It is for users without a checkout of timm, whose train.py does much more under the same option names.
"""

import argparse
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist
from timm import utils
from timm.data import FastCollateMixup, ImageDataset, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import safe_model_name
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import ClassificationTask, load_task_ema_checkpoint
from tqdm import tqdm

from .checkpoints import check_folder, find_checkpoints, load_newest, log_and_save, restore_saver, write_options
from .export import export_run
from .image_folder import open_folder
from .log import draw_curves, read_summary
from .options import FinetuneError


def finetune(args: argparse.Namespace) -> Path:
    """Fine-tune a model, alone or as one of several processes under torchrun.

    Args:
        args: Options of :mod:`timm_attn.train.options`.

    Returns:
        Folder of the run: ``model`` (loads by ``local-dir:``), ``summary.csv``, ``curves.png``, ``args.yaml`` and the
        checkpoints.

    Raises:
        FolderError: If the data set cannot be trained on.
        FinetuneError: If the run cannot start or continue; what was trained until then is kept.
    """
    options = dict(vars(args))
    args.device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    device = utils.init_distributed_device(args)
    try:
        if not args.data_dir:
            raise FinetuneError('Name the folder of images: timm-attn finetune DIR --model NAME.')
        data = open_folder(args.data_dir, args.train_split, args.val_split, args.val_fraction)
        run = _start(args, options, device, *data)
        try:
            run.fit()
        except KeyboardInterrupt:
            raise FinetuneError(f'Stopped. Resume with: timm-attn finetune --resume {run.folder}') from None
        if run.saver:
            _finish(run)
        return run.folder
    finally:
        if args.distributed:
            dist.destroy_process_group()


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
        scheduler: Schedule of the learning rate.
        epochs: Epochs in all.
        start: Epochs done before.
        autocast: Context of mixed precision.
        scaler: Loss scaler for float16 on a GPU.
        saver: Checkpoints; only in the first process.
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

    def fit(self) -> None:
        """Train the remaining epochs; log and save each."""
        args = self.args
        for epoch in range(self.start, self.epochs):
            # a resumed run draws the same images in the same order as one that was not interrupted
            utils.random_seed(args.seed + epoch * args.world_size, args.rank)
            loss = self.train_epoch(epoch)
            if args.distributed:
                utils.distribute_bn(self.task.get_trainable_module(), args.world_size, reduce=True)
            metrics = self.validate()
            lr = max(group['lr'] for group in self.optimizer.param_groups)
            self.scheduler.step(epoch + 1, metrics['top1'])
            if self.saver:
                log_and_save(self.saver, self.folder, epoch, loss, metrics, lr)
                print(
                    f'epoch {epoch + 1}/{self.epochs}  loss {loss:.3f}  validation: loss {metrics["loss"]:.3f}, '
                    f'top-1 {metrics["top1"]:.2f} %  ({self.best})  lr {lr:.2e}',
                    flush=True,
                )

    def train_epoch(self, epoch: int) -> float:
        """One pass over the training images; returns the mean loss."""
        args = self.args
        if args.distributed:
            self.loader.sampler.set_epoch(epoch)
        module = self.task.get_trainable_module().train()
        losses = utils.AverageMeter()
        updates = epoch * len(self.loader)
        hidden = None if utils.is_primary(args) else True  # None: hidden where there is no terminal
        for images, target in tqdm(self.loader, f'epoch {epoch + 1}', leave=False, disable=hidden):
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
            updates += 1
            self.task.update_ema(step=updates)
            self.scheduler.step_update(updates)
            losses.update(loss.item(), len(images))
            if not math.isfinite(losses.val):
                raise FinetuneError(
                    f'The loss became {losses.val} in epoch {epoch + 1}: try a smaller --lr or --clip-grad 1.'
                )
        mean = torch.tensor(losses.avg, device=self.device)
        return (utils.reduce_tensor(mean, args.world_size) if args.distributed else mean).item()

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
        return f'best {self.saver.best_metric:.2f} % in epoch {self.saver.best_epoch + 1}' if self.saver else ''


def _start(args, options: dict, device: torch.device, train: ImageDataset, val: ImageDataset, classes: list) -> Run:
    """Build a run, or rebuild one from its folder."""
    _check_classes(args, options.get('class_names') or classes, classes)
    options |= dict(class_names=classes, num_classes=len(classes), resume=None, config=None)
    options |= {k: str(Path(options[k]).resolve()) for k in ('data_dir', 'pretrained_path') if options[k]}
    name = args.experiment or f'{datetime.now():%Y%m%d-%H%M%S}-{safe_model_name(args.model)}'
    folder = Path(args.resume or Path(args.output) / name)
    if utils.is_primary(args):
        held_out = 'held out' if train.reader.root == val.reader.root else val.reader.root
        print(
            f'{args.data_dir}: {len(classes)} classes, {len(train)} images to train, {len(val)} to validate '
            f'({held_out})',
            flush=True,
        )
    utils.random_seed(args.seed, args.rank)
    model = _create_model(args, len(classes), pretrained=args.pretrained and not find_checkpoints(folder))
    model.to(device=device, memory_format=torch.channels_last if args.channels_last else torch.preserve_format)
    loader, val_loader = _loaders(args, model, train, val, device)
    task = ClassificationTask(model, _criterion(args), device=device, verbose=False)
    run = Run(args, folder, device, task, loader, val_loader, create_optimizer_v2(model, **optimizer_kwargs(args)))
    if device.type == 'cuda' if args.amp is None else args.amp:
        run.autocast = partial(torch.autocast, device.type, getattr(torch, args.amp_dtype))
        if args.amp_dtype == 'float16' and device.type == 'cuda':
            run.scaler = utils.NativeScaler(device.type)
    checkpoint = None
    if args.resume:
        checkpoint, run.start = load_newest(folder, task, run.optimizer, run.scaler)
    if utils.is_primary(args):
        print(f'{folder}: resumes after epoch {run.start}' if args.resume else folder, flush=True)
    if args.model_ema:
        task.setup_ema(decay=args.model_ema_decay, use_warmup=True)
        if checkpoint:
            load_task_ema_checkpoint(task, str(checkpoint))
    if args.torchcompile:
        task.compile(backend=args.torchcompile)
    if args.distributed:
        dist.barrier()  # all have read the checkpoint before the first of them writes one
        task.prepare_distributed(device_ids=[device] if device.type == 'cuda' else None)
    args.warmup_epochs = min(args.warmup_epochs, args.epochs // 2)
    updates = len(loader)
    run.scheduler, run.epochs = create_scheduler_v2(run.optimizer, **scheduler_kwargs(args), updates_per_epoch=updates)
    if run.start:
        run.scheduler.step_update(run.start * updates) if args.sched_on_updates else run.scheduler.step(run.start)
    if utils.is_primary(args):
        _open_folder(run, options, checkpoint)
    return run


def _open_folder(run: Run, options: dict, checkpoint: Path | None) -> None:
    args = run.args
    module = run.task.get_trainable_module()
    if not run.start:
        tensors = sum(t.numel() * t.element_size() for t in module.state_dict().values())
        # weights, two moments of the optimizer and the average; the last, the best and one that is being written
        check_folder(run.folder, tensors, (4 if args.model_ema else 3) * (args.checkpoint_hist + 2))
    write_options(run.folder, options)
    run.saver = utils.CheckpointSaver(
        module, run.optimizer, amp_scaler=run.scaler, task=run.task, checkpoint_dir=str(run.folder),
        recovery_dir=str(run.folder), max_history=args.checkpoint_hist,
    )  # fmt: skip
    restore_saver(run.saver, run.folder, checkpoint, run.start)


def _check_classes(args: argparse.Namespace, before: list[str], classes: list[str]) -> None:
    if before == classes:
        return
    other = sorted(set(before) ^ set(classes))
    raise FinetuneError(
        f'The run in {args.resume} has {len(before)} classes, {args.data_dir} has {len(classes)}; they differ in '
        f'{", ".join(other[:5])}{" and more" if len(other) > 5 else ""}. Name the folder of that run, or start anew.'
    )


def _create_model(args: argparse.Namespace, num_classes: int, pretrained: bool) -> torch.nn.Module:
    try:
        model = timm.create_model(
            args.model,
            pretrained=pretrained,
            pretrained_cfg_overlay=dict(file=args.pretrained_path, num_classes=-1) if args.pretrained_path else None,
            num_classes=num_classes,
            drop_rate=args.drop,
            drop_path_rate=args.drop_path,
            **args.model_kwargs,
        )
    except (TypeError, KeyError) as e:
        raise FinetuneError(f'Cannot create {args.model} with these options: {e}') from e
    if args.grad_checkpointing:
        model.set_grad_checkpointing()
    return model


def _loaders(args, model, train, val, device):
    """Loaders for training and validation, with the model's own mean, size and interpolation."""
    config = resolve_data_config(vars(args), model=model)
    mixup = args.mixup > 0 or args.cutmix > 0
    # the last, smaller batch of an epoch is dropped: a data set smaller than one batch would train on nothing
    batch_size = min(args.batch_size, len(train) // args.world_size)
    batch_size -= batch_size % 2 if mixup else 0
    if batch_size < 2:
        raise FinetuneError(
            f'A batch needs at least 2 images: there are {len(train)} to train, in {args.world_size} process(es), with '
            f'--batch-size {args.batch_size}.'
        )
    shared = dict(
        input_size=config['input_size'], mean=config['mean'], std=config['std'], interpolation=config['interpolation'],
        num_workers=args.workers, distributed=args.distributed, pin_memory=device.type == 'cuda', device=device,
    )  # fmt: skip
    collate = FastCollateMixup(args.mixup, args.cutmix, label_smoothing=args.smoothing, num_classes=model.num_classes)
    loader = create_loader(
        train, batch_size=batch_size, is_training=True, scale=args.scale, ratio=args.ratio, hflip=args.hflip,
        vflip=args.vflip, color_jitter=args.color_jitter, auto_augment=args.aa, re_prob=args.reprob, re_mode='pixel',
        collate_fn=collate if mixup else None, **shared,
        persistent_workers=False,  # else random numbers continue over the epochs, which a resumed run could not repeat
    )  # fmt: skip
    return loader, create_loader(val, batch_size=args.batch_size, crop_pct=config['crop_pct'], **shared)


def _criterion(args: argparse.Namespace) -> torch.nn.Module:
    if args.mixup > 0 or args.cutmix > 0:
        return SoftTargetCrossEntropy()  # labels are smoothed where they are mixed
    return LabelSmoothingCrossEntropy(args.smoothing) if args.smoothing else torch.nn.CrossEntropyLoss()


def _finish(run: Run) -> None:
    """Export the best weights, draw the curves, and say how to use the model."""
    model = run.folder / 'model'
    export_run(run.folder, model)
    title = f'{run.args.model}, {run.args.data_dir}'
    drawn = draw_curves(read_summary(run.folder / 'summary.csv'), run.folder / 'curves.png', title)
    print(
        f'{run.folder}: {run.best}; curves.png {"shows the run" if drawn else "needs: pip install matplotlib"}\n'
        f"use it: import timm, timm_attn; timm.create_model('local-dir:{model}', pretrained=True)\n"
        f'or: timm-attn predict IMAGE --model local-dir:{model}',
        flush=True,
    )
