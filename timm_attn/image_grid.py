"""A picture of many images, each with a few words below it."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from .image_files import read_image

MAX_TILES = 25
SIDE, LINE, GAP, _COLUMNS = 160, 16, 8, 5
_COLOURS = {None: 'black', True: 'darkgreen', False: 'firebrick'}


def draw_grid(tiles: Sequence[tuple[str, Sequence[str], bool | None]], file: Path) -> None:
    """Draw images in rows of five and write them as PNG.

    Args:
        tiles: For each image its path, the lines of text below it, and whether it is right, wrong, or neither (None).
        file: File to write.
    """
    font = load_font()
    lines = max(len(text) for _, text, _ in tiles)
    columns = min(_COLUMNS, len(tiles))
    width, height = SIDE + GAP, SIDE + GAP + lines * LINE
    grid = Image.new('RGB', (columns * width + GAP, -(-len(tiles) // columns) * height + GAP), 'white')
    draw = ImageDraw.Draw(grid)
    for i, (path, text, is_right) in enumerate(tiles):
        x, y = GAP + i % columns * width, GAP + i // columns * height
        picture = read_image(path, lambda image: ImageOps.pad(image, (SIDE, SIDE), color='white'))
        grid.paste(picture, (x, y))
        for j, line in enumerate(text):
            draw.text((x, y + SIDE + j * LINE), fitting(line, draw, font), _COLOURS[is_right], font)
    grid.save(file, 'PNG')


def load_font():
    """The font of pictures here."""
    try:
        return ImageFont.load_default(size=13)
    except (TypeError, OSError):  # an old Pillow, or one without FreeType: a font of fixed size
        return ImageFont.load_default()


def fitting(line: str, draw: ImageDraw.ImageDraw, font) -> str:
    """As much of a line as the tile is wide; what the font cannot draw is replaced."""
    line = line[:100].encode('latin-1', 'replace').decode('latin-1')
    if draw.textlength(line, font) <= SIDE:
        return line
    while line and draw.textlength(f'{line}...', font) > SIDE:
        line = line[:-1]
    return f'{line}...'
