"""The picture of where each attention sits in its block, drawn from the models as they run.

``scripts/render.py`` calls this.
"""

from html import escape

import timm
import torch
from common import DATA
from torch import nn

import timm_attn  # noqa: F401  registers the models
from timm_attn.layers import attention_of

PICTURE = DATA / 'blocks.svg'
BLOCKS = {  # title -> model and one of its blocks with a shortcut
    'CSA in ResNet-50': ('csa_resnet50', 'layer1.2'),
    'SCSA in ResNet-50': ('scsa_resnet50', 'layer1.1'),
    'CA in MobileNetV2': ('mbv2_ca', 'blocks.1.1'),
    'CA in MobileNeXt': ('mobilenext_ca', 'stages.2.1'),
}
# Pixels; two columns fit on a phone.
COLUMN, BOX, HEIGHT, GAP, TOP = 190, 124, 26, 14, 44
STYLE = (
    'text{font:12px system-ui,sans-serif;fill:#1c1c1c;text-anchor:middle}.title{font-weight:600}'
    '.note{fill:#555}.layer{fill:#e8edf3;stroke:#8296ab}.attention{fill:#ffd98a;stroke:#b07d12}'
    'path{fill:none;stroke:#444;stroke-width:1.3}circle{fill:#fff;stroke:#444}'
)


def layers_of(model: str, block: str) -> list[tuple[str, bool]]:
    """What a block computes, in its order: the name of each convolution and attention, and whether it is the latter."""
    net = timm.create_model(model, device='meta').eval()
    children = net.get_submodule(block).named_children()
    found: list[tuple[str, bool]] = []

    def note(module, args, output):
        if row := attention_of(module):
            found.append((row.name.upper(), True))
        elif isinstance(module, nn.Conv2d):
            size = 'x'.join(map(str, module.kernel_size))
            found.append((f'{size} {"depthwise" if module.groups > 1 else "convolution"}', False))

    for _, child in children:
        child.register_forward_hook(note)
    net(torch.empty(1, 3, 64, 64, device='meta'))
    return found


def picture() -> str:
    """The picture, as SVG on a light ground of its own: readable on a dark page too."""
    columns = {title: layers_of(*where) for title, where in BLOCKS.items()}
    rows = [list(columns.items())[i : i + 2] for i in range(0, len(columns), 2)]
    parts, top = [], 0
    for row in rows:
        for i, (title, layers) in enumerate(row):
            parts.append(f'<g transform="translate({i * COLUMN},{top})">{_column(title, layers)}</g>')
        top += TOP + max(len(layers) for _, layers in row) * (HEIGHT + GAP) + 62
    size = f'width="{2 * COLUMN}" height="{top}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {2 * COLUMN} {top}"><style>{STYLE}</style>'
        f'<rect {size} rx="6" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _column(title: str, layers: list[tuple[str, bool]]) -> str:
    x = COLUMN / 2 + 8  # the shortcut passes on the left
    left = x - BOX / 2
    parts = [f'<text class="title" x="{COLUMN / 2}" y="22">{escape(title)}</text>']
    y = TOP
    fork = y - 2
    for name, is_attention in layers:
        kind = 'attention' if is_attention else 'layer'
        parts.append(f'<path d="M{x} {y - 8}V{y + GAP - 8}"/>')
        y += GAP - 8
        parts.append(f'<rect class="{kind}" x="{left}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="4"/>')
        parts.append(f'<text x="{x}" y="{y + 17}">{escape(name)}</text>')
        y += HEIGHT + 8
    parts.append(f'<path d="M{x} {y - 8}V{y + 6}"/><circle cx="{x}" cy="{y + 15}" r="9"/>')
    parts.append(f'<path d="M{x - 5} {y + 15}h10M{x} {y + 10}v10M{x} {y + 24}v10"/>')
    parts.append(f'<path d="M{x} {fork}H{left - 18}V{y + 15}H{x - 9}"/>')
    return ''.join(parts)
