"""A page as Markdown that GitHub and the Hub show, with its drawings and pictures as files."""

import re
from collections.abc import Sequence

from ..printable import printable
from .page import Block, Cell, Code, Figure, Items, Page, Section, Table, Text, safe_link, slug, spans, text_of


def to_markdown(page: Page, folder: str = 'report_files') -> tuple[str, dict[str, bytes]]:
    """The page as Markdown.

    Args:
        page: The page.
        folder: Folder of its drawings and pictures, relative to the text.

    Returns:
        The text, and the contents of the files next to it by their relative name.
    """
    writer = _Writer(folder)
    parts = [f'# {escape(page.title)}', _rich(page.lead), *writer.sections(page.sections, 2)]
    if page.footer:
        parts += ['---', _rich(page.footer)]
    return '\n\n'.join(part for part in parts if part) + '\n', writer.files


def escape(text: str) -> str:
    """Plain text on one line that Markdown leaves as it is.

    Args:
        text: Any text.
    """
    text = re.sub(r'([\\`*\[\]<>|~$])', r'\\\1', printable(text).replace('&', '&amp;'))
    return re.sub(r'(?<![^\W_])_|_(?![^\W_])', r'\\_', text)  # within a word it has no meaning


class _Writer:
    """Writes blocks, and collects files under names of their own."""

    def __init__(self, folder: str):
        self.folder = folder
        self.files: dict[str, bytes] = {}
        self.taken: set[str] = set()

    def sections(self, sections: Sequence[Section], level: int) -> list[str]:
        parts = []
        for section in sections:
            parts.append(f'{"#" * level} {escape(section.title)}')
            for block in section.blocks:
                parts += self.block(block, section.title, level)
        return parts

    def block(self, block: Block, title: str, level: int) -> list[str]:
        if isinstance(block, Section):
            return self.sections([block], level + 1)
        if isinstance(block, Table):
            return [_rich(block.caption), _table(block)]
        if isinstance(block, Code):
            return [_code(block)]
        if isinstance(block, Text):
            return [_rich(block.text)]
        if isinstance(block, Items):
            return ['\n'.join(f'- {_rich(item)}' for item in block.items)]
        is_figure = isinstance(block, Figure)
        name = f'{self.folder}/{slug(title, self.taken)}.{"svg" if is_figure else "png"}'
        self.files[name] = _standalone(block).encode() if isinstance(block, Figure) else block.png
        return [f'![{escape(block.alt)}]({name})', _rich(block.caption)]


def _table(table: Table) -> str:
    right = [c.align == 'right' or (c.align is None and table.has_numbers(c)) for c in table.columns]
    lines = [[escape(c.head) for c in table.columns], ['---:' if side else '---' for side in right]]
    lines += [[_cell(row.get(c.key), text_of(row.get(c.key), c)) for c in table.columns] for row in table.rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _cell(cell: object, text: str) -> str:
    text = escape(text)
    if isinstance(cell, Cell) and (href := safe_link(cell.href)):
        target = re.sub(r'[\s()<>|]', lambda match: f'%{ord(match[0]):02X}', href)
        text = f'[{text}]({target})'
    return f'{text} ({cell.note})' if isinstance(cell, Cell) and cell.note else text


def _code(code: Code) -> str:
    text = code.text.rstrip()
    fence = '`' * max(3, 1 + max(map(len, re.findall('`+', text)), default=0))
    return f'{fence}{code.language}\n{text}\n{fence}'


def _rich(text: str) -> str:
    forms = {'code': '`{}`', 'bold': '**{}**', '': '{}'}
    line = ''.join(forms[kind].format(part if kind == 'code' else escape(part)) for kind, part in spans(text))
    # what would start a heading, a list or a quotation at the start of a line
    return re.sub(r'^(\d*)([-+#=.)])', r'\1\\\2', line)


def _standalone(figure: Figure) -> str:
    """The drawing with the colours of a light page, on white, so that a dark page shows it as well."""
    svg = re.sub(r'var\(--[\w-]+,\s*([^()]+)\)', r'\1', figure.svg)
    svg = re.sub(r'(<svg[^>]*>)', r'\1<rect width="100%" height="100%" fill="#fff"/>', svg, count=1)
    size = re.match(r'<svg[^>]* viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    if size is None or re.match(r'<svg[^>]* width=', svg):
        return svg
    width, height = (round(float(side) * 4 / 3) for side in size.groups())  # points to pixels
    return svg.replace('<svg', f'<svg width="{width}" height="{height}"', 1)
