"""Image files: which there are, and reading one as RGB."""

import glob
import math
import os
import stat
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TypeVar

from PIL import Image, ImageOps

IMAGE_EXTENSIONS = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff')

MAX_IMAGE_SIZE = 4096
"""Longest side of an image that a network here takes. No pretrained network comes near it, and the first convolution of
a ResNet-50 (64 channels at half the size, float32) already makes a map of 1 GiB from a single image of this size."""

MAX_PIXELS = 89_478_485
"""Most pixels of an image file: from here on Pillow warns of a decompression bomb. As RGB they take 256 MiB. A JPEG may
have more, up to twice as many, since it can be decoded at a part of its size."""

UNREADABLE = (Exception,)
"""Errors that Pillow raises on a file that is not an image, or only part of one: its decoders raise whatever a damaged
file makes them stumble over, from struct.error to KeyError."""

_LARGE = 2**24  # pixels; a photograph of most cameras
_one_large = threading.Lock()

T = TypeVar('T')


def find_images(paths: Iterable[str]) -> list[str]:
    """Image files that names of files, directories and wildcards refer to, in this order.

    Args:
        paths: A file is taken whatever its name. Of a directory and everything below it, and of a wildcard (``*``,
            ``?``, ``[...]``, ``**``), the files with the extension of an image are taken, sorted, hidden ones left out.

    Raises:
        FileNotFoundError: If a name matches nothing.
        ValueError: If a name is that of a pipe, a device or a socket.
    """
    found: list[str] = []
    for path in paths:
        if not path:
            raise ValueError('The name of an image is empty.')
        if Path(path).exists() and not Path(path).is_dir():
            check_regular(path)
            found.append(path)
            continue
        candidates = _files_below(path) if Path(path).is_dir() else _matches(path)
        matches = sorted(match for match in candidates if match.lower().endswith(IMAGE_EXTENSIONS))
        matches = [match for match in matches if Path(match).is_file()]
        if not matches:
            what = 'There are no images in' if Path(path).is_dir() else 'There is no image'
            extensions = f' ({", ".join(IMAGE_EXTENSIONS)})' if Path(path).is_dir() else ''
            raise FileNotFoundError(f'{what} {path!r}{extensions}.')
        found += matches
    return found


def _matches(pattern: str) -> Iterator[str]:
    """Files that match a wildcard; ``**`` follows no links, which may form loops."""
    parts = Path(pattern).parts
    if '**' not in parts:
        yield from glob.iglob(pattern)
        return
    anchor = Path(pattern).anchor
    for path in Path(anchor).glob(str(Path(pattern).relative_to(anchor))):
        if all(part in parts or not part.startswith('.') for part in path.parts):
            yield str(path)


def _files_below(folder: str) -> Iterator[str]:
    """Files in a folder and below it, each folder once, however many links lead to it."""
    seen = set()
    stack = [str(Path(folder))]
    links: list[str] = []
    while stack or links:
        path = stack.pop() if stack else links.pop()  # a folder that also has a link to it keeps its own name
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        with suppress(PermissionError), os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name, reverse=True):
                if entry.name.startswith('.'):
                    continue
                name = str(Path(entry.path))
                if not os.path.isdir(name):  # also a link that leads to itself, where the entry's own test raises
                    yield name
                else:
                    (links if entry.is_symlink() else stack).append(name)


def find_loop(folder: str | Path) -> str | None:
    """A link in a folder or below it that leads back to a folder it lies in; None if there is none."""
    seen = set()
    stack: list[tuple[str, frozenset[str]]] = [(str(folder), frozenset())]
    while stack:
        path, above = stack.pop()
        real = os.path.realpath(path)
        if real in above:
            return path
        if real in seen:
            continue
        seen.add(real)
        with suppress(OSError), os.scandir(path) as entries:
            stack += [(e.path, above | {real}) for e in entries if os.path.isdir(e.path)]
    return None


def check_regular(path: str) -> None:
    """Check that a file is one that ends: not a pipe, a device or a socket, which may block for ever.

    Raises:
        ValueError: If it is none.
        OSError: If there is no such file.
    """
    mode = os.stat(path).st_mode
    kinds = {'a directory': stat.S_ISDIR, 'a named pipe': stat.S_ISFIFO, 'a socket': stat.S_ISSOCK}
    if not stat.S_ISREG(mode):
        kind = next((kind for kind, test in kinds.items() if test(mode)), 'a device')
        raise ValueError(f'{path!r} is {kind}, not a regular file.')


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any of Pillow's modes to RGB, values of more than 8 bits by their range.

    16-bit grey covers 0 to 65535. Grey in 32-bit integers is taken as 8-bit or 16-bit, the first that holds its values,
    and grey in floating point as 0 to 1 or 0 to 255. Everything else is converted as Pillow's ``convert`` does it, and
    so as timm does it: transparency is dropped. Of several pages or frames the current one is taken.

    Args:
        image: The image. It is not changed, and its EXIF orientation is not applied.

    Returns:
        A new image.

    Raises:
        ValueError: If its values have no known range.
        Exception: As Pillow raises it (see ``UNREADABLE``), if the file of an image that was only opened is damaged.
    """
    if image.mode.startswith('I'):
        low, high = (0, 65535) if image.mode != 'I' or image.format == 'PNG' else _range(image)
        if low < 0 or high > 65535:
            raise ValueError(f'its values are from {low} to {high}, but 0 to 65535 can be converted')
        return _scaled(image if image.mode == 'I' else image.convert('I'), 1 / 257 if high > 255 else 1.0)
    if image.mode == 'F':
        if not math.isfinite(sum(array('f', image.tobytes()))):
            raise ValueError('it contains values that are not finite numbers')
        low, high = _range(image)
        if low < 0 or high > 255:
            raise ValueError(f'its values are from {low:g} to {high:g}, but 0 to 1 or 0 to 255 can be converted')
        return _scaled(image, 1.0 if high > 1 else 255.0)
    if image.mode == 'P' and isinstance(image.info.get('transparency'), bytes):
        return image.convert('RGBA').convert('RGB')  # the same colours, without a warning
    return image.convert('RGB')


def _range(image: Image.Image) -> tuple[float, float]:
    low, high = image.getextrema()  # of a single band, which Pillow's types do not know
    return low, high  # type: ignore[return-value]


def _scaled(image: Image.Image, scale: float) -> Image.Image:
    return image.point(lambda value: value * scale + 0.5).convert('L').convert('RGB')


def open_image(path: str) -> Image.Image:
    """Read an image as RGB, turned upright as its EXIF orientation says.

    Raises:
        ValueError: If it cannot be read as an image, or is too large.
    """
    return read_image(path, lambda image: image)


def read_image(path: str, use: Callable[[Image.Image], T]) -> T:
    """Read an image as :func:`open_image` does, and return what a function makes of it.

    Of large images only one at a time is in memory until then, however many threads read.

    Args:
        path: The file.
        use: Called with the image.

    Raises:
        ValueError: If it cannot be read as an image, or is too large.
    """
    with ExitStack() as stack:
        try:
            check_regular(path)
            image = stack.enter_context(Image.open(path))
            if image.width * image.height > MAX_PIXELS:
                image.draft(None, (MAX_IMAGE_SIZE, MAX_IMAGE_SIZE))  # makes a JPEG smaller
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f'{image.width} x {image.height} pixels are too many; the most are {MAX_PIXELS}')
            if image.width * image.height > _LARGE:
                stack.enter_context(_one_large)
            image.load()
            with suppress(Exception):  # an orientation that cannot be read is none
                ImageOps.exif_transpose(image, in_place=True)
            rgb = to_rgb(image)
        except UNREADABLE as e:
            raise ValueError(f'Cannot read {path!r} as an image: {str(e) or type(e).__name__}') from None
        return use(rgb)
