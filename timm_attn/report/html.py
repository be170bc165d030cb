"""A page as one HTML file that needs nothing else: no network, no other file."""

import base64
import functools
import re
import struct
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from ..printable import printable
from .page import (
    MISSING,
    Block,
    Column,
    Figure,
    Page,
    Picture,
    Section,
    Table,
    safe_link,
    slug,
    spans,
    text_of,
    value_of,
)

_MOST_CHOICES = 25


def to_html(page: Page) -> str:
    """The page as one HTML file.

    Args:
        page: The page.
    """
    return _environment().get_template('page.html').render(page=page, sections=_sections(page.sections))


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name('templates')),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= dict(line=printable, lines=_lines, rich=_rich, breakable=_breakable, unmarked=_unmarked)
    return environment


def _sections(sections: Sequence[Section]) -> list[dict]:
    taken = {'top'}
    figures = iter(range(10**6))
    return [_section(section, taken, figures) for section in sections]


def _section(section: Section, taken: set[str], figures: Iterator[int]) -> dict:
    name = slug(section.title, taken)
    blocks: list[tuple[str, object]] = []
    for kind, group in groupby(section.blocks, type):
        views = [_view(block, taken, figures) for block in group]
        # figures that follow each other share a row
        blocks += [('figures', views)] if kind is Figure else [(kind.__name__.lower(), view) for view in views]
    return dict(id=name, title=section.title, blocks=blocks)


def _view(block: Block, taken: set[str], figures: Iterator[int]):
    """What the template needs to know about a block."""
    if isinstance(block, Section):
        return _section(block, taken, figures)
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Figure):
        return dict(svg=_own_ids(block.svg, f'f{next(figures)}-'), alt=block.alt, caption=block.caption)
    if isinstance(block, Picture):
        width, height = _png_size(block.png)
        data = base64.b64encode(block.png).decode()
        return dict(data=data, width=width, height=height, alt=block.alt, caption=block.caption)
    return block


def _table(table: Table) -> dict:
    numbers = {column.key: table.has_numbers(column) for column in table.columns}
    heads = [
        dict(
            column=column,
            number=numbers[column.key],
            right=column.align == 'right' or (column.align is None and numbers[column.key]),
        )
        for column in table.columns
    ]
    rows = [[_cell(row.get(column.key), column) for column in table.columns] for row in table.rows]
    filters = [_filter(table, i) for i, column in enumerate(table.columns) if column.key in table.filters]
    return dict(table=table, heads=heads, rows=rows, filters=filters)


def _cell(cell: object, column: Column) -> dict:
    value, text = value_of(cell), text_of(cell, column)
    return dict(
        value=None if value is None else printable(value) if isinstance(value, str) else repr(value),
        text=text,
        missing=text == MISSING,
        note=getattr(cell, 'note', ''),
        href=safe_link(getattr(cell, 'href', '')),
    )


def _filter(table: Table, index: int) -> dict:
    column = table.columns[index]
    values = {printable(v) for row in table.rows if isinstance(v := value_of(row.get(column.key)), str)}
    few = index > 0 and len(values) <= min(_MOST_CHOICES, len(table.rows) - 1)
    kind = 'number' if table.has_numbers(column) else 'choice' if few else 'search'
    return dict(kind=kind, index=index, column=column, choices=sorted(values) if kind == 'choice' else [])


def _rich(text: str) -> Markup:
    """A paragraph with its code and bold parts."""
    tags = {'code': Markup('<code>{}</code>'), 'bold': Markup('<strong>{}</strong>'), '': Markup('{}')}
    return Markup('').join(tags[kind].format(part if kind else _linked(part)) for kind, part in spans(text))


def _unmarked(text: str) -> str:
    """A paragraph where only plain text can be."""
    return ''.join(part for _, part in spans(text))


def _linked(text: str) -> Markup:
    """Text with its web addresses as links."""
    link = Markup('<a href="{0}">{0}</a>')
    parts = re.split(r'(https?://[^\s<>"`]*[^\s<>"`.,;:!?)\]\'])', text)
    return Markup('').join(link.format(part) if i % 2 else escape(part) for i, part in enumerate(parts))


def _breakable(text: str) -> Markup:
    """Text that may be broken where names have a joint; what is copied stays the same."""
    return Markup('<wbr>').join(escape(part) for part in re.split(r'(?<=[_/])(?=\w)|(?<=\.)(?=[^\W\d])', text))


def _lines(text: str) -> str:
    return '\n'.join(printable(line.expandtabs(4)) for line in text.rstrip().split('\n'))


def _own_ids(svg: str, prefix: str) -> Markup:
    """A drawing whose identifiers do not clash with those of others on the page."""
    svg = re.sub(r'(\sid=")', rf'\1{prefix}', svg)
    return Markup(re.sub(r'(href="#|url\(#)', rf'\1{prefix}', svg))


def _png_size(png: bytes) -> tuple[int, int]:
    if png[:8] != b'\x89PNG\r\n\x1a\n' or len(png) < 24:
        raise ValueError('A picture must be a PNG file.')
    return struct.unpack('>II', png[16:24])
