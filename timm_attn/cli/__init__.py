"""The command ``timm-attn``: parses and prints; the work of a subcommand is in its subject's module.

Parsing imports neither torch nor timm, which take seconds: each subcommand imports what it needs when it runs.
"""

import argparse
import os
import sys

from safetensors import SafetensorError

from .. import __version__
from . import export, finetune, predict, recipe, run, zoo
from .common import UsageError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='timm-attn', description='Attention-augmented CNNs inside timm.')
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    commands = parser.add_subparsers(required=True, metavar='COMMAND')
    for module in (zoo, predict, finetune, export, recipe, run):
        module.add_parsers(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments; those of the process if None.

    Returns:
        Exit status: 0, or 2 where the input was wrong.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(argv, argparse.Namespace(argv=argv))
    if args.func is run.run_script:  # errors of a foreign script are its own
        expected: tuple = (UsageError,)
    else:
        expected = (UsageError, OSError, RuntimeError, ValueError, AssertionError, SafetensorError)
    try:
        status = args.func(args) or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except expected as e:
        process = f'rank {os.environ["RANK"]}: ' if os.environ.get('RANK', '0') != '0' else ''
        print(f'{process}error: {e or type(e).__name__}', file=sys.stderr)
        return 2
