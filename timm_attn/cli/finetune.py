"""``timm-attn finetune``."""

import argparse
import sys
from collections.abc import Callable
from functools import partial

from ..train.finetune_options import add_arguments, parse
from .common import add_command, check_model


def add_parsers(commands) -> None:
    """Add the subcommand."""
    p = add_command(commands, 'finetune', 'fine-tune a model on a folder of images', finetune_model)
    add_arguments(p)
    p.set_defaults(func=partial(finetune_model, p))


def finetune_model(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Fine-tune a classifier."""
    command = ['timm-attn', *args.argv]
    args = parse(parser, args.argv[1:])
    check_model(args.model)

    from ..train.finetune import finetune

    return run_training(partial(finetune, args, command))


def run_training(train: Callable[[], object]) -> int:
    """Train; the exit status is 130 where the user stopped it, as in a shell."""
    from ..train.run import Interrupted

    try:
        train()
    except Interrupted as e:
        print(e, file=sys.stderr)
        return 130
    except BrokenPipeError as e:
        raise RuntimeError(f'stopped, as its output or a process that loads images has ended ({e})') from e
    return 0
