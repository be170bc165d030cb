"""``timm-attn run``."""

import argparse
import os
import runpy
import sys

from .common import UsageError, add_command


def add_parsers(commands) -> None:
    """Add the subcommand."""
    text = "run a script of timm, such as validate.py, with this package's models"
    p = add_command(commands, 'run', text, run_script)
    p.allow_empty = True  # the script has its own options
    p.add_argument('script', metavar='SCRIPT', help='path of the script')
    p.add_argument('args', nargs=argparse.REMAINDER, metavar='...', help='arguments of the script')


def run_script(args: argparse.Namespace) -> None:
    """Run a script as ``python SCRIPT`` would, after the models are registered."""
    if not os.path.isfile(args.script):
        raise UsageError(
            f'there is no script {args.script!r}; train.py, validate.py and others come with the timm repository'
        )
    from .. import models  # noqa: F401  registers the models

    sys.argv = [args.script, *args.args]
    sys.path[0] = os.path.dirname(os.path.abspath(args.script))  # as `python SCRIPT` would
    runpy.run_path(args.script, run_name='__main__')
