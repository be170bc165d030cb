"""Files of a page."""

import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from ..whole_file import write_whole
from .html import to_html
from .markdown import to_markdown
from .page import Page


def write_page(page: Page, folder: str | Path, name: str = 'report') -> None:
    """Write a page as ``NAME.html``, and as ``NAME.md`` with the folder ``NAME_files``; older ones are replaced.

    Args:
        page: The page.
        folder: Where to write; it is made if it does not exist.
        name: Name of the files.
    """
    folder = Path(folder)
    html = to_html(page)
    markdown, files = to_markdown(page, f'{name}_files')
    folder.mkdir(parents=True, exist_ok=True)
    _replace_folder(folder / f'{name}_files', {PurePosixPath(path).name: data for path, data in files.items()})
    write_whole(folder / f'{name}.md', lambda part: part.write_bytes(markdown.encode()))
    write_whole(folder / f'{name}.html', lambda part: part.write_bytes(html.encode()))


def _replace_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Give a folder these files and no others; it is complete at any time, or absent."""
    part, old = folder.with_name(f'{folder.name}.part'), folder.with_name(f'{folder.name}.old')
    for left in (part, old):  # by a run that was interrupted
        shutil.rmtree(left, ignore_errors=True)
    try:
        part.mkdir()
        for name, data in files.items():
            (part / name).write_bytes(data)
        if folder.exists():
            folder.rename(old)
        if files:
            part.rename(folder)
    finally:
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)
