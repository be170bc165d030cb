"""The page model_cards/RESULTS.md: how much the attentions help under equal recipes, from the logs of the runs."""

import statistics
import textwrap
from collections.abc import Collection
from pathlib import Path

from common import CARDS, DATA, RECIPES, plot_is_stale, save_plot
from evidence import EXPERIMENTS, Experiment, is_finished
from studies import STUDIES, Study

from timm_attn.train.log import read_summary
from timm_attn.train.significance import difference
from timm_attn.weights import Weight, weights

PAGE = CARDS / 'RESULTS.md'
PLOT = DATA / 'results.png'
CIFAR_PLOT = DATA / 'cifar10.png'

Runs = dict[str, dict[int, float]]
"""Network -> seed -> a result in percent after the last epoch; the plain backbone first."""

STEP = 0.01
"""Step between possible results in percent: that of 10,000 images. Where there are fewer, the spread is larger."""


def runs_of(experiment: Experiment, family: tuple[str, ...], start: str, column: str = '') -> Runs:
    """Results of the runs that are finished; none while the plain backbone, to compare with, is not among them."""
    column = column or experiment.metrics[0][0]
    logs = {model: {seed: experiment.log(model, start, seed) for seed in experiment.seeds} for model in family}
    done = {
        model: {
            seed: experiment.percent(read_summary(log)[-1], column)
            for seed, log in logs.items()
            if is_finished(log, experiment.epochs)
        }
        for model, logs in logs.items()
    }
    return {model: results for model, results in done.items() if results} if done[family[0]] else {}


def cifar_weights() -> list[Weight]:
    """Weights of the CIFAR-10 networks that were trained under one recipe, with several seeds."""
    return [w for w in weights().values() if w.seeds and len(w.seeds) > 1]


def cifar_runs() -> Runs:
    """Results of the CIFAR-10 networks, measured again in float32."""
    return {w.arch: {int(s): top1 for s, top1 in w.seeds.items()} for w in cifar_weights()}


def runs_of_study(study: Study, start: str) -> Runs:
    """Results of a comparison, by network without the tag of its weights; none where it was not run."""
    networks = (study.results(start) or dict(networks=[]))['networks']
    return {
        one['network'].partition('.')[0]: {int(seed): top1 for seed, top1 in one['top1'].items()}
        for one in networks
        if 'top1' in one
    }


def spread(values: list[float]) -> str:
    """Mean and, from two values on, their standard deviation."""
    mean = statistics.mean(values)
    return f'{mean:.2f} ± {statistics.stdev(values):.2f}' if len(values) > 1 else f'{mean:.2f}'


def verdict(values: list[float], plain: list[float]) -> str:
    """Difference of two means, and whether Welch's interval (95 %) excludes zero."""
    found = difference(values, plain, STEP)
    return f'{found.mean:+.2f}, {"one seed" if found.differs is None else found.words}'


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
    small = cifar_weights()
    settings = sorted({w.throughput['setting'] for w in small if w.throughput})
    runs = cifar_runs()
    about = (
        f'ResNet-20 for 12 epochs, far from convergence (`{small[0].recipe}`). The weights of these runs ship with the '
        'package. Measured again in float32 on the 10,000 test images.'
    )
    text = f"""# Results

How much the attentions help when everything else is equal: one recipe for all networks, several seeds, the result after
the last epoch; no epoch was chosen. It is top-1 on the test images where nothing else is said. Rendered by
`python scripts/render.py` from the logs in `model_cards/data/logs` and the reports in `model_cards/reports`. ± is the
standard deviation over the seeds. *Higher* and *lower* mark differences from the plain network whose 95 % interval
(Welch's) excludes zero. With two or three seeds, only large differences do.

## CIFAR-10 from scratch

{textwrap.fill(about, 120)}

{table(runs)}

{helps(runs)}

{_cifar_costs(small)}

Throughput: inference, {'; '.join(settings)}.

![Difference of each attention to the plain network in top-1 and in throughput](data/cifar10.png)
"""
    for study in STUDIES.values():
        text += _study_section(study)
    missing = []
    for experiment in EXPERIMENTS.values():
        sections = ''
        for family in experiment.models:
            for start in experiment.starts:
                for column, label in experiment.metrics:
                    runs = runs_of(experiment, family, start, column)
                    if len(runs) > 1 or (runs and len(family) == 1):
                        of = '' if experiment.tool == 'train.py' else f': {label}, {experiment.split} images'
                        said = f'\n{helps(runs)}\n' if len(runs) > 1 else ''
                        sections += f'\n### {family[0]} from {start}{of}\n\n{table(runs)}\n{said}'
        if not sections:
            missing.append(experiment)
            continue
        commands = f'model_cards/data/logs/{experiment.name}/commands.txt'
        about = f'{experiment.about} Recipe: `{RECIPES}/{experiment.recipe}.yaml`; commands: `{commands}`.'
        if resumed := experiment.resumed():
            about += f' Interrupted and resumed: {", ".join(resumed)}.'
        text += f'\n## {experiment.title}\n\n{textwrap.fill(about, 120)}\n{sections}'
    if plot_data():
        caption = 'Difference in top-1 to the plain network, mean and range over the seeds, each panel at its own scale'
        text += f'\n## All results\n\n![{caption}](data/results.png)\n'
    for study in STUDIES.values():
        if not any(runs_of_study(study, start) for start in study.starts):
            command = f'python scripts/studies.py {study.name} --data-dir DIR'
            begun = any(study.unfinished(start).exists() for start in study.starts)
            state = 'Under way' if begun else 'Not run yet'
            todo = textwrap.fill(f'{study.about} To {"go on with" if begun else "run"} it: `{command}`.', 120)
            text += f'\n## {state}: {study.title}\n\n{todo}\n'
    for experiment in missing:
        needs = (
            ' --train-script train.py' * (experiment.tool == 'train.py') + ' --weights FILE' * experiment.needs_weights
        )
        command = f'python scripts/evidence.py {experiment.name} --data-dir DIR{needs}'
        text += f'\n## Not run yet: {experiment.title}\n\n{experiment.about} To run it: `{command}`.\n'
    return text


def _study_section(study: Study) -> str:
    """What a comparison has found; empty where it was not run."""
    sections, where = '', []
    for start in study.starts:
        if runs := runs_of_study(study, start):
            sections += f'\n### {next(iter(runs))} from {start}\n\n{table(runs)}\n\n{helps(runs)}\n'
            where.append(f'[from {start}](reports/{study.report(start).name}/report.md)')
    if not sections:
        return ''
    about = f'{study.about} Recipe: `{RECIPES}/{study.name}.yaml`; reports with all numbers: {", ".join(where)}.'
    return f'\n## {study.title}\n\n{textwrap.fill(about, 120)}\n{sections}'


def plot_data() -> list[dict]:
    """What the plot shows: one panel a data set and family, one series a start."""
    panels = [dict(title='CIFAR-10', series={'scratch': cifar_runs()})]
    for study in STUDIES.values():
        series = {start: runs for start in study.starts if (runs := runs_of_study(study, start))}
        if series:
            panels.append(dict(title=study.title, series=series))
    for experiment in EXPERIMENTS.values():
        for family in experiment.models if experiment.tool == 'train.py' else ():
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
        for w in cifar_weights()
    ]


def _bars(
    axis, rows: dict[str, tuple[float, float, float]], title: str, text: str, unclear: Collection[str] = ()
) -> None:
    """Horizontal bars from zero, to the right or the left, each with its range and its value.

    Args:
        axis: Axis of matplotlib.
        rows: Label -> value, the smallest and the largest.
        title: What the bars show, above them.
        text: Format of the values.
        unclear: Labels whose difference cannot be told from chance; their bars are grey.
    """
    for y, (name, (value, least, most)) in enumerate(rows.items()):
        axis.barh(y, value, 0.62, color='0.75' if name in unclear else '#3b76af' if value >= 0 else '#d9822b')
        if most > least:
            axis.plot([least, most], [y, y], color='0.2', linewidth=1.5)
        edge, side = (most, 'left') if value >= 0 else (least, 'right')
        offset = (5 if value >= 0 else -5, 0)
        axis.annotate(text.format(value), (edge, y), offset, textcoords='offset points', ha=side, va='center')
    axis.axvline(0, color='0.2', linewidth=1)
    axis.set_yticks(range(len(rows)), list(rows))
    axis.invert_yaxis()
    axis.margins(x=0.2)
    axis.set_title(title, loc='left', fontsize='medium')
    axis.tick_params(length=0)
    axis.set_xticks([])  # each bar has its value
    for side in ('top', 'right', 'bottom', 'left'):
        axis.spines[side].set_visible(False)


def _differences(runs: Runs) -> dict[str, tuple[float, float, float]]:
    """Attention -> mean difference in top-1 to the plain network, the smallest and the largest of its seeds."""
    plain, *others = runs
    base = statistics.mean(runs[plain].values())
    rows = {}
    for model in others:
        values = [top1 - base for top1 in runs[model].values()]
        rows[_short(model)] = (statistics.mean(values), min(values), max(values))
    return rows


def _unclear(runs: Runs) -> set[str]:
    """Attentions whose difference to the plain network a t-test cannot tell from chance."""
    plain, *others = runs
    values = {model: list(top1.values()) for model, top1 in runs.items()}
    return {_short(m) for m in others if not verdict(values[m], values[plain]).endswith(('higher', 'lower'))}


def _short(model: str) -> str:
    return model.removesuffix('resnet20_cifar').rstrip('_').upper()


def _draw(plt):
    """Difference of each network to the plain one; panels below each other, which a phone shows at full width."""
    starts = [(panel, start, runs) for panel in plot_data() for start, runs in panel['series'].items()]
    with plt.rc_context({'font.size': 13}):
        figure, axes = plt.subplots(len(starts), 1, figsize=(6.4, 2.5 * len(starts)), layout='constrained')
        for axis, (panel, start, runs) in zip([axes] if len(starts) == 1 else axes, starts, strict=True):
            plain = statistics.mean(runs[next(iter(runs))].values())
            begin = 'from scratch' if start == 'scratch' else f'from {start.replace("cifar10", "CIFAR-10")} weights'
            title = f'{panel["title"].partition(",")[0]}, {begin} (plain: {plain:.1f} %)'
            _bars(axis, _differences(runs), title, '{:+.1f}', _unclear(runs))
        figure.supxlabel(
            'Points of top-1 above or below the plain network.\nGrey: no clear difference.', fontsize='medium'
        )
        return figure


def _draw_cifar(plt):
    """What each attention gains in top-1, and what it costs in throughput."""
    plain, *data = cifar_plot_data()
    base = statistics.mean(plain['top1'])
    gains, costs = {}, {}
    for point in data:
        values = [top1 - base for top1 in point['top1']]
        gains[point['name'].upper()] = (statistics.mean(values), min(values), max(values))
        if point['relative'] is not None:
            cost = 100 * (point['relative'] - 1)
            costs[point['name'].upper()] = (cost, cost, cost)
    with plt.rc_context({'font.size': 13}):
        figure, axes = plt.subplots(2, 1, figsize=(6.4, 5.2), layout='constrained')
        _bars(axes[0], gains, f'Top-1, points (plain: {base:.1f} %)', '{:+.1f}')
        _bars(axes[1], costs, 'Throughput, against the plain network', '{:+.0f} %')
        return figure


PLOTS = {PLOT: (plot_data, _draw), CIFAR_PLOT: (cifar_plot_data, _draw_cifar)}


def stale_plots() -> list[Path]:
    """Plots that show other data than the logs and the manifest hold."""
    return [path for path, (data, _) in PLOTS.items() if plot_is_stale(path, data())]


def write_plot(path: Path) -> None:
    """Draw one of the plots."""
    data, draw = PLOTS[path]
    save_plot(path, data(), draw)
