"""``timm-attn evaluate``."""

import argparse
import json
import sys
import unicodedata
from importlib.util import find_spec
from pathlib import Path

from ..whole_file import write_whole
from .classifier import add_model_options, check_model_options, load_model, plural
from .common import MAX_LABEL, UsageError, add_command, check_output, printable, to_csv

_MOST_ROWS = 30  # classes to print; of more, the worst
_MOST_COLUMNS = 12  # classes to print the confusion matrix of
_MOST_PLOTTED = 60  # classes whose names are written beside the plot


def add_parsers(commands) -> None:
    """Add the subcommand."""
    p = add_command(commands, 'evaluate', 'measure the accuracy on a folder with one folder for each class', evaluate)
    p.add_argument('data_dir', metavar='DIR', help='DIR/<class>/*, or DIR/val/<class>/*')
    add_model_options(p)
    p.add_argument('--split', metavar='NAME', help='folder in DIR (default: val or test, if there is one)')
    p.add_argument(
        '--held-out', action='store_true', help='only the images that the run of the model held out for validation'
    )
    p.add_argument('-o', '--output', metavar='FILE', help='.json: everything; .csv: a row for each image')
    p.add_argument('--plot', metavar='FILE.png', help='draw the confusion matrix')
    p.add_argument('--grid', metavar='FILE.png', help='draw some of the images, wrong ones first')


def evaluate(args: argparse.Namespace) -> int:
    """Measure, print, and write what was asked for."""
    check_model_options(args)
    check_output('--output', args.output, ('.json', '.csv'))
    for option, path in (('--plot', args.plot), ('--grid', args.grid)):
        check_output(option, path, ('.png',))
    if args.plot and not find_spec('matplotlib'):
        raise UsageError('--plot needs matplotlib: pip install matplotlib')

    from ..evaluate import evaluate as evaluate_folder
    from ..evaluate import find_split

    root = find_split(Path(args.data_dir), args.split)
    model, name = load_model(args)
    unreadable = []

    def warn(path: str, reason: str) -> None:
        unreadable.append(path)
        print(printable(f'left out: {reason}'), file=sys.stderr)

    only = _held_out(args, root)
    result = evaluate_folder(model, args.data_dir, args.split, bool(args.checkpoint), args.batch_size, warn, only)
    classes = plural(len(result.labels), 'class', 'classes')
    print(printable(f'{root}: {plural(len(result.predictions), "image")} of {classes}'), file=sys.stderr)
    print(_table(result), end='')
    if args.output:
        form = _json if Path(args.output).suffix.lower() == '.json' else _csv
        data = form(result, dict(model=name, checkpoint=args.checkpoint or None, unreadable=unreadable))
        write_whole(args.output, lambda part: part.write_bytes(data.encode(errors='surrogateescape')))
    if args.plot:
        write_whole(args.plot, lambda part: _plot(result, part, name))
    if args.grid:
        _draw(result, args.grid)
    return 0


def _held_out(args: argparse.Namespace, root: Path):
    """Whether an image was held out by the run that the model comes from; None if all images count.

    Prints how many were trained on, which flatter the model.
    """
    from ..image_files import find_images
    from ..train.split import Split

    folder = Path(args.model.removeprefix('local-dir:')).parent if args.model.startswith('local-dir:') else None
    split = Split.read(folder) if folder else None
    if split is None:
        if args.held_out:
            raise UsageError('--held-out needs a model that finetune wrote: --model local-dir:RUN/model')
        return None

    def name(path: Path) -> str:  # of the class's folder and the file, which the split ends in
        return unicodedata.normalize('NFC', path.relative_to(root).as_posix())

    def ends(names: list[str]) -> set[str]:
        return {'/'.join(one.split('/')[-2:]) for one in names}

    seen, held_out = ends(split.train), ends(split.val)
    if args.held_out:
        return lambda path: name(path) in held_out
    trained_on = sum(name(Path(path)) in seen for path in find_images([str(root)]))
    if trained_on:
        print(
            f'note: the model was trained on {trained_on} images of these names; --held-out leaves them out',
            file=sys.stderr,
        )
    return None


def _percent(pair: tuple[int, int]) -> str:
    return f'{100 * pair[0] / pair[1]:6.2f} %'


def _table(result) -> str:
    lines = [f'top-{k}  {_percent(result.topk(k))}' for k in (1, 5) if k == 1 or result.num_classes > 5]
    names = {i: printable(name, MAX_LABEL) for i, name in result.labels.items()}
    width = min(40, max(map(len, names.values())))
    rows = [(i, result.topk(1, i)) for i in names]
    if len(rows) > _MOST_ROWS:
        rows = sorted(rows, key=lambda row: row[1][0] / row[1][1])[:_MOST_ROWS]
    lines += ['', f'{"class":{width}}  images     top-1']
    lines += [f'{names[i]:{width}}  {pair[1]:6}  {_percent(pair)}' for i, pair in rows]
    if len(names) > _MOST_ROWS:
        lines.append(f'(the {_MOST_ROWS} worst of {len(names)} classes)')
    elif len(names) <= _MOST_COLUMNS:
        counts = result.confusion
        cell = max(len(str(n)) for n in [*counts.values(), len(names)]) + 1
        lines += ['', 'confusion (rows: true class; columns: predicted class, in the same order)']
        others = any(predicted not in names for _, predicted in counts)
        for i in names:
            row = [counts[i, j] for j in names]
            row += [sum(n for (true, j), n in counts.items() if true == i and j not in names)] if others else []
            lines.append(f'{names[i]:{width}}  {"".join(f"{n:{cell}}" for n in row)}')
        lines += ['(last column: classes without images here)'] if others else []
    return '\n'.join(lines) + '\n'


def _label(result, index: int) -> str:
    """Label of a class: its folder, or for a class without images here what the model calls it."""
    if index in result.labels:
        return result.labels[index]
    return next(c['label'] for p in result.predictions for c in p['classes'] if c['index'] == index)


def _json(result, about: dict) -> str:
    top1, top5 = result.topk(1), result.topk(5)
    classes = []
    for i, name in result.labels.items():
        correct, images = result.topk(1, i)
        classes.append(dict(index=i, label=name, images=images, correct=correct, top1=100 * correct / images))
    confusion = [
        dict(true=_label(result, true), predicted=_label(result, predicted), images=n)
        for (true, predicted), n in sorted(result.confusion.items())
    ]
    summary = dict(images=top1[1], top1=100 * top1[0] / top1[1], top5=100 * top5[0] / top5[1])
    everything = {**about, **summary, 'classes': classes, 'confusion': confusion, 'predictions': result.predictions}
    return json.dumps(everything, indent=2) + '\n'


def _csv(result, about: dict) -> str:
    rows: list[tuple] = [('image', 'true', 'predicted', 'probability', 'correct')]
    for p in result.predictions:
        first, true = p['classes'][0], result.labels[p['true']]
        rows.append((p['image'], true, first['label'], first['probability'], int(first['index'] == p['true'])))
    return to_csv(rows)


def _plot(result, path: Path, name: str) -> None:
    from matplotlib.figure import Figure  # without pyplot, which keeps figures and chooses a display

    counts = result.confusion
    axis = sorted({*result.labels, *(predicted for _, predicted in counts)})
    shares = [[counts[i, j] / max(1, result.topk(1, i)[1]) for j in axis] for i in result.labels]
    side = min(20, 3 + 0.25 * len(axis))
    figure = Figure(figsize=(side + 1, side), layout='constrained')
    ax = figure.subplots()
    image = ax.imshow(shares, vmin=0, vmax=1, cmap='Blues', aspect='auto')
    figure.colorbar(image, label='share of the images of the true class')
    ax.set(xlabel='predicted', ylabel='true', title=printable(name, 60).replace('$', r'\$'))
    if len(axis) <= _MOST_PLOTTED:
        texts = [printable(_label(result, i), 30).replace('$', r'\$') for i in axis]
        ax.set_xticks(range(len(axis)), texts, rotation=90)
        ax.set_yticks(range(len(result.labels)), [texts[axis.index(i)] for i in result.labels])
    figure.savefig(path, format='png')


def _draw(result, path: str) -> None:
    from ..image_grid import MAX_TILES, draw_grid

    def is_right(prediction: dict) -> bool:
        return prediction['classes'][0]['index'] == prediction['true']

    # wrong ones first, those that the model was most certain of at the top
    order = sorted(result.predictions, key=lambda p: (is_right(p), -p['classes'][0]['probability']))
    tiles = []
    for p in order[:MAX_TILES]:
        first = p['classes'][0]
        lines = (f'{first["label"]}, {100 * first["probability"]:.1f} %', f'true: {result.labels[p["true"]]}')
        tiles.append((p['image'], [printable(line, MAX_LABEL) for line in lines], is_right(p)))
    write_whole(path, lambda part: draw_grid(tiles, part))
