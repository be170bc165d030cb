"""Files that are complete or absent."""

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write a file under another name, and give it its own once it is complete.

    Args:
        path: The file, which is replaced if it exists.
        write: Called with the path to write to.
    """
    part = Path(f'{path}.part')
    try:
        write(part)
        give_usual_permissions(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def give_usual_permissions(path: Path) -> None:
    """Give a file the permissions of any new file; safetensors and temporary files let only their owner read them."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)
