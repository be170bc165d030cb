"""Fine-tune a model on a folder of images: a thin front over timm's datasets, loaders, optimisers and checkpoints.

For people without a checkout of timm, whose train.py does much more under the same option names.
"""

import argparse
import logging
import math
import os
import shutil
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from datetime import datetime
from functools import partial
from pathlib import Path

import timm
import torch
import torch.distributed as dist
import yaml
from timm import utils
from timm.data import FastCollateMixup, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import safe_model_name
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.task import ClassificationTask, load_task_ema_checkpoint, resume_task_checkpoint
from tqdm import tqdm

from .curves import cut_summary, draw_curves, read_summary
from .export import export_run
from .finetune_options import FinetuneError
from .folders import open_folder

_logger = logging.getLogger(__name__)


def finetune(args: argparse.Namespace) -> Path:
    """Fine-tune a model, alone or as one of several processes under torchrun.

    Args:
        args: Options of :mod:`timm_attn.finetune_options`.

    Returns:
        Folder of the run: ``model`` (loads by ``local-dir:``), ``summary.csv``, ``curves.png``, ``args.yaml`` and the
        checkpoints.

    Raises:
        FolderError: If the data set is not one that can be trained on.
        FinetuneError: If the run cannot start or go on; what was trained until then is kept.
    """
    options = dict(vars(args))
    device = utils.init_distributed_device(args)
    try:
        return _finetune(args, options, device)
    finally:
        if args.distributed:
            dist.destroy_process_group()


def _finetune(args: argparse.Namespace, options: dict, device: torch.device) -> Path:
    primary = utils.is_primary(args)
    say: Callable = partial(print, flush=True) if primary else lambda *_: None
    if not args.data_dir:
        raise FinetuneError('Name the folder of images: python -m timm_attn finetune DIR --model NAME.')
    train, val, classes = open_folder(args.data_dir, args.train_split, args.val_split, args.val_fraction)
    before = options.get('class_names') or classes
    if before != classes:
        other = sorted(set(before) ^ set(classes))
        raise FinetuneError(
            f'The run in {args.resume} has {len(before)} classes, {args.data_dir} has {len(classes)}; they differ in '
            f'{", ".join(other[:5])}{" and more" if len(other) > 5 else ""}. Name the folder of that run or begin anew.'
        )
    options |= dict(class_names=classes, num_classes=len(classes), resume=None, config=None)
    options |= {k: str(Path(options[k]).resolve()) for k in ('data_dir', 'pretrained_path') if options[k]}
    held_out = 'held out' if train.reader.root == val.reader.root else val.reader.root
    say(f'{args.data_dir}: {len(classes)} classes, {len(train)} images to train, {len(val)} to validate ({held_out})')

    name = args.experiment or f'{datetime.now():%Y%m%d-%H%M%S}-{safe_model_name(args.model)}'
    folder = Path(args.resume or Path(args.output) / name)
    utils.random_seed(args.seed, args.rank)
    overlay = dict(file=args.pretrained_path, num_classes=-1) if args.pretrained_path else None
    try:
        model = timm.create_model(
            args.model,
            pretrained=args.pretrained and not _checkpoints(folder),
            pretrained_cfg_overlay=overlay,
            num_classes=len(classes),
            drop_rate=args.drop,
            drop_path_rate=args.drop_path,
            **args.model_kwargs,
        )
    except (TypeError, KeyError) as e:
        raise FinetuneError(f'{args.model} cannot be made with these options: {e}') from e
    if args.grad_checkpointing:
        model.set_grad_checkpointing()
    model.to(device=device, memory_format=torch.channels_last if args.channels_last else torch.preserve_format)
    loader, val_loader = _loaders(args, model, train, val, device)
    task = ClassificationTask(model, _criterion(args), device=device, verbose=False)
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(args))

    amp = device.type == 'cuda' if args.amp is None else args.amp
    autocast = partial(torch.autocast, device.type, getattr(torch, args.amp_dtype)) if amp else nullcontext
    scaler = utils.NativeScaler(device.type) if amp and args.amp_dtype == 'float16' and device.type == 'cuda' else None
    checkpoint, start = _resume(folder, task, optimizer, scaler) if args.resume else (None, 0)
    say(f'{folder}: goes on after epoch {start}' if args.resume else folder)
    if args.model_ema:
        task.setup_ema(decay=args.model_ema_decay, use_warmup=True)
        if checkpoint:
            load_task_ema_checkpoint(task, checkpoint)
    if args.torchcompile:
        task.compile(backend=args.torchcompile)
    if args.distributed:
        dist.barrier()  # all have read the checkpoint before the first of them writes one
        task.prepare_distributed(device_ids=[device] if device.type == 'cuda' else None)
    args.warmup_epochs = min(args.warmup_epochs, args.epochs // 2)
    updates = len(loader)
    scheduler, epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=updates)
    if scheduler and start:
        scheduler.step_update(start * updates) if args.sched_on_updates else scheduler.step(start)

    saver = _open_run(folder, args, options, checkpoint, start, task, optimizer, scaler) if primary else None
    try:
        for epoch in range(start, epochs):
            # a resumed run draws the same images in the same order as one that was never interrupted
            utils.random_seed(args.seed + epoch * args.world_size, args.rank)
            loss = _train(epoch, args, task, loader, optimizer, scheduler, scaler, autocast)
            if args.distributed:
                utils.distribute_bn(task.get_trainable_module(), args.world_size, reduce=True)
            metrics = _validate(task.get_eval_model(ema=args.model_ema), val_loader, args, device, autocast)
            lr = max(group['lr'] for group in optimizer.param_groups)
            if scheduler:
                scheduler.step(epoch + 1, metrics['top1'])
            if saver:
                summary = folder / 'summary.csv'
                with _saving(folder):
                    utils.update_summary(
                        epoch, dict(loss=loss), metrics, summary, lr, write_header=not summary.exists()
                    )
                    saver.save_checkpoint(epoch, metric=metrics['top1'])
                say(
                    f'epoch {epoch + 1}/{epochs}  loss {loss:.3f}  validation: loss {metrics["loss"]:.3f}, '
                    f'top-1 {metrics["top1"]:.2f} %  ({_best(saver)})  lr {lr:.2e}'
                )
    except KeyboardInterrupt:
        raise FinetuneError(f'Stopped. Go on with: python -m timm_attn finetune --resume {folder}') from None
    if saver:
        export_run(folder, folder / 'model')
        drawn = draw_curves(
            read_summary(folder / 'summary.csv'), folder / 'curves.png', f'{args.model}, {args.data_dir}'
        )
        say(
            f'{folder}: {_best(saver)}; curves.png {"shows the run" if drawn else "needs: pip install matplotlib"}\n'
            f"use it: import timm, timm_attn; timm.create_model('local-dir:{folder / 'model'}', pretrained=True)\n"
            f'or: python -m timm_attn predict IMAGE --model local-dir:{folder / "model"}'
        )
    return folder


def _loaders(args, model, train, val, device):
    """Loaders for training and validation, with the model's own mean, size and interpolation."""
    config = resolve_data_config(vars(args), model=model)
    mixup = args.mixup > 0 or args.cutmix > 0
    # the last, smaller batch of an epoch is dropped: a data set smaller than one batch would train on nothing
    batch_size = min(args.batch_size, len(train) // args.world_size)
    batch_size -= batch_size % 2 if mixup else 0
    if batch_size < 2:
        raise FinetuneError(
            f'A batch takes 2 images or more: there are {len(train)} to train, in {args.world_size} process(es), with '
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
        persistent_workers=False,  # else random numbers go on over the epochs, as no resumed run could repeat
    )  # fmt: skip
    return loader, create_loader(val, batch_size=args.batch_size, crop_pct=config['crop_pct'], **shared)


def _best(saver) -> str:
    return f'best {saver.best_metric:.2f} % in epoch {saver.best_epoch + 1}'


def _criterion(args):
    if args.mixup > 0 or args.cutmix > 0:
        return SoftTargetCrossEntropy()  # the labels are smoothed where they are mixed
    return LabelSmoothingCrossEntropy(args.smoothing) if args.smoothing else torch.nn.CrossEntropyLoss()


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, the newest first; ``tmp`` may be one that is whole but has not got its name yet."""
    files = sorted(folder.glob('*.pth.tar'), key=lambda file: file.stat().st_mtime, reverse=True)
    return [] if [file.name for file in files] == ['tmp.pth.tar'] else files


def _resume(folder: Path, task, optimizer, scaler) -> tuple[str | None, int]:
    """Load the newest checkpoint that is whole: its file and the epochs behind it; none in the first epoch."""
    files = _checkpoints(folder)
    for file in files:
        try:
            return str(file), resume_task_checkpoint(task, str(file), optimizer, scaler, log_info=False)
        except Exception as e:  # whatever a file raises that was being written when the run was killed
            problem = f'{file.name} cannot be used: {e}'
            _logger.warning(f'{folder}: {problem}')
    if files:
        raise FinetuneError(f'Cannot go on with {folder}: {problem}. Begin a new run.')
    return None, 0


def _open_run(folder, args, options, checkpoint, start, task, optimizer, scaler):
    """Folder and checkpoint saver of a run, as an interrupted one left them."""
    if not args.resume and _checkpoints(folder):
        raise FinetuneError(
            f'{folder} holds a run already: go on with --resume {folder}, or name another --experiment.'
        )
    folder.mkdir(parents=True, exist_ok=True)
    tensors = sum(t.numel() * t.element_size() for t in task.get_trainable_module().state_dict().values())
    # weights, two moments of the optimiser and the average; the last, the best and one that is being written
    needed = tensors * (4 if args.model_ema else 3) * (args.checkpoint_hist + 2)
    if not start and shutil.disk_usage(folder).free < needed:
        raise FinetuneError(f'{folder} has no space for the checkpoints, up to {math.ceil(needed / 2**20)} MiB.')
    part = folder / 'args.part'
    part.write_text(yaml.safe_dump(options, sort_keys=False), encoding='utf-8')
    os.replace(part, folder / 'args.yaml')
    saver = utils.CheckpointSaver(
        task.get_trainable_module(), optimizer, amp_scaler=scaler, task=task, checkpoint_dir=str(folder),
        recovery_dir=str(folder), max_history=args.checkpoint_hist,
    )  # fmt: skip
    rows = cut_summary(folder / 'summary.csv', start)
    if start:
        if Path(checkpoint).name == 'tmp.pth.tar':  # whole, but killed before it got its name
            os.replace(checkpoint, folder / 'last.pth.tar')
        # The run may have ended after its last epoch was logged and before all files of that epoch were there: the
        # saver takes the state of the epoch before, and saves that one again.
        top1 = rows.pop()['eval_top1'] if rows and rows[-1]['epoch'] == start - 1 else 0.0
        if rows:
            best = max(rows, key=lambda row: row['eval_top1'])
            saver.best_metric, saver.best_epoch = best['eval_top1'], int(best['epoch'])
        kept = {str(folder / f'checkpoint-{int(row["epoch"])}.pth.tar'): row['eval_top1'] for row in rows}
        kept = [(file, metric) for file, metric in kept.items() if os.path.exists(file)]
        saver.checkpoint_files = sorted(kept, key=lambda pair: pair[1], reverse=True)
        with _saving(folder):
            saver.save_checkpoint(start - 1, metric=top1)
    return saver


def _train(epoch, args, task, loader, optimizer, scheduler, scaler, autocast) -> float:
    """One pass over the training images; its mean loss."""
    if args.distributed:
        loader.sampler.set_epoch(epoch)
    module = task.get_trainable_module().train()
    losses = utils.AverageMeter()
    updates = epoch * len(loader)
    for images, target in tqdm(
        loader, f'epoch {epoch + 1}', leave=False, disable=None if utils.is_primary(args) else True
    ):
        if args.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with autocast():
            loss = task(images, target)['loss']
        if scaler:
            scaler(loss, optimizer, clip_grad=args.clip_grad, parameters=module.parameters())
        else:
            loss.backward()
            if args.clip_grad is not None:
                utils.dispatch_clip_grad(module.parameters(), args.clip_grad)
            optimizer.step()
        optimizer.zero_grad()
        updates += 1
        task.update_ema(step=updates)
        if scheduler:
            scheduler.step_update(updates)
        losses.update(loss.item(), len(images))
        if not math.isfinite(losses.val):
            raise FinetuneError(
                f'The loss became {losses.val} in epoch {epoch + 1}: try a smaller --lr or --clip-grad 1.'
            )
    loss = torch.tensor(losses.avg, device=target.device)
    return (utils.reduce_tensor(loss, args.world_size) if args.distributed else loss).item()


@torch.inference_mode()
def _validate(model, loader, args, device, autocast) -> dict[str, float]:
    """Loss, top-1 and top-5 (%) over the validation images."""
    model.eval()
    totals = torch.zeros(4, device=device)
    for images, target in loader:
        with autocast():
            logits = model(images).float()
        loss = torch.nn.functional.cross_entropy(logits, target)
        top1, top5 = utils.accuracy(logits, target, topk=(1, 5))
        totals += len(images) * torch.stack([loss, top1, top5, torch.ones_like(loss)])
    if args.distributed:
        dist.all_reduce(totals)
    loss, top1, top5 = (totals[:3] / totals[3]).tolist()
    return dict(loss=loss, top1=top1, top5=top5)


@contextmanager
def _saving(folder: Path):
    """Say what to do where a disk is full, which torch reports as a RuntimeError."""
    try:
        yield
    except (OSError, RuntimeError) as e:
        (folder / 'tmp.pth.tar').unlink(missing_ok=True)
        raise FinetuneError(
            f'Cannot write to {folder}: {e}. What was saved before is whole: make space, then go on with: '
            f'python -m timm_attn finetune --resume {folder}'
        ) from e
