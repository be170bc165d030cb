"""``timm-attn list`` and ``timm-attn info``."""

import argparse
import difflib

from .common import UsageError, add_command, known_name


def add_parsers(commands) -> None:
    """Add both subcommands."""
    p = add_command(commands, 'list', 'list the models with their size, cost and weights', list_models)
    p.add_argument('filter', nargs='?', default='', help="wildcard or part of a name, such as 'csa*'")
    p = add_command(commands, 'info', 'show everything known about a model and its weights', show_model)
    p.add_argument('name', metavar='NAME', help='model, with or without a tag')


def list_models(args: argparse.Namespace) -> None:
    """Print a table of the models."""
    from timm.models import get_arch_pretrained_cfgs

    from ..models import zoo_models
    from ..models.info import find_weight

    args.filter = args.filter.lower()
    names = zoo_models(args.filter) or zoo_models(f'*{args.filter}*')
    if not names:
        near = difflib.get_close_matches(args.filter, zoo_models(), n=3)
        hint = f'did you mean {" or ".join(near)}?' if near else f'there are: {", ".join(zoo_models())}'
        raise UsageError(f'no model matches {args.filter!r}; {hint}')
    rows = [('model', 'params (M)', 'GMACs', 'input', 'weights')]
    for name in names:
        weight = find_weight(name)
        size = 'x'.join(str(n) for n in weight.input_size)
        tags = ' '.join(cfg.tag for cfg in get_arch_pretrained_cfgs(name).values() if cfg.has_weights) or '-'
        rows.append((name, f'{weight.params / 1e6:.2f}', f'{weight.gmacs:.3f}', size, tags))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [c.rjust(w) if i in (1, 2) else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        print('  '.join(cells).rstrip())


def show_model(args: argparse.Namespace) -> None:
    """Print what is known about a model."""
    import timm

    from ..models.info import describe

    name = known_name(args.name, [*timm.list_models(), *timm.list_models(include_tags=True)])
    for key, value in describe(name).items():
        lines = value if key in ('quality', 'notes') else [value]
        for i, line in enumerate(lines):
            if isinstance(line, list | tuple):
                line = ', '.join(str(v) for v in line) or '-'
            print(f'{key if i == 0 else "":<15}{line}')
