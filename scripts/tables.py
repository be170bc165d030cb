"""Tables of the documentation, from the manifest, the registries of timm and of attentions, and measurements."""

import importlib
import json

from cards import KINDS
from common import DATA
from timm.models import get_arch_pretrained_cfgs, model_entrypoint

from timm_attn.layers import Attention, get_attention, list_attentions
from timm_attn.models import zoo_models
from timm_attn.models.info import find_weight
from timm_attn.models.paper_table import HEAD, cells, read_table
from timm_attn.weights import Weight, weights

CSA_NET = DATA / 'csa_net_table.json'  # written by timm-attn table csa-net


def _table(head: tuple[str, ...], *body: tuple[str, ...]) -> str:
    lines = [f'| {" | ".join(head)} |', '|---' * len(head) + '|']
    return '\n'.join(lines + [f'| {" | ".join(row)} |' for row in body])


def _names() -> list[str]:
    """Every model, in the order of the manifest; those that it does not list yet last."""
    return list(dict.fromkeys([*(w.arch for w in weights().values()), *zoo_models()]))


def published() -> list[Weight]:
    """Rows of the manifest that have weights."""
    return [w for w in weights().values() if w.kind != 'untrained']


def untrained() -> list[Weight]:
    """Rows of the manifest that have none."""
    return [w for w in weights().values() if w.kind == 'untrained']


def weights_table(rows: list[Weight], links: str) -> str:
    """Markdown table of weights.

    Args:
        rows: Rows of the manifest.
        links: Folder of the cards, relative to the file that contains the table, ending in a slash or empty.
    """
    body = [
        (
            f'[{w.name}]({links}{w.name}.md)',
            KINDS[w.kind],
            f'{w.params / 1e6:.2f}',
            f'{w.gmacs:.3f}',
            f'{w.activations:.2f}',
            _top1(w),
        )
        for w in rows
    ]
    return _table(('weight', 'kind', 'parameters (M)', 'GMACs', 'activations (M)', 'top-1 (%)'), *body)


def _top1(weight: Weight) -> str:
    metric = weight.top1
    if metric is None:
        return '-'
    if metric.measured:
        return f'{metric.value:.2f}, measured'
    return f'{metric.value:.1f}, {"its backbone, " if weight.kind == "warm_start" else ""}reported'


def families_table() -> str:
    """One row for each model family: its models, their size and the kinds of their weights."""
    families: dict[str, list[str]] = {}
    for name in _names():
        families.setdefault(model_entrypoint(name).__module__, []).append(name)
    body = []
    for module, names in families.items():
        about = importlib.import_module(module).__doc__.splitlines()[0].rstrip('.')
        params = sorted(find_weight(name).params / 1e6 for name in names)
        size = f'{params[0]:.2f} to {params[-1]:.2f}'
        kinds: dict[str, dict[str, None]] = {}
        for weight in (*published(), *(find_weight(name) for name in names)):
            if weight.arch in names:
                kinds.setdefault(KINDS[weight.kind], {})[f'`{weight.arch}`'] = None
        said = [kind if len(kinds) == 1 else f'{kind}: {", ".join(archs)}' for kind, archs in kinds.items()]
        body.append((', '.join(f'`{name}`' for name in names), about, size, '; '.join(said)))
    return _table(('models', 'what they are', 'parameters (M)', 'weights'), *body)


def attentions_table() -> str:
    """One row for each registered attention."""
    body = [
        (f'`{row.name}`', row.title, f'`{row.layer.__name__}`', _paper(row.paper), row.placement, _start(row))
        for row in map(get_attention, list_attentions(parts=True))
    ]
    head = ('name', 'attention', 'in `timm_attn.layers`', 'paper', 'original placement', '`attach` starts it by')
    return _table(head, *body)


def _start(row: Attention) -> str:
    """How an attention starts as an identity when it is attached."""
    if row.part_of:
        return 'not a layer of its own'
    if row.gates:
        return 'its gate'
    return 'its own zeros' if row.zeroed else 'a residual weight'


def models_table() -> str:
    """One row for each model, with the cost of one image at its own size."""
    body = []
    for name in _names():
        weight = find_weight(name)
        tags = ', '.join(f'`{cfg.tag}`' for cfg in get_arch_pretrained_cfgs(name).values() if cfg.has_weights) or '-'
        size = 'x'.join(map(str, weight.input_size))
        body.append((f'`{name}`', f'{weight.params / 1e6:.2f}', f'{weight.gmacs:.3f}', size, tags))
    return _table(('model', 'parameters (M)', 'GMACs', 'input', 'weights'), *body)


def csa_net_tables() -> str:
    """Table 1 of CSA-Net, one table for each depth, from the measurement that ``timm-attn table csa-net`` wrote."""
    run = json.loads(CSA_NET.read_text(encoding='utf-8'))
    measured = {(row['method'], row['depth'], row['model']): row['measured'] for row in run['rows']}
    table, parts = read_table(), []
    for depth in (50, 101):
        body = []
        for row in table.rows([depth]):
            *figures, _ = cells(row, measured.get((row.method, depth, row.label)), run['image_size'], table)
            figures[-1] = figures[-1].replace(' ', '\N{NO-BREAK SPACE}')  # the time, which a narrow column would break
            body.append((*figures, f'`{row.label}`' if row.label else '-'))
        shown = [i for i, column in enumerate(zip(*body, strict=True)) if set(column) != {'-'}]
        head, *rows = [[row[i] for i in shown] for row in (HEAD, *body)]
        parts.append(f'**ResNet-{depth}**\n\n{_table(head, *rows)}')
    if run['time']:
        machine = run['time']['machine']
        parts.append(
            f'Times: {machine["device"]}, {machine["threads"]} threads, torch {machine["torch"]}, timm '
            f'{machine["timm"]}, timm-attn {machine["timm_attn"]}, {machine["date"]}; float32, batches of '
            f'{run["time"]["batch_size"]} at {run["image_size"]} px; median and range of {run["time"]["turns"]} turns'
            + (f'; with `{machine["allocator"]}`.' if machine['allocator'] else '.')
        )
    return '\n\n'.join(parts)


def csa_net_remarks() -> str:
    """How to read the reported figures, and what each model rests on."""
    table = read_table()
    body = [(method.name, method.title, method.basis, method.remark) for method in table.methods]
    notes = '\n'.join(f'- {note}' for note in table.notes)
    return f'{notes}\n\n{_table(("method", "what it is", "rests on", "remark"), *body)}'


def _paper(paper: str) -> str:
    if '://' in paper:
        return f'[paper]({paper})'
    number = paper.removeprefix('arXiv:')
    return f'[{number}](https://arxiv.org/abs/{number})'
