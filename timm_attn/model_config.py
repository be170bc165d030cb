"""The ``config.json`` of a model's folder or Hub repository, checked before timm builds a model from it.

timm trusts it: a number of classes that differs from that of the weights makes the classifier random, and a wrong type
ends in an error of Python.
"""

import difflib
import inspect
import json
import math
from pathlib import Path

import timm
from timm.data.transforms import str_to_interp_mode
from timm.models import build_model_with_cfg, parse_model_name

from ._compat import hf_split
from .image_files import MAX_IMAGE_SIZE, check_regular
from .weights.hub_file import hub_file

_MAX_BYTES = 2**24  # the names and descriptions of 21 thousand classes take two million
_MAX_NUMBER = 10**6  # of classes, channels or layers; more would fill the memory before the weights are seen
_WEIGHTS = ('.safetensors', '.bin', '.pth', '.tar', '.pt')
_CROP_MODES = ('center', 'squash', 'border')
_OF_A_MODEL = {'num_classes', 'in_chans', 'img_size', 'args', 'kwargs'}
_NOT_OF_A_MODEL = {
    name for function in (timm.create_model, build_model_with_cfg) for name in inspect.signature(function).parameters
} | {'features_only', 'out_indices', 'feature_cls', 'pruned', 'device', 'dtype'}  # fmt: skip
"""Arguments of timm's factory and builder, which decide what is loaded from where; a config must not have them."""


class ConfigError(ValueError):
    """A ``config.json`` that no model can be built from."""


def check_source(name: str) -> None:
    """Check the ``config.json`` that a name refers to; does nothing for the name of a registered model.

    Args:
        name: Name of a model, as ``timm.create_model`` takes it.

    Raises:
        ConfigError: If it cannot be used; the message says where and why.
        ValueError: If there is no such folder.
    """
    source, where = parse_model_name(name)
    if source == 'local-dir':
        if not Path(where).is_dir():
            raise ValueError(f'There is no folder {where!r}.')
        for path in Path(where).iterdir():
            if path.suffix in _WEIGHTS and path.exists():
                check_regular(str(path))
        if not Path(where, 'config.json').is_file():
            inside = Path(where, 'model')
            hint = f'; did you mean local-dir:{inside}?' if (inside / 'config.json').is_file() else '.'
            raise ValueError(f'{where!r} is not the folder of a model: it has no config.json{hint}')
        check_config(Path(where, 'config.json'))
    elif source == 'hf-hub':
        repo, revision = hf_split(where)
        check_config(hub_file(repo, 'config.json', revision))


def check_config(path: Path) -> None:
    """Check a ``config.json``.

    Args:
        path: The file.

    Raises:
        ConfigError: If it cannot be used.
    """
    problem = _problem(path)
    if problem:
        raise ConfigError(f'{str(path)!r} cannot be used: {problem}')


def _problem(path: Path) -> str | None:
    if path.stat().st_size > _MAX_BYTES:
        return f'it is larger than {_MAX_BYTES // 2**20} MiB'
    try:
        config = json.loads(path.read_text(encoding='utf-8'))
    except RecursionError:
        return 'it is nested too deeply'
    except ValueError as e:
        return f'it is not JSON ({e})'
    if not isinstance(config, dict):
        return f'it holds {_kind(config)}, not an object'
    for key in ('pretrained_cfg', 'model_args'):
        if key in config and not isinstance(config[key], dict):
            return f'{key} is {_kind(config[key])}, not an object'
    return _architecture(config) or _classes(config) or _images(config)


def _architecture(config: dict) -> str | None:
    arch = config.get('architecture')
    if not isinstance(arch, str):
        return f'architecture is {_kind(arch)}, not the name of a model'
    if not timm.is_model(arch):
        near = difflib.get_close_matches(arch, timm.list_models(), n=1)
        hint = f'; did you mean {near[0]}?' if near else '. Is it a model of timm?'
        return f'architecture {arch[:100]!r} is not known{hint}'
    args = config.get('model_args', {})
    if foreign := sorted(args.keys() & _NOT_OF_A_MODEL - _OF_A_MODEL):
        return f'model_args may not contain {", ".join(foreign)}'
    sizes = {**args, 'img_size': max(_ints(args.get('img_size')), default=0) * _MAX_NUMBER // MAX_IMAGE_SIZE}
    large = next((key for key, value in sizes.items() if max(_ints(value), default=0) > _MAX_NUMBER), None)
    return f'{large} in model_args is too large' if large else None


def _classes(config: dict) -> str | None:
    settings = config.get('pretrained_cfg', config)
    given = dict(num_classes=config.get('num_classes', settings.get('num_classes', 1000)))
    if 'num_classes' in config.get('model_args', {}):
        given['num_classes in model_args'] = config['model_args']['num_classes']
    for key, value in given.items():
        if not _is_int(value) or not 0 <= value <= _MAX_NUMBER:
            return f'{key} is {_kind(value)}, not a number of classes'
    if len(set(given.values())) > 1:  # timm would start with a random classifier
        return ', but '.join(f'{key} is {value}' for key, value in given.items())
    names = next((c['label_names'] for c in (config, settings) if c.get('label_names') is not None), None)
    if names is not None:
        count = given['num_classes']
        if isinstance(names, dict):
            if set(names) != {str(i) for i in range(count)}:
                return f'label_names is an object whose keys are not the numbers of the {count} classes'
            names = list(names.values())
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return 'label_names is not a list of names'
        if len(names) != count:
            return f'label_names has {len(names)} names for {count} classes'
    for descriptions in (c.get('label_descriptions') for c in (config, settings)):
        if descriptions is not None and not (
            isinstance(descriptions, dict) and all(isinstance(text, str) for text in descriptions.values())
        ):
            return 'label_descriptions is not an object from name to description'
    return None


def _images(config: dict) -> str | None:
    """What is wrong with the settings that images are prepared with."""
    settings = {key: value for key, value in config.get('pretrained_cfg', config).items() if value is not None}
    size = settings.get('input_size', (3, 224, 224))
    if not (isinstance(size, list | tuple) and len(size) == 3 and all(_is_int(n) and n > 0 for n in size)):
        return 'input_size is not a list of channels, height and width'
    if max(size) > MAX_IMAGE_SIZE:
        return f'input_size is {size[1]} x {size[2]} px with {size[0]} channels; the most are {MAX_IMAGE_SIZE} px'
    channels = config.get('model_args', {}).get('in_chans', size[0])
    for key, allows in (('mean', math.isfinite), ('std', lambda n: math.isfinite(n) and n > 0)):
        values = settings.get(key, [0.5])
        if not isinstance(values, list) or not all(_is_number(n) for n in values) or len(values) not in (1, channels):
            return f'{key} is not a list of {channels} numbers'
        if not all(map(allows, values)):
            return f'{key} is {values}; its numbers must be finite{" and positive" if key == "std" else ""}'
    crop = settings.get('crop_pct', 0.875)
    if not _is_number(crop) or not (math.isfinite(crop) and crop > 0):
        return f'crop_pct is {_kind(crop)}, not a positive number'
    if not 1 <= min(size[1:]) / crop <= max(size[1:]) / crop <= 2 * MAX_IMAGE_SIZE:
        return f'crop_pct is {crop:g}, so that images would be resized to {max(size[1:]) / crop:.3g} px'
    mode = settings.get('crop_mode', 'center')
    if mode not in _CROP_MODES:
        return f'crop_mode is {_kind(mode)}; it must be one of {", ".join(_CROP_MODES)}'
    interpolation = settings.get('interpolation', 'bicubic')
    try:
        str_to_interp_mode(interpolation)
    except (KeyError, TypeError):
        return f'interpolation is {_kind(interpolation)}; bilinear and bicubic, for example, are known'
    return None


def _ints(value: object) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [n for n in values if isinstance(n, int) and not isinstance(n, bool)]


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) > 1e300


def _kind(value: object) -> str:
    """A value of JSON in words."""
    if value is None:
        return 'absent'
    if isinstance(value, list | dict):
        return 'a list' if isinstance(value, list) else 'an object'
    text = json.dumps(value)
    return text if len(text) <= 100 else f'{text[:100]}...'
