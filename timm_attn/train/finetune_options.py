"""Options of ``timm-attn finetune``: timm's names, and the defaults of the recipe ``finetune``."""

import argparse
from collections.abc import Callable

from . import options
from .argument_types import (
    ParseKwargs,
    image_size,
    integer,
    not_negative,
    number,
    positive,
    positive_share,
    share,
    text,
)
from .options import (
    RunError,
    add_averaging,
    add_decay,
    add_length,
    add_loading,
    add_machine,
    add_output,
    add_run,
    adder,
    flag,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options, under the names that they have in timm's train.py."""
    add_run(parser, 'DIR/<class>/*, or DIR/train/<class>/*, DIR/val/...')
    add_data(parser)
    add = adder(parser, 'model')
    add('--model', type=text, default='csa_resnet50', help='any model of timm or of this package')
    add('--pretrained', action=flag, default=True, help='start from its pretrained weights')
    add('--pretrained-path', type=text, metavar='FILE',
        help='start from the weights in this file (default: download them)')  # fmt: skip
    add_building(add)
    add('--model-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='KEY=VALUE',
        help='arguments of the model, such as trainable=attention,head (default: none)')  # fmt: skip
    add_machine(parser)
    add_recipe(parser)
    add_output(parser, 'output/finetune')


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the group ``data``."""
    add = adder(parser, 'data')
    add('--train-split', type=text, default='train', metavar='NAME', help='folder for training')
    add('--val-split', type=text, metavar='NAME', help='folder for validation (default: val, or hold images out)')
    add('--val-fraction', type=float, default=0.2, metavar='SHARE', help='share of images to hold out')
    add('--img-size', type=image_size, metavar='N', help="image size (default: the model's)")
    add_loading(add, batch_size=64)


def add_building(add: Callable[..., None]) -> None:
    """Add how a model is built and run, whichever it is."""
    add('--drop', type=share, default=0.0, metavar='RATE', help='dropout')
    add('--drop-path', type=share, metavar='RATE', help="stochastic depth (default: the model's)")
    add('--grad-checkpointing', action=flag, default=False, help='trade time for memory')
    add('--channels-last', action=flag, default=False, help='use the channels_last memory format')
    add('--torchcompile', nargs='?', type=text, const='inductor', metavar='BACKEND',
        help='compile the model, with inductor if no backend is named (default: do not)')  # fmt: skip
    add_averaging(add)


def add_recipe(parser: argparse.ArgumentParser, metric: str | None = 'top-1') -> None:
    """Add the groups ``optimizer`` and ``augmentation``; ``metric`` chooses the best epoch, if one is chosen."""
    add = adder(parser, 'optimizer')
    add_length(add, epochs=40, metric=metric)
    add('--opt', type=text, default='adamw', metavar='NAME', help='any optimizer of timm')
    add('--lr', type=positive, default=2e-3, help='peak learning rate; a cosine decays it to zero')
    add('--layer-decay', type=positive_share, default=0.9, help='factor on the learning rate from block to block')
    add_decay(add, weight_decay=0.05)
    add('--warmup-epochs', type=integer(10**9), default=3, metavar='N',
        help='epochs of linear warm-up, at most half of all epochs')  # fmt: skip
    add = adder(parser, 'augmentation')
    add('--scale', type=positive_share, nargs=2, default=[0.35, 1.0], metavar=('LOW', 'HIGH'),
        help='share of the area in a random crop')  # fmt: skip
    add('--hflip', type=share, default=0.5, metavar='P', help='probability of a horizontal flip')
    add('--color-jitter', type=not_negative, default=0.2, metavar='FACTOR', help='color jitter')
    add('--aa', type=text, metavar='POLICY',
        help='AutoAugment or RandAugment, such as rand-m7-mstd0.5-inc1 (default: none)')  # fmt: skip
    add('--reprob', type=share, default=0.1, metavar='P', help='probability of random erasing')
    add('--mixup', type=not_negative, default=0.0, metavar='ALPHA', help='mixup')
    add('--cutmix', type=not_negative, default=0.0, metavar='ALPHA', help='CutMix')
    add('--smoothing', type=number(lambda x: 0 <= x < 1, 'a number from 0 to below 1'), default=0.1, metavar='EPS',
        help='label smoothing')  # fmt: skip


CONSTANT = dict(
    sched='cosine', sched_on_updates=True, warmup_lr=1e-6, min_lr=0.0, momentum=0.9, ratio=[3 / 4, 4 / 3], vflip=0.0,
    checkpoint_hist=1,
)  # fmt: skip
"""Options of timm's train.py that are not options here."""

_KEPT = (
    'model', 'model_kwargs', 'opt', 'lr', 'weight_decay', 'layer_decay', 'train_split', 'val_split', 'val_fraction',
)  # fmt: skip
"""Options that a resumed run keeps: its checkpoints depend on them, or which images it has seen."""


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Options from the run to resume, from ``--config`` and, with priority over both, from the command line.

    Args:
        parser: A parser with :func:`add_arguments`.
        argv: The command line.

    Raises:
        RunError: If a file cannot be read or has other options, or a run cannot be resumed with these options.
    """
    args = options.parse(parser, argv, _KEPT, CONSTANT)
    check(args)
    return args


def recipe_of(args: argparse.Namespace) -> dict:
    """The options of a run that make its recipe: not its model, its seed, and where it is and runs.

    Args:
        args: Options of this or of another command that has them.
    """
    parser = argparse.ArgumentParser(add_help=False)
    add_data(parser)
    add_building(adder(parser, ''))
    add_recipe(parser)
    names = {*vars(parser.parse_args([])), 'pretrained', 'amp', 'amp_dtype'} - {'workers'}
    return {name: value for name, value in vars(args).items() if name in names and value is not None}


def check(args: argparse.Namespace) -> None:
    """Check what one option alone does not tell.

    Raises:
        RunError: If options contradict each other.
    """
    if args.scale[0] > args.scale[1]:
        raise RunError(f'--scale {args.scale[0]} {args.scale[1]}: the lower share comes first.')
