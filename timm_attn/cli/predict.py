"""``timm-attn predict``."""

import argparse
import csv
import io
import json
import os
import sys
from pathlib import Path

from ..train.options import positive_int
from .common import UsageError, add_command, check_model

DEFAULT_MODEL = 'mbv2_ca'  # small, its attention trained by the authors, the 1000 classes of ImageNet


def add_parsers(commands) -> None:
    """Add the subcommand."""
    p = add_command(commands, 'predict', 'classify images', predict)
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


def predict(args: argparse.Namespace) -> int:
    """Classify images and print or write the result."""
    from .. import models  # noqa: F401  registers the models
    from ..image_files import find_images
    from ..predict import class_labels, classify, load_classifier
    from ..weights import DownloadError

    check_model(args.model)
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
