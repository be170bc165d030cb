"""Text that is safe to show on a terminal."""

import unicodedata

_INVISIBLE = {'C', 'Zl', 'Zp'}  # categories of Unicode: control, format and unassigned characters, line separators
_JOINERS = '\u200c\u200d'  # part of words in some scripts, and of emoji


def printable(text: str, most: int | None = None) -> str:
    """Text that is safe to print on one line of a terminal: what cannot be seen is escaped, and what is long is cut.

    Args:
        text: The text, such as the name of a file.
        most: Characters to keep; all if None.
    """
    cut = text if most is None or len(text) <= most else f'{text[:most]}...'
    return ''.join(c if c in _JOINERS or _is_visible(c) else c.encode('unicode_escape').decode() for c in cut)


def _is_visible(character: str) -> bool:
    category = unicodedata.category(character)
    return category not in _INVISIBLE and category[0] not in _INVISIBLE
