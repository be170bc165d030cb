"""What the documentation says about speed, rendered from ``model_cards/data/benchmark.json``.

That file is written by ``scripts/benchmark.py``; ``scripts/render.py`` calls this.
"""

import json

from benchmark import REFERENCE_LAYERS, layers_with_formula
from common import DATA, plot_is_stale, save_plot

RUNS = DATA / 'benchmark.json'
PLOT = DATA / 'benchmark.png'
MAIN = ('csa_resnet50', 'scsa_resnet50', 'mbv2_ca', 'mbv2_scsa', f'csa_resnet50{REFERENCE_LAYERS}')


def section(links: str) -> str:
    """Everything that was measured: tables of models and layers, the machine of each run, the plot.

    Args:
        links: Folder of the plot, relative to the file that contains the section, ending in a slash.
    """
    parts = []
    for run in _runs():
        if run['models']:
            parts.append(f'{_models_tables(run["models"])}\n\n{_where(run)}.')
        if run.get('deploy'):
            parts.append(f'{_ways_tables(run["deploy"])}\n\n{_where(run)}.')
        if run == _layers_run():
            parts.append(f'{_layers_table(run["layers"])}\n\n{_where(run)}.')
    if _growth():
        parts.append(f'![Time and memory of the layers as channels, map and batch grow]({links}{PLOT.name})')
    return '\n\n'.join(parts)


def _where(run: dict) -> str:
    machine = run['machine']
    return (
        f'{machine["device"]}, {machine["threads"]} threads, torch {machine["torch"]}, timm {machine["timm"]}, '
        f'timm-attn {machine["timm_attn"]}, {machine["date"]}; median and range of {run["turns"]} turns'
        + (f'; with `{machine["allocator"]}`' if machine['allocator'] else '')
    )


def main_table() -> str:
    """The main models in the plain setting, relative to their plain backbones: one row each."""
    plain = dict(mode='eager', dtype='float32', layout='contiguous', image_size=224, batch_size=8)
    found: dict[tuple[str, str], tuple[dict, dict | None, dict]] = {}  # row, its reference's row, run
    for run in _runs():
        if run['machine']['allocator']:
            continue
        rows = [row for row in run['models'] if all(row[key] == value for key, value in plain.items())]
        references = {(row['model'], row['kind']): row for row in rows if row['model'] == row['reference']}
        found |= {(r['model'], r['kind']): (r, references.get((r['reference'], r['kind'])), run) for r in rows}
    lines = ['| model | relative to | inference | training step | training memory |', '|---|---|---|---|---|']
    used = []
    for name in MAIN:
        (inference, _, run), (training, reference, _) = found[name, 'inference'], found[name, 'training']
        memory = training['peak_mb'] / reference['peak_mb']
        lines.append(
            f'| {name.replace(REFERENCE_LAYERS, " with its reference implementation")} | {inference["reference"]} '
            f'| {_ratio(inference)} | {_ratio(training)} | {memory:.2f} |'
        )
        used += [_where(run)] * (_where(run) not in used)
    return '\n'.join(lines) + f'\n\nEager, float32, batches of 8 at 224 px. {". ".join(used)}.'


def _runs() -> list[dict]:
    return json.loads(RUNS.read_text()) if RUNS.exists() else []


def _models_tables(rows: list[dict]) -> str:
    """One table for each setting, with one line for each model: its inference and its training step."""
    settings: dict[str, dict[tuple[str, str], dict[str, dict]]] = {}
    for row in rows:
        setting = (
            f'{row["mode"]}, {row["dtype"]}, {row["layout"]}, batches of {row["batch_size"]} at {row["image_size"]} px'
        )
        lines = settings.setdefault(setting[0].upper() + setting[1:], {})
        lines.setdefault((row['model'], row['reference']), {})[row['kind']] = row
    tables = []
    for setting, lines in settings.items():
        table = [
            '| model | relative to | inference | training step | training memory (MB) |',
            '|---|---|---|---|---|',
        ]
        for (model, reference), kinds in lines.items():
            memory = f'{kinds["training"]["peak_mb"]:.0f}' if 'training' in kinds else '-'
            table.append(
                f'| {model} | {reference} | {_cell(kinds.get("inference"))} | {_cell(kinds.get("training"))} '
                f'| {memory} |'
            )
        tables.append(f'**{setting}**\n\n' + '\n'.join(table))
    return '\n\n'.join(tables)


def _ways_tables(rows: list[dict]) -> str:
    """One table for each batch and image size, with one line for each model and way to run it."""
    settings: dict[str, list[dict]] = {}
    for row in rows:
        setting = f'Ways to run a model, float32, batches of {row["batch_size"]} at {row["image_size"]} px'
        settings.setdefault(setting, []).append(row)
    tables = []
    for setting, lines in settings.items():
        table = [
            '| model | way | ms per image | relative to eager | relative to the plain backbone in the same way |',
            '|---|---|---|---|---|',
        ]
        table += [
            f'| {row["model"]} | {row["way"]} | {row["milliseconds"] / row["batch_size"]:.2f} '
            f'| {row["eager_ratio"]:.2f} ({row["eager_least"]:.2f} to {row["eager_most"]:.2f}) '
            f'| {"-" if row["model"] == row["reference"] else _ratio(row)} |'
            for row in lines
        ]
        tables.append(f'**{setting}**\n\n' + '\n'.join(table))
    return '\n\n'.join(tables)


def _cell(row: dict | None) -> str:
    if row is None:
        return '-'
    if row['model'] == row['reference']:
        return f'{row["milliseconds"] / row["batch_size"]:.2f} ms per image'
    return _ratio(row)


def _ratio(row: dict) -> str:
    return f'{row["ratio"]:.2f} ({row["least"]:.2f} to {row["most"]:.2f})'


def _layers_table(rows: list[dict]) -> str:
    lines = [
        '| layer | shape | ms | ms, reference | times as fast | MB | MB, reference |',
        '|---|---|---|---|---|---|---|',
    ]
    lines += [
        f'| {row["layer"]}, {row["kind"]} | {"x".join(map(str, row["shape"]))} | {row["milliseconds"]:.2f} '
        f'| {row["reference_milliseconds"]:.2f} | {row["speedup_ratio"]:.1f} ({row["speedup_least"]:.1f} to '
        f'{row["speedup_most"]:.1f}) | {row["peak_mb"]:.1f} | {row["reference_peak_mb"]:.1f} |'
        for row in rows
    ]
    return '\n'.join(lines)


def _layers_run() -> dict:
    """The latest run that measured layers: those of two machines do not belong into one plot."""
    return next((run for run in reversed(_runs()) if run['layers']), {})


def _growth() -> list[dict]:
    return [row for row in _layers_run().get('layers', []) if row['kind'] == 'inference']


def is_stale() -> bool:
    """Whether the plot shows other data than the runs hold."""
    return plot_is_stale(PLOT, _growth())


def write_plot() -> None:
    """Draw how time and memory of the layers grow."""

    def draw(plt):
        sweeps = (  # label, axis of the shape, what is fixed
            ('channels (8 maps of 7 x 7)', 1, lambda s: s[0] == 8 and s[2] == 7),
            ('side of the map (8 x 256 channels)', 2, lambda s: s[0] == 8 and s[1] == 256),
            ('images (256 channels of 14 x 14)', 0, lambda s: s[1] == 256 and s[2] == 14),
        )
        with plt.rc_context({'font.size': 13}):
            figure, axes = plt.subplots(3, 2, figsize=(8.4, 10.5), layout='constrained')
            for line, (label, dim, belongs) in enumerate(sweeps):
                for color, layer in ((f'C{i}', name) for i, name in enumerate(layers_with_formula())):
                    rows = [r for r in _growth() if r['layer'] == layer and belongs(r['shape'])]
                    rows.sort(key=lambda r: r['shape'][dim])
                    x = [r['shape'][dim] for r in rows]
                    for axis, key in zip(axes[line], ('milliseconds', 'peak_mb'), strict=True):
                        axis.plot(x, [r[key] for r in rows], color + 'o-', label=layer.upper())
                        axis.plot(x, [r[f'reference_{key}'] for r in rows], color + ':')
                        axis.set(xscale='log', yscale='log', xlabel=label)
                        axis.set_xticks(x, map(str, x))
                        axis.yaxis.set_major_locator(plt.LogLocator(subs=(1, 3)))
                        axis.yaxis.set_major_formatter('{x:g}')
                        axis.minorticks_off()
                        axis.grid(alpha=0.3)
            axes[0][0].set_title('Inference, ms')
            axes[0][1].set_title('Peak memory, MB')
            figure.legend(
                *axes[0][0].get_legend_handles_labels(),
                title='Dotted: the reference implementation',
                loc='outside upper center',
                ncols=3,
            )
            return figure

    save_plot(PLOT, _growth(), draw)
