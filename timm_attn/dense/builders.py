"""The builders by name, and what each model remembers of its own: enough to be built again from a file."""

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from .data.records import check_classes
from .features import maps_of

T = TypeVar('T', bound=Callable[..., nn.Module])

BUILDERS: dict[str, Callable[..., nn.Module]] = {}

_OUR_NAMES = {  # for arguments of torchvision's and timm's functions
    'pretrained': 'pretrained_backbone',
    'trainable_backbone_layers': 'trainable_layers',
    'weights': 'pretrained_backbone',
    'weights_backbone': 'pretrained_backbone',
}
NOT_IN_A_FILE = ('pretrained', 'pretrained_cfg', 'pretrained_cfg_overlay', 'checkpoint_path', 'cache_dir')
"""Arguments of timm.create_model that read other files: a file with a model must not ask for them."""


def is_plain_name(backbone: str) -> bool:
    """Whether a backbone is the name of a network, and not a place to load one from, such as ``hf-hub:``."""
    return ':' not in backbone and '/' not in backbone


def builder(function: T) -> T:
    """Register a builder; its models know their ``classes`` and, as ``recipe``, how they were built."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def build(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        model = function(*args, **kwargs)
        given = dict(bound.arguments)
        given |= given.pop('kwargs', {})
        # Whoever builds the model again passes a backbone that is not a name. Weights are in the file.
        if not isinstance(given['backbone'], str) or not is_plain_name(given['backbone']):
            given['backbone'] = None
        if args_of_backbone := given.get('backbone_args'):
            given['backbone_args'] = {k: v for k, v in args_of_backbone.items() if k not in NOT_IN_A_FILE}
        # what followed from the weights of the backbone, which need not be there the next time
        given['batch_norm'] = maps_of(model).batch_norm
        classes = given.get('classes')
        model.classes = None if classes is None else list(classes)
        model.recipe = dict(builder=function.__name__, args=given)
        return model

    BUILDERS[function.__name__] = build
    return build  # type: ignore[return-value]


def check_arguments(model_cls: type[nn.Module], kwargs: dict, taken: Collection[str] = ()) -> None:
    """Refuse arguments that torchvision's detectors would take without using them.

    Args:
        model_cls: The detector's class.
        kwargs: Its arguments.
        taken: Arguments that a builder sets itself.

    Raises:
        TypeError: If an argument is unknown; the message names the nearest.
    """
    known = {*inspect.signature(model_cls).parameters, *inspect.signature(GeneralizedRCNNTransform).parameters}
    for name in kwargs:
        if name in taken:
            raise TypeError(f'{name!r} is set by the builder, and cannot be given.')
        if name not in known:
            near = (
                [_OUR_NAMES[name]] if name in _OUR_NAMES else difflib.get_close_matches(name, known - set(taken), n=1)
            )
            hint = f'Did you mean {near[0]!r}?' if near else f'torchvision describes those of {model_cls.__name__}.'
            raise TypeError(f'Unknown argument {name!r}. {hint}')


def count_classes(num_classes: int | None, classes: Sequence[str] | None, default: int, background: bool = True) -> int:
    """Number of a model's classes.

    Args:
        num_classes: As the user gave it.
        classes: Names, without the background.
        default: Number where neither is given.
        background: Whether the background counts as a class of its own.

    Raises:
        ValueError: If they contradict each other, or there are too few.
    """
    if classes is not None:
        classes = check_classes(classes)
        if background and classes[0].strip('_').lower() == 'background':
            raise ValueError(f'classes must be without background; the first is {classes[0]!r}.')
        if num_classes not in (None, len(classes) + background):
            raise ValueError(
                f'num_classes={num_classes} does not go with {len(classes)} names of classes'
                + (f': with the background it is {len(classes) + 1}.' if background else '.')
            )
        return len(classes) + background
    if num_classes is None:
        return default
    if not isinstance(num_classes, int):
        raise ValueError(f'num_classes must be a whole number, not {num_classes!r}. Names go to classes=.')
    if num_classes < 1 + background:
        raise ValueError(
            f'num_classes={num_classes} must be at least {1 + background}'
            + (', since the background (0) is one of them.' if background else '.')
        )
    return num_classes
