"""How the figures of a page are drawn: one style, in stand-ins for the colours that the page decides."""

import functools
import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import ParamSpec

from ..printable import printable
from .page import Figure

_WIDTH = 390  # points; a point is about a pixel on a phone
_FONT = 12

# Colours to draw with -> what the page replaces them by. A drawing that stands alone has the colours after the comma,
# which are those of a light page: the palette of Okabe and Ito, darkened where white would swallow it.
_THEME = {
    '#010203': 'var(--text, #1d2026)',
    '#010204': 'var(--quiet, #5a626e)',
    '#010205': 'var(--line, #d4d8de)',
    '#010206': 'var(--page, #ffffff)',
    '#010207': 'var(--heat, #0072b2)',
    '#010210': 'var(--c0, #0072b2)',
    '#010211': 'var(--c1, #c77700)',
    '#010212': 'var(--c2, #00845f)',
    '#010213': 'var(--c3, #b3568a)',
    '#010214': 'var(--c4, #8a7a00)',
    '#010215': 'var(--c5, #3f4fa3)',
    '#010216': 'var(--c6, #d55e00)',
    '#010217': 'var(--c7, #444b57)',
}
TEXT, QUIET, LINE, PAGE, HEAT, *SERIES = _THEME
MARKERS = 'os^Dv<P>X*'
_DASHES = ('-', '--', '-.', ':')
_MOST_WORDS = 1500  # characters of a description
_PLACES = tuple((dx, dy) for dy in (0, 1, -1, 2, -2) for dx in (1, -1, 0) if dx or dy)
_OPEN = (
    r'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="\1" '
    'font-family="system-ui, sans-serif">'
)

_STYLE = {
    'svg.fonttype': 'none',
    'svg.hashsalt': 'timm-attn',
    'font.size': _FONT,
    'text.color': TEXT,
    'text.parse_math': False,
    'axes.labelcolor': TEXT,
    'axes.labelsize': _FONT,
    'axes.edgecolor': LINE,
    'axes.facecolor': 'none',
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.axisbelow': True,
    'axes.grid': True,
    'axes.unicode_minus': True,
    'grid.color': LINE,
    'grid.linewidth': 0.6,
    'xaxis.labellocation': 'right',  # a long one has the whole width, beside wide names of rows, too
    'xtick.color': LINE,
    'ytick.color': LINE,
    'xtick.labelcolor': TEXT,
    'ytick.labelcolor': TEXT,
    'xtick.labelsize': _FONT,
    'ytick.labelsize': _FONT,
    'xtick.major.size': 0,
    'ytick.major.size': 0,
    'xtick.major.pad': 6,
    'xtick.minor.size': 0,
    'legend.frameon': False,
    'legend.fontsize': _FONT,
    'lines.linewidth': 2,
    'lines.markeredgecolor': PAGE,
}

_P = ParamSpec('_P')


def styled(draw: Callable[_P, Figure]) -> Callable[_P, Figure]:
    """Draw in one style, whatever the settings of the user are."""

    @functools.wraps(draw)
    def styled(*args: _P.args, **kwargs: _P.kwargs) -> Figure:
        try:
            import matplotlib as mpl
        except ImportError as e:
            raise ImportError("Figures need matplotlib: pip install 'timm-attn[plot]'.") from e
        with mpl.rc_context(), warnings.catch_warnings():
            # the browser draws what the font of matplotlib lacks
            warnings.filterwarnings('ignore', r'Glyph \d+ .* missing from')
            mpl.rcdefaults()
            mpl.rcParams.update(_STYLE)
            return draw(*args, **kwargs)

    return styled


def new_axes(height: float):
    """A figure as wide as a column, and its axes."""
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(_WIDTH / 72, height / 72), layout='constrained')
    return figure, figure.subplots()


def colour(i: int) -> str:
    """Colour of a series."""
    return SERIES[i % len(SERIES)]


def series_style(i: int) -> dict:
    """Colour, dashes and marker of a series: no two differ by colour alone."""
    return dict(
        color=colour(i),
        linestyle=_DASHES[i % len(_DASHES)],
        linewidth=2,
        marker=MARKERS[i % len(MARKERS)],
        markersize=6,
        markeredgecolor=PAGE,
        markeredgewidth=0.7,
    )


def plain(text: str) -> str:
    """Text that matplotlib draws as it is; a name that starts with an underscore would be left out of a legend."""
    text = printable(text)
    return f'\N{ZERO WIDTH SPACE}{text}' if text.startswith('_') else text


def short(text: str, most: int) -> str:
    """Text without its middle where it is long."""
    text = printable(text)
    return text if len(text) <= most else f'{text[: most - most // 3]}\N{HORIZONTAL ELLIPSIS}{text[1 - most // 3 :]}'


def label_axes(axes, xlabel: str, ylabel: str = '') -> None:
    """Say what the axes are."""
    axes.set_xlabel(plain(xlabel))
    axes.set_ylabel(plain(ylabel))


def name_rows(axes, labels: Sequence[str]) -> None:
    """Names of the rows at the left, the first at the top."""
    axes.set_yticks(range(len(labels)), [short(label, 28) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(False, axis='y')
    axes.spines['left'].set_visible(False)


def legend(figure, axes) -> None:
    """A legend above the axes, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    labels = [short(label, 40) for label in labels]
    columns = max(1, min(len(labels), _WIDTH // (40 + 7 * max(map(len, labels)))))
    figure.set_figheight(figure.get_figheight() + -(-len(labels) // columns) * 1.4 * _FONT / 72)
    figure.legend(handles, labels, loc='outside upper left', ncols=columns)


def log_x_axis(axes) -> None:
    """Logarithmic x with numbers to read, not powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale('log')
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:g}'))
    axes.xaxis.set_minor_formatter(NullFormatter())


def whole_ticks(axes, xs: Sequence[float]) -> None:
    """No fractions along x where there are none, such as between epochs."""
    if all(float(x).is_integer() for x in xs):
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def name_points(figure, axes, points) -> None:
    """Write the name of each point next to it; where it would cover a point or another name, it is left out."""
    figure.draw_without_rendering()  # which places the axes
    figure.set_layout_engine('none')
    frame = axes.get_window_extent()
    to_pixels, scale = axes.transData.transform, figure.dpi / 72
    spots = [to_pixels((x, y)) for _, x, y, *_ in points]
    taken = [_box(x, y, 5 * scale, 5 * scale) for x, y in spots]
    bars = [
        (*to_pixels((x, low)), *to_pixels((x, high)))
        for _, x, _, low, high, _ in points
        if low is not None and high is not None
    ]
    for (label, *_), (x, y) in zip(points, spots, strict=True):
        text = short(label, 26)
        half, tall = 0.5 * 6.8 * scale * len(text), 0.5 * _FONT * scale
        fitting: list[tuple] = []
        for dx, dy in _PLACES:
            centre_x, centre_y = x + dx * (half + 7 * scale), y + dy * 14 * scale
            box = _box(centre_x, centre_y, half, tall)
            if frame.x0 <= box[0] and box[2] <= frame.x1 + 10 * scale and not any(_overlap(box, b) for b in taken):
                fitting.append((sum(_overlap(box, b) for b in bars), len(fitting), dx, centre_y, box))
        if fitting:  # the place that crosses the fewest intervals, the first of these
            *_, dx, centre_y, box = min(fitting)
            taken.append(box)
            side = 'center' if dx == 0 else 'left' if dx > 0 else 'right'
            at = axes.transData.inverted().transform((x + dx * 7 * scale, centre_y))
            axes.text(*at, text, ha=side, va='center')


def _box(x: float, y: float, half: float, tall: float) -> tuple[float, float, float, float]:
    return x - half, y - tall, x + half, y + tall


def _overlap(a, b) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def finish(figure, alt: str, caption: str) -> Figure:
    """The drawing in the colours of the page, the same bytes for the same data."""
    file = io.StringIO()
    figure.savefig(file, format='svg', transparent=True, metadata={'Date': None, 'Creator': None})
    svg = file.getvalue()
    svg = svg[svg.index('<svg') :]
    svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.S)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', _OPEN, svg, count=1)
    svg = re.sub(r'font: ([\d.]+px) [^;\"]*', r'font-size: \1', svg)  # matplotlib before 3.11
    svg = re.sub(r' font-family: [^;\"]*;| transform=\"rotate\(-0 [^\"]*\"', '', svg)
    svg = re.sub('|'.join(_THEME), lambda match: _THEME[match[0]], svg)
    return Figure(re.sub(r'\s*\n\s*', '\n', svg).strip(), printable(alt, _MOST_WORDS), caption)
