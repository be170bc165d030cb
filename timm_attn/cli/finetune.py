"""``timm-attn finetune``."""

import argparse
from functools import partial

from ..train.options import add_arguments, parse
from .common import add_command, check_model


def add_parsers(commands) -> None:
    """Add the subcommand."""
    p = add_command(commands, 'finetune', 'fine-tune a model on a folder of images', finetune_model)
    add_arguments(p)
    p.set_defaults(func=partial(finetune_model, p))


def finetune_model(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Fine-tune."""
    args = parse(parser, args.argv[1:])
    check_model(args.model)

    from ..train.finetune import finetune

    finetune(args)
