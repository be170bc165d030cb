"""Render what is made from the manifest, the logs and the benchmark: cards, their index, pages, tables, plots.

python scripts/render.py               # write what has changed
python scripts/render.py --check       # change nothing; fail where a file is out of date
"""

import argparse
import re
import sys
from pathlib import Path
from types import ModuleType

import diagram
import performance
import results
from cards import render_card
from common import CARDS, ROOT
from tables import (
    attentions_table,
    csa_net_remarks,
    csa_net_tables,
    families_table,
    models_table,
    published,
    untrained,
    weights_table,
)

from timm_attn.weights import weights

_MARKS = r'(<!-- {0}: written by scripts/render.py -->\n).*?(<!-- end of {0} -->)'


def render_index() -> str:
    """Index of the cards: the table of all weights."""
    return f"""# Weights

Rendered by `python scripts/render.py` from `timm_attn/weights/manifest.json`, with a card for each weight. *Reported*
figures are quoted; *measured* ones were measured by `scripts/measure_weights.py`. A warm start has the figure of its
backbone until it is fine-tuned.

{weights_table(published(), links='')}

These networks have no weights; their cards say what they are and how far they can be trusted:

{weights_table(untrained(), links='')}

How much the attentions help under equal recipes: [RESULTS.md](RESULTS.md).
"""


def render_tables(path: Path, **tables: str) -> str:
    """A text with its tables brought up to date.

    Args:
        path: The text.
        **tables: Table by name; it replaces what is between the marks of that name.

    Raises:
        ValueError: If the text does not have each pair of marks once.
    """
    text = path.read_text(encoding='utf-8')
    for name, table in tables.items():
        text, found = re.subn(_MARKS.format(name), lambda m, t=table: f'{m[1]}\n{t}\n\n{m[2]}', text, flags=re.S)
        if found != 1:
            raise ValueError(f'{path} needs the marks of the table {name!r} once; it has them {found} times.')
    return text


def stale_files() -> dict[Path, str | None]:
    """Files that are out of date, with the text they should have; None for what has to go."""
    wanted = {CARDS / f'{w.name}.md': render_card(w) for w in weights().values()}
    wanted |= {CARDS / 'README.md': render_index(), results.PAGE: results.page(), diagram.PICTURE: diagram.picture()}
    wanted |= results.documents()
    for path, tables in {
        ROOT / 'README.md': dict(families=families_table(), speed=performance.main_table()),
        ROOT / 'docs' / 'models.md': dict(attentions=attentions_table(), models=models_table()),
        ROOT / 'docs' / 'performance.md': dict(speed=performance.section('../model_cards/data/')),
        ROOT / 'docs' / 'csa_net_table.md': dict(measured=csa_net_tables(), remarks=csa_net_remarks()),
    }.items():
        wanted[path] = render_tables(path, **tables)
    stale: dict[Path, str | None] = {
        path: text for path, text in wanted.items() if not path.exists() or path.read_text(encoding='utf-8') != text
    }
    found = [*CARDS.glob('*.md'), *(ROOT / 'docs' / 'reports').glob('*/report.md')]
    return stale | {path: None for path in found if path not in wanted}


def stale_plots() -> list[ModuleType]:
    """Modules whose plots show other data than the logs, the reports and the benchmark contain."""
    return [module for module in (results, performance) if module.is_stale()]


def main() -> int:
    """Run the command line; the exit status is 1 if ``--check`` finds a difference."""
    parser = argparse.ArgumentParser(description='Render the cards, pages, tables and plots.')
    parser.add_argument('--check', action='store_true', help='change nothing; fail where a file is out of date')
    args = parser.parse_args()
    stale = stale_files()
    if args.check:
        names = [str(path.relative_to(ROOT)) for path in [*stale, *(module.PLOT for module in stale_plots())]]
        if names:
            print(f'Out of date: {", ".join(names)}. Run python scripts/render.py.', file=sys.stderr)
        return 1 if names else 0
    for path, text in stale.items():
        if text is None:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding='utf-8')
        print(path.relative_to(ROOT))
    for module in stale_plots():
        module.write_plot()
        print(module.PLOT.relative_to(ROOT))
    return 0


if __name__ == '__main__':
    sys.exit(main())
