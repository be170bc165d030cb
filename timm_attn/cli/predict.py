"""``timm-attn predict``."""

import argparse
import json
import sys
from pathlib import Path

from ..train.argument_types import positive_int
from ..whole_file import write_whole
from .classifier import add_model_options, check_model_options, load_model, plural
from .common import MAX_LABEL, UsageError, add_command, check_output, printable, to_csv


def add_parsers(commands) -> None:
    """Add the subcommand."""
    p = add_command(commands, 'predict', 'classify images', predict)
    p.add_argument('images', nargs='+', metavar='IMAGE', help='file, directory or wildcard')
    add_model_options(p)
    p.add_argument('--topk', type=positive_int, default=5, metavar='K', help='classes to show (default: %(default)s)')
    style = p.add_mutually_exclusive_group()
    style.add_argument('--json', dest='style', action='store_const', const='json', help='print JSON')
    style.add_argument('--csv', dest='style', action='store_const', const='csv', help='print CSV')
    p.add_argument('-o', '--output', metavar='FILE', help='write to a .csv or .json file instead')
    p.add_argument('--grid', metavar='FILE.png', help='draw the first images, each with the class it was given')


def predict(args: argparse.Namespace) -> int:
    """Classify images and print or write the result."""
    check_model_options(args)
    style = _output_style(args)
    check_output('--grid', args.grid, ('.png',))

    from ..image_files import find_images
    from ..predict import class_labels, classify

    images = find_images(args.images)
    model, name = load_model(args)
    unreadable = []

    def warn(path: str, reason: str) -> None:
        if len(images) == 1:
            raise UsageError(reason)
        unreadable.append(path)
        print(printable(f'left out: {reason}'), file=sys.stderr)

    labels = class_labels(model, bool(args.checkpoint))
    results = list(classify(model, images, labels, args.topk, args.batch_size, warn))
    if not results:
        raise UsageError('none of these files can be read as an image')
    if args.output:
        data = _format(style, results, name, args.checkpoint).encode(errors='surrogateescape')
        write_whole(args.output, lambda part: part.write_bytes(data))
        print(printable(f'{args.output}: {plural(len(results), "image")}'))
    else:
        on_terminal = sys.stdout.isatty()
        text = _format(style, results, name, args.checkpoint, escape=on_terminal)
        _print_data(text)
    if args.grid:
        _draw(results, args.grid)
    return 2 if set(unreadable) & set(args.images) else 0


def _output_style(args: argparse.Namespace) -> str:
    suffix = Path(args.output).suffix.lower() if args.output else ''
    by_suffix = {'.json': 'json', '.csv': 'csv'}.get(suffix)
    style = args.style or by_suffix
    if by_suffix and style != by_suffix:
        raise UsageError(f'--{style} contradicts the name in --output {args.output}: leave out --{style}')
    if args.output and not style:
        raise UsageError(f'--output {args.output}: the name must end in .csv or .json, or add --csv or --json')
    check_output('--output', args.output, ())
    return style or 'text'


def _format(style: str, results: list[dict], model: str, checkpoint: str, escape: bool = False) -> str:
    """Results as text, which is always safe to print, as JSON, which escapes by itself, or as CSV."""
    if style == 'json':
        return json.dumps(dict(model=model, checkpoint=checkpoint or None, predictions=results), indent=2) + '\n'
    if style == 'csv':
        rows: list[tuple] = [('image', 'rank', 'index', 'label', 'probability')]
        for result in results:
            for rank, c in enumerate(result['classes'], start=1):
                image, label = result['image'], c['label']
                if escape:
                    image, label = printable(image), printable(label, MAX_LABEL)
                rows.append((image, rank, c['index'], label, c['probability']))
        return to_csv(rows)
    lines = []
    for result in results:
        lines.append(printable(result['image']))
        lines += [f'{100 * c["probability"]:7.2f} %  {printable(c["label"], MAX_LABEL)}' for c in result['classes']]
    return '\n'.join(lines) + '\n'


def _print_data(text: str) -> None:
    """Print, with names of files that are no UTF-8 as the bytes that they are."""
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='surrogateescape')
    print(text, end='')


def _draw(results: list[dict], path: str) -> None:
    from ..image_grid import MAX_TILES, draw_grid

    tiles = []
    for result in results[:MAX_TILES]:
        first = result['classes'][0]
        lines = (Path(result['image']).name, f'{first["label"]}, {100 * first["probability"]:.1f} %')
        tiles.append((result['image'], [printable(line, MAX_LABEL) for line in lines], None))
    write_whole(path, lambda part: draw_grid(tiles, part))
    print(printable(f'{path}: {len(tiles)} of {plural(len(results), "image")}'), file=sys.stderr)
