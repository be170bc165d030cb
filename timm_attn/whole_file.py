"""Files that are complete or absent."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

_UMASK = os.umask(0)  # to read it is to set it, which would reach other threads
os.umask(_UMASK)


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


def write_json(path: str | Path, content: Any, indent: int | None = None) -> None:
    """Write a JSON file, complete or not at all.

    Args:
        path: The file, which is replaced if it exists.
        content: What to write.
        indent: As for ``json.dumps``.
    """
    write_whole(path, lambda part: part.write_text(json.dumps(content, indent=indent) + '\n', encoding='utf-8'))


def give_usual_permissions(path: Path) -> None:
    """Give a file the permissions of any new file; safetensors and temporary files let only their owner read them."""
    path.chmod(0o666 & ~_UMASK)
