"""The page model_cards/RESULTS.md: how much the attentions help under equal recipes, from the logs of the runs."""

import statistics
import textwrap
from pathlib import Path

from common import CARDS, DATA, RECIPES, plot_is_stale, save_plot
from evidence import EXPERIMENTS, Experiment, is_finished

from timm_attn.train.log import read_summary
from timm_attn.weights import Weight, weights

PAGE = CARDS / 'RESULTS.md'
PLOT = DATA / 'results.png'
CIFAR_PLOT = DATA / 'cifar10.png'

Runs = dict[str, dict[int, float]]
"""Network -> seed -> top-1 (%) after the last epoch; the plain backbone first."""

_T = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306}
"""Degrees of freedom -> the 97.5 % point of Student's t."""


def runs_of(experiment: Experiment, family: tuple[str, ...], start: str) -> Runs:
    """Results of the runs that are finished; none while the plain backbone, to compare with, is not among them."""
    logs = {model: {seed: experiment.log(model, start, seed) for seed in experiment.seeds} for model in family}
    done = {
        model: {s: read_summary(log)[-1]['eval_top1'] for s, log in logs.items() if is_finished(log, experiment.epochs)}
        for model, logs in logs.items()
    }
    return {model: top1 for model, top1 in done.items() if top1} if done[family[0]] else {}


def cifar_runs() -> Runs:
    """Results of the CIFAR-10 networks, measured again in float32."""
    return {w.arch: {int(s): top1 for s, top1 in w.seeds.items()} for w in weights().values() if w.seeds}


def spread(values: list[float]) -> str:
    """Mean and, from two values on, their standard deviation."""
    mean = statistics.mean(values)
    return f'{mean:.2f} ± {statistics.stdev(values):.2f}' if len(values) > 1 else f'{mean:.2f}'


def verdict(values: list[float], plain: list[float]) -> str:
    """Difference of two means, and whether it is significant in a t-test (equal variances, two-sided, 95 %)."""
    difference = statistics.mean(values) - statistics.mean(plain)
    if min(len(values), len(plain)) < 2:
        return f'{difference:+.2f}, one seed'
    freedom = len(values) + len(plain) - 2
    pooled = sum((len(v) - 1) * statistics.variance(v) for v in (values, plain)) / freedom
    error = (pooled * (1 / len(values) + 1 / len(plain))) ** 0.5
    word = 'higher' if difference > 0 else 'lower'
    return f'{difference:+.2f}, {word if abs(difference) > _T[freedom] * error else "no clear difference"}'


def table(runs: Runs) -> str:
    """Networks, their seeds, mean and deviation, and how they differ from the plain one."""
    seeds = sorted({seed for top1 in runs.values() for seed in top1})
    head = ['network', *(f'seed {seed}' for seed in seeds), 'mean ± deviation', 'against plain']
    lines = [f'| {" | ".join(head)} |', '|---' * len(head) + '|']
    plain, *_ = runs
    for model, top1 in runs.items():
        cells = [f'{top1[seed]:.2f}' if seed in top1 else '-' for seed in seeds]
        values = list(top1.values())
        last = '' if model == plain else verdict(values, list(runs[plain].values()))
        lines.append(f'| {" | ".join([model, *cells, spread(values), last])} |')
    return '\n'.join(lines)


def helps(runs: Runs) -> str:
    """What the table says about the attentions, in a sentence."""
    plain, *others = runs
    words: dict[str, list[str]] = {'higher': [], 'lower': [], 'no clear difference': [], 'one seed': []}
    for model in others:
        words[verdict(list(runs[model].values()), list(runs[plain].values())).split(', ')[1]].append(model)
    said = {
        'higher': 'Higher than the plain network',
        'lower': 'Lower than the plain network',
        'no clear difference': 'No clear difference',
        'one seed': 'Only one seed',
    }
    sentences = [f'{said[word]}: {", ".join(models)}.' for word, models in words.items() if models]
    return textwrap.fill(' '.join(sentences), 120)


def _cifar_costs(rows: list[Weight]) -> str:
    lines = ['| network | parameters | GMACs | throughput relative to plain |', '|---|---|---|---|']
    for w in rows:
        speed = f'{w.throughput["relative"]:.2f}' if w.throughput else '-'
        lines.append(f'| {w.arch} | {w.params} | {w.gmacs:.4f} | {speed} |')
    return '\n'.join(lines)


def page() -> str:
    """The page."""
    small = [w for w in weights().values() if w.seeds]
    settings = sorted({w.throughput['setting'] for w in small if w.throughput})
    runs = cifar_runs()
    about = (
        f'ResNet-20 for 12 epochs, far from convergence (`{small[0].recipe}`). The weights of these runs ship with the '
        'package. Measured again in float32 on the 10,000 test images.'
    )
    text = f"""# Results

How much the attentions help when everything else is equal: one recipe for all networks, several seeds, top-1 on the
test images after the last epoch; no epoch was chosen. Rendered by `python scripts/render.py` from the logs in
`model_cards/data/logs`. ± is the standard deviation over the seeds. *Higher* and *lower* mark differences from the
plain network that are significant in a t-test (95 %). With two or three seeds, only large differences are.

## CIFAR-10 from scratch

{textwrap.fill(about, 120)}

{table(runs)}

{helps(runs)}

{_cifar_costs(small)}

Throughput: inference, {'; '.join(settings)}.

![Top-1 against multiply-adds and against throughput](data/cifar10.png)
"""
    missing = []
    for experiment in EXPERIMENTS.values():
        sections = ''
        for family in experiment.models:
            for start in experiment.starts:
                runs = runs_of(experiment, family, start)
                if len(runs) > 1:
                    sections += f'\n### {family[0]} from {start}\n\n{table(runs)}\n\n{helps(runs)}\n'
        if not sections:
            missing.append(experiment)
            continue
        commands = f'model_cards/data/logs/{experiment.name}/commands.txt'
        about = f'{experiment.about} Recipe: `{RECIPES}/{experiment.recipe}.yaml`; commands: `{commands}`.'
        if resumed := experiment.resumed():
            about += f' Interrupted and resumed: {", ".join(resumed)}.'
        text += f'\n## {experiment.title}\n\n{textwrap.fill(about, 120)}\n{sections}'
    if plot_data():
        caption = 'Difference in top-1 to the plain network, mean and range over the seeds'
        text += f'\n## All results\n\n![{caption}](data/results.png)\n'
    for experiment in missing:
        command = f'python scripts/evidence.py {experiment.name} --data-dir DIR --train-script train.py'
        text += f'\n## Not run yet: {experiment.title}\n\n{experiment.about} To run it: `{command}`.\n'
    return text


def plot_data() -> list[dict]:
    """What the plot shows: one panel a data set and family, one series a start."""
    panels = [dict(title='CIFAR-10', series={'scratch': cifar_runs()})]
    for experiment in EXPERIMENTS.values():
        for family in experiment.models:
            series = {start: runs_of(experiment, family, start) for start in experiment.starts}
            series = {start: runs for start, runs in series.items() if len(runs) > 1}
            if series:
                panels.append(dict(title=f'{experiment.title}, {family[0]}', series=series))
    return panels


def cifar_plot_data() -> list[dict]:
    """What the plot of the CIFAR-10 networks shows: one point a network."""
    return [
        dict(
            name=w.arch.removesuffix('_resnet20_cifar').removesuffix('resnet20_cifar') or 'plain',
            gmacs=w.gmacs,
            relative=(w.throughput or {}).get('relative'),
            top1=list(w.seeds.values()),
        )
        for w in weights().values()
        if w.seeds
    ]


def _range(values: list[float]) -> tuple[float, list[list[float]]]:
    """Mean, and the bars below and above it to the smallest and the largest."""
    mean = statistics.mean(values)
    return mean, [[mean - min(values)], [max(values) - mean]]


def _draw(plt):
    """Difference of each network to the plain one: horizontal bars, so that names and signs are read at a glance."""
    panels = plot_data()
    figure, axes = plt.subplots(1, len(panels), figsize=(4.8 * len(panels), 3.4), layout='constrained', squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        height = 0.7 / len(panel['series'])
        for i, (start, runs) in enumerate(panel['series'].items()):
            plain, *others = runs
            base = statistics.mean(runs[plain].values())
            for y, model in enumerate(others):
                mean, error = _range([top1 - base for top1 in runs[model].values()])
                label = f'from {start}, plain {base:.1f} %' if y == 0 else None
                style = dict(color=f'C{i}', ecolor='0.3', capsize=2, label=label)
                axis.barh(y + (i - (len(panel['series']) - 1) / 2) * height, mean, 0.9 * height, xerr=error, **style)
        axis.axvline(0, color='0.3', linewidth=1)
        axis.set_yticks(range(len(others)), [model.removesuffix(f'_{plain}').upper() for model in others])
        axis.invert_yaxis()
        axis.set(
            title=f'{panel["title"].partition(",")[0]}, {plain}',
            xlabel='difference in top-1 to the plain network (points)',
        )
        axis.grid(axis='x', alpha=0.3)
        axis.legend(fontsize='small', loc='best')
    return figure


def _draw_cifar(plt):
    data = cifar_plot_data()
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout='constrained')
    for axis, key, label in (
        (axes[0], 'gmacs', 'GMACs'),
        (axes[1], 'relative', 'throughput, relative to the plain network'),
    ):
        for point in data:
            if point[key] is None:
                continue
            mean, error = _range(point['top1'])
            axis.errorbar(point[key], mean, yerr=error, fmt='o', capsize=3)
            axis.annotate(point['name'], (point[key], mean), xytext=(6, 4), textcoords='offset points')
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel('CIFAR-10 top-1 (%), mean and range of the seeds')
    figure.suptitle('ResNet-20 with each attention')
    return figure


PLOTS = {PLOT: (plot_data, _draw), CIFAR_PLOT: (cifar_plot_data, _draw_cifar)}


def stale_plots() -> list[Path]:
    """Plots that show other data than the logs and the manifest hold."""
    return [path for path, (data, _) in PLOTS.items() if plot_is_stale(path, data())]


def write_plot(path: Path) -> None:
    """Draw one of the plots."""
    data, draw = PLOTS[path]
    save_plot(path, data(), draw)
