"""Classify images: load a model with its labels, and rank the classes of each image."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_data_config
from timm.models import load_state_dict
from torch import nn
from tqdm import tqdm

from .image_files import open_image
from .models.base import ZooModel
from .weights.convert import checkpoint_filter_fn, explain_unreadable


def load_classifier(name: str, checkpoint: str = '', num_classes: int | None = None) -> nn.Module:
    """Load a model that is to classify, with its pretrained weights or those in a file.

    Args:
        name: Any name that timm knows, ``hf-hub:...`` and ``local-dir:...`` included.
        checkpoint: File to load instead of pretrained weights.
        num_classes: Number of classes of the file.

    Returns:
        The model in evaluation mode.

    Raises:
        ValueError: If it has no classifier, or no weights for it.
        CheckpointError: If a file cannot be read or does not fit.
        DownloadError: If weights cannot be fetched.
    """
    if not checkpoint:
        try:
            model = timm.create_model(name, pretrained=True)
        except (KeyError, TypeError) as e:
            if ':' not in name:
                raise
            raise ValueError(f'{name!r} has a config.json that timm cannot use: {e!r}') from e
    else:
        model_args = dict(num_classes=num_classes) if num_classes else {}
        try:
            model = timm.create_model(name, checkpoint_path=checkpoint, **model_args)
        except Exception:
            explain_unreadable(checkpoint)
            raise
        if isinstance(model, ZooModel) and not _has_head(model, checkpoint):  # its own head is random
            raise ValueError(f'{checkpoint!r} has no classifier for {model.num_classes} classes')
    if not model.num_classes:
        raise ValueError(f'{name} has no classifier')
    return model.eval()


def _has_head(model: ZooModel, checkpoint: str) -> bool:
    state_dict = checkpoint_filter_fn(load_state_dict(checkpoint), model, strict=False)
    head = state_dict.get(f'{model.pretrained_cfg["classifier"]}.weight')
    return head is not None and head.shape[0] == model.num_classes


def class_labels(model: nn.Module, own_checkpoint: bool = False) -> Callable[[int], str]:
    """Function from class index to label: that of the weights, of ImageNet, or the bare number.

    Args:
        model: The model.
        own_checkpoint: Its weights come from a file, whose classes may be others than those of the pretrained weights.
    """
    cfg = model.pretrained_cfg
    names = cfg.get('label_names')
    if names and len(names) == model.num_classes and not own_checkpoint:
        descriptions = cfg.get('label_descriptions') or {}
        return lambda i: descriptions.get(names[i], names[i])
    subset = infer_imagenet_subset(model)
    if subset:
        info = ImageNetInfo(subset)
        return lambda i: info.index_to_description(i)
    return lambda i: f'class {i}'


def classify(
    model: nn.Module,
    paths: Sequence[str],
    labels: Callable[[int], str],
    topk: int = 5,
    batch_size: int = 32,
    on_unreadable: Callable[[str, str], None] | None = None,
) -> Iterator[dict]:
    """Rank the classes of each image.

    Args:
        model: Classifier in evaluation mode; images are prepared as its ``pretrained_cfg`` says.
        paths: Image files.
        labels: Class index -> label.
        topk: Classes to return for each image.
        batch_size: Images in a batch.
        on_unreadable: Called with a file that cannot be read, and the reason; the file is then left out. By default the
            error is raised.

    Yields:
        For each image ``image`` (its path) and ``classes``, the most probable first: ``index``, ``label`` and
        ``probability``.

    Raises:
        ValueError: If a file cannot be read as an image.
    """
    transform = create_transform(**resolve_data_config(model=model))
    device = next(model.parameters()).device

    def load(path: str) -> torch.Tensor | str:
        try:
            image: Image.Image = open_image(path)
        except ValueError as e:
            if on_unreadable is None:
                raise
            return str(e)
        return transform(image)

    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=len(paths), unit='image', leave=False, disable=None if len(paths) > 1 else True) as bar,
    ):
        for start in range(0, len(paths), batch_size):
            names = paths[start : start + batch_size]
            readable, images = [], []
            for path, loaded in zip(names, pool.map(load, names), strict=True):
                if isinstance(loaded, torch.Tensor):
                    readable.append(path)
                    images.append(loaded)
                elif on_unreadable is not None:
                    on_unreadable(path, loaded)
            if images:
                with torch.inference_mode():  # not around the yield, where it would reach the caller
                    probs = model(torch.stack(images).to(device)).softmax(-1)
                top = probs.topk(min(topk, probs.shape[1]))
                for path, p, i in zip(readable, top.values.tolist(), top.indices.tolist(), strict=True):
                    yield dict(image=path, classes=[_ranked(*pair, labels) for pair in zip(p, i, strict=True)])
            bar.update(len(names))


def _ranked(probability: float, index: int, labels: Callable[[int], str]) -> dict:
    return dict(index=index, label=labels(index), probability=round(probability, 6))
