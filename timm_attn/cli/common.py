"""What several subcommands share: their parser, the name of a model, safe text, and files written whole."""

import argparse
import csv
import difflib
import io
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from ..printable import printable as printable

MAX_LABEL = 200  # characters of a label on a terminal


class UsageError(Exception):
    """Wrong input; the message is for the user."""


class Parser(argparse.ArgumentParser):
    """Parser whose errors are one line, which names the nearest option instead of guessing it.

    Attributes:
        allow_empty: Whether an argument may be empty, which it is where a variable of the shell is not set.
    """

    allow_empty = True

    def __init__(self, **kwargs):
        super().__init__(**{'allow_abbrev': False, **kwargs})

    def parse_known_args(self, args=None, namespace=None):
        """As in the base class, but unknown arguments are errors here, where the subcommand is known."""
        words = list(sys.argv[1:] if args is None else args)
        for before, word in zip(['an argument', *words], words, strict=False):
            if not self.allow_empty and (not word or re.fullmatch('--[^=]+=', word)):
                name = word or (before if before.startswith('-') else 'an argument')
                self.error(f'the value of {name.removesuffix("=")} is empty; is a variable of the shell not set?')
        namespace, unknown = super().parse_known_args(words, namespace)
        if unknown:
            hints = ''.join(f'; did you mean {near}?' for near in self._nearest(unknown[0]))
            self.error(f'unrecognized arguments: {" ".join(unknown)}{hints}')
        return namespace, unknown

    def _nearest(self, word: str) -> list[str]:
        options = {option.replace('-', ''): option for option in re.findall(r'--\w[\w-]*', self.format_help())}
        word = word.partition('=')[0].replace('-', '')
        begin = [option for key, option in options.items() if len(word) > 2 and key.startswith(word)]
        return begin[:1] or [options[key] for key in difflib.get_close_matches(word, options, n=1, cutoff=0.7)]

    def error(self, message):
        """End with the message, what was typed escaped, and where to read more."""
        self.exit(2, f'{self.prog}: error: {printable(message)} (see {self.prog} --help)\n')


def add_command(commands, name: str, text: str, func: Callable) -> Parser:
    """Add the parser of a subcommand.

    Args:
        commands: Subparsers of the command line.
        name: Name of the subcommand.
        text: What it does, in one line.
        func: Its handler, called with the parsed arguments; what it returns is the exit status.
    """
    parser = commands.add_parser(name, help=text, description=f'{text[0].upper()}{text[1:]}.')
    parser.allow_empty = False
    parser.set_defaults(func=func)
    return parser


def known_name(name: str, others: Iterable[str] = ()) -> str:
    """Check the name of a model, with or without a tag: one of this package, or of ``others``."""
    from ..models import zoo_models

    known = {*zoo_models(), *zoo_models(include_tags=True), *others}
    if name not in known:
        arch = name.partition('.')[0]
        if arch in known:
            tags = ', '.join(n for n in sorted(known) if n.startswith(f'{arch}.')) or 'none'
            raise UsageError(f'{arch} has no tag {name.partition(".")[2]!r}; there are: {tags}')
        near = difflib.get_close_matches(name.lower(), sorted(known), n=3)
        hint = f'did you mean {" or ".join(near)}?' if near else 'timm-attn list shows those of this package'
        raise UsageError(f'unknown model {name!r}; {hint}')
    return name


def check_model(name: str) -> None:
    """Check the name of a model before work begins: any that timm knows, if it is registered here."""
    import timm
    from timm.models import get_arch_pretrained_cfgs

    from .. import models  # noqa: F401  registers the models

    arch, dot, _ = name.partition('.')
    if ':' in name:
        return
    if not timm.is_model(arch):
        for folder in (Path(name), Path(name, 'model')):  # the second is where finetune writes it
            if (folder / 'config.json').is_file():
                raise UsageError(f'{name!r} is a directory; did you mean local-dir:{folder}?')
        known_name(name, timm.list_models())  # raises, with the nearest names
    elif dot:
        known_name(name, [arch, *get_arch_pretrained_cfgs(arch)])


def check_output(option: str, path: str | None, suffixes: tuple[str, ...]) -> None:
    """Check before work begins that a file can be written.

    Args:
        option: Option that names it.
        path: The file; nothing is checked if None.
        suffixes: What its name may end in; anything if empty.
    """
    if path is None:
        return
    if suffixes and Path(path).suffix.lower() not in suffixes:
        raise UsageError(f'{option} {path}: the name must end in {" or ".join(suffixes)}')
    if Path(path).is_dir():
        raise UsageError(f'{option} {path} is a directory; name a file')
    if not Path(path).absolute().parent.is_dir():
        raise UsageError(f'{option} {path}: {Path(path).parent} is not a directory')


def to_csv(rows: Iterable[Iterable[object]]) -> str:
    """Rows as CSV, with a line feed after each."""
    lines = []
    for row in rows:
        line = io.StringIO()
        csv.writer(line).writerow(row)  # its default end of a line makes it quote carriage returns, too
        lines.append(line.getvalue().removesuffix('\r\n') + '\n')
    return ''.join(lines)


_FINETUNE = 'timm-attn finetune --pretrained-path PATH'
_OPTION_OF_FILE = dict(finetune='--pretrained-path PATH', predict='--checkpoint PATH', evaluate='--checkpoint PATH')
_IN_OPTIONS = (
    (r'pass num_classes=(\d+), and with pretrained=True also .*?\)', r'add --num-classes \1'),
    (r'pass num_classes=0 for pooled features .*$', f'train one with {_FINETUNE}.'),
    (r'pass pretrained=True and pretrained_cfg_overlay=dict\(file=PATH\)', f'use {_FINETUNE}'),
)
"""Advice for Python, which errors of the package contain, and the same in options of the command line."""


def in_options(message: str, command: str) -> str:
    """Message of an error of the package, its advice in options of a subcommand."""
    of_file = _OPTION_OF_FILE.get(command)
    by_name = '--model-kwargs backbone=resnet50 attention=scsa'
    of_attached = by_name if command == 'finetune' else 'those in the folder of a saved one, --model local-dir:PATH'
    of_a_file = (
        (r'Use pretrained=False, or load a file of your own with .*$', f'Load a file of your own with {of_file}.'),
        (r'\(pretrained=True, pretrained_cfg_overlay=dict\(file=PATH\)\)', f'({of_file})'),
    )
    without = (
        (r' Use pretrained=False, or load a file of your own with .*$', ''),
        (r', from a folder (\(.*?\)) or from a file \(.*?dict\(file=PATH\)\)', r' or from a folder \1'),
    )
    attached = (r"timm\.create_model\('attached', .*?\)", of_attached)
    for pattern, replacement in (*_IN_OPTIONS, attached, *(of_a_file if of_file else without)):
        message = re.sub(pattern, replacement, message)
    return message
