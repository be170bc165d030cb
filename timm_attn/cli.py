"""The command ``timm-attn``: parses and prints; the work of a subcommand is in its subject's module."""

import argparse
import csv
import difflib
import io
import json
import os
import runpy
import sys
from functools import partial
from pathlib import Path

import timm
from safetensors import SafetensorError
from timm.models import get_arch_pretrained_cfgs

from . import __version__
from .image_files import find_images
from .models import zoo_models
from .models.info import describe, find_weight
from .predict import class_labels, classify, load_classifier
from .train.export import export_run
from .train.finetune import finetune
from .train.options import add_arguments, parse, positive_int
from .train.recipes import list_recipes, recipe_path
from .weights import DownloadError

DEFAULT_MODEL = 'mbv2_ca'  # small, its attention trained by the authors, the 1000 classes of ImageNet


class UsageError(Exception):
    """Wrong input; the message is for the user."""


def _list(args: argparse.Namespace) -> None:
    names = zoo_models(args.filter) or zoo_models(f'*{args.filter}*')
    if not names:
        raise UsageError(f'no model matches {args.filter!r}; there are: {", ".join(zoo_models())}')
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


def _info(args: argparse.Namespace) -> None:
    name = _known_name(args.name)
    for key, value in describe(name).items():
        lines = value if key in ('quality', 'notes') else [value]
        for i, line in enumerate(lines):
            if isinstance(line, list | tuple):
                line = ', '.join(str(v) for v in line) or '-'
            print(f'{key if i == 0 else "":<15}{line}')


def _known_name(name: str, others: list[str] | None = None) -> str:
    """Check the name of a model, with or without a tag: one of this package, or of ``others``."""
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


def _check_model(name: str) -> None:
    if ':' not in name and not timm.is_model(name.partition('.')[0]):
        if Path(name, 'config.json').is_file():
            raise UsageError(f'{name!r} is a directory; did you mean local-dir:{name}?')
        _known_name(name, timm.list_models())  # raises, with the nearest names


def _predict(args: argparse.Namespace) -> int:
    _check_model(args.model)
    if args.num_classes and not args.checkpoint:
        raise UsageError('--num-classes belongs to --checkpoint: pretrained weights have their own classes')
    style = _output_style(args)
    images = find_images(args.images)
    try:
        model = load_classifier(args.model, args.checkpoint, args.num_classes).to(args.device)
    except DownloadError as e:
        if args.model != DEFAULT_MODEL:
            raise
        raise UsageError(f'{e} No network? --model csa_resnet20_cifar is in the package (10 classes).') from e
    unreadable = []

    def warn(path: str, reason: str) -> None:
        if len(images) == 1:
            raise UsageError(reason)
        unreadable.append(path)
        print(f'left out: {reason}', file=sys.stderr)

    labels = class_labels(model, bool(args.checkpoint))
    results = list(classify(model, images, labels, args.topk, args.batch_size, warn))
    if not results:
        raise UsageError('none of these files can be read as an image')
    name = args.model
    if ':' not in name and not args.checkpoint:  # the tag that the weights were found under
        name = '.'.join(filter(None, (model.pretrained_cfg['architecture'], model.pretrained_cfg.get('tag'))))
    text = _format(style, results, name, args.checkpoint)
    if args.output:
        part = Path(f'{args.output}.part')
        try:
            part.write_text(text, encoding='utf-8', newline='')
            os.replace(part, args.output)
        finally:
            part.unlink(missing_ok=True)
        print(f'{args.output}: {len(results)} image{"s" * (len(results) != 1)}')
    else:
        print(text, end='')
    return 2 if set(unreadable) & set(args.images) else 0


def _output_style(args: argparse.Namespace) -> str:
    suffix = Path(args.output).suffix.lower() if args.output else ''
    style = args.style or {'.json': 'json', '.csv': 'csv'}.get(suffix)
    if args.output and not style:
        raise UsageError(f'--output {args.output}: the name must end in .csv or .json, or add --csv or --json')
    if args.output and Path(args.output).is_dir():
        raise UsageError(f'--output {args.output} is a directory; name a file')
    if args.output and not Path(args.output).absolute().parent.is_dir():
        raise UsageError(f'--output {args.output}: {Path(args.output).parent} is not a directory')
    return style or 'text'


def _format(style: str, results: list[dict], model: str, checkpoint: str) -> str:
    if style == 'json':
        return json.dumps(dict(model=model, checkpoint=checkpoint or None, predictions=results), indent=2) + '\n'
    if style == 'csv':
        table = io.StringIO()
        rows = csv.writer(table, lineterminator='\n')
        rows.writerow(['image', 'rank', 'index', 'label', 'probability'])
        for result in results:
            for rank, c in enumerate(result['classes'], start=1):
                rows.writerow([result['image'], rank, c['index'], c['label'], c['probability']])
        return table.getvalue()
    lines = []
    for result in results:
        lines += [result['image'], *(f'{100 * c["probability"]:7.2f} %  {c["label"]}' for c in result['classes'])]
    return '\n'.join(lines) + '\n'


def _finetune(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    args = parse(parser, args.argv[1:])
    _check_model(args.model)
    finetune(args)


def _export(args: argparse.Namespace) -> None:
    if args.out.exists():
        raise UsageError(f'{args.out} exists: name another folder')
    lines = args.labels.read_text(encoding='utf-8').splitlines() if args.labels else []
    model = export_run(args.run, args.out, [line.strip() for line in lines if line.strip()] or None, args.checkpoint)
    named = 'label_names' in json.loads((args.out / 'config.json').read_text(encoding='utf-8'))
    print(f'{args.out}: {model.num_classes} classes, {"with" if named else "without (see --labels)"} names')


def _recipe(args: argparse.Namespace) -> None:
    if not args.name:
        if args.output:
            raise UsageError('--output needs the name of a recipe; timm-attn recipe lists them')
        for name in list_recipes():
            first = recipe_path(name).read_text(encoding='utf-8').splitlines()[0]
            print(f'{name:22}{first.removeprefix("# ")}')
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


def _run(args: argparse.Namespace) -> None:
    if not os.path.isfile(args.script):
        raise UsageError(
            f'there is no script {args.script!r}; train.py, validate.py and others come with the timm repository'
        )
    sys.argv = [args.script, *args.args]
    sys.path[0] = os.path.dirname(os.path.abspath(args.script))  # as `python SCRIPT` would
    runpy.run_path(args.script, run_name='__main__')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='timm-attn', description='Attention-augmented CNNs inside timm.')
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    commands = parser.add_subparsers(required=True, metavar='COMMAND')

    def command(name: str, text: str, func) -> argparse.ArgumentParser:
        p = commands.add_parser(name, help=text, description=f'{text[0].upper()}{text[1:]}.')
        p.set_defaults(func=func)
        return p

    p = command('list', 'list the models with their size, cost and weights', _list)
    p.add_argument('filter', nargs='?', default='', help="wildcard or part of a name, such as 'csa*'")

    p = command('info', 'show everything known about a model and its weights', _info)
    p.add_argument('name', metavar='NAME', help='model, with or without a tag')

    p = command('predict', 'classify images', _predict)
    p.add_argument('images', nargs='+', metavar='IMAGE', help='file, directory or wildcard')
    p.add_argument(
        '--model',
        default=DEFAULT_MODEL,
        help="any model that timm knows: 'model', 'model.tag', 'hf-hub:...', 'local-dir:...' (default: %(default)s)",
    )
    p.add_argument('--checkpoint', default='', metavar='PATH', help='load this file instead of pretrained weights')
    p.add_argument('--num-classes', type=positive_int, metavar='N', help='number of classes of the checkpoint')
    p.add_argument('--topk', type=positive_int, default=5, metavar='K', help='classes to show (default: %(default)s)')
    p.add_argument('-b', '--batch-size', type=positive_int, default=32, metavar='N', help='default: %(default)s')
    p.add_argument('--device', default='cpu', help='torch device (default: %(default)s)')
    style = p.add_mutually_exclusive_group()
    style.add_argument('--json', dest='style', action='store_const', const='json', help='print JSON')
    style.add_argument('--csv', dest='style', action='store_const', const='csv', help='print CSV')
    p.add_argument('-o', '--output', metavar='FILE', help='write to a .csv or .json file instead')

    p = command('finetune', 'fine-tune a model on a folder of images', None)
    add_arguments(p)
    p.set_defaults(func=partial(_finetune, p))

    p = command('export', 'write a training run as a folder that loads by local-dir: and can be uploaded', _export)
    p.add_argument('run', type=Path, metavar='RUN', help="output folder of finetune or of timm's train.py")
    p.add_argument('out', type=Path, metavar='OUT', help='folder to write, which must not exist')
    p.add_argument('--labels', type=Path, metavar='FILE', help='class names in their order, one on each line')
    p.add_argument(
        '--checkpoint', default='model_best.pth.tar', metavar='FILE', help='file in RUN (default: %(default)s)'
    )

    p = command('recipe', "list the recipes for timm's train.py, or print one", _recipe)
    p.add_argument('name', nargs='?', metavar='NAME', help='recipe to print')
    p.add_argument('-o', '--output', type=Path, metavar='FILE', help='copy it to this file or directory instead')

    p = command('run', "run a script of timm, such as validate.py, with this package's models", _run)
    p.add_argument('script', metavar='SCRIPT')
    p.add_argument('args', nargs=argparse.REMAINDER, help='arguments of the script')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments; those of the process if None.

    Returns:
        Exit status: 0, or 2 where the input was wrong.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(argv, argparse.Namespace(argv=argv))
    if args.func is _run:  # errors of a foreign script are its own
        expected: tuple = (UsageError,)
    else:
        expected = (UsageError, OSError, RuntimeError, ValueError, AssertionError, SafetensorError)
    try:
        status = args.func(args) or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except expected as e:
        process = f'rank {os.environ["RANK"]}: ' if os.environ.get('RANK', '0') != '0' else ''
        print(f'{process}error: {e or type(e).__name__}', file=sys.stderr)
        return 2
