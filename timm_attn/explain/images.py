"""Images for a model: finding labelled ones, preparing them as it takes them, and back to a picture."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from timm.data import resolve_data_config
from torch import nn

from ..evaluate import find_split
from ..image_files import find_images
from ..predict import preparation


def find_samples(
    folder: str | Path,
    split: str | None = None,
    classes: int | Sequence[str] | None = None,
    per_class: int | None = None,
) -> list[tuple[str, str]]:
    """Labelled images of a folder with one folder for each class.

    Args:
        folder: ``folder/<class>/*``, or ``folder/<split>/<class>/*``.
        split: As for :func:`~timm_attn.evaluate.evaluate`.
        classes: Names of the classes to take, or how many, the first by name; by default all.
        per_class: Images to take of each class, the first by name; by default all.

    Returns:
        Path and class of each image.

    Raises:
        ValueError: If there are no folders, or none of that name.
        FileNotFoundError: If a folder has no images.
    """
    root = find_split(Path(folder), split)
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith('.'))
    if not names:
        raise ValueError(f"There are no folders in '{root}'; it needs one folder of images for each class.")
    if classes is not None and not isinstance(classes, int):
        unknown = [name for name in classes if name not in names]
        if unknown:
            raise ValueError(f"'{root}' has no folder {unknown[0]!r}; it has: {', '.join(names[:20])}.")
        names = list(dict.fromkeys(classes))
    elif classes is not None:
        names = names[:classes]
    return [(path, name) for name in names for path in find_images([str(root / name)])[:per_class]]


def load_batches(
    model: nn.Module,
    paths: Sequence[str],
    batch_size: int = 32,
    on_unreadable: Callable[[str, str], None] | None = None,
) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Read images in batches, as a model takes them.

    Args:
        model: The model.
        paths: Image files.
        batch_size: Images in a batch.
        on_unreadable: As for :func:`~timm_attn.predict.classify`.

    Yields:
        The paths of a batch and its images (B, 3, H, W), on the device and in the type of the model.

    Raises:
        ValueError: If a file cannot be read as an image.
    """
    prepare = preparation(model)
    weight = next(model.parameters())
    for start in range(0, len(paths), batch_size):
        names, images = [], []
        for path in paths[start : start + batch_size]:
            try:
                images.append(prepare(path))
            except ValueError as e:
                if on_unreadable is None:
                    raise
                on_unreadable(path, str(e))
            else:
                names.append(path)
        if images:
            yield names, torch.stack(images).to(weight.device, weight.dtype)


def to_picture(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """The picture that a model sees: its input (3, H, W) without the normalisation, from 0 to 1, on the CPU."""
    config = resolve_data_config(model=model)
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ('mean', 'std'))
    return (image.detach().float().cpu() * std + mean).clamp(0, 1)
