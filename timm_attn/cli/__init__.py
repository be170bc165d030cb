"""The command ``timm-attn``: parses and prints; the work of a subcommand is in its subject's module.

Parsing imports neither torch nor timm, which take seconds: each subcommand imports what it needs when it runs.
"""

import argparse
import os
import select
import sys
import warnings

from safetensors import SafetensorError

from .. import __version__
from . import compare, dense_predict, evaluate, explain, export, finetune, predict, recipe, run, table, train_dense, zoo
from .common import Parser, UsageError, in_options, printable

_INTERRUPTED = 130  # what a shell reports for a process that Ctrl-C has ended
_MAX_MESSAGE = 2000
_EXPECTED = (
    UsageError, OSError, RuntimeError, ValueError, AssertionError, ImportError, MemoryError, SafetensorError,
)  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog='timm-attn', description='Attention-augmented CNNs inside timm.')
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    commands = parser.add_subparsers(required=True, metavar='COMMAND')
    modules = (
        zoo, table, predict, evaluate, explain, finetune, compare, train_dense, dense_predict, export, recipe, run,
    )  # fmt: skip
    for module in modules:
        module.add_parsers(commands)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments; those of the process if None.

    Returns:
        Exit status: 0, 2 where the input was wrong, or 130 where it was interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(argv, argparse.Namespace(argv=argv))
    if args.func is run.run_script:  # errors of a foreign script are its own
        return _run(args, _EXPECTED)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', module='PIL')  # of files that are odd, or refused with an error
        return _run(args, _EXPECTED)


def _run(args: argparse.Namespace, expected: tuple) -> int:
    try:
        status = args.func(args) or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError as e:
        if not _has_lost_its_reader():
            _report(e, str(e))
            return 2
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as e:
        if expected == (UsageError,):
            raise
        _report(e, 'interrupted')
        return _INTERRUPTED
    except expected as e:
        _report(e, in_options(str(e), args.argv[0]) or f'{type(e).__name__}, without a message')
        return _INTERRUPTED if isinstance(e.__context__, KeyboardInterrupt) else 2


def _has_lost_its_reader() -> bool:
    """Whether the reader of the output, such as `head`, has seen enough and ended."""
    if not hasattr(select, 'poll'):  # Windows, where such a pipe gives another error
        return True
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError, AttributeError):  # no file
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _report(error: BaseException, message: str) -> None:
    """Print an error as one line."""
    process = f'rank {os.environ["RANK"]}: ' if os.environ.get('RANK', '0') != '0' else ''
    print(f'{process}error: {printable(" ".join(message.splitlines()), _MAX_MESSAGE)}', file=sys.stderr)
