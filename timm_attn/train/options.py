"""Options of ``timm-attn finetune``: timm's names, and the defaults of the recipe ``finetune``.

The parser is built before torch and timm are imported, so that ``--help`` answers at once.
"""

import argparse
import math
import os
from pathlib import Path


class FinetuneError(RuntimeError):
    """A fine-tuning run that cannot start or continue."""


def positive_int(text: str) -> int:
    """Type of an argument that must be a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a positive integer')
    return int(text)


class _ParseKwargs(argparse.Action):
    """timm's ``ParseKwargs``, imported when the option is given."""

    def __call__(self, parser, namespace, values, option_string=None):
        from timm.utils import ParseKwargs

        if any(value and '=' not in value for value in values):
            parser.error(f'argument {option_string}: expected KEY=VALUE, got {" ".join(values)!r}')
        ParseKwargs(self.option_strings, self.dest)(parser, namespace, values, option_string)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options, under the names that they have in timm's train.py."""
    flag = argparse.BooleanOptionalAction
    parser.add_argument('data_dir', nargs='?', metavar='DIR', help='DIR/<class>/*, or DIR/train/<class>/*, DIR/val/...')
    parser.add_argument('-c', '--config', metavar='FILE', help='YAML file with values for these options')
    parser.add_argument('--resume', metavar='RUN', help='resume the run in this folder, with its options')
    group = parser.add_argument_group('data')
    group.add_argument('--train-split', default='train', metavar='NAME', help='folder for training')
    group.add_argument('--val-split', metavar='NAME', help='folder for validation (default: val, or hold images out)')
    group.add_argument('--val-fraction', type=float, default=0.2, metavar='SHARE', help='share of images to hold out')
    group.add_argument('--img-size', type=positive_int, metavar='N', help="image size (default: the model's)")
    group.add_argument(
        '-b', '--batch-size', type=positive_int, default=64, metavar='N', help='images per step and process'
    )
    workers = min(4, os.cpu_count() or 1)
    group.add_argument('-j', '--workers', type=int, default=workers, metavar='N', help='processes that load images')
    group = parser.add_argument_group('model')
    group.add_argument('--model', default='csa_resnet50', help='any model of timm or of this package')
    group.add_argument('--pretrained', action=flag, default=True, help='start from its pretrained weights')
    group.add_argument('--pretrained-path', metavar='FILE', help='start from the weights in this file')
    group.add_argument('--drop', type=float, default=0.0, metavar='RATE', help='dropout')
    group.add_argument('--drop-path', type=float, metavar='RATE', help='stochastic depth')
    group.add_argument('--model-kwargs', nargs='*', default={}, action=_ParseKwargs, metavar='KEY=VALUE',
                       help="arguments of the model, such as trainable=attention,head")  # fmt: skip
    group.add_argument('--grad-checkpointing', action=flag, default=False, help='trade time for memory')
    group.add_argument('--channels-last', action=flag, default=False, help='use the channels_last memory format')
    group.add_argument('--torchcompile', nargs='?', const='inductor', metavar='BACKEND', help='compile the model')
    group.add_argument('--model-ema', action=flag, default=False, help='average the weights, and keep the average')
    group.add_argument('--model-ema-decay', type=float, default=0.9998, metavar='DECAY', help='decay of the average')
    group = parser.add_argument_group('machine')
    group.add_argument('--device', help='torch device (default: cuda where there is one, else cpu)')
    group.add_argument('--amp', action=flag, help='mixed precision (default: on GPUs)')
    group.add_argument('--amp-dtype', choices=('bfloat16', 'float16'), default='bfloat16', help='its data type')
    group.add_argument('--seed', type=int, default=42, metavar='N', help='random seed')
    group = parser.add_argument_group('optimizer')
    group.add_argument('--epochs', type=positive_int, default=40, metavar='N', help='passes over the images')
    group.add_argument('--opt', default='adamw', metavar='NAME', help='any optimizer of timm')
    group.add_argument('--lr', type=float, default=2e-3, help='peak learning rate; a cosine decays it to zero')
    group.add_argument('--weight-decay', type=float, default=0.05, help='weight decay')
    group.add_argument('--layer-decay', type=float, default=0.9, help='factor on the learning rate from block to block')
    group.add_argument('--clip-grad', type=float, metavar='NORM', help='clip the norm of the gradients')
    group.add_argument(
        '--warmup-epochs', type=int, default=3, metavar='N', help='epochs of linear warm-up, at most half of all epochs'
    )
    group = parser.add_argument_group('augmentation')
    group.add_argument('--scale', type=float, nargs=2, default=[0.35, 1.0], metavar=('LOW', 'HIGH'),
                       help='share of the area in a random crop')  # fmt: skip
    group.add_argument('--hflip', type=float, default=0.5, metavar='P', help='probability of a horizontal flip')
    group.add_argument('--color-jitter', type=float, default=0.2, metavar='FACTOR', help='color jitter')
    group.add_argument('--aa', metavar='POLICY', help='AutoAugment or RandAugment, such as rand-m7-mstd0.5-inc1')
    group.add_argument('--reprob', type=float, default=0.1, metavar='P', help='probability of random erasing')
    group.add_argument('--mixup', type=float, default=0.0, metavar='ALPHA', help='mixup')
    group.add_argument('--cutmix', type=float, default=0.0, metavar='ALPHA', help='CutMix')
    group.add_argument('--smoothing', type=float, default=0.1, metavar='EPS', help='label smoothing')
    group = parser.add_argument_group('output')
    group.add_argument('--output', default='output/finetune', metavar='DIR', help='folder of all runs')
    group.add_argument('--experiment', metavar='NAME', help='folder of this run in it (default: time and model)')


CONSTANT = dict(
    sched='cosine', sched_on_updates=True, warmup_lr=1e-6, min_lr=0.0, momentum=0.9, ratio=[3 / 4, 4 / 3], vflip=0.0,
    checkpoint_hist=1,
)  # fmt: skip
"""Options of timm's train.py that are not options here: a file may name them with these values, and a run that was made
while they were options is resumed with its own."""

_KEPT = ('model', 'model_kwargs', 'opt', 'lr', 'weight_decay', 'layer_decay')
"""Options that a resumed run keeps: its checkpoints depend on them."""

_OF_A_RUN = ('class_names', 'num_classes', 'resume', 'config')
"""Entries of a run's ``args.yaml`` that are not options of another run."""


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Options from the run to resume, from ``--config`` and, with priority over both, from the command line.

    Args:
        parser: A parser with :func:`add_arguments`.
        argv: The command line.

    Raises:
        FinetuneError: If a file cannot be read or has other options, or a run cannot be resumed with these options.
    """
    args = parser.parse_args(argv)
    run = {}
    if args.resume:
        if not Path(args.resume, 'args.yaml').is_file():
            raise FinetuneError(f'{args.resume} is not the folder of a run: it has no args.yaml.')
        run = _read_options(Path(args.resume, 'args.yaml'), parser)
    config = _read_options(Path(args.config), parser) if args.config else {}
    constant = CONSTANT | {key: run[key] for key in CONSTANT if run.get(key) is not None}
    changed = [f'{key}: {config[key]}' for key in CONSTANT if not _same(config.get(key), constant[key])]
    if changed:
        raise FinetuneError(f"{args.config} has values that only timm's train.py knows: {', '.join(changed)}.")
    parser.set_defaults(**run | {key: value for key, value in config.items() if key not in {*_OF_A_RUN, *CONSTANT}})
    args = parser.parse_args(argv, argparse.Namespace(**constant))
    for key in _KEPT:
        if key in run and run[key] != getattr(args, key):
            raise FinetuneError(f'The run in {args.resume} has {key}: {run[key]}. Start a new run to change it.')
    vars(args).pop('func', None)
    return args


def _same(given: object, constant: object) -> bool:
    """Whether a value in a file is the constant one, up to the notation of numbers (YAML reads 1e-6 as a text)."""
    if given is None:
        return True
    if isinstance(constant, list):
        return isinstance(given, list) and len(given) == len(constant) and all(map(_same, given, constant))
    if isinstance(constant, bool | str):
        return given == constant
    try:
        return math.isclose(float(str(given)), float(str(constant)), rel_tol=1e-3)
    except ValueError:
        return False


def _read_options(file: Path, parser: argparse.ArgumentParser) -> dict:
    """Options in a YAML file, checked and converted as if they had been given on the command line."""
    import yaml

    try:
        values = yaml.safe_load(file.read_text(encoding='utf-8'))
    except (OSError, ValueError, yaml.YAMLError) as e:
        raise FinetuneError(f'Cannot read the options in {file}: {e}') from e
    if not isinstance(values, dict):
        raise FinetuneError(f'{file} contains no options; write lines such as "epochs: 20".')
    known = set(vars(parser.parse_args([])))
    unknown = sorted(map(str, set(values) - known - set(_OF_A_RUN) - set(CONSTANT)))
    if unknown:
        raise FinetuneError(f"{file} has options that only timm's train.py knows: {', '.join(unknown)}.")
    as_they_are = {*_OF_A_RUN, *CONSTANT}
    given = {key: value for key, value in values.items() if value is not None and key not in as_they_are}
    words = [word for key, value in given.items() if key != 'data_dir' for word in _words(key, value)]
    try:
        checked = parser.parse_args([str(given.get('data_dir', '.')), *words])
    except SystemExit:  # argparse has said which, but not where
        raise FinetuneError(f'A value in {file} is not valid, see above.') from None
    return {key: values[key] for key in as_they_are & values.keys()} | {key: getattr(checked, key) for key in given}


def _words(key: str, value: object) -> list[str]:
    """An option of a YAML file as words of a command line."""
    name = key.replace('_', '-')
    if isinstance(value, bool):
        return [f'--{name}' if value else f'--no-{name}']
    if isinstance(value, dict):
        return [f'--{name}', *(f'{k}={v}' for k, v in value.items())]
    if isinstance(value, list):
        return [f'--{name}', *map(str, value)]
    return [f'--{name}={value}']
