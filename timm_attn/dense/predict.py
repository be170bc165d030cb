"""Run a detector or a segmenter on image files, one at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from ..image_files import MAX_IMAGE_SIZE, read_image
from .coco_results import coco_results
from .features import maps_of
from .image_results import ImageResult

T = TypeVar('T')


def class_names(model: nn.Module) -> list[str]:
    """Names of the classes that a model answers with: of a detector without background, of a segmenter all.

    Classes without names of their own are called by their labels, such as ``class 1``.
    """
    if model.classes is not None:
        return list(model.classes)
    first, end = (1, model.num_classes) if _is_detector(model) else (0, model.classifier[-1].out_channels)
    return [f'class {index}' for index in range(first, end)]


def detect_images(
    model: nn.Module, paths: Sequence[str], on_error: Callable[[str, str], None] | None = None
) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
    """Find objects in image files.

    Args:
        model: Detector of this package, in evaluation mode.
        paths: Image files.
        on_error: Called with a file that cannot be read or processed, and the reason; the file is then left out. By
            default the error is raised.

    Yields:
        For each image its path, the image (3, H, W), RGB and uint8, and all that the model returns, on the CPU:
        ``boxes`` (N, 4) as (x1, y1, x2, y2) in pixels of the image, ``labels`` and ``scores`` (N), and of Mask R-CNN
        ``masks`` (N, 1, H, W), probabilities. An image is upright, as its EXIF orientation says.

    Raises:
        ValueError: If the model is no detector for RGB images, or an image cannot be read or processed.
    """
    _check_kind(model, detector=True)
    device = next(model.parameters()).device

    def detect(image: Tensor) -> dict[str, Tensor]:
        (found,) = model([F.to_dtype(image.to(device), torch.float32, scale=True)])
        return {key: value.cpu() for key, value in found.items()}

    yield from _run(detect, paths, on_error)


def segment_images(
    model: nn.Module, paths: Sequence[str], on_error: Callable[[str, str], None] | None = None
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Find the class of each pixel of image files.

    The network sees images as they are, normalized with the mean and standard deviation of its backbone; those with a
    side of more than ``MAX_IMAGE_SIZE`` pixels are shrunk to it.

    Args:
        model: Segmenter of this package, in evaluation mode.
        paths: Image files.
        on_error: As for :func:`detect_images`.

    Yields:
        For each image its path, the image (3, H, W), RGB and uint8, and class ids (H, W), int64, on the CPU.

    Raises:
        ValueError: If the model is no segmenter for RGB images, or an image cannot be read or processed.
    """
    _check_kind(model, detector=False)
    device = next(model.parameters()).device
    maps = maps_of(model)

    def segment(image: Tensor) -> Tensor:
        size = list(image.shape[-2:])
        x = image[None].to(device)
        if max(size) > MAX_IMAGE_SIZE:
            x = F.resize(x, [max(1, side * MAX_IMAGE_SIZE // max(size)) for side in size])
        x = F.normalize(F.to_dtype(x, torch.float32, scale=True), list(maps.mean), list(maps.std))
        class_map = model(x)['out'].argmax(dim=1)
        return F.resize(class_map, size, InterpolationMode.NEAREST)[0].cpu()

    yield from _run(segment, paths, on_error)


def coco_entries(image_id: int, found: Mapping[str, Tensor], category_ids: Sequence[int]) -> list[dict]:
    """What was found in one image, as entries of a results file of COCO.

    Args:
        image_id: Id of the image.
        found: As :func:`detect_images` returns it.
        category_ids: Id of each class in the file.

    Returns:
        For each detection ``image_id``, ``category_id``, ``score``, ``bbox`` (x, y, width, height), and with masks
        ``segmentation``, a run-length code.

    Raises:
        ImportError: If there are masks and the packages of the extra ``dense`` are missing.
    """
    nothing: dict[str, Any] = dict(image_id=image_id, boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    if 'masks' in found:
        nothing['masks'] = torch.zeros(0, *found['masks'].shape[-2:])
    image = ImageResult.of(found, nothing, len(category_ids), masks='masks' in found)
    entries = coco_results([image], category_ids)
    if 'masks' not in found:
        return entries
    masks = coco_results([image], category_ids, masks=True)
    return [{**entry, **mask} for entry, mask in zip(entries, masks, strict=True)]


def _run(
    process: Callable[[Tensor], T], paths: Sequence[str], on_error: Callable[[str, str], None] | None
) -> Iterator[tuple[str, Tensor, T]]:
    for path in tqdm(paths, unit='image', leave=False, disable=None if len(paths) > 1 else True):
        try:
            image = read_image(path, F.pil_to_tensor)
            with torch.inference_mode():  # not around the yield, where it would reach the caller
                result = _processed(process, image, path)
        except ValueError as e:
            if on_error is None:
                raise
            on_error(path, str(e))
            continue
        yield path, image, result


def _processed(process: Callable[[Tensor], T], image: Tensor, path: str) -> T:
    try:
        return process(image)
    except RuntimeError as e:  # a side that is resized to nothing, or more than fits in memory
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        height, width = image.shape[-2:]
        raise ValueError(f'The network cannot take {path!r} ({width} x {height} pixels): {reason}') from e


def _is_detector(model: nn.Module) -> bool:
    return hasattr(model, 'transform')  # which only torchvision's detectors have


def _check_kind(model: nn.Module, detector: bool) -> None:
    """Check that a model does what is asked of it, on RGB images."""
    name = type(model).__name__
    if _is_detector(model) != detector:
        kind, command = ('detector', 'detect') if _is_detector(model) else ('segmenter', 'segment')
        raise ValueError(f'{name} is a {kind}: use {command}_images, or timm-attn {command}.')
    if (channels := maps_of(model).in_chans) != 3:
        raise ValueError(f'{name} takes images of {channels} channels; only those of 3, RGB, can be prepared.')
