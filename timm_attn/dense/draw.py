"""Pictures of what is in an image: boxes, masks and maps of classes, with their names."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from ..printable import printable
from ..whole_file import write_whole

TILE = 320
"""Widest picture on a sheet of samples, in pixels."""

_ALPHA = 0.5  # of the colours over the image
_MAX_NAME = 40  # characters of a class
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
_LIGHTNESS = ((90, 50), (100, 70), (80, 32))  # saturation and lightness in percent
_FORMATS = {'.png': 'PNG', '.jpg': 'JPEG', '.jpeg': 'JPEG'}


def class_colour(index: int) -> tuple[int, int, int]:
    """Colour of a class as RGB, the same in every picture, whatever other classes there are.

    Args:
        index: The class, from 0.
    """
    hue = index * _GOLDEN_RATIO % 1  # far from those before it, but for the 21st
    saturation, lightness = _LIGHTNESS[(index + index // 21) % len(_LIGHTNESS)]
    red, green, blue, *_ = ImageColor.getrgb(f'hsl({360 * hue:.1f}, {saturation}%, {lightness}%)')
    return red, green, blue


def draw_detections(
    image: Tensor, prediction: Mapping[str, Tensor], classes: Sequence[str], threshold: float = 0.5
) -> Tensor:
    """Draw boxes, and masks where there are any, with the name of each class and the score.

    Args:
        image: RGB image (3, H, W), uint8.
        prediction: ``boxes`` (N, 4), ``labels`` (N), ``scores`` (N) and perhaps ``masks`` (N, 1, H, W), on the CPU, as
            torchvision's detectors return them. A target, without scores and with masks (N, H, W), is drawn whole.
        classes: Names of the classes without background; label 1 is the first.
        threshold: Lowest score to draw.

    Returns:
        The picture, as the image.
    """
    boxes, labels = prediction['boxes'], prediction['labels']
    masks, scores = prediction.get('masks'), prediction.get('scores')
    if scores is not None:
        shown = scores >= threshold
        boxes, labels, scores = boxes[shown], labels[shown], scores[shown]
        masks = None if masks is None else masks[shown]
    if not len(boxes):
        return image.clone()
    names = [printable(classes[label - 1], _MAX_NAME) for label in labels.tolist()]
    if scores is not None:
        names = [f'{name} {score:.2f}' for name, score in zip(names, scores.tolist(), strict=True)]
    colours = [class_colour(label - 1) for label in labels.tolist()]
    if masks is not None:
        image = _blend(image, _ids_of(masks, labels))
    picture = draw_bounding_boxes(image, boxes, colors=colours, width=_line_width(image))
    return _draw_names(picture, boxes, names, colours)


def draw_class_map(image: Tensor, class_map: Tensor, classes: Sequence[str], ignore_index: int | None = None) -> Tensor:
    """Draw the colours of classes over an image, and below it a legend of the classes that occur.

    Args:
        image: RGB image (3, H, W), uint8.
        class_map: Class ids (H, W).
        classes: Names of all classes; id 0 is the first.
        ignore_index: Id of pixels without a class, which are left as they are.

    Returns:
        The picture (3, H + height of the legend, W), uint8.

    Raises:
        ValueError: If the map has an id that is neither a class nor ignored.
    """
    ids = [index for index in class_map.unique().tolist() if index != ignore_index]
    if wrong := [index for index in ids if not 0 <= index < len(classes)]:
        raise ValueError(f'The map has the id {wrong[0]}; those of {len(classes)} classes are 0 to {len(classes) - 1}.')
    entries = [(printable(classes[index], _MAX_NAME), class_colour(index)) for index in ids]
    class_map = class_map if ignore_index is None else class_map.where(class_map != ignore_index, -1)
    return torch.cat([_blend(image, class_map), _legend(entries, image)], dim=1)


def draw_samples(rows: Sequence[tuple[str, Tensor, Tensor]]) -> Tensor:
    """Put pictures of the truth beside those of a prediction, one image below the other.

    Names in pictures of more than about 800 pixels are too small to be read there: draw on images that are shrunk.

    Args:
        rows: For each image its name, and two pictures (3, H, W), uint8. They are shrunk to at most ``TILE`` pixels a
            side.

    Returns:
        The sheet (3, H, W), uint8.
    """
    gap, size = 8, 13
    heading, font = size + gap, ImageFont.load_default(size)
    tiles = [(name, _shrunk(truth), _shrunk(predicted)) for name, truth, predicted in rows]
    width = max((max(a.width, b.width) for _, a, b in tiles), default=TILE)
    height = sum(heading + max(a.height, b.height) + gap for _, a, b in tiles)
    sheet = Image.new('RGB', (2 * width + 3 * gap, heading + height + gap), 'white')
    draw = ImageDraw.Draw(sheet)
    places = (gap, width + 2 * gap)
    for x, title in zip(places, ('truth', 'prediction'), strict=True):
        draw.text((x, gap), title, 'black', font)
    y = heading + gap
    for name, *pictures in tiles:
        draw.text((gap, y), _fitting(printable(name, 200), font, sheet.width - 2 * gap), 'dimgray', font)
        for x, picture in zip(places, pictures, strict=True):
            sheet.paste(picture, (x, y + heading))
        y += heading + max(picture.height for picture in pictures) + gap
    return pil_to_tensor(sheet)


def write_picture(picture: Tensor, path: str | Path) -> None:
    """Write a picture; the file is complete or is not written at all.

    Args:
        picture: RGB (3, H, W), or values (1, H, W), uint8.
        path: File to write or replace, ``*.png`` or ``*.jpg``.

    Raises:
        ValueError: If the name ends otherwise.
    """
    form = _FORMATS.get(Path(path).suffix.lower())
    if form is None:
        raise ValueError(f'The name of a picture must end in .png or .jpg, not {Path(path).name!r}.')
    write_whole(path, lambda part: to_pil_image(picture).save(part, form, quality=90))


def _ids_of(masks: Tensor, labels: Tensor) -> Tensor:
    """Class id (H, W) of each pixel, -1 for none; of several objects the first counts, which has the highest score."""
    masks = (masks[:, 0] if masks.ndim == 4 else masks) > 0.5
    first = masks.to(torch.uint8).argmax(dim=0)  # (H, W)
    return (labels - 1)[first].where(masks.any(dim=0), -1)


def _blend(image: Tensor, ids: Tensor) -> Tensor:
    """Colours of class ids (H, W) over an image; where they are negative, the image remains."""
    there = [index for index in ids.unique().tolist() if index >= 0]
    if not there:
        return image.clone()
    masks = torch.stack([ids == index for index in there])
    return draw_segmentation_masks(image, masks, _ALPHA, [class_colour(index) for index in there])


def _scale(image: Tensor) -> float:
    """Side of a square with as many pixels."""
    return math.sqrt(image.shape[-2] * image.shape[-1])


def _line_width(image: Tensor) -> int:
    return max(1, round(_scale(image) / 300))


def _font(image: Tensor):
    return ImageFont.load_default(max(11, round(_scale(image) / 36)))


def _draw_names(picture: Tensor, boxes: Tensor, names: Sequence[str], colours: Sequence[tuple]) -> Tensor:
    """Write a name above each box, inside where there is no room; torchvision's have one size and hide the object."""
    image, font = to_pil_image(picture), _font(picture)
    draw = ImageDraw.Draw(image)
    pad = max(1, round(font.size / 8))
    height = sum(font.getmetrics()) + pad
    for (left, top, *_), name, colour in reversed(list(zip(boxes.tolist(), names, colours, strict=True))):
        text = _fitting(name, font, image.width - 2 * pad)
        width = font.getlength(text) + 2 * pad
        x = max(0, min(left, image.width - width))
        y = top - height if top >= height else top
        draw.rectangle((x, y, x + width, y + height), fill=colour)
        draw.text((x + pad, y), text, _text_colour(colour), font)
    return pil_to_tensor(image)


def _legend(entries: Sequence[tuple[str, tuple]], image: Tensor) -> Tensor:
    """A white strip as wide as the image with a patch of colour and a name for each class."""
    font, width = _font(image), image.shape[-1]
    patch, gap = font.size, max(2, font.size // 3)
    height = sum(font.getmetrics()) + gap
    places, x, y = [], gap, gap
    for name, colour in entries:
        text = _fitting(name, font, width - patch - 3 * gap)
        end = x + patch + gap + math.ceil(font.getlength(text)) + 2 * gap
        if end > width and x > gap:
            x, y, end = gap, y + height, end - x + gap
        places.append((x, y, text, colour))
        x = end
    strip = Image.new('RGB', (width, y + height if entries else 0), 'white')
    draw = ImageDraw.Draw(strip)
    for x, y, text, colour in places:
        blended = tuple(round(_ALPHA * c + (1 - _ALPHA) * 128) for c in colour)  # as over a grey image
        draw.rectangle((x, y, x + patch, y + patch), fill=blended)
        draw.text((x + patch + gap, y), text, 'black', font)
    return pil_to_tensor(strip)


def _shrunk(picture: Tensor) -> Image.Image:
    image = to_pil_image(picture)
    image.thumbnail((TILE, TILE))  # keeps the ratio, and never enlarges
    return image


def _fitting(text: str, font, width: float) -> str:
    """As much of a text as is no wider than this."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f'{text}...') > width:
        text = text[:-1]
    return f'{text}...' if text else ''


def _text_colour(background: tuple[int, int, int]) -> str:
    red, green, blue = background
    return 'black' if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else 'white'
