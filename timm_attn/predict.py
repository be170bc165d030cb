"""Classify images: load a model with its labels, and rank the classes of each image."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_data_config
from timm.models import load_state_dict
from torch import nn
from tqdm import tqdm

from .image_files import MAX_PIXELS, check_regular, read_image
from .model_config import check_source
from .models.base import ZooModel
from .weights import CheckpointError, DownloadError
from .weights.convert import checkpoint_filter_fn, explain_unreadable
from .weights.download import explain_hub_failure


def load_classifier(name: str, checkpoint: str = '', num_classes: int | None = None) -> nn.Module:
    """Load a model that is to classify, with its pretrained weights or those in a file.

    Args:
        name: Any name that timm knows, ``hf-hub:...`` and ``local-dir:...`` included.
        checkpoint: File to load instead of pretrained weights.
        num_classes: Number of classes of the file.

    Returns:
        The model in evaluation mode.

    Raises:
        ValueError: If it has no classifier, no weights for it, or weights that are not numbers.
        CheckpointError: If a file cannot be read or does not fit.
        DownloadError: If weights cannot be fetched.
    """
    with explain_hub_failure(name, pretrained=not checkpoint):
        check_source(name)
        model = _from_checkpoint(name, checkpoint, num_classes) if checkpoint else _pretrained(name)
    if not model.num_classes:
        raise ValueError(f'{name} has no classifier')
    channels = model.pretrained_cfg.get('input_size', (3,))[0]
    if channels != 3:
        raise ValueError(f'{name} takes images of {channels} channels; only those of 3, RGB, can be prepared')
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f'The weights of {checkpoint or name} contain values that are not finite numbers: {key}')
    return model.eval()


def _pretrained(name: str) -> nn.Module:
    try:
        model = timm.create_model(name, pretrained=True)
    except DownloadError:
        raise
    except CheckpointError as e:
        if ':' not in name:
            raise
        of_config = r'trained for \1 classes, not as its config.json says.'  # there is no argument to mend it with
        raise CheckpointError(re.sub(r'trained for (\d+) classes: .*', of_config, str(e))) from e
    except Exception as e:
        if ':' not in name or isinstance(e, OSError):
            raise
        raise ValueError(f'{name} cannot be loaded: its config.json and its weights do not agree ({_brief(e)})') from e
    if ':' in name and model.num_classes != model.pretrained_cfg.get('num_classes'):  # timm has dropped the classifier
        raise ValueError(f'{name} has no classifier for {model.num_classes} classes')
    return model


def _from_checkpoint(name: str, checkpoint: str, num_classes: int | None) -> nn.Module:
    model_args = dict(num_classes=num_classes) if num_classes else {}
    if os.path.exists(checkpoint) and not os.path.isdir(checkpoint):
        check_regular(checkpoint)
    elif not os.path.isfile(checkpoint):
        explain_unreadable(checkpoint)
    try:
        model = timm.create_model(name, checkpoint_path=checkpoint, **model_args)
    except CheckpointError:
        raise
    except Exception as e:
        explain_unreadable(checkpoint)
        if isinstance(e, RuntimeError):  # torch lists every tensor
            raise ValueError(f'{checkpoint!r} does not fit {name} ({_brief(e)})') from e
        raise
    if isinstance(model, ZooModel) and not _has_head(model, checkpoint):  # its own head is random
        raise ValueError(f'{checkpoint!r} has no classifier for {model.num_classes} classes')
    return model


def _brief(error: Exception) -> str:
    text = ' '.join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f'{text[:300]}...'


def _has_head(model: ZooModel, checkpoint: str) -> bool:
    state_dict = checkpoint_filter_fn(load_state_dict(checkpoint), model, strict=False)
    head = state_dict.get(f'{model.pretrained_cfg["classifier"]}.weight')
    return head is not None and head.shape[0] == model.num_classes


def label_names(model: nn.Module) -> list[str] | None:
    """Names of the classes that the weights bring along, None if there are none."""
    names = model.pretrained_cfg.get('label_names')
    if isinstance(names, dict):  # by index, which JSON turns into a text
        names = [names.get(i, names.get(str(i))) for i in range(len(names))]
    return list(names) if names and len(names) == model.num_classes else None


def class_labels(model: nn.Module, own_checkpoint: bool = False) -> Callable[[int], str]:
    """Function from class index to label: that of the weights, of ImageNet, or the bare number.

    Args:
        model: The model.
        own_checkpoint: Its weights come from a file, whose classes may be others than those of the pretrained weights.
    """
    names = label_names(model)
    if names and not own_checkpoint:
        descriptions = model.pretrained_cfg.get('label_descriptions') or {}
        return lambda i: descriptions.get(names[i], names[i])
    subset = infer_imagenet_subset(model)
    if subset:
        info = ImageNetInfo(subset)
        return lambda i: info.index_to_description(i)
    return lambda i: f'class {i}'


def preparation(model: nn.Module) -> Callable[[str], torch.Tensor]:
    """Function from an image file to the tensor (3, H, W) that a model takes, as its ``pretrained_cfg`` says.

    It raises a ValueError for a file that cannot be read, or that is much longer than wide.
    """
    config = resolve_data_config(model=model)
    transform = create_transform(**config)
    # timm resizes the shorter side and then crops the longer one, which may be much too long
    resized = (max(config['input_size'][1:]) / config['crop_pct']) ** 2

    def prepare(image: Image.Image) -> torch.Tensor:
        if config['crop_mode'] == 'center' and resized * max(image.size) / min(image.size) > MAX_PIXELS:
            raise ValueError(f'{image.width} x {image.height} pixels are too narrow for a network of this size')
        return transform(image)

    return lambda path: read_image(path, prepare)


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
        ValueError: If a file cannot be read as an image, or the model does not answer with probabilities.
    """
    prepare = preparation(model)
    weight = next(model.parameters())

    def load(path: str) -> torch.Tensor | str:
        try:
            return prepare(path)
        except ValueError as e:
            if on_unreadable is None:
                raise
            return str(e)

    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
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
                    probs = _probabilities(model, torch.stack(images).to(weight.device, weight.dtype), readable)
                top = probs.topk(min(topk, probs.shape[1]))
                for path, p, i in zip(readable, top.values.tolist(), top.indices.tolist(), strict=True):
                    yield dict(image=path, classes=[_ranked(*pair, labels) for pair in zip(p, i, strict=True)])
            bar.update(len(names))


def _probabilities(model: nn.Module, images: torch.Tensor, paths: list[str]) -> torch.Tensor:
    logits = model(images)
    if not isinstance(logits, torch.Tensor) or logits.shape != (len(images), model.num_classes):
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f'The network does not classify: for {len(images)} images it returns {shape}.')
    probs = logits.float().softmax(-1)
    for path, row in zip(paths, probs.isfinite().all(-1).tolist(), strict=True):
        if not row:
            raise ValueError(f'The network answers with values that are not numbers for {path!r}: its weights are bad.')
    return probs


def _ranked(probability: float, index: int, labels: Callable[[int], str]) -> dict:
    return dict(index=index, label=labels(index), probability=round(probability, 6))
