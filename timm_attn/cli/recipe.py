"""``timm-attn recipe``."""

import argparse
from pathlib import Path

from ..train.recipes import command_of, list_recipes, recipe_path
from .common import UsageError, add_command


def add_parsers(commands) -> None:
    """Add the subcommand."""
    p = add_command(
        commands,
        'recipe',
        "list the recipes of timm's train.py and of the commands that train, or print one",
        show_recipe,
    )
    p.add_argument('name', nargs='?', metavar='NAME', help='recipe to print')
    p.add_argument('-o', '--output', type=Path, metavar='FILE', help='copy it to this file or directory instead')


def show_recipe(args: argparse.Namespace) -> None:
    """Print the recipes and their commands, print one, or copy one."""
    if not args.name:
        if args.output:
            raise UsageError('--output needs the name of a recipe; timm-attn recipe lists them')
        for name in list_recipes():
            first = recipe_path(name).read_text(encoding='utf-8').splitlines()[0]
            print(f'{name:22}{command_of(name):20}{first.removeprefix("# ")}')
        return
    text = recipe_path(args.name).read_text(encoding='utf-8')
    if not args.output:
        print(text, end='')
        return
    path = args.output / recipe_path(args.name).name if args.output.is_dir() else args.output
    if path.exists():
        raise UsageError(f'{path} exists: name another file')
    path.write_text(text, encoding='utf-8')
    print(path)
