"""Options of ``python -m timm_attn finetune``: timm's names, and the defaults of scripts/recipes/finetune.yaml."""

import argparse
import os
from pathlib import Path

import torch
import yaml
from timm import utils


class FinetuneError(RuntimeError):
    """A fine-tuning run that cannot start or go on."""


def positive_int(text: str) -> int:
    """Type of an argument that takes a whole number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number from 1 up')
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options, under the names that they have in timm's train.py."""
    flag = argparse.BooleanOptionalAction
    parser.add_argument('data_dir', nargs='?', metavar='DIR', help='DIR/<class>/*, or DIR/train/<class>/*, DIR/val/...')
    parser.add_argument('-c', '--config', metavar='FILE', help='YAML file with values for these options')
    parser.add_argument('--resume', metavar='RUN', help='go on with the run in this folder, with its options')
    group = parser.add_argument_group('data')
    group.add_argument('--train-split', default='train', metavar='NAME', help='folder for training')
    group.add_argument('--val-split', metavar='NAME', help='folder for validation (default: val, or hold images out)')
    group.add_argument('--val-fraction', type=float, default=0.2, metavar='SHARE', help='share of images to hold out')
    group.add_argument('--img-size', type=positive_int, metavar='N', help="image size (default: the model's)")
    group.add_argument(
        '-b', '--batch-size', type=positive_int, default=64, metavar='N', help='images a step and process'
    )
    workers = min(4, os.cpu_count() or 1)
    group.add_argument('-j', '--workers', type=int, default=workers, metavar='N', help='processes that load images')
    group = parser.add_argument_group('model')
    group.add_argument('--model', default='csa_resnet50', help="any model of timm, with this package's")
    group.add_argument('--pretrained', action=flag, default=True, help='begin with its weights')
    group.add_argument('--pretrained-path', metavar='FILE', help='begin with the weights in this file')
    group.add_argument('--drop', type=float, default=0.0, metavar='RATE', help='dropout')
    group.add_argument('--drop-path', type=float, metavar='RATE', help='stochastic depth')
    group.add_argument('--model-kwargs', nargs='*', default={}, action=utils.ParseKwargs, metavar='KEY=VALUE',
                       help="arguments of the model, such as trainable=attention,head")  # fmt: skip
    group.add_argument('--grad-checkpointing', action=flag, default=False, help='less memory, more time')
    group.add_argument('--channels-last', action=flag, default=False, help='memory layout')
    group.add_argument('--torchcompile', nargs='?', const='inductor', metavar='BACKEND', help='compile the model')
    group.add_argument('--model-ema', action=flag, default=False, help='also average the weights, and keep these')
    group.add_argument('--model-ema-decay', type=float, default=0.9998, metavar='DECAY', help='of that average')
    group = parser.add_argument_group('machine')
    group.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='torch device')
    group.add_argument('--amp', action=flag, help='mixed precision (default: on GPUs)')
    group.add_argument('--amp-dtype', choices=('bfloat16', 'float16'), default='bfloat16', help='its type')
    group.add_argument('--seed', type=int, default=42, metavar='N', help='random seed')
    group = parser.add_argument_group('optimiser')
    group.add_argument('--epochs', type=positive_int, default=40, metavar='N', help='passes over the images')
    group.add_argument('--opt', default='adamw', metavar='NAME', help="any of timm's optimisers")
    group.add_argument('--lr', type=float, default=2e-3, help='learning rate')
    group.add_argument('--weight-decay', type=float, default=0.05, help='weight decay')
    group.add_argument('--momentum', type=float, default=0.9, help='momentum, where the optimiser has it')
    group.add_argument('--layer-decay', type=float, default=0.9, help='learning rate from block to block')
    group.add_argument('--clip-grad', type=float, metavar='NORM', help='clip gradients')
    group.add_argument('--sched', default='cosine', choices=('cosine', 'tanh', 'poly', 'step'), help='schedule')
    group.add_argument('--sched-on-updates', action=flag, default=True, help='change the learning rate every step')
    group.add_argument('--warmup-epochs', type=int, default=3, metavar='N', help='epochs of warm-up')
    group.add_argument('--warmup-lr', type=float, default=1e-6, help='where it begins')
    group.add_argument('--min-lr', type=float, default=0.0, help='where the schedule ends')
    group = parser.add_argument_group('augmentation')
    group.add_argument('--scale', type=float, nargs=2, default=[0.35, 1.0], help='part of the image that is cut out')
    group.add_argument('--ratio', type=float, nargs=2, default=[3 / 4, 4 / 3], help='its width to height')
    group.add_argument('--hflip', type=float, default=0.5, help='probability of a horizontal flip')
    group.add_argument('--vflip', type=float, default=0.0, help='probability of a vertical flip')
    group.add_argument('--color-jitter', type=float, default=0.2, help='change of the colours')
    group.add_argument('--aa', metavar='POLICY', help='AutoAugment or RandAugment, such as rand-m7-mstd0.5-inc1')
    group.add_argument('--reprob', type=float, default=0.1, help='probability of random erasing')
    group.add_argument('--mixup', type=float, default=0.0, metavar='ALPHA', help='mixup')
    group.add_argument('--cutmix', type=float, default=0.0, metavar='ALPHA', help='CutMix')
    group.add_argument('--smoothing', type=float, default=0.1, help='label smoothing')
    group = parser.add_argument_group('output')
    group.add_argument('--output', default='output/finetune', metavar='DIR', help='folder of all runs')
    group.add_argument('--experiment', metavar='NAME', help='folder of this run in it (default: time and model)')
    group.add_argument('--checkpoint-hist', type=positive_int, default=1, metavar='N', help='best checkpoints to keep')


_FIXED = ('model', 'model_kwargs', 'opt', 'lr', 'weight_decay', 'momentum', 'layer_decay')
"""Options that a run keeps when it is resumed: they are part of what its checkpoints hold."""

_OF_A_RUN = ('class_names', 'num_classes', 'resume', 'config')
"""Entries of a run's ``args.yaml`` that are no options for another."""


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Options from the run to be resumed, from ``--config`` and, before both, from the command line.

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
    parser.set_defaults(**run | {key: value for key, value in config.items() if key not in _OF_A_RUN})
    args = parser.parse_args(argv)
    for key in _FIXED:
        if key in run and run[key] != getattr(args, key):
            raise FinetuneError(f'The run in {args.resume} has {key}: {run[key]}. Begin a new one to change it.')
    del args.func
    return args


def _read_options(file: Path, parser: argparse.ArgumentParser) -> dict:
    """Options in a YAML file, checked and converted as if they had been given on the command line."""
    try:
        values = yaml.safe_load(file.read_text(encoding='utf-8'))
    except (OSError, ValueError, yaml.YAMLError) as e:
        raise FinetuneError(f'Cannot read the options in {file}: {e}') from e
    if not isinstance(values, dict):
        raise FinetuneError(f'{file} holds no options: it takes lines such as "epochs: 20".')
    known = set(vars(parser.parse_args([])))
    unknown = sorted(map(str, set(values) - known - set(_OF_A_RUN)))
    if unknown:
        raise FinetuneError(f"{file} has options that only timm's train.py knows: {', '.join(unknown)}.")
    given = {key: value for key, value in values.items() if value is not None and key not in _OF_A_RUN}
    words = [word for key, value in given.items() if key != 'data_dir' for word in _words(key, value)]
    try:
        checked = parser.parse_args([str(given.get('data_dir', '.')), *words])
    except SystemExit:  # argparse has said which, but not where
        raise FinetuneError(f'A value in {file} does not fit, see above.') from None
    return {key: values[key] for key in _OF_A_RUN if key in values} | {key: getattr(checked, key) for key in given}


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
