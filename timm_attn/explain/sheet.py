"""A sheet of class activation maps: a row for each image, a column for each model."""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from torch import nn

from ..image_grid import GAP, LINE, SIDE, fitting, load_font
from ..predict import class_labels
from .cam import maps_and_logits
from .images import load_batches, to_picture

MOST_ROWS = 20
"""Rows of a sheet; of more images, :func:`draw_sheet` is called several times."""

_HEADER_CHARACTERS, _HEADER_LINES = 22, 3


@dataclass(frozen=True)
class Explanation:
    """The map of one image by one model.

    Attributes:
        image: The image as the model sees it, resized and cropped, at the size of a tile.
        overlay: The same with the map over it.
        label: Class that the map is of.
        probability: Probability that the model gives to this class.
        predicted: Class that the model predicts, and its probability.
        asked: Whether the class was asked for; otherwise it is the predicted one.
    """

    image: Image.Image
    overlay: Image.Image
    label: str
    probability: float
    predicted: tuple[str, float]
    asked: bool

    @property
    def lines(self) -> list[str]:
        """What the sheet says below the map: the class asked for, if any, and the predicted one."""
        label, probability = self.predicted
        if not self.asked:
            return [f'{label}, {100 * probability:.1f} %']
        return [
            f'asked: {self.label}, {100 * self.probability:.1f} %',
            f'predicted: {label}, {100 * probability:.1f} %',
        ]


def explain(
    model: nn.Module,
    paths: Sequence[str],
    target: int | None = None,
    method: str = 'gradcam',
    layer: str | None = None,
    batch_size: int = 32,
    on_unreadable: Callable[[str, str], None] | None = None,
) -> Iterator[tuple[str, Explanation]]:
    """Class activation maps of image files, ready to be drawn.

    Args:
        model: A classifier, whose ``pretrained_cfg`` says how images are prepared.
        paths: Image files.
        target: Index of the class that is asked for; by default the one that the model predicts for each image.
        method: As for :func:`~timm_attn.explain.class_activation_maps`.
        layer: As for :func:`~timm_attn.explain.class_activation_maps`.
        batch_size: Images in a batch.
        on_unreadable: As for :func:`~timm_attn.predict.classify`.

    Yields:
        The path of an image, and its explanation.

    Raises:
        ValueError: As :func:`~timm_attn.explain.class_activation_maps` does, or if a file cannot be read.
    """
    labels = class_labels(model)
    for names, images in load_batches(model, paths, batch_size, on_unreadable):
        asked = None if target is None else [target] * len(names)
        maps, logits = maps_and_logits(model, images, asked, method, layer)
        top = logits.argmax(-1).tolist()
        found = zip(names, images, maps, logits.float().softmax(-1), top, asked or top, strict=True)
        for name, image, cam, p, first, index in found:
            picture = to_picture(model, image).permute(1, 2, 0).numpy()
            yield (
                name,
                Explanation(
                    image=_tile((255 * picture).round().astype(np.uint8)),
                    overlay=_tile(overlay(picture, cam.numpy())),
                    label=labels(index),
                    probability=p[index].item(),
                    predicted=(labels(first), p[first].item()),
                    asked=target is not None,
                ),
            )


def overlay(picture: np.ndarray, cam: np.ndarray) -> np.ndarray:
    """Picture (H, W, 3) from 0 to 1 with a map (H, W) over it, blue for 0 and red for 1, as bytes."""
    from pytorch_grad_cam.utils.image import show_cam_on_image

    return show_cam_on_image(picture.astype(np.float32), cam, use_rgb=True)


def _tile(pixels: np.ndarray) -> Image.Image:
    return ImageOps.pad(Image.fromarray(pixels), (SIDE, SIDE), Image.Resampling.BICUBIC, color='white')


def draw_sheet(models: Sequence[str], rows: Sequence[tuple[str, Sequence[Explanation]]], file: Path | BinaryIO) -> None:
    """Draw a sheet and write it as PNG.

    The first column has the images as the first model sees them.

    Args:
        models: Names of the models, for the header.
        rows: For each image its name, and its explanation by each model.
        file: File to write, by its path or open.
    """
    font = load_font()
    header = [['image'], *(_wrapped(name) for name in models)]
    top = GAP + max(map(len, header)) * LINE
    lines = max(len(explanation.lines) for _, row in rows for explanation in row)
    width, height = SIDE + GAP, SIDE + GAP + lines * LINE
    sheet = Image.new('RGB', (len(header) * width + GAP, top + len(rows) * height + GAP), 'white')
    draw = ImageDraw.Draw(sheet)

    def write(x: int, y: int, texts: Sequence[str]) -> None:
        for i, text in enumerate(texts):
            draw.text((x, y + i * LINE), fitting(text, draw, font), 'black', font)

    for column, texts in enumerate(header):
        write(GAP + column * width, GAP // 2, texts)
    for i, (name, row) in enumerate(rows):
        y = top + i * height
        tiles = [(row[0].image, [name]), *((explanation.overlay, explanation.lines) for explanation in row)]
        for column, (tile, texts) in enumerate(tiles):
            sheet.paste(tile, (GAP + column * width, y))
            write(GAP + column * width, y + SIDE, texts)
    sheet.save(file, 'PNG')


def _wrapped(name: str) -> list[str]:
    """Name of a model in a few lines: its tag gets one of its own, and of a long path the end is kept."""
    parts = [name] if ':' in name else name.split('.', 1)
    return [line for part in parts for line in textwrap.wrap(part, _HEADER_CHARACTERS)][-_HEADER_LINES:]
