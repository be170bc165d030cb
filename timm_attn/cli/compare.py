"""``timm-attn compare``."""

import argparse
from functools import partial

from ..train.compare_options import add_arguments, parse
from .common import UsageError, add_command, check_model
from .finetune import run_training


def add_parsers(commands) -> None:
    """Add the subcommand."""
    p = add_command(commands, 'compare', 'train several models on a folder of images, and compare them', compare_models)
    add_arguments(p)
    p.set_defaults(func=partial(compare_models, p))


def compare_models(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Train, test and report."""
    args = parse(parser, args.argv[1:])
    if not args.models:
        raise UsageError('name the models: timm-attn compare DIR --models resnet18 csa_resnet18')

    from ..train.compare import compare
    from ..train.contestants import parse_contestants

    for one in parse_contestants(args.models):
        check_model(one.kwargs.get('backbone', one.model))

    return run_training(partial(compare, args))
