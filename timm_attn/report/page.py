"""What a page consists of: plain data, the same for HTML and Markdown."""

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ..printable import printable

MISSING = '\N{EN DASH}'
"""What a table shows where there is no value."""


@dataclass(frozen=True)
class Cell:
    """A value of a table that is shown in other words than its own.

    Attributes:
        value: What the table is sorted by.
        text: What is shown.
        note: Judgement of the value, which is coloured and written out.
        href: Where the text links to: a web address, or a path relative to the page. Other schemes are not linked.
    """

    value: float | str | None
    text: str
    note: Literal['', 'better', 'worse', 'same'] = ''
    href: str = ''


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        key: Its key in the rows.
        title: Its head.
        digits: Decimals of its numbers; as many as they need, up to six significant digits, if None.
        unit: Unit of its numbers, shown in the head.
        help: What it means, in a sentence.
        align: Side that its values are aligned to; numbers to the right and text to the left if None.
    """

    key: str
    title: str
    digits: int | None = None
    unit: str = ''
    help: str = ''
    align: Literal['left', 'right'] | None = None

    @property
    def head(self) -> str:
        """Title and unit."""
        return f'{self.title} ({self.unit})' if self.unit else self.title


@dataclass(frozen=True)
class Table:
    """A table. Its first column names the rows.

    Attributes:
        columns: Its columns, in order.
        rows: Values by key of the column: numbers, text, :class:`Cell`; None, NaN and keys left out are missing.
        caption: What it shows.
        sortable: Whether a reader can sort it.
        filters: Keys of the columns that a reader can filter by: numbers by bounds, the first column and text with many
            values by a search, other text by a choice.
    """

    columns: Sequence[Column]
    rows: Sequence[Mapping[str, object]]
    caption: str = ''
    sortable: bool = True
    filters: Sequence[str] = ()

    def __post_init__(self):
        keys = [column.key for column in self.columns]
        if len(keys) != len(set(keys)):
            raise ValueError(f'Keys of the columns must be unique; they are {", ".join(keys)}.')
        if unknown := [key for key in self.filters if key not in keys]:
            raise ValueError(f'There is no column {", ".join(unknown)} to filter by; there are {", ".join(keys)}.')

    def has_numbers(self, column: Column) -> bool:
        """Whether all values of a column that are there are numbers, and there is one."""
        values = [value for row in self.rows if (value := value_of(row.get(column.key))) is not None]
        return bool(values) and all(isinstance(value, float) for value in values)


@dataclass(frozen=True)
class Figure:
    """A drawing, such as those of :mod:`timm_attn.report.figures`.

    Attributes:
        svg: An ``<svg>`` element, written into the page as it is. Its colours may be ``var(--name, colour)``.
        alt: What it shows, for those who cannot see it.
        caption: What it shows, below it.
    """

    svg: str
    alt: str
    caption: str = ''


@dataclass(frozen=True)
class Picture:
    """A picture of pixels.

    Attributes:
        png: The bytes of a PNG file.
        alt: What it shows, for those who cannot see it.
        caption: What it shows, below it.
    """

    png: bytes
    alt: str
    caption: str = ''


@dataclass(frozen=True)
class Code:
    """Lines to copy, such as a command.

    Attributes:
        text: The lines.
        language: Their language, as Markdown names it.
    """

    text: str
    language: str = 'sh'


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Attributes:
        text: Plain text; only ```code``` and ``**bold**`` have a meaning, and web addresses become links.
    """

    text: str


@dataclass(frozen=True)
class Items:
    """A list.

    Attributes:
        items: Its items, each written as :class:`Text` is.
    """

    items: Sequence[str]


@dataclass(frozen=True)
class Section:
    """A section, with a heading of its own; one inside another is a subsection.

    Attributes:
        title: Its heading.
        blocks: What it contains.
    """

    title: str
    blocks: 'Sequence[Block]' = field(default_factory=tuple)


Block: TypeAlias = Table | Figure | Picture | Code | Text | Items | Section


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        title: Its title.
        lead: First paragraph, written as :class:`Text` is.
        sections: Its sections; the page links to them at its top.
        footer: Last paragraph, such as what made the page.
    """

    title: str
    lead: str
    sections: Sequence[Section]
    footer: str = ''


def value_of(cell: object) -> float | str | None:
    """What a table is sorted by: a number, text, or None where the value is missing.

    Args:
        cell: What a row holds.
    """
    value = cell.value if isinstance(cell, Cell) else cell
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    number = float(value)  # type: ignore[arg-type]  # a number of Python, NumPy or torch
    return None if math.isnan(number) else number


def text_of(cell: object, column: Column) -> str:
    """What a table shows, on one line.

    Args:
        cell: What a row holds.
        column: Its column.
    """
    if isinstance(cell, Cell):
        return printable(cell.text)
    value = value_of(cell)
    if value is None:
        return MISSING
    if isinstance(value, str):
        return printable(value)
    if column.digits is not None:
        return f'{value:.{column.digits}f}'
    return str(cell) if isinstance(cell, int) else f'{value:g}'


def spans(text: str) -> list[tuple[str, str]]:
    """Parts of a paragraph: their kind, which is ``code``, ``bold`` or empty, and their text.

    Args:
        text: As in :class:`Text`.
    """
    parts = []
    for code, bold, plain in re.findall(r'`([^`]+)`|\*\*(?!\s)([^*]+)(?<!\s)\*\*|(.[^`*]*)', ' '.join(text.split())):
        kind, part = ('code', code) if code else ('bold', bold) if bold else ('', plain)
        parts.append((kind, printable(part)))
    return parts


def safe_link(href: str) -> str:
    """A link that leads to a page and runs nothing; empty otherwise.

    Args:
        href: A link.
    """
    href = href.strip()
    scheme = re.match(r'([^/?#]*):', href)
    runs = scheme and scheme[1].lower() not in ('http', 'https', 'mailto')
    return '' if runs or printable(href) != href else href


def slug(title: str, taken: set[str]) -> str:
    """A short name for use in links and names of files, which is added to those taken.

    Args:
        title: Any text.
        taken: Names given before.
    """
    plain = unicodedata.normalize('NFKD', title).encode('ascii', 'ignore').decode().lower()
    base = re.sub(r'[^a-z0-9]+', '-', plain)[:40].strip('-') or 'part'
    name, count = base, 1
    while name in taken:
        count += 1
        name = f'{base}-{count}'
    taken.add(name)
    return name
