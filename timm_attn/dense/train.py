"""Train a detector or a segmenter: one loop, on accelerate, for any number of processes."""

import argparse
import math
import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm import utils
from timm.layers import convert_sync_batchnorm
from timm.models import load_checkpoint, resume_checkpoint, safe_model_name
from timm.optim import create_optimizer_v2, optimizer_kwargs
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from ..printable import printable
from ..train.checkpoints import check_new, find_checkpoints, load_newest, saving
from ..train.dense_options import FILES
from ..train.log import draw_curves, read_summary
from ..train.options import RunError
from ..train.run import Run, interruptible
from ..train.run_lock import lock_folder
from ..train.start import describe, describe_weights
from ..train.trackers import check_trackers
from ..whole_file import write_json
from .checkpoint import load, save
from .data import EpochBatches, collate
from .data.batches import share
from .draw import draw_samples, write_picture
from .image_results import import_extra
from .processes import from_first, start_accelerator
from .run_data import Data, check_unchanged, describe_data, open_data, write_defects
from .start_model import create_model
from .tasks import Task

_MOST_NAMES = 16  # of files of a batch in a line


def train(args: argparse.Namespace, task_class: type[Task]) -> Path:
    """Train a model, alone or as one of several processes under ``accelerate launch`` or torchrun.

    Args:
        args: Options of :mod:`timm_attn.train.dense_options`.
        task_class: What is trained.

    Returns:
        Folder of the run: ``model`` (loads by :func:`timm_attn.dense.load`), ``summary.csv``, ``curves.png``,
        ``metrics.json``, ``samples``, ``args.yaml``, ``split.json`` (the images), the checkpoints, and for detectors
        ``predictions.json`` and ``annotations.json`` of the best epoch. With ``eval_only`` the numbers and predictions.

    Raises:
        ValueError: If the data set cannot be trained on; :class:`~timm_attn.dense.data.open.DefectsError` if it has
            defects.
        RunError: If the run cannot start or continue; what was trained until then is kept.
        Interrupted: If the user stopped it.
        ImportError: If the packages of the extra ``dense`` are missing.
    """
    options = dict(vars(args))
    check_trackers(args)
    for package in ('torchmetrics', 'faster_coco_eval'):  # not only after the first epoch
        import_extra(package)
    task = task_class(args)
    subject = f'{task.builder}-{safe_model_name(args.backbone)}'
    if args.eval_only:
        subject = f'eval-{Path(args.initial_checkpoint).resolve().stem}'
    name = args.experiment or f'{datetime.now():%Y%m%d-%H%M%S}-{subject}'
    folder = Path(args.resume or Path(args.output) / name)
    with ExitStack() as stack:
        accelerator = start_accelerator(args, stack)
        with interruptible(folder):
            if args.eval_only:
                _evaluate_only(task, accelerator, folder)
                return folder
            run = _start(task, options, accelerator, folder, stack)
            run.fit()
            if run.saver:
                _finish(run)
    return folder


@dataclass
class DenseRun(Run):
    """Training of a detector or a segmenter.

    Attributes:
        task: What depends on the task.
        accelerator: Accelerate's handle of device, precision and processes.
        raw: The model itself.
        data: Images of the run.
        batches: Which images are in each batch of training.
        loader: Batches to train on.
        val_loader: Batches to validate on.
        val_share: Index of each image that this process validates.
        model: The model as accelerate has prepared it, for training.
        ema: Averaged weights.
    """

    task: Task
    accelerator: Any
    raw: nn.Module
    data: Data
    batches: EpochBatches
    loader: DataLoader
    val_loader: DataLoader
    val_share: range
    model: nn.Module = field(init=False)
    ema: utils.ModelEmaV3 | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.metric = self.task.metric  # type: ignore[misc]  # of the class in other runs

    @property
    def module(self) -> nn.Module:
        """The model that is trained."""
        return self.raw

    @property
    def updates(self) -> int:
        """Steps of the optimizer in an epoch."""
        return len(self.batches) // self.args.grad_accum_steps

    @property
    def precision(self) -> str:
        """Precision of the passes, in words."""
        kind = self.accelerator.mixed_precision if self.accelerator.native_amp else 'no'  # no float16 on a CPU
        return 'float32' if kind == 'no' else f'{dict(bf16="bfloat16", fp16="float16").get(kind, kind)} mixed precision'

    @property
    def result(self) -> nn.Module:
        """The model whose numbers count: that of the averaged weights if there are any."""
        return self.ema.module if self.ema else self.raw

    def make_saver(self) -> utils.CheckpointSaver:
        """Saver of the run's checkpoints."""
        return utils.CheckpointSaver(
            self.raw, self.optimizer, model_ema=self.ema, amp_scaler=self.accelerator.scaler,
            checkpoint_dir=str(self.folder), recovery_dir=str(self.folder), max_history=self.args.checkpoint_hist,
        )  # fmt: skip

    def train_epoch(self, epoch: int) -> tuple[dict[str, float], float]:
        """One pass over the training images; returns the mean losses, and the learning rate of the last step."""
        args, accelerator, model = self.args, self.accelerator, self.model.train()
        self.batches.set_epoch(epoch)
        parts: list[str] = []
        sums = torch.zeros((), device=self.device)
        updates, lr, total = epoch * self.updates, 0.0, 0.0
        hidden = None if accelerator.is_main_process else True  # None: hidden where there is no terminal
        bar = tqdm(self.loader, f'epoch {epoch}', leave=False, disable=hidden)
        for step, (indices, (images, targets)) in enumerate(zip(self.batches, bar, strict=True), start=1):
            with accelerator.accumulate(model):
                losses = self.task.losses(model, images, targets, self.device)
                loss = torch.stack(list(losses.values())).sum()
                if not math.isfinite(value := loss.item()):
                    self._fail(value, epoch, indices)
                accelerator.backward(loss)
                if accelerator.sync_gradients and args.clip_grad is not None:
                    accelerator.clip_grad_norm_(model.parameters(), args.clip_grad)
                self.optimizer.step()
                self.optimizer.zero_grad()
            lr = max(group['lr'] for group in self.optimizer.param_groups)
            if accelerator.sync_gradients:
                updates += 1
                self.scheduler.step_update(updates)
                if self.ema:
                    self.ema.update(self.raw, step=updates)
            parts = list(losses)
            sums = sums + torch.stack([part.detach() for part in losses.values()])
            total += value
            bar.set_postfix(loss=f'{total / step:.3f}', refresh=False)
        means = accelerator.reduce(sums / len(self.batches), reduction='mean').tolist()
        of_parts = dict(zip(parts, means, strict=True)) if len(parts) > 1 else {}
        return dict(loss=sum(means), **of_parts), lr

    def _fail(self, loss: float, epoch: int, indices: list[int]) -> None:
        dataset: Any = self.loader.dataset
        images = [os.path.basename(dataset.record(index).image) for index in indices]
        files = ', '.join(printable(image) for image in images[:_MOST_NAMES])
        raise RunError(
            f'The loss became {loss} in epoch {epoch}, on the batch of {files}: try a smaller --lr or {self.advice}, '
            'and look at these images if it is always the same ones.'
        )

    @torch.inference_mode()
    def validate(self) -> dict[str, float]:
        """Numbers on the validation images, of the averaged weights if there are any."""
        hidden = None if self.accelerator.is_main_process else True
        bar = tqdm(self.val_loader, 'validation', leave=False, disable=hidden)
        with self.accelerator.autocast():
            return self.task.evaluate(self.result.eval(), bar, self.val_share, self.device)

    def before_saving(self, epoch: int, metrics: dict[str, float]) -> None:
        """Write pictures of the epoch, and of the best epoch so far the model and what it found."""
        write_samples(self.task, self.folder / 'samples' / f'epoch-{epoch}.jpg', self.data)
        value, best = metrics[self.metric.name], self.saver and self.saver.best_metric
        if best is not None and not value > best:
            return
        model = self.folder / 'model'
        model.mkdir(exist_ok=True)
        save(self.result, model / 'model.safetensors')
        write_json(model / 'config.json', config_of(self.result, epoch, metrics), indent=1)
        self.task.write_results(self.folder, self.data.file_names)


def _start(task: Task, options: dict, accelerator: Any, folder: Path, stack: ExitStack) -> DenseRun:
    """Build a run, or rebuild one from its folder."""
    args, primary = task.args, accelerator.is_main_process
    if not args.resume:
        check_new(folder)
    elif primary:  # before its checkpoints are read
        with saving(folder):
            stack.enter_context(lock_folder(folder))
    data = from_first(accelerator, lambda: open_data(task, folder))
    classes = list(data.val.classes)
    if args.resume:
        check_unchanged(task, options.get('class_names') or classes, data, folder)
    if primary:
        print(describe_data(task, data), flush=True)
    paths = ('data_dir', 'pretrained_path', 'initial_checkpoint', *FILES)
    options |= {key: str(Path(options[key]).resolve()) for key in paths if options.get(key)}
    options |= dict(class_names=classes, num_classes=len(classes), resume=None, config=None)
    if 'classes' in options:
        options['classes'] = args.classes  # where a file had them
    asked = args.warmup_epochs
    args.warmup_epochs = min(asked, args.epochs / 2)
    run = _build(task, data, accelerator, folder)
    checkpoint = _restore(run)
    run.schedule()
    if primary:
        with saving(folder):
            run.open_folder(options, data.split, checkpoint, stack)
            if data.defects:
                write_defects(folder, data.defects)
        print(f'{folder}: resumes with epoch {run.start}' if args.resume else folder, flush=True)
        weights = describe_weights(args, run.raw, checkpoint)
        print(
            describe(run, f'{task.builder} on {args.backbone}', weights, '', _global_batch(args, run.batches), asked),
            flush=True,
        )
    return run


def _build(task: Task, data: Data, accelerator: Any, folder: Path) -> DenseRun:
    """The model, its optimizer and its batches."""
    args, device = task.args, accelerator.device
    assert data.train is not None  # which only an evaluation lacks
    if device.type == 'cpu':
        device = torch.device('cpu')  # accelerate numbers it
    utils.random_seed(args.seed)  # the same weights in every process
    if args.resume and find_checkpoints(folder):
        model = load(folder)  # knows what is frozen, which followed from weights that need not be there any more
    else:
        model = create_model(task, data.train, accelerator.is_main_process)
    if args.sync_bn and args.distributed:
        if device.type == 'cpu':
            raise RunError('--sync-bn needs GPUs: torch has no synchronized batch norm on the CPU.')
        model = convert_sync_batchnorm(model)
    model.to(device)
    train, val = task.train_dataset(model, data.train), task.val_dataset(model, data.val)
    batches, loader = _training_batches(task, train, device)
    indices = share(len(val), args.rank, args.world_size)
    val_loader = _loader(args, device, Subset(val, indices), batch_size=task.val_batch_size)
    if args.lr is None:
        args.lr = args.lr_base * _global_batch(args, batches) / args.lr_base_size
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(args))
    return DenseRun(
        args, folder, device, optimizer, task, accelerator, model, data, batches, loader, val_loader, indices
    )


def _training_batches(task: Task, dataset: Any, device: torch.device) -> tuple[EpochBatches, DataLoader]:
    """Batches of this process; smaller than asked for where there are few images."""
    args = task.args
    batch_size = max(1, min(args.batch_size, len(dataset) // (args.world_size * args.grad_accum_steps)))
    batches = EpochBatches(
        len(dataset), batch_size, args.seed, args.rank, args.world_size, args.grad_accum_steps, task.groups(dataset)
    )
    return batches, _loader(args, device, dataset, batch_sampler=batches)


def _loader(args: argparse.Namespace, device: torch.device, dataset: Any, **batching: Any) -> DataLoader:
    # Workers do not live on from epoch to epoch: a resumed run draws the same random numbers.
    return DataLoader(
        dataset, num_workers=args.workers, collate_fn=collate, pin_memory=device.type == 'cuda', **batching
    )


def _restore(run: DenseRun) -> Path | None:
    """Load the newest checkpoint of a run that is resumed; average the weights, and join the other processes."""
    args, accelerator, checkpoint = run.args, run.accelerator, None
    if args.resume:
        load_one = partial(_resume, run)
        checkpoint, run.start = load_newest(run.folder, load_one)
    if args.model_ema:
        run.ema = utils.ModelEmaV3(run.raw, decay=args.model_ema_decay, use_warmup=True)
        if checkpoint:
            load_checkpoint(run.ema.module, str(checkpoint), use_ema=True)
        for averaged, parameter in zip(run.ema.module.parameters(), run.raw.parameters(), strict=True):
            averaged.requires_grad_(parameter.requires_grad)  # what is frozen is part of the model that is saved
    accelerator.wait_for_everyone()  # all have read the checkpoint before the first of them writes one
    run.model, run.optimizer = accelerator.prepare(run.raw, run.optimizer)
    return checkpoint


def _resume(run: DenseRun, file: str) -> int:
    epoch = resume_checkpoint(run.raw, file, run.optimizer, run.accelerator.scaler, log_info=False)
    if epoch is None:
        raise ValueError('it is not of a training run')
    for group in run.optimizer.param_groups:
        group['initial_lr'] = run.args.lr  # grows with the batch of a step, which may be another now
    return epoch


def _global_batch(args: argparse.Namespace, batches: EpochBatches) -> int:
    """Images in a step of the optimizer."""
    return batches.batch_size * args.world_size * args.grad_accum_steps


def write_samples(task: Task, path: Path, data: Data) -> None:
    """Write the pictures of the last evaluation on one sheet."""
    if task.samples:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [(data.split.val[index], truth, found) for index, truth, found in task.samples]
        write_picture(draw_samples(rows), path)


def config_of(model: nn.Module, epoch: int, metrics: dict[str, float]) -> dict[str, Any]:
    """What ``config.json`` tells people of a model; :func:`load` reads the same from its file."""
    return {
        **model.recipe,
        'classes': model.classes,
        'category_ids': model.category_ids,
        'ignore_index': model.ignore_index,
        'epoch': epoch,
        'results': {name: None if math.isnan(value) else value for name, value in metrics.items()},
    }


def _evaluate_only(task: Task, accelerator: Any, folder: Path) -> None:
    """Evaluate a trained model, print the numbers, and write them with its predictions."""
    args = task.args
    check_new(folder)
    if (folder / 'metrics.json').exists():
        raise RunError(f'{folder} has the results of an evaluation already: name another --experiment.')
    model = load(args.initial_checkpoint)
    built = model.recipe['builder']
    kind = 'detector' if hasattr(args, 'detector') else 'segmenter'
    if hasattr(model, 'transform') != (kind == 'detector'):
        raise RunError(f'--initial-checkpoint {args.initial_checkpoint} holds a {built}, which is no {kind}.')
    setattr(args, kind, built)
    task.adopt(model)
    data = from_first(accelerator, lambda: open_data(task, folder))
    if model.classes != list(data.val.classes):
        raise RunError(
            f'The model in {args.initial_checkpoint} has the classes {", ".join(model.classes)}; --classes are '
            f'{", ".join(data.val.classes)}.'
        )
    task.label(model, data.val).to(accelerator.device)
    val = task.val_dataset(model, data.val)
    indices = share(len(val), args.rank, args.world_size)
    loader = _loader(args, accelerator.device, Subset(val, indices), batch_size=task.val_batch_size)
    bar = tqdm(loader, 'evaluation', leave=False, disable=None if accelerator.is_main_process else True)
    with torch.inference_mode(), accelerator.autocast():
        numbers = task.evaluate(model, bar, indices, accelerator.device)
    if accelerator.is_main_process:
        with saving(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if data.defects:
                write_defects(folder, data.defects)
            task.write_results(folder, data.file_names)
            write_samples(task, folder / 'samples.jpg', data)
        print(describe_data(task, data))
        print('\n'.join(f'{name:15} {task.metric.show(value)}' for name, value in numbers.items()))
        print(f'{folder}: metrics.json has the numbers of each class, samples.jpg shows some images', flush=True)


def _finish(run: DenseRun) -> None:
    """Draw the curves, and say how to use the model."""
    folder, task = run.folder, run.task
    title = f'{task.builder} on {run.args.backbone}, {Path(run.data.val.source).name}'
    with saving(folder):
        drawn = draw_curves(read_summary(folder / 'summary.csv'), folder / 'curves.png', title, run.metric)
    print(
        f'{folder}: {run.best}; curves.png {"shows the run" if drawn else "needs: pip install matplotlib"}\n'
        f"use it: import timm_attn.dense; model = timm_attn.dense.load('{folder}')\n"
        f'or: timm-attn {task.command} IMAGE --weights {folder}',
        flush=True,
    )
