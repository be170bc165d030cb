"""Image files: which there are, and reading one as RGB."""

import glob
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_EXTENSIONS = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff')

UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""Errors that Pillow raises on a file that is not an image, or only part of one."""


def find_images(paths: Iterable[str]) -> list[str]:
    """Image files that names of files, directories and wildcards refer to, in this order.

    Args:
        paths: A file is taken whatever its name. Of a directory and everything below it, and of a wildcard (``*``,
            ``?``, ``[...]``, ``**``), the files with the extension of an image are taken, sorted, hidden ones left out.

    Raises:
        FileNotFoundError: If a name matches nothing.
    """
    found: list[str] = []
    for path in paths:
        if Path(path).exists() and not Path(path).is_dir():
            found.append(path)
            continue
        pattern = str(Path(glob.escape(path), '**', '*')) if Path(path).is_dir() else path
        matches = [
            match
            for match in sorted(glob.glob(pattern, recursive=True))
            if match.lower().endswith(IMAGE_EXTENSIONS) and Path(match).is_file()
        ]
        if not matches:
            what = 'There are no images in' if Path(path).is_dir() else 'There is no image'
            extensions = f' ({", ".join(IMAGE_EXTENSIONS)})' if Path(path).is_dir() else ''
            raise FileNotFoundError(f'{what} {path!r}{extensions}.')
        found += matches
    return found


def open_image(path: str) -> Image.Image:
    """Read an image as RGB, turned upright as its EXIF orientation says.

    Raises:
        ValueError: If it cannot be read as an image.
    """
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert('RGB')
    except UNREADABLE as e:
        raise ValueError(f'Cannot read {path!r} as an image: {e}') from None
