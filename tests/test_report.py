"""Pages of results: what is written, and what a browser makes of it."""

import itertools
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from timm_attn.report import (
    Cell,
    Code,
    Column,
    Figure,
    Items,
    Page,
    Picture,
    Section,
    Table,
    Text,
    figures,
    to_html,
    to_markdown,
    write_page,
)
from timm_attn.report.page import MISSING

ROOT = Path(__file__).parent.parent
BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
BROWSER_ARGS = [
    '--no-sandbox', '--disable-gpu', '--disable-background-networking', '--no-first-run',
    '--disable-component-update', '--disable-sync',
]  # fmt: skip
HOSTILE = [
    '</script><script>document.title = "owned"</script>',
    '<img src=x onerror="document.title=1">',
    '"><b>bold</b>',
    "' onclick='document.title=1",
    '{{ 7 * 7 }}',
    '\N{RIGHT-TO-LEFT OVERRIDE}gpj.exe',
    'line\nbreak\ttab\x00\x1b[31m',
    'x' * 400,
    'a_long/path.with_' * 20,
    '\N{GRINNING FACE}\N{FAMILY} שלום',
    '=HYPERLINK("http://127.0.0.1")',
    '|pipe| `code` **bold** [link](javascript:alert(1)) $x$ &amp; ~~no~~',
]
UNSEEN = re.compile('[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]')


def png(width=30, height=20):
    file = BytesIO()
    Image.new('RGB', (width, height), 'teal').save(file, 'PNG')
    return file.getvalue()


def table(**kwargs):
    columns = [
        Column('name', 'Name'),
        Column('kind', 'Kind'),
        Column('top1', 'Top-1', 1, '%', help='Share of images that are **right**.'),
        Column('change', 'Change'),
    ]
    rows = [
        dict(name='net10', kind='plain', top1=9.5, change=None),
        dict(name='net9', kind='gate', top1=80.25, change=Cell(0.5, '+0.5 [0.1, 0.9]', 'better')),
        dict(name='Net2', kind='gate', top1=None, change=Cell(-2.0, '-2.0 [-3.0, -1.0]', 'worse', 'cards/net2.html')),
        dict(name='other', kind='plain', top1=float('nan'), change=Cell(-0.25, '-0.25', 'same')),
        dict(name='last', kind='gate', top1=100, change=Cell(10, '+10')),
    ]
    return Table(columns, rows, **{'caption': 'Five `nets`', 'filters': ['name', 'kind', 'top1'], **kwargs})


def drawings(labels=('plain', 'csa_resnet50.warm_a1_in1k', 'a name that is much longer than any axis has room for')):
    numbers = [3.0 + i for i in range(len(labels))]
    named = list(zip(labels, numbers, strict=True))
    points = [(label, y * 10, y, y - 0.5, y + 0.5, f'group {i % 2}') for i, (label, y) in enumerate(named)]
    square = [[7 * (i == j) + 1 for j in range(len(labels))] for i in range(len(labels))]
    return {
        'intervals': figures.intervals(
            [(n, y, y - 1, y + 2) for n, y in named], 'top-1 (%): mean, lowest and highest seed', 3.0
        ),
        'scatter': figures.scatter(points, 'parameters (M)', 'top-1 (%)', log_x=True),
        'lines': figures.lines({n: (range(4), [y] * 4) for n, y in named}, 'epoch', 'loss',
                               bands={labels[0]: ([1] * 4, [9] * 4)}),
        'confusion': figures.confusion(square, labels),
        'reliability': figures.reliability({n: [(0.2, 0.3, 5), (0.5, 0.5, 0), (0.9, 0.8, 9)] for n in labels}),
        'bars': figures.bars(labels, {n: [*numbers[:-1], None] for n in labels}, 'accuracy (%)'),
    }  # fmt: skip


def page(*sections, **kwargs):
    return Page(
        **{'title': 'A page', 'lead': 'What `it` **shows**.', 'footer': 'The end.', **kwargs}, sections=sections
    )


def full_page():
    return page(
        Section('Numbers', [Text('About them.'), table()]),
        Section('Drawings', list(drawings().values())),
        Section('More', [Picture(png(), 'a tile', 'The tile.'), Items(['one', '`two`']), Code('timm-attn list\n')]),
    )


def hostile_page():
    rows = [dict(name=text, kind=Cell(text, text, href=text), top1=1.0, change=text) for text in HOSTILE]
    columns = [Column('name', HOSTILE[0], help=HOSTILE[1]), *table().columns[1:]]
    odd = Table(columns, rows, HOSTILE[0], filters=['name', 'kind', 'top1', 'change'])
    blocks = [odd, *map(Text, HOSTILE), Items(HOSTILE), *map(Code, HOSTILE), Picture(png(), HOSTILE[2], HOSTILE[0])]
    sections = [Section(text, [Section(text, [])]) for text in HOSTILE]
    named = Section('Drawings', [*drawings(HOSTILE).values(), Figure('<svg></svg>', HOSTILE[2], HOSTILE[0])])
    return page(Section(HOSTILE[0], blocks), named, *sections, title=HOSTILE[0], lead=HOSTILE[0], footer=HOSTILE[0])


class Outline(HTMLParser):
    """Elements of a page, and whether they are closed in order."""

    VOID = {'meta', 'link', 'br', 'wbr', 'img', 'input'}

    def __init__(self, text):
        super().__init__()
        self.open, self.found = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


# --- what is written ---


def test_html_is_one_document_that_needs_nothing_else():
    text = to_html(full_page())
    outline = Outline(text)
    assert outline.found[0] == ('html', {'lang': 'en', 'id': 'top'})
    assert [a['href'] for a in outline.all('link')] == ['data:,']
    assert all('src' not in attrs for attrs in outline.all('script'))
    assert all(attrs['src'].startswith('data:image/png;base64,') and attrs['alt'] for attrs in outline.all('img'))
    assert 'viewport' in {attrs.get('name') for attrs in outline.all('meta')}
    ids = [attrs['id'] for _, attrs in outline.found if 'id' in attrs]
    assert len(ids) == len(set(ids))
    links = [attrs['href'][1:] for attrs in outline.all('a') if attrs['href'].startswith('#')]
    assert links == ['numbers', 'drawings', 'more']
    assert set(links) <= set(ids)
    for reference in re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', text):
        assert reference in ids
    assert {attrs.get('scope') for attrs in outline.all('th')} == {'col', 'row'}


def test_hostile_text_stays_text():
    text = to_html(hostile_page())
    outline = Outline(text)
    calm = Outline(to_html(full_page()))
    assert len(outline.all('script')) == len(calm.all('script'))
    assert not outline.all('b')
    assert len(outline.all('img')) == 1
    assert not [attrs for _, attrs in outline.found if {'onclick', 'onerror'} & attrs.keys()]
    assert not [a for a in outline.all('a') if a['href'].lower().lstrip().startswith('javascript')]
    assert not UNSEEN.search(text)
    assert (
        '49' not in re.sub(r'<svg.*?</svg>', '', text, flags=re.S).partition('</style>')[2].partition('7 * 7')[2][:20]
    )


@pytest.mark.parametrize(
    ('href', 'kept'),
    [
        ('cards/a.html', True), ('https://example.org/a?b=c#d', True), ('#numbers', True), ('a/b:c.html', True),
        ('javascript:alert(1)', False), (' JavaScript:alert(1)', False), ('java\nscript:alert(1)', False),
        ('data:text/html,x', False), ('C:\\pictures', False), ('file:///etc/passwd', False),
    ],
)  # fmt: skip
def test_only_harmless_links(href, kept):
    rows = [dict(a=Cell(1, 'one', href=href))]
    part = page(Section('S', [Table([Column('a', 'A')], rows)]))
    assert [a['href'] for a in Outline(to_html(part)).all('a')] == [href] * kept
    assert ('[one](' in to_markdown(part)[0]) == kept


def test_text_has_code_bold_and_addresses_alone():
    text = 'a `b < **c**` **d & e** * f ** g https://example.org/x_y. <i>h</i> `https://no.link` ` i'
    html = to_html(page(Section('S', [Text(text)])))
    assert (
        '<p>a <code>b &lt; **c**</code> <strong>d &amp; e</strong> * f ** g '
        '<a href="https://example.org/x_y">https://example.org/x_y</a>. &lt;i&gt;h&lt;/i&gt; '
        '<code>https://no.link</code> ` i</p>'
    ) in html


def test_markdown():
    picture = Picture(png(), 'a [tile]', 'The tile.')
    text, files = to_markdown(
        page(
            Section('Num|bers', [table(), Text('1. not a list'), Text('# not a heading'), Items(['- one', 'two'])]),
            Section('Rest', [Code('echo ```', 'console'), picture, picture, Section('Inner', [Text('x')])]),
        )
    )
    assert text.startswith('# A page\n\nWhat `it` **shows**.\n\n## Num\\|bers\n\nFive `nets`\n\n')
    assert (
        '| Name | Kind | Top-1 (%) | Change |\n'
        '| --- | --- | ---: | ---: |\n'
        f'| net10 | plain | 9.5 | {MISSING} |\n'
        '| net9 | gate | 80.2 | +0.5 \\[0.1, 0.9\\] (better) |\n'
        f'| Net2 | gate | {MISSING} | [-2.0 \\[-3.0, -1.0\\]](cards/net2.html) (worse) |\n'
    ) in text
    assert '\n\n1\\. not a list\n\n\\# not a heading\n\n- \\- one\n- two\n' in text
    assert '````console\necho ```\n````' in text
    assert '![a \\[tile\\]](report_files/rest.png)\n\nThe tile.' in text
    assert '](report_files/rest-2.png)' in text
    assert '\n### Inner\n' in text
    assert text.endswith('\n---\n\nThe end.\n')
    assert files == {'report_files/rest.png': png(), 'report_files/rest-2.png': png()}


def test_markdown_of_hostile_text_is_what_it_says():
    markdown = pytest.importorskip('markdown_it')
    parser = markdown.MarkdownIt('commonmark').enable('table')
    rows = [dict(name=text, kind=text) for text in HOSTILE]
    columns = [Column('name', 'Name'), Column('kind', 'Kind')]
    tokens = parser.parse(to_markdown(page(Section('S', [Table(columns, rows)])))[0])
    cells = [token for token in tokens if token.type == 'inline'][5:-1]
    assert len(cells) == 2 * len(HOSTILE)
    assert all({child.type for child in cell.children} <= {'text', 'text_special'} for cell in cells)
    said = [''.join(child.content for child in cell.children) for cell in cells[::2]]
    assert [text for text in HOSTILE if text in said] == [text for text in HOSTILE if text.isprintable()]


def test_a_table_says_what_is_wrong_with_it():
    with pytest.raises(ValueError, match='no column speed to filter by; there are name'):
        Table([Column('name', 'Name')], [], filters=['speed'])
    with pytest.raises(ValueError, match='must be unique'):
        Table([Column('name', 'Name'), Column('name', 'Again')], [])
    with pytest.raises(ValueError, match='PNG'):
        to_html(page(Section('S', [Picture(b'GIF89a', 'x')])))


def test_names_may_be_broken_but_numbers_may_not():
    text = to_html(page(Section('S', [Table([Column('a', 'A')], [dict(a='a_b.c/d 0.31'), dict(a=0.25)])])))
    assert '<span>a_<wbr>b.<wbr>c/<wbr>d 0.31</span>' in text
    assert '<span>0.25</span>' in text


def test_help_is_plain_in_a_tooltip_and_marked_below_the_table():
    text = to_html(page(Section('S', [table()])))
    assert 'title="Share of images that are right."' in text
    assert '<dd>Share of images that are <strong>right</strong>.</dd>' in text


def test_an_empty_table_is_a_table():
    empty = page(Section('S', [Table(table().columns, [], filters=['name', 'top1'])]))
    assert '<tbody>' in to_html(empty)
    assert '| Name |' in to_markdown(empty)[0]


def test_pages_are_reproducible(tmp_path):
    """The same data give the same bytes, in another process and with other settings of matplotlib too."""
    (tmp_path / 'matplotlibrc').write_text('font.size: 30\naxes.grid: False\nsvg.fonttype: path\n')
    code = 'import sys, test_report as t; sys.stdout.buffer.write(t.to_html(t.full_page()).encode())'
    process = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, env={'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}'}, capture_output=True
    )
    assert process.stdout.decode() == to_html(full_page()), process.stderr.decode()[-2000:]


def test_figures_stand_alone_in_markdown():
    svgs = to_markdown(page(Section('Drawings', [*drawings(HOSTILE).values()])))[1]
    assert len(svgs) == 6
    for svg in svgs.values():
        root = ET.fromstring(svg)  # XML, whatever the labels are
        text = svg.decode()
        assert root.tag == '{http://www.w3.org/2000/svg}svg'
        assert 'var(' not in text
        assert '#0102' not in text
        assert 'currentColor' not in text
        assert int(root.get('width')) > 400
        assert 'DejaVu' not in text


def test_figures_say_what_they_show():
    shown = drawings()
    assert ': plain 3 (2 to 5); csa_resnet50.warm_a1_in1k 4 (3 to 6)' in shown['intervals'].alt
    assert 'plain (30, 3)' in shown['scatter'].alt
    assert 'plain ends at 3' in shown['lines'].alt
    assert 'plain 78 % right' not in shown['confusion'].alt
    assert 'plain 80 % right' in shown['confusion'].alt
    assert 'plain: 0.30 at 0.20, 0.80 at 0.90' in shown['reliability'].alt
    assert all('>plain<' in figure.svg for figure in shown.values())
    assert len({figure.svg for figure in shown.values()}) == 6


def test_confusion_numbers_only_few_classes():
    few, many = (figures.confusion([[100 * (i == j) for j in range(n)] for i in range(n)], [f'c{i}' for i in range(n)])
                 for n in (12, 100))  # fmt: skip
    assert few.svg.count('>100<') == 12
    assert '>c11<' in few.svg
    assert '>100<' not in many.svg
    assert '>c1<' not in many.svg
    assert '>c5<' in many.svg


NAN = float('nan')


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize(
    'draw',
    [
        lambda: figures.intervals([], 'x'),
        lambda: figures.intervals([('a', 1, 1, 1), ('b', NAN, NAN, NAN)], 'x', 1.0),
        lambda: figures.scatter([], 'x', 'y'),
        lambda: figures.scatter([('a', 1, 1, None, None, 'g')] * 3, 'x', 'y', log_x=True),
        lambda: figures.scatter([('a', 1, NAN, None, None, 'g'), ('b', 2, 3, NAN, NAN, 'h')], 'x', 'y'),
        lambda: figures.lines({}, 'x', 'y'),
        lambda: figures.lines({'a': ([], []), 'b': ([0, NAN], [NAN, 1])}, 'x', 'y'),
        lambda: figures.lines({f'series {i}': ([0, 1], [i, 2 * i]) for i in range(30)}, 'x', 'y'),
        lambda: figures.confusion([], []),
        lambda: figures.confusion([[0, 0], [0, 0]], ['a', 'b']),
        lambda: figures.reliability({'a': []}),
        lambda: figures.bars(['a'], {'m': [None]}, 'x'),
        lambda: figures.bars([f'c{i}' for i in range(30)], {f'm{k}': range(30) for k in range(9)}, 'x'),
    ],
)
def test_any_data_can_be_drawn(draw):
    assert ET.fromstring(draw().svg).tag.endswith('svg')


def test_labels_do_not_cover_each_other():
    crowd = [(f'model_{i}', 20 + i % 3, 70 + i / 10, None, None, 'g') for i in range(12)]
    svg = figures.scatter(crowd, 'x', 'y').svg
    spots = re.findall(r'text-anchor: (start|middle|end)[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*>model_', svg)
    assert 3 <= len(spots) <= 12
    assert all(abs(float(a[2]) - float(b[2])) > 10 or abs(float(a[1]) - float(b[1])) > 20
               for a, b in itertools.combinations(spots, 2))  # fmt: skip


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    with pytest.raises(ImportError, match='pip install'):
        figures.lines({'a': ([0], [1])}, 'x', 'y')


def test_a_page_needs_neither_torch_nor_matplotlib():
    """As the command line imports it, which registers no model."""
    code = (
        'import sys; sys.argv[0] = "timm-attn"; from timm_attn.report import *; from timm_attn.report import figures; '
        'to_html(Page("t", "l", [Section("s", [Text("x")])])); '
        'sys.exit(str({"torch", "timm", "matplotlib", "numpy"} & set(sys.modules)) if {"torch", "timm", "matplotlib", '
        '"numpy"} & set(sys.modules) else 0)'
    )
    process = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*'))


def test_files_are_replaced_as_a_whole(tmp_path):
    out = tmp_path / 'new' / 'folder'
    write_page(full_page(), out)
    assert names(out) == ['report.html', 'report.md', 'report_files', 'report_files/drawings-2.svg',
                          'report_files/drawings-3.svg', 'report_files/drawings-4.svg', 'report_files/drawings-5.svg',
                          'report_files/drawings-6.svg', 'report_files/drawings.svg',
                          'report_files/more.png']  # fmt: skip
    for name in re.findall(r'\]\((report_files/[^)]+)\)', (out / 'report.md').read_text(encoding='utf-8')):
        assert (out / name).stat().st_size
    write_page(page(Section('S', [Picture(png(), 'x')])), out)
    assert names(out) == ['report.html', 'report.md', 'report_files', 'report_files/s.png']
    write_page(page(Section('S', [Text('x')])), out)
    assert names(out) == ['report.html', 'report.md']
    write_page(page(Section('S', [Picture(png(), 'x')])), out, 'other')
    assert '](other_files/s.png)' in (out / 'other.md').read_text(encoding='utf-8')
    assert (out / 'other_files/s.png').read_bytes() == png()


def test_a_failure_leaves_the_old_files(tmp_path, monkeypatch):
    write_page(full_page(), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
    with pytest.raises(ValueError, match='PNG'):
        write_page(page(Section('S', [Picture(b'', 'x')])), tmp_path)
    writes = itertools.count()
    write_bytes = Path.write_bytes

    def full_disk(path, data):
        if next(writes):
            raise OSError('No space left on device')
        return write_bytes(path, data)

    monkeypatch.setattr(Path, 'write_bytes', full_disk)
    with pytest.raises(OSError, match='No space'):
        write_page(full_page(), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()} == before


def test_what_an_interrupted_run_left_is_removed(tmp_path):
    for left in ('report_files.part', 'report_files.old'):
        (tmp_path / left).mkdir()
        (tmp_path / left / 'x.svg').touch()
    write_page(full_page(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {'report.html', 'report.md', 'report_files'}


# --- what a browser makes of it ---


@pytest.fixture(scope='module')
def chromium():
    api = pytest.importorskip('playwright.sync_api', reason='needs playwright, which drives a browser')
    if BROWSER is None:
        pytest.skip('needs Chromium or Chrome on the PATH')
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=BROWSER_ARGS)
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    import zoo_page

    folder = tmp_path_factory.mktemp('pages')
    (card,) = zoo_page.CARDS.glob('csa_resnet50.*.md')
    pages = dict(
        full=full_page(), hostile=hostile_page(), zoo=zoo_page.page(), card=zoo_page.card_page(card.read_text())
    )
    for name, content in pages.items():
        (folder / f'{name}.html').write_text(to_html(content), encoding='utf-8')
    return folder


@pytest.fixture
def load(chromium, files):
    """Opens a page; at the end, nothing may have been said in the console or asked of a network."""
    contexts, noise = [], []

    def load(name, width=1280, context=None, **kwargs):
        if context is None:
            context = chromium.new_context(viewport=dict(width=width, height=800), **kwargs)
            contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(15_000)
        tab.on('console', lambda message: noise.append(message.text))
        tab.on('pageerror', lambda error: noise.append(str(error)))
        url = (files / f'{name}.html').as_uri()
        tab.on(
            'request', lambda request: noise.append(request.url) if not request.url.startswith((url, 'data:')) else 0
        )
        tab.goto(url)
        return tab

    yield load
    for context in contexts:
        context.close()
    assert not noise


ALL = ('full', 'hostile', 'zoo', 'card')


def column(tab, index, table=0):
    """Shown texts of a column."""
    cells = f'Array.from(document.querySelectorAll("table")[{table}].tBodies[0].rows)'
    return tab.evaluate(f'{cells}.filter((row) => row.offsetHeight).map((row) => row.cells[{index}].innerText.trim())')


@pytest.mark.parametrize('name', ALL)
def test_loads_quietly(load, name):
    tab = load(name)
    assert tab.title() != 'owned'
    assert tab.locator('h1').count() == 1
    levels = [
        int(level) for level in tab.evaluate('Array.from(document.querySelectorAll("h1,h2,h3"), (h) => h.tagName[1])')
    ]
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))


@pytest.mark.parametrize('width', [1280, 390, 320])
@pytest.mark.parametrize('name', ALL)
def test_the_page_does_not_scroll_sideways(load, name, width):
    tab = load(name, width)
    assert tab.evaluate('document.documentElement.scrollWidth') <= width
    outside = """Array.from(document.querySelectorAll('body *')).filter((node) => {
        const box = node.getBoundingClientRect();
        return box.width && (box.right > innerWidth + 1 || box.left < -1) && !node.closest('.scroll > *, svg');
    }).map((node) => node.outerHTML.slice(0, 200))"""
    assert tab.evaluate(outside) == []


@pytest.mark.parametrize('name', ['full', 'zoo'])
@pytest.mark.parametrize('width', [390, 1280])
def test_labels_of_figures_have_a_readable_size(load, name, width):
    sizes = load(name, width).evaluate("""Array.from(document.querySelectorAll('svg text'), (text) => {
        const { a, b } = text.getScreenCTM(); // the scale, where the text may be turned
        return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(a, b);
    })""")
    assert len(sizes) > 20
    assert min(sizes) >= 11
    assert max(sizes) <= 17


@pytest.mark.parametrize('name', ALL)
def test_labels_of_figures_are_not_cut_off(load, name):
    cut = load(name).evaluate("""Array.from(document.querySelectorAll('svg text')).filter((text) => {
        const box = text.getBoundingClientRect(), whole = text.closest('svg').getBoundingClientRect();
        return box.left < whole.left - 1 || box.right > whole.right + 1;
    }).map((text) => text.textContent)""")
    assert cut == []


def test_click_sorts(load):
    tab = load('full')
    heads = tab.locator('thead th')
    heads.nth(2).get_by_role('button').click()
    assert heads.nth(2).get_attribute('aria-sort') == 'ascending'
    assert column(tab, 2) == ['9.5', '80.2', '100.0', MISSING, MISSING]
    heads.nth(2).get_by_role('button').click()
    assert heads.nth(2).get_attribute('aria-sort') == 'descending'
    assert column(tab, 2) == ['100.0', '80.2', '9.5', MISSING, MISSING]
    heads.nth(0).get_by_role('button').click()
    assert column(tab, 0) == ['last', 'Net2', 'net9', 'net10', 'other']
    assert [head.get_attribute('aria-sort') for head in heads.all()] == ['ascending', None, None, None]
    heads.nth(3).get_by_role('button').click()  # by value, not by what is shown
    assert [text.split()[0] for text in column(tab, 3)] == ['-2.0', '-0.25', '+0.5', '+10', MISSING]


def test_keyboard_sorts(load):
    tab = load('full')
    tab.locator('thead button').nth(0).focus()
    tab.keyboard.press('Tab')
    tab.keyboard.press('Tab')
    tab.keyboard.press('Enter')
    assert column(tab, 2) == ['9.5', '80.2', '100.0', MISSING, MISSING]
    tab.keyboard.press('Space')
    assert column(tab, 2)[0] == '100.0'
    outline = tab.evaluate('getComputedStyle(document.activeElement).outlineStyle')
    assert outline == 'solid'


def test_filters_filter(load):
    tab = load('full')
    filters, count = tab.locator('.filters'), tab.locator('.count')
    assert count.inner_text() == '5 rows'
    filters.get_by_label('Name').fill('NET')
    assert column(tab, 0) == ['net10', 'net9', 'Net2']
    assert count.inner_text() == '3 of 5 rows'
    filters.get_by_label('Kind').select_option('gate')
    assert column(tab, 0) == ['net9', 'Net2']
    filters.get_by_label('Top-1, at least').fill('10')
    assert column(tab, 0) == ['net9']
    filters.get_by_label('Top-1, at most').fill('20')
    assert column(tab, 0) == []
    tab.get_by_role('button', name='Show all rows').click()
    assert len(column(tab, 0)) == 5
    assert count.inner_text() == '5 rows'
    filters.get_by_label('Top-1, at most').fill('9.5')
    assert column(tab, 0) == ['net10']


def test_copies_what_is_shown(load):
    tab = load('full', permissions=['clipboard-read', 'clipboard-write'])
    tab.get_by_label('Kind').select_option('gate')
    tab.locator('thead button').nth(2).click()
    tab.get_by_role('button', name='Copy table').click()
    tab.get_by_role('button', name='Copied').wait_for()
    assert tab.evaluate('navigator.clipboard.readText()') == (
        'Name\tKind\tTop-1 (%)\tChange\n'
        'net9\tgate\t80.2\t+0.5 [0.1, 0.9] better\n'
        'last\tgate\t100.0\t+10\n'
        'Net2\tgate\t\t-2.0 [-3.0, -1.0] worse\n'
    )
    tab.get_by_role('button', name='Copy', exact=True).click()
    tab.get_by_role('button', name='Copied').nth(1).wait_for()
    assert tab.evaluate('navigator.clipboard.readText()') == 'timm-attn list'
    tab.get_by_role('button', name='Copy table').wait_for()  # the label comes back


def test_copies_without_permission(load):
    tab = load('full', permissions=['clipboard-read'])
    tab.evaluate('Object.defineProperty(navigator, "clipboard", { value: undefined })')
    tab.evaluate('document.addEventListener("copy", () => { window.copied = getSelection().toString() || '
                 'document.activeElement.value; })')  # fmt: skip
    tab.get_by_role('button', name='Copy', exact=True).click()
    tab.get_by_role('button', name='Copied').wait_for()
    assert tab.evaluate('window.copied') == 'timm-attn list'
    assert tab.locator('textarea').count() == 0


def test_a_spreadsheet_gets_no_formula(load):
    tab = load('hostile', permissions=['clipboard-read', 'clipboard-write'])
    tab.get_by_role('button', name='Copy table').click()
    tab.get_by_role('button', name='Copied').wait_for()
    lines = tab.evaluate('navigator.clipboard.readText()').splitlines()
    assert len(lines) == 1 + len(HOSTILE)
    assert {line.count('\t') for line in lines} == {3}
    assert not [cell for line in lines for cell in line.split('\t') if cell.startswith('=')]
    assert any(line.startswith("'=HYPERLINK") for line in lines)


BACKGROUND = 'getComputedStyle(document.body).backgroundColor'


def test_light_and_dark(load):
    light, dark = (load('full', color_scheme=scheme) for scheme in ('light', 'dark'))
    assert light.evaluate(BACKGROUND) != dark.evaluate(BACKGROUND)
    ink = 'getComputedStyle(document.querySelector("svg text")).fill'
    assert light.evaluate(ink) != dark.evaluate(ink)


def test_the_theme_is_remembered(load):
    tab = load('full', color_scheme='light')
    light = tab.evaluate(BACKGROUND)
    tab.get_by_role('button', name='Dark theme').click()
    dark = tab.evaluate(BACKGROUND)
    assert dark != light
    tab.reload()
    assert tab.evaluate(BACKGROUND) == dark
    other = load('zoo', context=tab.context)
    assert other.evaluate(BACKGROUND) == dark
    other.get_by_role('button', name='Light theme').click()
    assert other.evaluate(BACKGROUND) == light
    other.emulate_media(media='print', color_scheme='dark')
    assert other.evaluate(BACKGROUND) == light


CONTRAST = """() => {
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const luminance = ([r, g, b]) => [r, g, b].map((c) => c / 255)
        .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = (node) => {
        for (; node; node = node.parentElement) {
            const colour = numbers(getComputedStyle(node).backgroundColor);
            if (colour.length === 3 || colour[3]) return colour;
        }
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const found = [];
    for (let text; (text = walker.nextNode());) {
        const node = text.parentElement;
        if (!text.data.trim() || !node.offsetHeight || node.closest('svg, script')) continue;
        const [a, b] = [luminance(numbers(getComputedStyle(node).color)), luminance(behind(node))];
        found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), text.data.trim()]);
    }
    return found;
}"""


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('name', ['full', 'zoo', 'card'])
def test_contrast(load, name, scheme):
    found = load(name, color_scheme=scheme).evaluate(CONTRAST)
    assert len(found) > 20
    assert not [pair for pair in found if pair[0] < 4.5]


def test_judgements_are_worded(load):
    assert [text.split()[-1] for text in column(load('full'), 3)] == [MISSING, 'better', 'worse', 'same', '+10']


def test_reads_without_scripts(load):
    tab = load('full', java_script_enabled=False)
    assert tab.locator('tbody tr').count() == 5
    assert tab.locator('svg').count() == 6
    assert not tab.get_by_role('button', name='Copy table').is_visible()
    assert not tab.get_by_label('Kind').is_visible()


def test_the_zoo_can_be_searched(load):
    from timm_attn.weights import weights

    tab = load('zoo')
    filters = tab.locator('.filters')
    trained = [w for w in weights().values() if w.kind == 'trained']
    filters.get_by_label('Weights').select_option('trained here')
    assert column(tab, 0) == [w.name for w in trained]
    assert set(column(tab, 6)) == {'measured'}
    filters.get_by_label('Params, at most').fill('0.273')
    assert column(tab, 0) == [w.name for w in trained if w.params <= 273_000]
    tab.get_by_role('button', name='Show all rows').click()
    tab.locator('thead button').nth(5).click()
    shown = [float(text) for text in column(tab, 5) if text != MISSING]
    assert shown == sorted(shown)
    assert column(tab, 5)[len(shown) :] == [MISSING] * (len(weights()) - len(shown))


def test_the_zoo_has_every_model_and_says_who_measured():
    import zoo_page

    from timm_attn.models import zoo_models
    from timm_attn.weights import weights

    first = zoo_page.page().sections[0].blocks[1]
    rows = {row['name'].value: row for row in first.rows}
    assert {name.partition('.')[0] for name in rows} == set(zoo_models())
    for weight in weights().values():
        row = rows[weight.name if weight.kind != 'untrained' else weight.arch]
        metric = weight.top1
        assert row['source'] == (None if metric is None else 'measured' if metric.measured else 'reported')
        assert (row['top1'] and row['top1'].value) == (metric and metric.value)
        assert (zoo_page.CARDS / row['name'].href.replace('cards/', '').replace('.html', '.md')).is_file()
    drawn = [block for block in zoo_page.page().sections[1].blocks if isinstance(block, Figure)]
    assert len(drawn) == 2
    assert all('CIFAR-10' in figure.alt and 'ImageNet' not in figure.alt for figure in drawn)


def test_every_card_is_a_page(tmp_path, monkeypatch):
    import zoo_page

    monkeypatch.setattr(sys, 'argv', ['zoo_page.py', str(tmp_path)])
    zoo_page.main()
    cards = sorted(path.stem for path in zoo_page.CARDS.glob('*.md') if '.' in path.stem)
    assert sorted(path.stem for path in (tmp_path / 'cards').glob('*.html')) == cards
    for name in cards:
        source = (zoo_page.CARDS / f'{name}.md').read_text(encoding='utf-8')
        text = (tmp_path / 'cards' / f'{name}.html').read_text(encoding='utf-8')
        outline = Outline(text)
        assert len(outline.all('pre')) == source.count('```') / 2
        for title in re.findall('^## (.*)$', source, re.M):
            assert f'>{title}</h2>' in text
        assert '```' not in text.partition('</style>')[2].partition('<script>')[0]
        assert '\n## ' not in text
