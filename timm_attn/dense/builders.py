"""The builders by name, and what each model remembers of its own: enough to be built again from a file."""

import difflib
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from .features import FeatureMaps

T = TypeVar('T', bound=Callable[..., nn.Module])

BUILDERS: dict[str, Callable[..., nn.Module]] = {}


def builder(function: T) -> T:
    """Register a builder; its models know their ``classes`` and, as ``recipe``, how they were built."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def build(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        model = function(*args, **kwargs)
        given = dict(bound.arguments)
        given |= given.pop('kwargs', {})
        if isinstance(given['backbone'], nn.Module):
            given['backbone'] = None  # whoever builds the model again passes it
        # what followed from the weights of the backbone, which need not be there the next time
        given['batch_norm'] = next(m for m in model.modules() if isinstance(m, FeatureMaps)).batch_norm
        classes = given.get('classes')
        model.classes = None if classes is None else list(classes)
        model.recipe = dict(builder=function.__name__, args=given)
        return model

    BUILDERS[function.__name__] = build
    return build  # type: ignore[return-value]


def check_arguments(model_cls: type[nn.Module], kwargs: dict) -> None:
    """Refuse arguments that torchvision's detectors would take without using them.

    Raises:
        TypeError: If an argument is unknown; the message names the nearest.
    """
    known = {*inspect.signature(model_cls).parameters, *inspect.signature(GeneralizedRCNNTransform).parameters}
    for name in kwargs.keys() - known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f'Did you mean {near[0]!r}?' if near else f"torchvision's {model_cls.__name__} describes what there is."
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
        if isinstance(classes, str) or not classes or not all(isinstance(name, str) for name in classes):
            raise ValueError(f'classes must be a list of names, not {classes!r}.')
        if num_classes not in (None, len(classes) + background):
            raise ValueError(
                f'num_classes={num_classes} does not go with {len(classes)} names of classes'
                + (f': with the background it is {len(classes) + 1}.' if background else '.')
            )
        return len(classes) + background
    if num_classes is None:
        return default
    if num_classes < 1 + background:
        raise ValueError(
            f'num_classes={num_classes} must be at least {1 + background}'
            + (', since the background (0) is one of them.' if background else '.')
        )
    return num_classes
