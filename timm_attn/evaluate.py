"""Accuracy of a classifier on a folder of images, one folder for each class."""

import difflib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.utils import natural_key
from torch import nn

from .image_files import find_images
from .predict import class_labels, classify, label_names

SPLITS = ('val', 'valid', 'validation', 'eval', 'evaluation', 'test')
_TOPK = 5


@dataclass(frozen=True)
class Evaluation:
    """What a classifier answered for images whose classes are known.

    Attributes:
        labels: Names of the classes that have images, by index, in the order of the indices.
        predictions: For each image ``image`` (its path), ``true`` (the index of its class) and ``classes``, as
            :func:`~timm_attn.predict.classify` gives them.
        num_classes: Number of classes that the classifier chooses from.
    """

    labels: dict[int, str]
    predictions: list[dict]
    num_classes: int

    def topk(self, k: int, index: int | None = None) -> tuple[int, int]:
        """Number of images whose class is among the first ``k``, and number of images; of one class if given."""
        predictions = self.predictions if index is None else self._by_class[index]
        return sum(p['true'] in [c['index'] for c in p['classes'][:k]] for p in predictions), len(predictions)

    @cached_property
    def _by_class(self) -> dict[int, list[dict]]:
        groups = defaultdict(list)
        for prediction in self.predictions:
            groups[prediction['true']].append(prediction)
        return groups

    @property
    def confusion(self) -> Counter[tuple[int, int]]:
        """Number of images by true and predicted class."""
        return Counter((p['true'], p['classes'][0]['index']) for p in self.predictions)


def evaluate(
    model: nn.Module,
    folder: str | Path,
    split: str | None = None,
    own_checkpoint: bool = False,
    batch_size: int = 32,
    on_unreadable: Callable[[str, str], None] | None = None,
    only: Callable[[Path], bool] | None = None,
) -> Evaluation:
    """Classify the images of a folder and compare with the names of their folders.

    Args:
        model: Classifier in evaluation mode.
        folder: ``folder/<class>/*``, or ``folder/<split>/<class>/*``.
        split: Name of the folder in it; if None, ``val``, one of timm's synonyms or ``test``, if it exists.
        own_checkpoint: As for :func:`~timm_attn.predict.class_labels`.
        batch_size: Images in a batch.
        on_unreadable: As for :func:`~timm_attn.predict.classify`.
        only: Whether an image counts; by default all do.

    Raises:
        ValueError: If there are no images, or folders whose names are no classes of the model.
    """
    root = find_split(Path(folder), split)
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith('.'))
    if not folders:
        raise ValueError(f"There are no folders in '{root}'; it needs one folder of images for each class.")
    index_of = match_classes(model, [path.name for path in folders], own_checkpoint)
    true: dict[str, int] = {}
    for path in folders:
        images = find_images([str(path)])
        true |= dict.fromkeys([image for image in images if only is None or only(Path(image))], index_of[path.name])
    if not true:
        raise ValueError(f"None of the images in '{root}' counts.")
    labels = {index: name for name, index in sorted(index_of.items(), key=lambda item: item[1])}
    label = class_labels(model, own_checkpoint)
    answers = classify(model, list(true), lambda i: labels.get(i) or label(i), _TOPK, batch_size, on_unreadable)
    predictions = [dict(answer, true=true[answer['image']]) for answer in answers]
    if not predictions:
        raise ValueError(f"None of the images in '{root}' can be read.")
    present = {p['true'] for p in predictions}
    return Evaluation({i: name for i, name in labels.items() if i in present}, predictions, model.num_classes)


def find_split(folder: Path, split: str | None) -> Path:
    """Folder that holds the folders of the classes.

    Args:
        folder: Folder of the data set.
        split: Name of the folder in it, or None as for :func:`evaluate`.

    Raises:
        ValueError: If it does not exist.
    """
    if not folder.is_dir():
        raise ValueError(f"'{folder}' {'is not a directory' if folder.exists() else 'does not exist'}.")
    if split is None:
        return next((folder / name for name in SPLITS if (folder / name).is_dir()), folder)
    if not (folder / split).is_dir():
        there = ', '.join(sorted(path.name for path in folder.iterdir() if path.is_dir())[:20]) or 'no folders'
        raise ValueError(f"'{folder}' has no folder {split!r}; it has: {there}.")
    return folder / split


def match_classes(model: nn.Module, names: Sequence[str], own_checkpoint: bool = False) -> dict[str, int]:
    """Find the class of the model that each name means.

    A model without names of its own, such as a bare checkpoint, has as many classes as there are names, in their order.

    Args:
        model: The classifier.
        names: Names, such as those of folders.
        own_checkpoint: As for :func:`~timm_attn.predict.class_labels`.

    Raises:
        ValueError: If a name is not that of a class, or of several.
    """
    indices = defaultdict(set)
    for i, name in _known_names(model, own_checkpoint):
        indices[name].add(i)
    if not indices:
        if len(names) != model.num_classes:
            raise ValueError(
                f'The model has {model.num_classes} classes without names, so that it needs as many folders, in their '
                f'order; there are {len(names)}.'
            )
        return {name: i for i, name in enumerate(sorted(names, key=natural_key))}  # as timm orders folders
    unknown = [name for name in names if name not in indices]
    if unknown:
        near = difflib.get_close_matches(unknown[0], indices, n=1)
        some = sorted(indices)
        hint = f'Did you mean {near[0]}? ' if near else ''
        raise ValueError(
            f'No class of the model has the name of these folders: {_some(unknown)} ({len(unknown)} of {len(names)}). '
            f'{hint}Its classes: {_some(some)}.'
        )
    index_of = {}
    for name in names:
        if len(indices[name]) > 1:
            raise ValueError(f'{name!r} is the name of several classes of the model.')
        (index_of[name],) = indices[name]
    twice = [name for name, i in index_of.items() if list(index_of.values()).count(i) > 1]
    if twice:
        raise ValueError(f'These folders are the same class of the model: {", ".join(twice)}.')
    return index_of


def _some(names: Sequence[str]) -> str:
    return ', '.join(names[:5]) + (f' and {len(names) - 5} more' if len(names) > 5 else '')


def _known_names(model: nn.Module, own_checkpoint: bool) -> list[tuple[int, str]]:
    """Index and name of every class, by each of its names."""
    names = None if own_checkpoint else label_names(model)
    if names is None:
        subset = infer_imagenet_subset(model)
        if not subset:
            return []
        names = ImageNetInfo(subset).label_names()
    label = class_labels(model, own_checkpoint)
    return [(i, text) for i, name in enumerate(names) for text in {name, label(i)}]
