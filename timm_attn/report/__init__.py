"""Pages of results that a browser shows without a network, and the same as Markdown.

A page is made of plain data (:mod:`.page`). Nothing here knows of models or training, and only the figures
(:mod:`.figures`) need more than Jinja2.
"""

from .html import to_html
from .markdown import to_markdown
from .page import Block, Cell, Code, Column, Figure, Items, Page, Picture, Section, Table, Text
from .write import write_page

__all__ = [
    'Block',
    'Cell',
    'Code',
    'Column',
    'Figure',
    'Items',
    'Page',
    'Picture',
    'Section',
    'Table',
    'Text',
    'to_html',
    'to_markdown',
    'write_page',
]
