"""The page of the zoo: every model and weight in a table to sort and filter, and what accuracy costs.

python scripts/zoo_page.py OUT     # writes OUT/zoo.html, and a page for each card in OUT/cards
"""

import argparse
import re
from pathlib import Path

from cards import KINDS
from common import CARDS, write_text

from timm_attn import __version__
from timm_attn.layers import get_attention, list_attentions
from timm_attn.models import zoo_models
from timm_attn.models.info import find_weight
from timm_attn.report import Block, Cell, Code, Column, Items, Page, Section, Table, Text, figures, to_html
from timm_attn.weights import Weight, plain_backbone, weights

COLUMNS = (
    Column('name', 'Name', help='The model and, after the point, the tag of its weight; the link leads to its card.'),
    Column('attention', 'Attention', help='Its name here; the table of attentions has its title.'),
    Column(
        'kind',
        'Weights',
        help="**the authors'**: published with the paper; **warm start**: those of the plain backbone, with untrained "
        'attention that is an exact identity; **trained here**: in the package; **none**: random.',
    ),
    Column('params', 'Params', 2, 'M'),
    Column('gmacs', 'GMACs', 3, help='Billions of multiply-adds of convolutions and matrix products for one image.'),
    Column('top1', 'Top-1', 2, '%'),
    Column('source', 'Accuracy', help='**measured** by this project, or **reported** by others.'),
    Column('dataset', 'Data set', help='Data set that the accuracy was measured on.'),
    Column('size', 'Image', unit='px', help='Height and width of the image that the cost is counted for.'),
    Column('backbone', 'Backbone', help='The network without its attention.'),
    Column('license', 'Licence', help='Licence of the weights.'),
)
FILTERS = ('name', 'attention', 'kind', 'params', 'gmacs', 'top1', 'dataset')
WARM_STARTS = (
    'A **warm start** computes what its plain backbone does until it is fine-tuned. Its accuracy is the one reported '
    'for the backbone, and says nothing about the attention.'
)


def rows() -> list[Weight]:
    """Every weight of the manifest, and every model that it does not list yet."""
    listed = {weight.arch for weight in weights().values()}
    return [*weights().values(), *(find_weight(name) for name in zoo_models() if name not in listed)]


def attention_of(weight: Weight) -> str | None:
    """Name of the attention of a model, which is a part of the model's name."""
    return next((part for part in weight.arch.split('_') if part in list_attentions(parts=True)), None)


def page() -> Page:
    """The page."""
    shown = rows()
    archs = {weight.arch for weight in shown}
    lead = (
        f'All {len(archs)} models of timm-attn and their weights. Each loads with '
        '`timm.create_model(NAME, pretrained=True)` after `import timm_attn`; those without weights, without '
        '`pretrained`.'
    )
    return Page(
        'The zoo of timm-attn',
        lead,
        [
            Section(
                'Models and weights', [Text(WARM_STARTS), Table(COLUMNS, [_row(w) for w in shown], filters=FILTERS)]
            ),
            Section('What accuracy costs', _plots(shown)),
            Section('Attentions', [_attentions(shown)]),
        ],
        f'Rendered by `scripts/zoo_page.py` from the manifest of timm-attn {__version__}.',
    )


def _row(weight: Weight) -> dict[str, object]:
    has_weights, metric = weight.kind != 'untrained', weight.top1
    name = weight.name if has_weights else weight.arch
    height, width = weight.input_size[1:]
    return dict(
        name=Cell(name, name, href=f'cards/{weight.name}.html' if _card(weight).exists() else ''),
        attention=attention_of(weight) or 'none',
        kind=KINDS[weight.kind].partition(',')[0],
        params=weight.params / 1e6,
        gmacs=weight.gmacs,
        top1=Cell(metric.value, f'{metric.value:.{2 if metric.measured else 1}f}') if metric else None,
        source=('measured' if metric.measured else 'reported') if metric else None,
        dataset=metric.dataset.partition(' (')[0] if metric else None,
        size=height if height == width else f'{height} x {width}',
        backbone=plain_backbone(weight.arch),
        license=weight.license if has_weights else None,
    )


def _plots(shown: list[Weight]) -> list[Block]:
    """Size and cost against accuracy, for each data set that the project measured on."""
    blocks: list[Block] = [
        Text(
            'Only accuracies that this project measured are drawn, each data set by itself; those of ImageNet-1k are '
            'reported.'
        )
    ]
    if not figures.has_matplotlib():
        return [*blocks, Text('The plots need matplotlib.')]
    measured = [weight for weight in shown if weight.top1 and weight.top1.measured]
    for dataset in dict.fromkeys(weight.top1.dataset for weight in measured):
        points = [weight for weight in measured if weight.top1.dataset == dataset]
        for label, of in (('parameters (M)', lambda w: w.params / 1e6), ('GMACs', lambda w: w.gmacs)):
            blocks.append(
                figures.scatter(
                    [_point(weight, of(weight)) for weight in points],
                    label,
                    f'top-1 on {dataset.partition(" (")[0]} (%)',
                    caption=f'{dataset}, {points[0].top1.split} images; one run each.',
                )
            )
    return blocks


def _point(weight: Weight, x: float) -> tuple[str, float, float, float | None, float | None, str]:
    attention = attention_of(weight)
    return attention or 'plain', x, weight.top1.value, None, None, 'attention' if attention else 'plain backbone'


def _attentions(shown: list[Weight]) -> Table:
    archs = {weight.arch: attention_of(weight) for weight in shown}
    columns = [
        Column('name', 'Name'),
        Column('title', 'Attention'),
        Column('paper', 'Paper'),
        Column('count', 'Models'),
    ]
    found = [get_attention(name) for name in list_attentions(parts=True)]
    return Table(
        columns,
        [
            dict(name=row.name, title=row.title, paper=_paper(row.paper), count=list(archs.values()).count(row.name))
            for row in found
        ],
        caption='Kinds of attention; those without a model here are layers of `timm_attn.layers`.',
    )


def _paper(paper: str) -> Cell:
    is_arxiv = paper.startswith('arXiv:')
    href = f'https://arxiv.org/abs/{paper.removeprefix("arXiv:")}' if is_arxiv else paper
    return Cell(paper, paper if is_arxiv else paper.split('/')[2], href=href)


def _card(weight: Weight) -> Path:
    return CARDS / f'{weight.name}.md'


def card_page(text: str) -> Page:
    """A model card as a page.

    Args:
        text: The card: front matter, a title, and sections of paragraphs, lists and code.
    """
    _, _, body = text.split('---\n', 2)
    first, *parts = re.split(r'^## ', body.strip(), flags=re.M)
    title, _, lead = first.partition('\n')
    blocks = _blocks(lead)
    return Page(
        title.removeprefix('# '),
        blocks[0].text if blocks and isinstance(blocks[0], Text) else '',
        [
            *([Section('About', blocks[1:])] if blocks[1:] else []),
            *(_section(part, r'^### ') for part in parts),
        ],
        f'Rendered from the model card by timm-attn {__version__}.',
    )


def _section(text: str, inner: str | None = None) -> Section:
    title, _, rest = text.partition('\n')
    first, *parts = re.split(inner, rest, flags=re.M) if inner else [rest]
    return Section(title, [*_blocks(first), *map(_section, parts)])


def _blocks(text: str) -> list[Block]:
    blocks: list[Block] = []
    for language, code, other in re.findall(r'```(\w*)\n(.*?)\n```|(.+?)(?=\n\n|\n*```|\Z)', text.strip(), re.S):
        if code:
            blocks.append(Code(code, language))
        elif other.strip().startswith('- '):
            blocks.append(Items(re.split(r'^- ', other.strip(), flags=re.M)[1:]))
        elif other.strip():
            blocks.append(Text(other))
    return blocks


def main() -> None:
    """Write the page and those of the cards."""
    parser = argparse.ArgumentParser(description='Write the page of the zoo.')
    parser.add_argument('out', type=Path, help='folder to write zoo.html and cards/ to')
    args = parser.parse_args()
    (args.out / 'cards').mkdir(parents=True, exist_ok=True)
    write_text(args.out / 'zoo.html', to_html(page()))
    for weight in rows():
        if _card(weight).exists():
            text = _card(weight).read_text(encoding='utf-8')
            write_text(args.out / 'cards' / f'{weight.name}.html', to_html(card_page(text)))


if __name__ == '__main__':
    main()
