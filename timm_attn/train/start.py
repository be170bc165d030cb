"""The start of a run: its model, with errors that name options of the command line, and a description in two lines."""

import argparse
import re
from contextlib import nullcontext
from pathlib import Path

import timm
from timm import utils
from timm.data import resolve_data_config
from torch import nn

from ..model_config import check_source
from ..weights import DownloadError
from ..weights.convert import explain_unreadable
from ..weights.download import explain_hub_failure
from .loop import Run
from .options import FinetuneError


def create_model(args: argparse.Namespace, num_classes: int, pretrained: bool) -> nn.Module:
    """Create the model of a run.

    Args:
        args: Options.
        num_classes: Number of classes.
        pretrained: Whether to load the weights that it starts from.

    Raises:
        FinetuneError: If it cannot be created with these options, or its weights cannot be used.
    """
    file = args.pretrained_path if pretrained else None
    if file and not Path(file).is_file():
        raise FinetuneError(f'--pretrained-path {file}: there is no such file.')
    try:
        with explain_hub_failure(args.model, pretrained and not file):
            check_source(args.model)
            model = timm.create_model(
                args.model,
                pretrained=pretrained,
                pretrained_cfg_overlay=dict(file=file, num_classes=-1) if file else None,
                num_classes=num_classes,
                drop_rate=args.drop,
                drop_path_rate=args.drop_path,
                **args.model_kwargs,
            )
    except DownloadError as e:
        if not e.offline:
            raise
        cause = str(e.__cause__).strip().partition('\n')[0]
        raise FinetuneError(
            f'The pretrained weights of {args.model} are not in the cache and cannot be downloaded: give a file that '
            f'you have with --pretrained-path FILE, or start from random weights with --no-pretrained. ({cause})'
        ) from e
    except Exception as e:
        if file:
            explain_unreadable(file)
        if isinstance(e, TypeError | KeyError):
            raise FinetuneError(f'Cannot create {args.model} with these options: {e}') from e
        if not file:
            raise
        hint = (
            ' Arguments of the model are given as --model-kwargs KEY=VALUE.' if re.search(r'\w=[\w\']', str(e)) else ''
        )
        raise FinetuneError(f'--pretrained-path {file}: {e}{hint}') from e
    if pretrained:
        _check_finite(model, file or f'the pretrained weights of {args.model}')
    if args.grad_checkpointing:
        model.set_grad_checkpointing()
    return model


def _check_finite(model: nn.Module, source: str) -> None:
    """Check that no weight is infinite or not a number, with which every loss would be so as well."""
    bad = [name for name, value in model.named_parameters() if not value.isfinite().all()]
    bad += [name for name, value in model.named_buffers() if value.isnan().any()]
    if bad:
        more = f' and {len(bad) - 1} more tensors' if len(bad) > 1 else ''
        raise FinetuneError(f'{source}: values that are not finite, in {bad[0]}{more}. Start from other weights.')


def describe(run: Run, batch_size: int, asked_warmup: int, checkpoint: Path | None) -> str:
    """What starts: the weights, the machine, and the schedule.

    Args:
        run: The run.
        batch_size: Images in a step of all processes.
        asked_warmup: Epochs of warm-up before they were limited.
        checkpoint: Checkpoint that was loaded.
    """
    args = run.args
    model = utils.unwrap_model(run.task.get_trainable_module())
    parameters = list(model.parameters())
    trained, total = (sum(p.numel() for p in some) for some in ([p for p in parameters if p.requires_grad], parameters))
    precision = 'float32' if run.autocast is nullcontext else f'{args.amp_dtype} mixed precision'
    height, width = resolve_data_config(vars(args), model=model)['input_size'][-2:]
    processes = f' in {args.world_size} processes' if args.world_size > 1 else ''
    left = f'epochs {run.start} to {run.epochs - 1}' if run.start < run.epochs else f'no epoch left of {run.epochs}'
    shortened = f' (not {asked_warmup}: at most half of all epochs)' if args.warmup_epochs < asked_warmup else ''
    return (
        f'{args.model}: {_weights(args, model, checkpoint)}; {trained / 1e6:.2f} of {total / 1e6:.2f} M parameters are '
        f'trained; {run.device}{processes}, {precision}\n'
        f'{left}, {len(run.loader)} step{"s" * (len(run.loader) != 1)} each: batch size {batch_size}, images '
        f'{width} x {height}, {args.opt}, lr {args.lr:g}, warm-up epochs {args.warmup_epochs}{shortened}'
    )


def _weights(args: argparse.Namespace, model: nn.Module, checkpoint: Path | None) -> str:
    """Where the weights come from."""
    if checkpoint:
        return f'weights of {checkpoint.name}'
    if not args.pretrained:
        return 'random weights'
    if args.pretrained_path:
        return f'weights of {args.pretrained_path}'
    tag = model.pretrained_cfg.get('tag')
    return f'pretrained weights {tag}' if tag else 'pretrained weights'
