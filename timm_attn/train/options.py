"""Options that the commands for training share, under the names that they have in timm's train.py.

The parsers are built before torch and timm are imported, so that ``--help`` answers at once.
"""

import argparse
import difflib
import math
import os
from collections.abc import Callable, Collection, Mapping
from datetime import date
from pathlib import Path

from .argument_types import integer, not_negative, positive, positive_int, share, text


class RunError(RuntimeError):
    """A training run that cannot start or continue."""


flag = argparse.BooleanOptionalAction


def adder(parser: argparse.ArgumentParser, title: str) -> Callable[..., None]:
    """Function that adds an option to a new group of a parser, with its default in the help."""
    group = parser.add_argument_group(title)

    def add(*names: str, **kwargs) -> None:
        action = group.add_argument(*names, **kwargs)
        if action.default is not None and 'default:' not in str(action.help):
            action.help = f'{action.help} (default: %(default)s)'

    return add


def add_run(parser: argparse.ArgumentParser, data_help: str) -> None:
    """Add the data set, ``--config`` and ``--resume``."""
    parser.add_argument('data_dir', nargs='?', type=text, metavar='DIR', help=data_help)
    parser.add_argument('-c', '--config', type=text, metavar='FILE', help='YAML file with values for these options')
    parser.add_argument('--resume', type=text, metavar='RUN', help='resume the run in this folder, with its options')


def add_loading(add: Callable[..., None], batch_size: int) -> None:
    """Add the size of batches and the number of workers."""
    add('-b', '--batch-size', type=positive_int, default=batch_size, metavar='N', help='images per step and process')
    workers = min(4, os.cpu_count() or 1)
    add('-j', '--workers', type=integer(256), default=workers, metavar='N',
        help='processes that load images (default: up to 4, here %(default)s)')  # fmt: skip


def add_averaging(add: Callable[..., None]) -> None:
    """Add the exponential moving average of the weights."""
    add('--model-ema', action=flag, default=False, help='average the weights, and keep the average')
    add('--model-ema-decay', type=share, default=0.9998, metavar='DECAY', help='decay of the average')


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Add the group ``machine``."""
    add = adder(parser, 'machine')
    add('--device', type=text, help='torch device (default: cuda where there is one, else cpu)')
    add('--amp', action=flag, help='mixed precision (default: on GPUs)')
    add('--amp-dtype', choices=('bfloat16', 'float16'), default='bfloat16', help='its data type')
    add('--seed', type=integer(2**31 - 1), default=42, metavar='N', help='random seed')


def add_length(add: Callable[..., None], epochs: int, metric: str | None) -> None:
    """Add the number of epochs and, for a run whose best epoch by a metric counts, when to stop earlier."""
    add('--epochs', type=positive_int, default=epochs, metavar='N', help='passes over the images')
    if metric:
        add('--patience', type=positive_int, metavar='N',
            help=f'stop after N epochs without a better {metric} (default: never)')  # fmt: skip


def add_decay(add: Callable[..., None], weight_decay: float) -> None:
    """Add weight decay and clipping."""
    add('--weight-decay', type=not_negative, default=weight_decay, help='weight decay')
    add('--clip-grad', type=positive, metavar='NORM', help='clip the norm of the gradients (default: do not)')


def add_place(parser: argparse.ArgumentParser, folder: str, name: str) -> Callable[..., None]:
    """Add the group ``output`` with where results are written to; ``name`` says what they are called otherwise."""
    add = adder(parser, 'output')
    add('--output', type=text, default=folder, metavar='DIR', help='folder of all runs')
    add('--experiment', type=text, metavar='NAME', help=f'folder of this run in it (default: {name})')
    return add


def add_output(parser: argparse.ArgumentParser, folder: str) -> None:
    """Add the group ``output``, with trackers."""
    add = add_place(parser, folder, 'time and model')
    add('--log-tensorboard', action=flag, default=False, help='log to TensorBoard, in the folder of the run')
    add('--log-wandb', action=flag, default=False, help='log to Weights & Biases')
    add('--wandb-project', type=text, metavar='NAME', help='project there (default: that of the account)')


_OF_A_RUN = ('class_names', 'num_classes', 'resume', 'config', 'wandb_resume_id')
"""Entries of a run's ``args.yaml`` that are not options of another run."""

_COMMAND_OF = dict(detector='train-detection', segmenter='train-segmentation')
"""Options that only one command has -> the command."""

_SCALARS = (bool, int, float, str, date)


def parse(
    parser: argparse.ArgumentParser,
    argv: list[str],
    kept: Collection[str],
    constant: Mapping[str, object],
    ignored: Collection[str] = (),
) -> argparse.Namespace:
    """Options from the run to resume, from ``--config`` and, with priority over both, from the command line.

    Args:
        parser: A parser with the options of a command.
        argv: The command line.
        kept: Options that a resumed run keeps: its checkpoints depend on them, or which images it has seen. Those of
            other commands are ignored.
        constant: Options of timm's train.py that are not options here: a file may name them with these values, and a
            run that was made while they were options is resumed with its own.
        ignored: Options of other commands that a file may name.

    Raises:
        RunError: If a file cannot be read or has other options, or a run cannot be resumed with these options.
    """
    args, defaults = parser.parse_args(argv), vars(parser.parse_args([]))
    run = {}
    if args.resume:
        if not Path(args.resume).exists():
            raise RunError(f'There is no run {args.resume}: the folder does not exist.')
        if not Path(args.resume, 'args.yaml').is_file():
            raise RunError(f'{args.resume} is not the folder of a run: it has no args.yaml.')
        run = _read_options(Path(args.resume, 'args.yaml'), parser, constant)
    config = _read_options(Path(args.config), parser, constant, ignored) if args.config else {}
    if given := [key for key in ('config', 'resume') if config.get(key) is not None]:
        raise RunError(f'{args.config} has {" and ".join(given)}, which belong on the command line.')
    of_run = {**constant, **{key: run[key] for key in constant if run.get(key) is not None}}
    changed = [f'{key}: {config[key]}' for key in constant if not _same(config.get(key), of_run[key])]
    if changed:
        raise RunError(f"{args.config} has values that only timm's train.py knows: {', '.join(changed)}.")
    parser.set_defaults(**run | {key: value for key, value in config.items() if key not in {*_OF_A_RUN, *constant}})
    args = parser.parse_args(argv, argparse.Namespace(**of_run))
    if odd := [key for key, value in vars(args).items() if value == []]:  # what argparse makes of --epochs=--
        raise RunError(f'--{odd[0].replace("_", "-")} has no value.')
    for key in [key for key in kept if args.resume and key in defaults]:
        before = run.get(key, defaults[key])  # a file of options has no line for None
        if before != getattr(args, key):
            had = f'no {key}' if before is None else f'{key}: {before}'
            raise RunError(f'The run in {args.resume} has {had}. Start a new run to change it.')
    if args.pretrained_path and not (args.pretrained or args.resume):
        raise RunError('--no-pretrained and --pretrained-path contradict each other: leave one out.')
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


def _read_options(
    file: Path, parser: argparse.ArgumentParser, constant: Collection[str], ignored: Collection[str] = ()
) -> dict:
    """Options in a YAML file, checked and converted as if they had been given on the command line."""
    import yaml

    try:
        values = yaml.safe_load(file.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as e:
        raise RunError(f'Cannot read the options in {file}: {e}') from e
    if not isinstance(values, dict):
        raise RunError(f'{file} contains no options; write lines such as "epochs: 20".')
    values = {key.replace('-', '_') if isinstance(key, str) else key: value for key, value in values.items()}
    values = {key: value for key, value in values.items() if key not in ignored}
    known = set(vars(parser.parse_args([])))
    unknown = sorted(map(str, set(values) - known - set(_OF_A_RUN) - set(constant)))
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        command = next((_COMMAND_OF[key] for key in unknown if key in _COMMAND_OF), None)
        hint = f' Did you mean {near[0]}?' if near else " timm's train.py has more options."
        if command:
            hint = f' They are options of timm-attn {command}.'
        raise RunError(f'{file} has unknown options: {", ".join(unknown)}.{hint}')
    as_they_are = {*_OF_A_RUN, *constant}
    given = {key: value for key, value in values.items() if value is not None and key not in as_they_are}
    for key, value in given.items():
        if not all(isinstance(one, _SCALARS) for one in _values(value)):
            raise RunError(f'{file} has a value of {key} that is not a number, a text or a flat list of these.')
    names = values.get('class_names') or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RunError(f'{file} has class_names that are not a list of texts.')
    words = [word for key, value in given.items() if key != 'data_dir' for word in words_of(key, value)]
    try:
        checked = parser.parse_args([str(given.get('data_dir', '.')), *words])
    except SystemExit:  # argparse has said which, but not where
        raise RunError(f'A value in {file} is not valid, see above.') from None
    return {key: values[key] for key in as_they_are & values.keys()} | {key: getattr(checked, key) for key in given}


def _values(value: object) -> list:
    """Values in an option of a YAML file, one level deep: an alias can make a short file deep and huge."""
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else [value]


def words_of(key: str, value: object) -> list[str]:
    """An option as words of a command line.

    Args:
        key: Its name, with underscores.
        value: Its value, not None.
    """
    name = key.replace('_', '-')
    if isinstance(value, bool):
        return [f'--{name}' if value else f'--no-{name}']
    if isinstance(value, dict):
        return [f'--{name}', *(f'{k}={v}' for k, v in value.items())]
    if isinstance(value, list):
        return [f'--{name}', *map(str, value)]
    return [f'--{name}={value}']
