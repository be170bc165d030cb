"""``timm-attn table``."""

import argparse
import textwrap

from ..train.argument_types import image_size, positive_int
from ..whole_file import write_json, write_whole
from .common import UsageError, add_command, check_output, to_csv

_TIME_DEFAULTS = dict(batch_size=8, turns=5, threads=None, device='cpu')
_DEPTHS = {'50': (50,), '101': (101,), 'all': (50, 101)}
_LEAST_SIZE = 32  # the stride of the networks
_WIDTH = 100  # of remarks


def add_parsers(commands) -> None:
    """Add the subcommand."""
    p = add_command(commands, 'table', "a paper's table: what it reports beside what is measured here", show_table)
    p.add_argument('name', metavar='NAME', choices=('csa-net',), help='csa-net: attentions in ResNets on ImageNet')
    p.add_argument('--depth', choices=_DEPTHS, default='all', help='ResNets to show (default: %(default)s)')
    p.add_argument('--img-size', type=image_size, default=224, metavar='PX', help='side of the images (default: 224)')
    p.add_argument('--csv', metavar='FILE.csv', help='write the table, a line for each network')
    p.add_argument('--json', metavar='FILE.json', help='write everything, the machine of the times included')
    time = p.add_argument_group('time', 'of inference, relative to the plain ResNet in the same run; takes minutes')
    time.add_argument('--time', action='store_true', help='measure it; the machine should be idle')
    time.add_argument('-b', '--batch-size', type=positive_int, metavar='N', help='images in a batch (default: 8)')
    time.add_argument('--turns', type=positive_int, metavar='N', help='turns; their median counts (default: 5)')
    time.add_argument('--threads', type=positive_int, metavar='N', help="threads of a CPU (default: torch's)")
    time.add_argument('--device', help='cpu or cuda (default: cpu)')


def show_table(args: argparse.Namespace) -> None:
    """Measure, print, and write what was asked for."""
    _check(args)

    import torch

    from ..models.paper_table import HEAD, cells, read_table
    from ..timing import machine

    if args.threads:
        torch.set_num_threads(args.threads)
    device = _device(args.device)
    table = read_table()
    rows = table.rows(_DEPTHS[args.depth])
    measured = _measure(rows, args, device)
    for depth in _DEPTHS[args.depth]:
        lines = [cells(r, m, args.img_size, table) for r, m in zip(rows, measured, strict=True) if r.depth == depth]
        print(f'ResNet-{depth}, {args.img_size} px\n{_aligned(HEAD, lines)}\n')
    print(_remarks(table))
    result = dict(
        table=args.name,
        paper=table.paper,
        image_size=args.img_size,
        time=dict(machine=machine(device), batch_size=args.batch_size, turns=args.turns) if args.time else None,
        rows=[_data(row, m, args.img_size, table) for row, m in zip(rows, measured, strict=True)],
    )
    if args.json:
        write_json(args.json, result, indent=1)
    if args.csv:
        write_whole(args.csv, lambda part: part.write_text(_csv(result['rows']), encoding='utf-8'))


def _check(args: argparse.Namespace) -> None:
    """Check the options, and fill in the defaults of those that go with ``--time``."""
    if args.img_size < _LEAST_SIZE:
        raise UsageError(f'--img-size {args.img_size} is less than {_LEAST_SIZE}, the stride of these networks')
    for option, path, suffix in (('--csv', args.csv, '.csv'), ('--json', args.json, '.json')):
        check_output(option, path, (suffix,))
    given = [name for name in _TIME_DEFAULTS if getattr(args, name) is not None]
    if given and not args.time:
        option = given[0].replace('_', '-')
        raise UsageError(f'--{option} is for the measurement of time, which was not asked for; add --time')
    for name, default in _TIME_DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, default)


def _device(name: str):
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ('cpu', 'cuda'):
        raise UsageError(f'--device {name!r} is not cpu, cuda or cuda:N')
    if device.type == 'cuda' and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f'--device {name}: this PyTorch finds {torch.cuda.device_count()} CUDA devices; use cpu')
    return device


def _measure(rows: list, args: argparse.Namespace, device) -> list[dict | None]:
    """What was measured of each row; None where there is no model."""
    from tqdm import tqdm

    from ..models.paper_table import measure_cost, measure_time

    with_model = [row for row in rows if row.model]
    found = {}
    with tqdm(with_model, unit='network', leave=False, disable=None) as bar:
        for row in bar:
            bar.set_description(row.label)
            found[row.method, row.depth] = measure_cost(row, args.img_size)
    for depth in _DEPTHS[args.depth] if args.time else ():
        group = [row for row in with_model if row.depth == depth]
        steps = len(group) * (args.turns + 2)
        with tqdm(total=steps, desc=f'time of ResNet-{depth}', unit='pass', leave=False, disable=None) as bar:
            times = measure_time(group, args.img_size, args.batch_size, args.turns, device, bar.update)
        for row, time in zip(group, times, strict=True):
            found[row.method, row.depth] |= time
    return [found.get((row.method, row.depth)) for row in rows]


def _data(row, measured: dict | None, size: int, table) -> dict:
    """One row for a file: figures as numbers, reported ones with the digits of the paper."""
    from ..models.paper_table import compare

    method = next(m for m in table.methods if m.name == row.method)
    names = ('params', 'gflops', 'top1_error', 'top5_error')
    return dict(
        method=row.method,
        depth=row.depth,
        model=row.label,
        reported={name: getattr(row, name) for name in names},
        measured=measured,
        agrees=compare(row, measured, size, table),
        basis=method.basis,
        remark=method.remark,
    )


def _csv(rows: list[dict]) -> str:
    """Rows of :func:`_data` with one column for each figure."""
    columns = {
        'reported': ('params', 'gflops', 'top1_error', 'top5_error'),
        'measured': ('params', 'gmacs', 'activations', 'milliseconds', 'ratio', 'least', 'most'),
        'agrees': ('params', 'gflops'),
    }
    plain = ('method', 'depth', 'model')
    lines: list[list] = [[*plain, *(f'{key}_{n}' for key, names in columns.items() for n in names), 'basis', 'remark']]
    for row in rows:
        figures = [(row[key] or {}).get(n) for key, names in columns.items() for n in names]
        lines.append([*(row[key] for key in plain), *figures, row['basis'], row['remark']])
    return to_csv([['' if cell is None else cell for cell in line] for line in lines])


def _aligned(head: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    """Columns under a head whose words are one below the other."""
    heads = [title.split(' ') for title in head]
    tall = max(map(len, heads))
    top = [tuple(([''] * (tall - len(words)) + words)[i] for words in heads) for i in range(tall)]
    widths = [max(len(line[i]) for line in (*top, *lines)) for i in range(len(head))]
    return '\n'.join(
        '  '.join(
            c.ljust(w) if i in (0, len(head) - 1) else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (*top, *lines)
    )


def _remarks(table) -> str:
    """What the columns mean, how to read the reported figures, and the remarks on the methods."""
    columns = (
        'agrees: yes, in the digits of the paper; cut off, once further digits are cut off; no, and by how much the '
        'measured figure differs. time: inference relative to the plain ResNet.'
    )
    texts = [columns, *table.notes, *(f'{m.name} ({m.title}; {m.basis}): {m.remark}' for m in table.methods)]
    return '\n'.join(textwrap.fill(text.replace('`', ''), _WIDTH, subsequent_indent='  ') for text in texts)
