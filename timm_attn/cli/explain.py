"""``timm-attn explain``, ``curves``, ``receptive-field`` and ``pointing``."""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..extras import missing_packages
from ..train.argument_types import positive_int
from ..whole_file import write_whole
from .classifier import DEFAULT_MODEL, load_model, plural
from .common import MAX_LABEL, UsageError, add_command, check_model, check_output, printable, to_csv

if TYPE_CHECKING:
    import torch
    from torch import nn

T = TypeVar('T')

_FIELD_IMAGES = 300


def add_parsers(commands) -> None:
    """Add the subcommands."""
    p = add_command(commands, 'explain', 'draw which part of an image speaks for a class, beside other models', explain)
    p.add_argument('images', nargs='+', metavar='IMAGE', help='file, directory or wildcard')
    _add_models(p)
    _add_method(p)
    p.add_argument(
        '--class', dest='target', metavar='NAME', help='class or its index (default: what each model predicts)'
    )
    p.add_argument(
        '-o', '--output', default='explain.png', metavar='FILE.png', help='picture to write (default: %(default)s)'
    )

    p = add_command(commands, 'curves', 'draw the descriptor and the gate of each channel, by class', curves)
    p.add_argument('data_dir', metavar='DIR', help='DIR/<class>/*, or DIR/val/<class>/*')
    _add_models(p)
    p.add_argument('--split', metavar='NAME', help='folder in DIR (default: val or test, if there is one)')
    p.add_argument(
        '--classes', nargs='+', metavar='N|NAME', help='how many classes, or their names (default: all of them)'
    )
    p.add_argument('--per-class', type=positive_int, metavar='N', help='images of each class (default: all of them)')
    p.add_argument(
        '-o', '--output', default='curves.png', metavar='FILE.png', help='picture to write (default: %(default)s)'
    )
    p.add_argument('--csv', metavar='FILE.csv', help='write the value of every channel')

    p = add_command(commands, 'receptive-field', 'measure what part of an image a map depends on', receptive_field)
    p.add_argument('images', nargs='+', metavar='IMAGE', help='file, directory or wildcard')
    _add_models(p)
    p.add_argument('--layer', metavar='NAME', help='layer whose map is looked at (default: the last of the model)')
    p.add_argument(
        '--most',
        type=positive_int,
        default=_FIELD_IMAGES,
        metavar='N',
        help='images to use at most, evenly spaced (default: %(default)s)',
    )
    p.add_argument(
        '-o', '--output', default='field.png', metavar='FILE.png', help='picture to write (default: %(default)s)'
    )

    p = add_command(commands, 'pointing', 'measure whether the maps of classes lie in their own images', pointing)
    p.add_argument('data_dir', metavar='DIR', help='DIR/<class>/*, or DIR/val/<class>/*')
    _add_models(p)
    _add_method(p)
    p.add_argument('--split', metavar='NAME', help='folder in DIR (default: val or test, if there is one)')
    p.add_argument('--mosaics', type=positive_int, default=25, metavar='N', help='mosaics (default: %(default)s)')
    p.add_argument('--seed', type=int, default=0, help='seed of the choice of images (default: %(default)s)')


def _add_models(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        '--model',
        dest='models',
        nargs='+',
        default=[DEFAULT_MODEL],
        metavar='NAME',
        help=f"any models that timm knows: 'model', 'model.tag', 'hf-hub:...', 'local-dir:...' (default: "
        f'{DEFAULT_MODEL})',
    )
    p.add_argument('-b', '--batch-size', type=positive_int, default=32, metavar='N', help='default: %(default)s')
    p.add_argument('--device', default='cpu', help='torch device (default: %(default)s)')


def _add_method(p: argparse.ArgumentParser) -> None:
    p.add_argument('--method', default='gradcam', metavar='NAME', help='kind of map (default: %(default)s)')
    p.add_argument('--layer', metavar='NAME', help='layer whose map is used (default: the last of the model)')


def explain(args: argparse.Namespace) -> int:
    """Draw the maps; print what each model says."""
    _check(args, 'pytorch_grad_cam')
    from ..explain import Explanation, draw_sheet
    from ..explain import explain as explain_images
    from ..explain.classes import class_index
    from ..explain.sheet import MOST_ROWS
    from ..image_files import find_images

    images = list(dict.fromkeys(find_images(args.images)))
    output = Path(args.output)
    numbers = range(2, (len(images) - 1) // MOST_ROWS + 2)
    pages = [output, *(output.with_name(f'{output.stem}-{number}{output.suffix}') for number in numbers)]
    _check_apart(pages, images)
    unreadable = _Unreadable(images)

    def look(model: 'nn.Module', name: str) -> dict[str, Explanation]:
        target = None if args.target is None else class_index(model, args.target)
        options = (args.method, args.layer, args.batch_size, unreadable.add)
        return dict(explain_images(model, images, target, *options))

    results, status = _with_each(args, look)
    names = [name for name, _ in results]
    rows = [  # all can read these
        (path, [found[path] for _, found in results]) for path in images if all(path in found for _, found in results)
    ]
    if not rows:
        raise UsageError('none of these files can be read as an image')
    for path, row in rows:
        print(printable(path))
        for name, explanation in zip(names, row, strict=True):
            print(f'  {printable(name)}: {printable("; ".join(explanation.lines), MAX_LABEL)}')
    file_names = Counter(Path(path).name for path, _ in rows)
    titles = {p: '/'.join(Path(p).parts[-2:]) if file_names[Path(p).name] > 1 else Path(p).name for p, _ in rows}
    for file, start in zip(pages, range(0, len(rows), MOST_ROWS), strict=False):
        titled = [(printable(titles[path], MAX_LABEL), row) for path, row in rows[start : start + MOST_ROWS]]
        write_whole(file, partial(draw_sheet, [printable(name) for name in names], titled))
        print(printable(f'{file}: {plural(len(titled), "image")}'))
    return max(status, unreadable.status(args.images))


def curves(args: argparse.Namespace) -> int:
    """Measure the curves, print their correlations, draw and write them."""
    check_output('--csv', args.csv, ('.csv',))
    _check(args, 'matplotlib', 'scipy')
    from ..explain import StageCurves, curve_rows, descriptor_curves, find_samples, plot_curves

    wanted = args.classes
    if wanted and len(wanted) == 1 and wanted[0].isdecimal():
        wanted = int(wanted[0])
        if not wanted:
            raise UsageError('--classes 0: give the number of classes, at least 1, or their names')
    samples = find_samples(args.data_dir, args.split, wanted, args.per_class)
    unreadable = _Unreadable([path for path, _ in samples])
    _check_apart([args.output], [path for path, _ in samples])

    def look(model: 'nn.Module', name: str) -> list[StageCurves]:
        result = descriptor_curves(model, samples, args.batch_size, unreadable.add)
        classes = plural(len(result[0].classes), 'class', 'classes')
        print(printable(f'{name}: {plural(sum(result[0].images), "image")} of {classes}'))
        print(_correlations(result), end='')
        return result

    results, status = _with_each(args, look)
    if args.csv:
        tables = [list(curve_rows(name, result)) for name, result in results]
        data = to_csv([*tables[0], *(row for table in tables[1:] for row in table[1:])])
        write_whole(args.csv, lambda part: part.write_bytes(data.encode(errors='surrogateescape')))
    figure = plot_curves([(printable(name, 60), result) for name, result in results])
    write_whole(args.output, lambda part: figure.savefig(part, format='png', dpi=110))
    print(printable(args.output), file=sys.stderr)
    return status


def _correlations(result) -> str:
    """Table of the rank correlations: of the means over all images, and of the classes the lowest to the highest."""
    width = max(len(f'{one.place} ({one.kind})') for one in result)
    lines = [f'stage  {"place":{width}}  channels' + ''.join(f'{pair:>24}' for pair in ('q~p', 'z~p', 'z~q'))]
    for one in result:
        cells = []
        found = one.correlations()
        for pair in ('q~p', 'z~p', 'z~q'):
            overall, of_classes = found.get(pair, (float('nan'), []))
            numbers = sorted(rho for rho in of_classes if rho == rho)
            if overall != overall:  # nan: no gate, or one that is the same for all channels
                cells.append('-')
            elif len(numbers) < 2:
                cells.append(f'{overall:.2f}')
            else:
                cells.append(f'{overall:.2f} ({numbers[0]:.2f} to {numbers[-1]:.2f})')
        place = f'{one.place} ({one.kind})'
        lines.append(f'{one.stage:5}  {place:{width}}  {one.q.shape[1]:8}' + ''.join(f'{cell:>24}' for cell in cells))
    return '\n'.join(lines) + '\n'


def receptive_field(args: argparse.Namespace) -> int:
    """Measure the fields, print the squares that hold most of them, and draw them."""
    _check(args, 'matplotlib')
    from ..explain import centred_squares, load_batches, plot_fields
    from ..explain import receptive_field as measure
    from ..image_files import find_images

    images = list(dict.fromkeys(find_images(args.images)))
    _check_apart([args.output], images)
    count = min(len(images), args.most)
    if count < len(images):
        print(f'note: {count} of {len(images)} images, evenly spaced; --most takes more', file=sys.stderr)
        images = [images[i * len(images) // count] for i in range(count)]
    unreadable = _Unreadable(images)

    def look(model: 'nn.Module', name: str) -> 'torch.Tensor':
        batches = (batch for _, batch in load_batches(model, images, args.batch_size, unreadable.add))
        field = measure(model, batches, args.layer)
        print(printable(f'{name}: input {field.shape[0]} x {field.shape[1]} pixels'))
        for share, side, area in centred_squares(field):
            print(f'  {100 * share:3g} % in a square of {side} pixels, {100 * area:.1f} % of the area')
        return field

    fields, status = _with_each(args, look)
    figure = plot_fields([(printable(name, 60), field) for name, field in fields])
    write_whole(args.output, lambda part: figure.savefig(part, format='png', dpi=110))
    print(printable(args.output), file=sys.stderr)
    return max(status, unreadable.status(args.images))


def pointing(args: argparse.Namespace) -> int:
    """Play the game with each model and with its randomised copy, and print the shares."""
    _check(args, 'pytorch_grad_cam', 'scipy')
    from ..evaluate import match_classes
    from ..explain import centred_gaussian, choose_mosaics, find_samples, randomised, similarity
    from ..explain.pointing import energy_shares, mosaic_maps, score

    samples = find_samples(args.data_dir, args.split)
    folders = list(dict.fromkeys(label for _, label in samples))
    unreadable = _Unreadable([path for path, _ in samples])
    has_header = False

    def look(model: 'nn.Module', name: str) -> None:
        nonlocal has_header
        index_of = match_classes(model, folders)
        labelled = [(path, index_of[label]) for path, label in samples]
        chosen = choose_mosaics(model, labelled, args.mosaics, args.seed, args.batch_size, unreadable.add)
        other = randomised(model, args.seed)
        shares: list[torch.Tensor] = []
        of_other: list[torch.Tensor] = []
        gaussian: list[torch.Tensor] = []
        alike: list[float] = []
        both = (mosaic_maps(network, chosen, args.method, args.layer) for network in (model, other))
        for maps, other_maps in zip(*both, strict=True):
            shares.append(energy_shares(maps))
            of_other.append(energy_shares(other_maps))
            gaussian.append(energy_shares(centred_gaussian(*maps.shape[1:]).expand_as(maps)))
            alike += [rho for rho in similarity(maps, other_maps).tolist() if rho == rho]
        if not has_header:
            print('energy in the own cell     maps  model')
            print(_line(score(chosen, gaussian), 'centred Gaussian'))
            has_header = True
        print(_line(score(chosen, shares), name))
        print(_line(score(chosen, of_other), f'  randomised ({_mean(alike)} rank correlation of the maps)'))

    return _with_each(args, look)[1]


def _line(game, name: str) -> str:
    share = f'{100 * game.share:6.1f} %' if game.maps else '     - %'
    error = f'+- {100 * game.std_error:.1f}' if game.std_error == game.std_error else ''
    empty = f'; {game.empty} empty maps left out' if game.empty else ''
    return f'{share} {error:12}  {game.maps:7}  {printable(name)}{empty}'


def _mean(values: list[float]) -> str:
    return f'{sum(values) / len(values):.2f}' if values else 'no'


def _check(args: argparse.Namespace, *packages: str) -> None:
    """Check the options, and that the packages are there, before anything is loaded."""
    check_output('--output', getattr(args, 'output', None), ('.png',))
    for name in args.models:
        check_model(name)
    if advice := missing_packages(*packages):
        raise UsageError(f'{args.argv[0]} {advice}')
    if 'method' in args:
        from ..explain import METHODS

        if args.method not in METHODS:
            raise UsageError(f'--method {args.method} is unknown; it must be one of {", ".join(METHODS)}')


def _check_apart(files: Sequence[str | Path], images: Sequence[str]) -> None:
    """Check that no picture replaces an image that it is made from."""
    originals = {Path(image).resolve() for image in images}
    for file in files:
        if Path(file).resolve() in originals:
            raise UsageError(f'{file} is one of the images and would be replaced: name another file by --output')


def _load(name: str, device: str) -> tuple:
    """A model and its name with its tag."""
    try:
        return load_model(argparse.Namespace(model=name, checkpoint='', num_classes=None, device=device))
    except UsageError as e:  # which would end the command, as a wrong option does
        raise RuntimeError(str(e)) from e


def _with_each(args: argparse.Namespace, look: Callable[[Any, str], T]) -> tuple[list[tuple[str, T]], int]:
    """Look into each model, one after the other, so that only one is in memory.

    One that cannot be loaded or looked into does not take the others with it.

    Args:
        args: Options.
        look: Called with a model and its name with its tag.

    Returns:
        Name and result of each that could be looked into, and the exit status.
    """
    found = []
    for name in args.models:
        try:
            model, full_name = _load(name, args.device)
            found.append((full_name, look(model, full_name)))
        except (ValueError, RuntimeError) as e:
            if len(args.models) == 1:
                raise
            print(printable(f'left out: {name}: {e}'), file=sys.stderr)
    if not found:
        raise UsageError('none of these models can be looked into')
    return found, 2 if len(found) < len(args.models) else 0


class _Unreadable:
    """Images that are left out; of a single one it is an error. Each is told once, however many models read it."""

    def __init__(self, images: Sequence[str]):
        self.only_one = len(images) == 1
        self.paths: set[str] = set()

    def add(self, path: str, reason: str) -> None:
        """Tell that a file cannot be read."""
        if self.only_one:
            raise UsageError(reason)
        if path not in self.paths:
            print(printable(f'left out: {reason}'), file=sys.stderr)
        self.paths.add(path)

    def status(self, named: Sequence[str]) -> int:
        """Exit status: 2 if a file that was named itself is among them."""
        return 2 if self.paths & set(named) else 0
