"""The class of a model that a word means."""

import difflib
from collections import defaultdict

from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from ..predict import class_labels, label_names


def class_index(model: nn.Module, text: str) -> int:
    """Find the class that a user asks for.

    Args:
        model: A classifier.
        text: Index of the class, or its name: that of the weights, a synset of ImageNet, its description, or one of the
            words that it lists, such as ``goldfish``. Upper and lower case are the same.

    Raises:
        ValueError: If no class has this name, or several do; the message lists the nearest names.
    """
    count = model.num_classes
    indices = defaultdict(set)
    label = class_labels(model)
    for i in range(count):
        for name in {label(i), *map(str.strip, label(i).split(','))}:
            indices[name.casefold()].add(i)
    subset = infer_imagenet_subset(model)
    names = label_names(model) or (ImageNetInfo(subset).label_names() if subset else [])
    for i, name in enumerate(names):
        indices[name.casefold()].add(i)
    found = indices.get(text.strip().casefold(), set())
    if len(found) > 1:
        labels = '; '.join(f'{i} ({label(i)})' for i in sorted(found)[:5])
        raise ValueError(f'{text!r} is the name of several classes of the model; use the index: {labels}.')
    if found:
        return found.pop()
    if text.strip().isdecimal():
        if int(text) < count:
            return int(text)
        raise ValueError(f'The model has no class {int(text)}: its classes are 0 to {count - 1}.')
    near = difflib.get_close_matches(text.casefold(), indices, n=3)
    some = near or [label(i) for i in range(min(count, 10))]
    hint = 'did you mean' if near else 'its first ones are'
    raise ValueError(
        f'The model has no class {text!r}; {hint}: {", ".join(some)}. An index, 0 to {count - 1}, works too.'
    )
