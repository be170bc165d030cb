"""Files of a data set by the stem of their names, and lists of stems."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ...image_files import IMAGE_EXTENSIONS, find_images
from .records import Defect


def files_by_stem(
    folder: Path, extensions: Sequence[str] = IMAGE_EXTENSIONS, suffix: str = '', recursive: bool = False
) -> dict[str, list[str]]:
    """Paths of the files in a folder, by their names without suffix and extension.

    Args:
        folder: The folder.
        extensions: Endings that count, in lower case.
        suffix: What the names must have before the extension.
        recursive: Whether to take the images below the folder, too. Their names then begin with their folders, and have
            ``/`` on every system.

    Raises:
        ValueError: If it is no folder, or has no such file.
    """
    if not folder.is_dir():
        raise ValueError(f'{str(folder)!r} {"is not a folder" if folder.exists() else "does not exist"}.')
    files = defaultdict(list)
    for path in _images_below(folder) if recursive else sorted(folder.iterdir()):
        if path.suffix.lower() in extensions and not path.name.startswith('.') and not path.is_dir():
            stem = path.relative_to(folder).with_suffix('').as_posix()
            if stem.endswith(suffix):
                files[stem.removesuffix(suffix)].append(str(path))
    if not files:
        raise ValueError(f'There are no files ({", ".join(suffix + e for e in extensions)}) in {str(folder)!r}.')
    return dict(files)


def _images_below(folder: Path) -> list[Path]:
    with suppress(FileNotFoundError):
        return [Path(path) for path in find_images([str(folder)])]
    return []


def read_lines(path: str | Path) -> list[str]:
    """Lines of a text file without the empty ones, such as the names of classes.

    Raises:
        ValueError: If it cannot be read.
    """
    try:
        lines = Path(path).read_text(encoding='utf-8-sig').splitlines()
    except (OSError, ValueError) as e:
        raise ValueError(f'Cannot read {str(path)!r}: {e}') from None
    return [line.strip() for line in lines if line.strip()]


def read_split(path: Path, defects: list[Defect]) -> list[str]:
    """Stems that a list names, each once.

    Args:
        path: Text file with one stem a line.
        defects: Takes a defect for each repetition.

    Raises:
        ValueError: If the list cannot be read; the message names the others in its folder.
    """
    if not path.exists() and path.parent.is_dir():
        there = ', '.join(sorted(other.stem for other in path.parent.glob('*.txt'))) or 'none'
        raise ValueError(f'There is no split {path.stem!r} in {str(path.parent)!r}; there are: {there}.')
    stems: dict[str, None] = {}
    for stem in read_lines(path):
        if stem in stems:
            defects.append(Defect('duplicate id', str(path), stem, 'the split names it twice'))
        stems[stem] = None
    return list(stems)
