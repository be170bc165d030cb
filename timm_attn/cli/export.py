"""``timm-attn export``."""

import argparse
from pathlib import Path

from .common import UsageError, add_command, check_model

FORMATS = ('hub', 'onnx', 'openvino', 'torch-export')
_ENDINGS = {'.onnx': 'onnx', '.xml': 'openvino', '.pt2': 'torch-export'}


def add_parsers(commands) -> None:
    """Add the subcommand."""
    text = 'write a trained model as a folder for local-dir: and the Hub, or as a file for ONNX or OpenVINO'
    p = add_command(commands, 'export', text, export)
    p.add_argument(
        'source',
        metavar='RUN',
        help="output folder of finetune or of timm's train.py, or any model that timm knows: 'model', 'model.tag', "
        "'hf-hub:...', 'local-dir:...'",
    )
    p.add_argument('out', type=Path, metavar='OUT', help='folder or file to write, which must not exist')
    p.add_argument(
        '--format',
        choices=FORMATS,
        help='hub: a folder; onnx: a file that ends in .onnx; openvino: in .xml, with a .bin beside it; torch-export: '
        'in .pt2 (default: that of the ending, else hub)',
    )
    p.add_argument('--labels', type=Path, metavar='FILE', help='class names in their order, one on each line')
    p.add_argument('--checkpoint', metavar='FILE', help='file in RUN (default: model_best.pth.tar)')


def export(args: argparse.Namespace) -> None:
    """Write a run or a model in one of the formats."""
    args.format = args.format or _ENDINGS.get(args.out.suffix, 'hub')
    if args.format == 'hub' and args.out.suffix in _ENDINGS:
        raise UsageError(f'{args.out}: --format hub writes a folder, whose name may not end in {args.out.suffix}')
    if args.labels and not args.labels.is_file():
        raise UsageError(f'--labels {args.labels}: there is no such file')

    from ..export_formats import check_target, export_file
    from ..train.export import export_model

    if args.format == 'hub' and args.out.exists():
        raise UsageError(f'{args.out} exists: name another folder')
    if args.format != 'hub':
        check_target(args.out, args.format)
    lines = args.labels.read_text(encoding='utf-8').splitlines() if args.labels else []
    model, model_args = _load(args, [line.strip() for line in lines if line.strip()])
    if args.format == 'hub':
        export_model(model, args.out, model_args)
    else:
        export_file(model, args.out, args.format)
    named = 'with' if model.pretrained_cfg.get('label_names') else 'without (see --labels)'
    print(f'{args.out}: {model.num_classes} classes, {named} names')


def _load(args: argparse.Namespace, names: list[str]):
    from timm.data import infer_imagenet_subset

    from .. import models  # noqa: F401  registers the models
    from ..predict import class_labels, label_names, load_classifier
    from ..train.export import load_run, name_classes

    folder = Path(args.source)
    if folder.is_dir() and (folder / 'config.json').is_file() and not (folder / 'args.yaml').is_file():
        raise UsageError(f'{args.source!r} is not a run but a model; did you mean local-dir:{args.source}?')
    if folder.is_dir():
        return load_run(folder, names, args.checkpoint or 'model_best.pth.tar')
    if args.checkpoint:
        raise UsageError(f'--checkpoint names a file in the folder of a run, and {args.source!r} is no folder')
    if ':' not in args.source and len(folder.parts) > 1:
        raise UsageError(f'there is no folder {args.source!r}')
    check_model(args.source)
    model = load_classifier(args.source)
    if not names and (label_names(model) or infer_imagenet_subset(model)):
        names = list(map(class_labels(model), range(model.num_classes)))
    name_classes(model, names)
    return model, None
