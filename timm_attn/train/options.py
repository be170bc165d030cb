"""Options of ``timm-attn finetune``: timm's names, and the defaults of the recipe ``finetune``.

The parser is built before torch and timm are imported, so that ``--help`` answers at once.
"""

import argparse
import difflib
import math
import os
from collections.abc import Callable
from datetime import date
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
            parser.error(
                f'argument {option_string}: expected KEY=VALUE, got {" ".join(values)!r}; DIR comes before the options'
            )
        ParseKwargs(self.option_strings, self.dest)(parser, namespace, values, option_string)


def _text(text: str) -> str:
    """Type of an argument that must not be empty, as an unset shell variable is."""
    if not text.strip():
        raise argparse.ArgumentTypeError('is empty; leave the option out for its default')
    return text


def _image_size(text: str) -> int:
    """Type of a side of the network's input."""
    from ..image_files import MAX_IMAGE_SIZE

    if positive_int(text) > MAX_IMAGE_SIZE:
        raise argparse.ArgumentTypeError(f'{text} is more than {MAX_IMAGE_SIZE} pixels a side')
    return int(text)


def _number(allowed: Callable[[float], bool], what: str) -> Callable[[str], float]:
    """Type of an argument that must be a number in a range; not-a-number is in none."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not allowed(value):
            raise argparse.ArgumentTypeError(f'{text!r} is not {what}')
        return value

    return number


def _integer(high: int) -> Callable[[str], int]:
    """Type of an argument that must be an integer from 0 to a limit."""

    def integer(text: str) -> int:
        if not text.isdecimal() or int(text) > high:
            raise argparse.ArgumentTypeError(f'{text!r} is not an integer from 0 to {high}')
        return int(text)

    return integer


_positive = _number(lambda x: 0 < x < math.inf, 'a positive number')
_not_negative = _number(lambda x: 0 <= x < math.inf, 'zero or a positive number')
_share = _number(lambda x: 0 <= x <= 1, 'a number from 0 to 1')
_positive_share = _number(lambda x: 0 < x <= 1, 'a number above 0, at most 1')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options, under the names that they have in timm's train.py."""

    def add(*names: str, **kwargs) -> None:
        action = group.add_argument(*names, **kwargs)
        if action.default is not None and 'default:' not in str(action.help):
            action.help = f'{action.help} (default: %(default)s)'

    flag = argparse.BooleanOptionalAction
    parser.add_argument(
        'data_dir', nargs='?', type=_text, metavar='DIR', help='DIR/<class>/*, or DIR/train/<class>/*, DIR/val/...'
    )
    parser.add_argument('-c', '--config', type=_text, metavar='FILE', help='YAML file with values for these options')
    parser.add_argument('--resume', type=_text, metavar='RUN', help='resume the run in this folder, with its options')
    group = parser.add_argument_group('data')
    add('--train-split', type=_text, default='train', metavar='NAME', help='folder for training')
    add('--val-split', type=_text, metavar='NAME', help='folder for validation (default: val, or hold images out)')
    add('--val-fraction', type=float, default=0.2, metavar='SHARE', help='share of images to hold out')
    add('--img-size', type=_image_size, metavar='N', help="image size (default: the model's)")
    add('-b', '--batch-size', type=positive_int, default=64, metavar='N', help='images per step and process')
    workers = min(4, os.cpu_count() or 1)
    add('-j', '--workers', type=_integer(256), default=workers, metavar='N',
        help='processes that load images (default: up to 4, here %(default)s)')  # fmt: skip
    group = parser.add_argument_group('model')
    add('--model', type=_text, default='csa_resnet50', help='any model of timm or of this package')
    add('--pretrained', action=flag, default=True, help='start from its pretrained weights')
    add('--pretrained-path', type=_text, metavar='FILE',
        help='start from the weights in this file (default: download them)')  # fmt: skip
    add('--drop', type=_share, default=0.0, metavar='RATE', help='dropout')
    add('--drop-path', type=_share, metavar='RATE', help="stochastic depth (default: the model's)")
    add('--model-kwargs', nargs='*', default={}, action=_ParseKwargs, metavar='KEY=VALUE',
        help='arguments of the model, such as trainable=attention,head (default: none)')  # fmt: skip
    add('--grad-checkpointing', action=flag, default=False, help='trade time for memory')
    add('--channels-last', action=flag, default=False, help='use the channels_last memory format')
    add('--torchcompile', nargs='?', type=_text, const='inductor', metavar='BACKEND',
        help='compile the model, with inductor if no backend is named (default: do not)')  # fmt: skip
    add('--model-ema', action=flag, default=False, help='average the weights, and keep the average')
    add('--model-ema-decay', type=_share, default=0.9998, metavar='DECAY', help='decay of the average')
    group = parser.add_argument_group('machine')
    add('--device', type=_text, help='torch device (default: cuda where there is one, else cpu)')
    add('--amp', action=flag, help='mixed precision (default: on GPUs)')
    add('--amp-dtype', choices=('bfloat16', 'float16'), default='bfloat16', help='its data type')
    add('--seed', type=_integer(2**31 - 1), default=42, metavar='N', help='random seed')
    group = parser.add_argument_group('optimizer')
    add('--epochs', type=positive_int, default=40, metavar='N', help='passes over the images')
    add('--patience', type=positive_int, metavar='N',
        help='stop after N epochs without a better top-1 (default: never)')  # fmt: skip
    add('--opt', type=_text, default='adamw', metavar='NAME', help='any optimizer of timm')
    add('--lr', type=_positive, default=2e-3, help='peak learning rate; a cosine decays it to zero')
    add('--weight-decay', type=_not_negative, default=0.05, help='weight decay')
    add('--layer-decay', type=_positive_share, default=0.9, help='factor on the learning rate from block to block')
    add('--clip-grad', type=_positive, metavar='NORM', help='clip the norm of the gradients (default: do not)')
    add('--warmup-epochs', type=_integer(10**9), default=3, metavar='N',
        help='epochs of linear warm-up, at most half of all epochs')  # fmt: skip
    group = parser.add_argument_group('augmentation')
    add('--scale', type=_positive_share, nargs=2, default=[0.35, 1.0], metavar=('LOW', 'HIGH'),
        help='share of the area in a random crop')  # fmt: skip
    add('--hflip', type=_share, default=0.5, metavar='P', help='probability of a horizontal flip')
    add('--color-jitter', type=_not_negative, default=0.2, metavar='FACTOR', help='color jitter')
    add('--aa', type=_text, metavar='POLICY',
        help='AutoAugment or RandAugment, such as rand-m7-mstd0.5-inc1 (default: none)')  # fmt: skip
    add('--reprob', type=_share, default=0.1, metavar='P', help='probability of random erasing')
    add('--mixup', type=_not_negative, default=0.0, metavar='ALPHA', help='mixup')
    add('--cutmix', type=_not_negative, default=0.0, metavar='ALPHA', help='CutMix')
    add('--smoothing', type=_number(lambda x: 0 <= x < 1, 'a number from 0 to below 1'), default=0.1, metavar='EPS',
        help='label smoothing')  # fmt: skip
    group = parser.add_argument_group('output')
    add('--output', type=_text, default='output/finetune', metavar='DIR', help='folder of all runs')
    add('--experiment', type=_text, metavar='NAME', help='folder of this run in it (default: time and model)')
    add('--log-tensorboard', action=flag, default=False, help='log to TensorBoard, in the folder of the run')
    add('--log-wandb', action=flag, default=False, help='log to Weights & Biases')
    add('--wandb-project', type=_text, metavar='NAME', help='project there (default: that of the account)')


CONSTANT = dict(
    sched='cosine', sched_on_updates=True, warmup_lr=1e-6, min_lr=0.0, momentum=0.9, ratio=[3 / 4, 4 / 3], vflip=0.0,
    checkpoint_hist=1,
)  # fmt: skip
"""Options of timm's train.py that are not options here: a file may name them with these values, and a run that was made
while they were options is resumed with its own."""

_KEPT = (
    'model', 'model_kwargs', 'opt', 'lr', 'weight_decay', 'layer_decay', 'train_split', 'val_split', 'val_fraction',
)  # fmt: skip
"""Options that a resumed run keeps: its checkpoints depend on them, or which images it has seen."""

_OF_A_RUN = ('class_names', 'num_classes', 'resume', 'config', 'wandb_resume_id')
"""Entries of a run's ``args.yaml`` that are not options of another run."""

_SCALARS = (bool, int, float, str, date)


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
        if not Path(args.resume).exists():
            raise FinetuneError(f'There is no run {args.resume}: the folder does not exist.')
        if not Path(args.resume, 'args.yaml').is_file():
            raise FinetuneError(f'{args.resume} is not the folder of a run: it has no args.yaml.')
        run = _read_options(Path(args.resume, 'args.yaml'), parser)
    config = _read_options(Path(args.config), parser) if args.config else {}
    if given := [key for key in ('config', 'resume') if config.get(key) is not None]:
        raise FinetuneError(f'{args.config} has {" and ".join(given)}, which belong on the command line.')
    constant = CONSTANT | {key: run[key] for key in CONSTANT if run.get(key) is not None}
    changed = [f'{key}: {config[key]}' for key in CONSTANT if not _same(config.get(key), constant[key])]
    if changed:
        raise FinetuneError(f"{args.config} has values that only timm's train.py knows: {', '.join(changed)}.")
    parser.set_defaults(**run | {key: value for key, value in config.items() if key not in {*_OF_A_RUN, *CONSTANT}})
    args = parser.parse_args(argv, argparse.Namespace(**constant))
    if odd := [key for key, value in vars(args).items() if value == []]:  # what argparse makes of --epochs=--
        raise FinetuneError(f'--{odd[0].replace("_", "-")} has no value.')
    for key in _KEPT:
        if key in run and run[key] != getattr(args, key):
            raise FinetuneError(f'The run in {args.resume} has {key}: {run[key]}. Start a new run to change it.')
    if args.scale[0] > args.scale[1]:
        raise FinetuneError(f'--scale {args.scale[0]} {args.scale[1]}: the lower share comes first.')
    if args.pretrained_path and not (args.pretrained or args.resume):
        raise FinetuneError('--no-pretrained and --pretrained-path contradict each other: leave one out.')
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
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as e:
        raise FinetuneError(f'Cannot read the options in {file}: {e}') from e
    if not isinstance(values, dict):
        raise FinetuneError(f'{file} contains no options; write lines such as "epochs: 20".')
    values = {key.replace('-', '_') if isinstance(key, str) else key: value for key, value in values.items()}
    known = set(vars(parser.parse_args([])))
    unknown = sorted(map(str, set(values) - known - set(_OF_A_RUN) - set(CONSTANT)))
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f' Did you mean {near[0]}?' if near else " timm's train.py has more options than finetune."
        raise FinetuneError(f'{file} has unknown options: {", ".join(unknown)}.{hint}')
    as_they_are = {*_OF_A_RUN, *CONSTANT}
    given = {key: value for key, value in values.items() if value is not None and key not in as_they_are}
    for key, value in given.items():
        if not all(isinstance(one, _SCALARS) for one in _values(value)):
            raise FinetuneError(f'{file} has a value of {key} that is not a number, a text or a flat list of these.')
    names = values.get('class_names') or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise FinetuneError(f'{file} has class_names that are not a list of texts.')
    words = [word for key, value in given.items() if key != 'data_dir' for word in _words(key, value)]
    try:
        checked = parser.parse_args([str(given.get('data_dir', '.')), *words])
    except SystemExit:  # argparse has said which, but not where
        raise FinetuneError(f'A value in {file} is not valid, see above.') from None
    return {key: values[key] for key in as_they_are & values.keys()} | {key: getattr(checked, key) for key in given}


def _values(value: object) -> list:
    """Values in an option of a YAML file, one level deep: an alias can make a short file deep and huge."""
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else [value]


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
