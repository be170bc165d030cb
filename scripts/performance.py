"""What the README and the index of the cards say of speed, rendered from ``model_cards/benchmark.json``.

That file is written by ``scripts/benchmark.py``; ``scripts/model_cards.py`` calls this.
"""

import json
from pathlib import Path

from benchmark import AS_PRINTED, QUICK_MODELS, REFERENCE, SE_VARIANT
from pictures import is_stale, save

CARDS = Path(__file__).parent.parent / 'model_cards'
RUNS = CARDS / 'benchmark.json'
PLOT = CARDS / 'benchmark.png'


def section(links: str, only_main: bool = False) -> str:
    """The section: tables of models and layers, the machine, the plot.

    Args:
        links: Folder of the plot, seen from the file that the section stands in, with a slash at its end.
        only_main: Only the main models in the plain setting, and the largest layers.
    """
    parts = []
    for run in _runs():
        if only_main:
            run = _main_rows(run)
        machine = run['machine']
        where = (
            f'{machine["device"]}, {machine["threads"]} threads, torch {machine["torch"]}, timm {machine["timm"]}, '
            f'{machine["date"]}; median and range of {run["turns"]} turns'
            + (f'; with `{machine["allocator"]}`' if machine['allocator'] else '')
        )
        if run['models']:
            parts.append(f'{_models_table(run["models"])}\n\n{where}.')
        if run['layers']:
            parts.append(f'{_layers_table(run["layers"])}\n\n{where}.')
    if _growth():
        parts.append(f'![Time and memory of the layers as channels, map and batch grow]({links}{PLOT.name})')
    return '\n\n'.join(parts)


def _main_rows(run: dict) -> dict:
    plain = dict(mode='eager', dtype='float32', layout='contiguous', image_size=224)
    references = {REFERENCE[name] for name in QUICK_MODELS}
    models = [
        row
        for row in run['models']
        if not run['machine']['allocator']
        and row['reference'] in references
        and row['model'].removesuffix(AS_PRINTED) in {*QUICK_MODELS, *references, *SE_VARIANT.values()}
        and all(row[key] == value for key, value in plain.items())
    ]
    largest = {'CSA': 2048, 'SCSA': 512, 'CA': 1024}  # channels, about, of these layers' last maps in the main models
    layers = [row for row in run['layers'] if row['shape'] == [8, largest[row['layer']], 7, 7]]
    return {**run, 'models': models, 'layers': layers}


def _runs() -> list[dict]:
    return json.loads(RUNS.read_text()) if RUNS.exists() else []


def _models_table(rows: list[dict]) -> str:
    """One line a model and setting, its inference beside its training step."""
    by_line: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        key = tuple(row[k] for k in ('model', 'reference', 'mode', 'dtype', 'layout', 'image_size', 'batch_size'))
        by_line.setdefault(key, {})[row['kind']] = row
    lines = [
        '| model | relative to | setting | inference | training step | training memory (MB) |',
        '|---|---|---|---|---|---|',
    ]
    for (model, reference, mode, dtype, layout, image_size, batch_size), kinds in by_line.items():
        memory = f'{kinds["training"]["peak_mb"]:.0f}' if 'training' in kinds else '-'
        lines.append(
            f'| {model} | {reference} | {mode}, {dtype}, {layout}, {batch_size} x {image_size} px '
            f'| {_cell(kinds.get("inference"))} | {_cell(kinds.get("training"))} | {memory} |'
        )
    return '\n'.join(lines)


def _cell(row: dict | None) -> str:
    if row is None:
        return '-'
    if row['model'] == row['reference']:
        return f'{row["milliseconds"] / row["batch_size"]:.2f} ms an image'
    return f'{row["ratio"]:.2f} ({row["least"]:.2f} to {row["most"]:.2f})'


def _layers_table(rows: list[dict]) -> str:
    lines = [
        '| layer, kind | shape | ms | ms as printed | times as fast | MB | MB as printed |',
        '|---|---|---|---|---|---|---|',
    ]
    lines += [
        f'| {row["layer"]}, {row["kind"]} | {"x".join(map(str, row["shape"]))} | {row["milliseconds"]:.2f} '
        f'| {row["literal_milliseconds"]:.2f} | {row["speedup_ratio"]:.1f} ({row["speedup_least"]:.1f} to '
        f'{row["speedup_most"]:.1f}) | {row["peak_mb"]:.1f} | {row["literal_peak_mb"]:.1f} |'
        for row in rows
    ]
    return '\n'.join(lines)


def _growth() -> list[dict]:
    return [row for run in _runs() for row in run['layers'] if row['kind'] == 'inference']


def plot_is_stale() -> bool:
    """Whether the plot shows other data than the runs hold."""
    return is_stale(PLOT, _growth())


def write_plot() -> None:
    """Draw how time and memory of the layers grow."""

    def draw(plt):
        figure, axes = plt.subplots(2, 3, figsize=(13, 7), sharex='col', layout='constrained')
        sweeps = (  # label, axis of the shape, what is fixed
            ('channels, 8 maps of 7 x 7', 1, lambda s: s[0] == 8 and s[2] == 7),
            ('side of the map, 8 x 256 channels', 2, lambda s: s[0] == 8 and s[1] == 256),
            ('batch, 256 channels of 14 x 14', 0, lambda s: s[1] == 256 and s[2] == 14),
        )
        for column, (label, dim, belongs) in enumerate(sweeps):
            for color, layer in zip(('C0', 'C1', 'C2'), ('CSA', 'SCSA', 'CA'), strict=True):
                rows = [r for r in _growth() if r['layer'] == layer and belongs(r['shape'])]
                rows.sort(key=lambda r: r['shape'][dim])
                x = [r['shape'][dim] for r in rows]
                for line, (here, printed) in enumerate(
                    (('milliseconds', 'literal_milliseconds'), ('peak_mb', 'literal_peak_mb'))
                ):
                    axis = axes[line][column]
                    axis.loglog(x, [r[here] for r in rows], color + 'o-', label=layer, base=2)
                    axis.loglog(x, [r[printed] for r in rows], color + '.:', label=layer + AS_PRINTED, base=2)
                    axis.grid(alpha=0.3)
            axes[1][column].set_xlabel(label)
        axes[0][0].set_ylabel('inference, ms')
        axes[1][0].set_ylabel('peak memory, MB')
        axes[0][0].legend()
        return figure

    save(PLOT, _growth(), draw)
