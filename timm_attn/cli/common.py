"""What several subcommands share: adding a parser, and checking the name of a model."""

import argparse
import difflib
from collections.abc import Callable
from pathlib import Path


class UsageError(Exception):
    """Wrong input; the message is for the user."""


def add_command(commands, name: str, text: str, func: Callable) -> argparse.ArgumentParser:
    """Add the parser of a subcommand.

    Args:
        commands: Subparsers of the command line.
        name: Name of the subcommand.
        text: What it does, in one line.
        func: Its handler, called with the parsed arguments; what it returns is the exit status.
    """
    parser = commands.add_parser(name, help=text, description=f'{text[0].upper()}{text[1:]}.')
    parser.set_defaults(func=func)
    return parser


def known_name(name: str, others: list[str] | None = None) -> str:
    """Check the name of a model, with or without a tag: one of this package, or of ``others``."""
    from ..models import zoo_models

    known = {*zoo_models(), *zoo_models(include_tags=True), *(others or [])}
    if name not in known:
        arch = name.partition('.')[0]
        if arch in known:
            tags = ', '.join(zoo_models(arch, include_tags=True))
            raise UsageError(f'{arch} has no tag {name.partition(".")[2]!r}; there are: {tags}')
        near = difflib.get_close_matches(name, sorted(known), n=3)
        hint = f'did you mean {" or ".join(near)}?' if near else f'there are: {", ".join(zoo_models())}'
        raise UsageError(f'unknown model {name!r}; {hint}')
    return name


def check_model(name: str) -> None:
    """Check the name of a model before work begins: any that timm knows, if it is registered here."""
    import timm

    from .. import models  # noqa: F401  registers the models

    if ':' not in name and not timm.is_model(name.partition('.')[0]):
        if Path(name, 'config.json').is_file():
            raise UsageError(f'{name!r} is a directory; did you mean local-dir:{name}?')
        known_name(name, timm.list_models())  # raises, with the nearest names
