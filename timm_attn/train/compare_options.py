"""Options of ``timm-attn compare``: those of ``finetune``, with several models and seeds."""

import argparse
from pathlib import Path

from . import finetune_options, options
from .argument_types import integer, positive, positive_int, text
from .finetune_options import CONSTANT, add_building, add_data, add_recipe
from .options import add_machine, add_place, add_run, adder, flag

_FREE = ('models', 'seeds', 'workers', 'device', 'output', 'experiment', 'jobs', 'pictures')
"""Options that may change when a comparison is resumed; all others are the recipe, which its runs share."""

_OF_ONE_RUN = ('model', 'pretrained_path', 'patience', 'log_tensorboard', 'log_wandb', 'wandb_project')
"""Options of ``finetune`` in a recipe for it, which have no meaning here."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_run(parser, 'DIR/train/<class>/*, DIR/test/<class>/*, or DIR/<class>/*')
    add = adder(parser, 'comparison')
    add('--models', nargs='+', type=text, metavar='MODEL',
        help='models of timm or of this package, the first is what the others are compared with; MODEL+ATTENTION '
        'attaches an attention')  # fmt: skip
    add('--seeds', type=positive_int, default=3, metavar='N', help='runs of each model, with seeds from --seed on')
    add('--minutes', type=positive, metavar='N',
        help='time for everything, which chooses --img-size and --epochs (default: any)')  # fmt: skip
    add('--jobs', type=positive_int, metavar='N', help='runs at the same time (default: one on each GPU, else 1)')
    add('--pictures', type=integer(100), default=6, metavar='N',
        help='images in the report on which the models disagree')  # fmt: skip
    add_data(parser)
    add = adder(parser, 'model')
    add('--pretrained', action=flag, default=True, help='start from their pretrained weights')
    add_building(add)
    add_machine(parser)
    add_recipe(parser, metric=None)
    add_place(parser, 'output/compare', 'time and data')
    parser.set_defaults(pretrained_path=None)


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Options from the comparison to resume, from ``--config`` and, with priority over both, from the command line.

    Args:
        parser: A parser with :func:`add_arguments`.
        argv: The command line.

    Raises:
        RunError: If a file cannot be read or has other options, or a comparison cannot be resumed with these options.
    """
    kept = set(vars(parser.parse_args([]))) - {*_FREE, 'resume', 'config', 'func', 'data_dir', 'pretrained_path'}
    args = options.parse(parser, argv, sorted(kept), CONSTANT, _OF_ONE_RUN)
    finetune_options.check(args)
    return args


def command_of(args: argparse.Namespace) -> list[str]:
    """Words of a command that makes a comparison again, without what belongs to a machine.

    Args:
        args: Options of the comparison, with what a budget has chosen.
    """
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    defaults = vars(parser.parse_args([]))
    left_out = {*_FREE, 'resume', 'config', 'data_dir', 'pretrained_path', 'minutes'} - {'models', 'seeds'}
    given = {name: getattr(args, name) for name, value in defaults.items() if name not in left_out}
    words = ['timm-attn', 'compare', Path(args.data_dir).resolve().name]
    for name, value in given.items():
        if value is not None and value != defaults[name]:
            first, *more = options.words_of(name, value)
            words += [first, *more] if '=-' in first else [*first.split('=', 1), *more]
    return words
