"""The start of a run: its model, with errors that name options of the command line, and a description in two lines."""

import argparse
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import timm
from torch import nn

from ..model_config import check_source
from ..weights import DownloadError
from ..weights.convert import explain_unreadable
from ..weights.download import explain_hub_failure
from .options import RunError
from .run import Run


@contextmanager
def explained(name: str, pretrained: bool, file: str | None, subject: str = '') -> Iterator[None]:
    """Tell in options of the command line why a model cannot be created, or its weights cannot be used.

    It also checks that the file exists.

    Args:
        name: The model, or the backbone.
        pretrained: Whether its weights are loaded.
        file: The file with them, if it is not the published one.
        subject: What is created, if it is more than the model.

    Raises:
        RunError: If it cannot.
    """
    if file and not Path(file).is_file():
        raise RunError(f'--pretrained-path {file}: there is no such file.')
    try:
        with explain_hub_failure(name, pretrained and not file):
            check_source(name)
            yield
    except DownloadError as e:
        if not e.offline:
            raise
        cause = str(e.__cause__).strip().partition('\n')[0]
        raise RunError(
            f'The pretrained weights of {name} are not in the cache and cannot be downloaded: give a file that '
            f'you have with --pretrained-path FILE, or start from random weights with --no-pretrained. ({cause})'
        ) from e
    except Exception as e:
        if file:
            explain_unreadable(file)
        if isinstance(e, TypeError | KeyError):
            raise RunError(f'Cannot create {subject or name} with these options: {e}') from e
        if not file:
            raise
        hint = (
            ' Arguments of the model are given as --model-kwargs KEY=VALUE.' if re.search(r'\w=[\w\']', str(e)) else ''
        )
        raise RunError(f'--pretrained-path {file}: {e}{hint}') from e


def create_model(args: argparse.Namespace, num_classes: int, pretrained: bool) -> nn.Module:
    """Create the classifier of a run.

    Args:
        args: Options.
        num_classes: Number of classes.
        pretrained: Whether to load the weights that it starts from.

    Raises:
        RunError: If it cannot be created with these options, or its weights cannot be used.
    """
    file = args.pretrained_path if pretrained else None
    with explained(args.model, pretrained, file):
        model = timm.create_model(
            args.model,
            pretrained=pretrained,
            pretrained_cfg_overlay=dict(file=file, num_classes=-1) if file else None,
            num_classes=num_classes,
            drop_rate=args.drop,
            drop_path_rate=args.drop_path,
            **args.model_kwargs,
        )
    if pretrained:
        check_finite(model, file or f'the pretrained weights of {args.model}')
    if args.grad_checkpointing:
        model.set_grad_checkpointing()
    return model


def check_finite(model: nn.Module, source: str) -> None:
    """Check that no weight is infinite or not a number, with which every loss would be so as well."""
    bad = [name for name, value in model.named_parameters() if not value.isfinite().all()]
    bad += [name for name, value in model.named_buffers() if value.isnan().any()]
    if bad:
        more = f' and {len(bad) - 1} more tensors' if len(bad) > 1 else ''
        raise RunError(f'{source}: values that are not finite, in {bad[0]}{more}. Start from other weights.')


def describe(run: Run, subject: str, weights: str, images: str, batch_size: int, asked_warmup: float) -> str:
    """What starts: the weights, the machine, and the schedule.

    Args:
        run: The run.
        subject: What is trained.
        weights: Where its weights come from.
        images: Size of the images, if all have one.
        batch_size: Images in a step of the optimizer.
        asked_warmup: Epochs of warm-up before they were limited.
    """
    args = run.args
    parameters = list(run.module.parameters())
    trained, total = (sum(p.numel() for p in some) for some in ([p for p in parameters if p.requires_grad], parameters))
    processes = f' in {args.world_size} processes' if args.world_size > 1 else ''
    left = f'epochs {run.start} to {run.epochs - 1}' if run.start < run.epochs else f'no epoch left of {run.epochs}'
    shortened = f' (not {asked_warmup:g}: at most half of all epochs)' if args.warmup_epochs < asked_warmup else ''
    return (
        f'{subject}: {weights}; {trained / 1e6:.2f} of {total / 1e6:.2f} M parameters are trained; '
        f'{run.device}{processes}, {run.precision}\n'
        f'{left}, {run.updates} step{"s" * (run.updates != 1)} each: batch size {batch_size}, '
        f'{f"images {images}, " if images else ""}{args.opt}, lr {args.lr:g}, warm-up epochs '
        f'{args.warmup_epochs:g}{shortened}'
    )


def describe_weights(args: argparse.Namespace, model: nn.Module, checkpoint: Path | None) -> str:
    """Where the weights of a run come from.

    Args:
        args: Options.
        model: The model.
        checkpoint: Checkpoint that was loaded.
    """
    if checkpoint:
        return f'weights of {checkpoint.name}'
    if getattr(args, 'initial_checkpoint', None):
        return f'weights of {args.initial_checkpoint}'
    if not args.pretrained:
        return 'random weights'
    if args.pretrained_path:
        return f'weights of {args.pretrained_path}'
    tag = getattr(model, 'pretrained_cfg', {}).get('tag')
    return f'pretrained weights {tag}' if tag else 'pretrained weights'
