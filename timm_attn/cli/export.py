"""``timm-attn export``."""

import argparse
import json
from pathlib import Path

from .common import UsageError, add_command


def add_parsers(commands) -> None:
    """Add the subcommand."""
    text = 'write a training run as a folder that loads by local-dir: and can be uploaded'
    p = add_command(commands, 'export', text, export_model)
    p.add_argument('run', type=Path, metavar='RUN', help="output folder of finetune or of timm's train.py")
    p.add_argument('out', type=Path, metavar='OUT', help='folder to write, which must not exist')
    p.add_argument('--labels', type=Path, metavar='FILE', help='class names in their order, one on each line')
    p.add_argument(
        '--checkpoint', default='model_best.pth.tar', metavar='FILE', help='file in RUN (default: %(default)s)'
    )


def export_model(args: argparse.Namespace) -> None:
    """Write a run as a model folder."""
    from .. import models  # noqa: F401  registers the models
    from ..train.export import export_run

    if args.out.exists():
        raise UsageError(f'{args.out} exists: name another folder')
    lines = args.labels.read_text(encoding='utf-8').splitlines() if args.labels else []
    model = export_run(args.run, args.out, [line.strip() for line in lines if line.strip()] or None, args.checkpoint)
    named = 'label_names' in json.loads((args.out / 'config.json').read_text(encoding='utf-8'))
    print(f'{args.out}: {model.num_classes} classes, {"with" if named else "without (see --labels)"} names')
