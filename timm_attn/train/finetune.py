"""Fine-tune a model on a folder of images: a thin layer over timm's datasets, loaders, optimizers and checkpoints.

It is for users without a checkout of timm, whose train.py does much more under the same option names.
"""

import argparse
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from timm import utils
from timm.data import FastCollateMixup, ImageDataset, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import safe_model_name
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.task import ClassificationTask, load_task_ema_checkpoint, resume_task_checkpoint

from ..report import write_page
from .answers import Answers
from .checkpoints import check_new, find_checkpoints, load_newest, saving
from .export import export_run
from .image_folder import open_folder, split_of
from .log import draw_curves, read_summary
from .loop import ClassifierRun
from .options import RunError
from .run import interruptible, leave_processes
from .run_lock import lock_folder
from .run_report import make_page
from .split import Draw, Split, hold_out, hold_out_of_earlier_versions
from .start import create_model, describe, describe_weights
from .trackers import check_trackers

_logger = logging.getLogger(__name__)


def finetune(args: argparse.Namespace, command: Sequence[str] | None = None) -> Path:
    """Fine-tune a model, alone or as one of several processes under torchrun.

    Args:
        args: Options of :mod:`timm_attn.train.finetune_options`.
        command: Words of the command, for the report.

    Returns:
        Folder of the run: ``model`` (loads by ``local-dir:``), ``report.html`` and ``report.md``, ``summary.csv``,
        ``curves.png``, ``args.yaml``,
        ``split.json`` (the images) and the checkpoints.

    Raises:
        FolderError: If the data set cannot be trained on.
        RunError: If the run cannot start or continue; what was trained until then is kept.
        Interrupted: If the user stopped it.
    """
    options = dict(vars(args))
    check_trackers(args)
    if not args.data_dir:
        raise RunError('Name the folder of images, before the options: timm-attn finetune DIR --model NAME.')
    args.device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    device = utils.init_distributed_device(args)
    name = args.experiment or f'{datetime.now():%Y%m%d-%H%M%S}-{safe_model_name(args.model)}'
    folder = Path(args.resume or Path(args.output) / name)
    with ExitStack() as stack:
        if args.distributed:
            stack.push(leave_processes)
        with interruptible(folder):
            run = _start(args, options, device, folder, stack)
            run.fit()
            if run.saver:
                _finish(run, options, command)
    return folder


@dataclass
class Data:
    """Images of a run.

    Attributes:
        train: Images to train on.
        val: Images to validate on.
        classes: Names of the classes in the order of their indices.
        split: Names of the images.
    """

    train: ImageDataset
    val: ImageDataset
    classes: list[str]
    split: Split


def _start(
    args: argparse.Namespace, options: dict, device: torch.device, folder: Path, stack: ExitStack
) -> ClassifierRun:
    """Build a run, or rebuild one from its folder.

    Args:
        args: Options, with what timm adds to them.
        options: Options as they were given, for ``args.yaml``.
        device: Device to train on.
        folder: Folder of the run.
        stack: What ends with the run.
    """
    primary = utils.is_primary(args)
    if not args.resume:
        check_new(folder)
    elif primary:  # before its checkpoints are read
        with saving(folder):
            stack.enter_context(lock_folder(folder))
    data = _open_data(args, options.get('class_names'), folder)
    if primary:
        print(_describe_data(args, data), flush=True)
    options |= dict(class_names=data.classes, num_classes=len(data.classes), resume=None, config=None)
    options |= {k: str(Path(options[k]).resolve()) for k in ('data_dir', 'pretrained_path') if options[k]}
    run = _build(args, data, device, folder)
    checkpoint = _restore(run)
    asked = args.warmup_epochs
    args.warmup_epochs = min(asked, args.epochs // 2)
    run.schedule()
    if primary:
        with saving(folder):
            run.open_folder(options, data.split, checkpoint, stack)
        print(f'{folder}: resumes with epoch {run.start}' if args.resume else folder, flush=True)
        model = utils.unwrap_model(run.module)
        height, width = resolve_data_config(vars(args), model=model)['input_size'][-2:]
        weights = describe_weights(args, model, checkpoint)
        batch_size = _batch_size(args, len(data.train)) * args.world_size
        print(describe(run, args.model, weights, f'{width} x {height}', batch_size, asked), flush=True)
    return run


def _open_data(args: argparse.Namespace, classes_before: list[str] | None, folder: Path) -> Data:
    """Images to train and validate on; for a run that is resumed, its own."""
    draw: Draw = hold_out
    before = Split.read(folder) if args.resume else None
    if before:
        draw = before.draw
    elif args.resume:
        draw = hold_out_of_earlier_versions
        _logger.warning(
            f'The run in {folder} is of an earlier version, which did not record its images: if {args.data_dir} has '
            'changed since then, images that it trained on may now be among those for validation.'
        )
    train, val, classes = open_folder(args.data_dir, args.train_split, args.val_split, args.val_fraction, draw)
    _check_classes(args, classes_before or classes, classes)
    split = split_of(train, val, args.data_dir)
    if before:
        otherwise = (
            f'start a new run from its weights: --model local-dir:{folder / "model"} if it has ended, else '
            f'--pretrained-path {folder / "last.pth.tar"}'
        )
        before.check(split, folder, args.data_dir, otherwise)
    return Data(train, val, classes, split)


def _describe_data(args: argparse.Namespace, data: Data) -> str:
    held_out = 'held out' if data.train.reader.root == data.val.reader.root else data.val.reader.root
    return (
        f'{args.data_dir}: {len(data.classes)} classes, {len(data.train)} images to train, {len(data.val)} to validate '
        f'({held_out})'
    )


def _check_classes(args: argparse.Namespace, before: list[str], classes: list[str]) -> None:
    if before == classes:
        return
    other = sorted(set(before) ^ set(classes))
    raise RunError(
        f'The run in {args.resume} has {len(before)} classes, {args.data_dir} has {len(classes)}; they differ in '
        f'{", ".join(other[:5])}{" and more" if len(other) > 5 else ""}. Name the folder of that run, or start anew.'
    )


def _build(args: argparse.Namespace, data: Data, device: torch.device, folder: Path) -> ClassifierRun:
    """The model, its loss, its optimizer and its batches."""
    utils.random_seed(args.seed, args.rank)
    model = create_model(args, len(data.classes), pretrained=args.pretrained and not find_checkpoints(folder))
    model.to(device=device, memory_format=torch.channels_last if args.channels_last else torch.preserve_format)
    loaders = _loaders(args, data, resolve_data_config(vars(args), model=model), device)
    task = ClassificationTask(model, _criterion(args), device=device, verbose=False)
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(args))
    run = ClassifierRun(args, folder, device, optimizer, task, *loaders)
    if device.type == 'cuda' if args.amp is None else args.amp:
        run.autocast = partial(torch.autocast, device.type, getattr(torch, args.amp_dtype))
        if args.amp_dtype == 'float16' and device.type == 'cuda':
            run.scaler = utils.NativeScaler(device.type)
    return run


def _restore(run: ClassifierRun) -> Path | None:
    """Load the newest checkpoint of a run that is resumed, and wrap the model for averaging, compiling and DDP."""
    args, checkpoint = run.args, None
    if args.resume:

        def load(file: str) -> int:
            return resume_task_checkpoint(run.task, file, run.optimizer, run.scaler, log_info=False)

        checkpoint, run.start = load_newest(run.folder, load)
    if args.model_ema:
        run.task.setup_ema(decay=args.model_ema_decay, use_warmup=True)
        if checkpoint:
            load_task_ema_checkpoint(run.task, str(checkpoint))
    if args.torchcompile:
        run.task.compile(backend=args.torchcompile)
    if args.distributed:
        dist.barrier()  # all have read the checkpoint before the first of them writes one
        run.task.prepare_distributed(device_ids=[run.device] if run.device.type == 'cuda' else None)
    return checkpoint


def _batch_size(args: argparse.Namespace, images: int) -> int:
    """Images in a batch of one process, fewer than asked for where there are few.

    The last, smaller batch of an epoch is dropped: a data set smaller than one batch would train on nothing.
    """
    batch_size = min(args.batch_size, images // args.world_size)
    batch_size -= batch_size % 2 if _mixes(args) else 0
    if batch_size < 2:
        raise RunError(
            f'A batch needs at least 2 images: there are {images} to train, in {args.world_size} process(es), with '
            f'--batch-size {args.batch_size}.'
        )
    return batch_size


def _loaders(args: argparse.Namespace, data: Data, config: dict, device: torch.device) -> tuple[Any, Any]:
    """Loaders for training and validation, with the model's own mean, size and interpolation."""
    shared = dict(
        input_size=config['input_size'], mean=config['mean'], std=config['std'], interpolation=config['interpolation'],
        num_workers=args.workers, distributed=args.distributed, pin_memory=device.type == 'cuda', device=device,
    )  # fmt: skip
    collate = FastCollateMixup(args.mixup, args.cutmix, label_smoothing=args.smoothing, num_classes=len(data.classes))
    loader = create_loader(
        data.train, batch_size=_batch_size(args, len(data.train)), is_training=True, scale=args.scale, ratio=args.ratio,
        hflip=args.hflip, vflip=args.vflip, color_jitter=args.color_jitter, auto_augment=args.aa, re_prob=args.reprob,
        re_mode='pixel', collate_fn=collate if _mixes(args) else None, **shared,
        persistent_workers=False,  # else random numbers continue over the epochs, which a resumed run could not repeat
    )  # fmt: skip
    return loader, create_loader(
        data.val, batch_size=min(args.batch_size, len(data.val)), crop_pct=config['crop_pct'], **shared
    )


def _mixes(args: argparse.Namespace) -> bool:
    return args.mixup > 0 or args.cutmix > 0


def _criterion(args: argparse.Namespace) -> torch.nn.Module:
    if _mixes(args):
        return SoftTargetCrossEntropy()  # labels are smoothed where they are mixed
    return LabelSmoothingCrossEntropy(args.smoothing) if args.smoothing else torch.nn.CrossEntropyLoss()


def _finish(run: ClassifierRun, options: dict, command: Sequence[str] | None) -> None:
    """Export the best weights, draw the curves, write the report, and say how to use the model."""
    model = run.folder / 'model'
    title = f'{run.args.model}, {Path(run.args.data_dir).resolve().name}'
    rows = read_summary(run.folder / 'summary.csv')
    with saving(run.folder):
        best = export_run(run.folder, model).to(run.device)
        drawn = draw_curves(rows, run.folder / 'curves.png', title)
    data = run.val_loader.dataset
    root, labels = Path(data.reader.root), list(data.reader.class_to_idx)
    answers = Answers.of(best, data.reader.samples, labels, root, run.args.batch_size)
    with saving(run.folder):
        write_page(make_page(run.args.model, options, rows, run.metric, answers, command, run.device), run.folder)
    figures = '' if drawn else '; for its figures and curves.png: pip install matplotlib'
    print(
        f'{run.folder}: {run.best}; report.html shows the run{figures}\n'
        f"use it: import timm, timm_attn; timm.create_model('local-dir:{model}', pretrained=True)\n"
        f'or: timm-attn predict IMAGE --model local-dir:{model}',
        flush=True,
    )
