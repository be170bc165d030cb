"""The page model_cards/RESULTS.md: how much the attentions help under equal recipes, from the logs of the runs."""

import statistics
import textwrap
from pathlib import Path

from common import CARDS, DATA, RECIPES, ROOT, plot_is_stale, save_plot
from evidence import EXPERIMENTS, Experiment, is_finished
from studies import STUDIES, Study

from timm_attn.train.log import read_summary
from timm_attn.train.significance import Difference, difference

PAGE = CARDS / 'RESULTS.md'
PLOT = DATA / 'results.png'
CAPTION = 'Difference in top-1 to the plain network with its 95 % interval, each panel at its own scale'

Runs = dict[str, dict[int, float]]
"""Network -> seed -> a result in percent after the last epoch; the plain backbone first."""

STEP = 0.01
"""Step between possible results in percent, where the number of test images is not known: that of 10,000 images."""


def runs_of(experiment: Experiment, column: str) -> Runs:
    """Results of the runs that are finished; none while the plain backbone, to compare with, is not among them."""
    done: Runs = {model: {} for model in experiment.models}
    for model, seed in experiment.runs():
        if is_finished(log := experiment.log(model, seed), experiment.epochs):
            done[model][seed] = 100 * read_summary(log)[-1][column]
    return {model: results for model, results in done.items() if results} if done[experiment.models[0]] else {}


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


def step_of_study(study: Study, start: str) -> float:
    """Step between possible results of a comparison, in percent."""
    return 100 / study.results(start)['test_images']


def differences(runs: Runs, step: float = STEP) -> dict[str, Difference]:
    """How each network differs from the plain one, with Welch's interval (95 %)."""
    plain, *others = runs
    return {model: difference(list(runs[model].values()), list(runs[plain].values()), step) for model in others}


def table(runs: Runs, step: float = STEP) -> str:
    """Networks, their seeds, mean and deviation, and how they differ from the plain one."""
    seeds = sorted({seed for top1 in runs.values() for seed in top1})
    found = differences(runs, step)
    head = ['network', *(f'seed {seed}' for seed in seeds)]
    head += ['mean ± deviation'] * (len(seeds) > 1) + ['against plain'] * bool(found)
    lines = [f'| {" | ".join(head)} |', '|---' * len(head) + '|']
    for model, top1 in runs.items():
        cells = [model, *(f'{top1[seed]:.2f}' if seed in top1 else '-' for seed in seeds)]
        cells += [spread(list(top1.values()))] * (len(seeds) > 1)
        cells += [_against(found[model]) if model in found else ''] * bool(found)
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def _against(found: Difference) -> str:
    interval = '' if found.low is None else f' ({found.low:+.2f} to {found.high:+.2f})'
    return f'{found.mean:+.2f}{interval}, {found.words}'


def helps(runs: Runs, step: float = STEP) -> str:
    """What the table says about the attentions, in a sentence."""
    said = {
        'higher': 'Higher than the plain network',
        'lower': 'Lower than the plain network',
        'no clear difference': 'No clear difference',
        'too few seeds to tell': 'Too few seeds to tell',
    }
    words: dict[str, list[str]] = {word: [] for word in said}
    for model, found in differences(runs, step).items():
        words[found.words].append(model)
    sentences = [f'{said[word]}: {", ".join(models)}.' for word, models in words.items() if models]
    return textwrap.fill(' '.join(sentences), 120)


def page() -> str:
    """The page."""
    text = """# Results

How much the attentions help when everything else is equal: one recipe for all networks, several seeds, the result after
the last epoch; no epoch was chosen. It is top-1 on the test images where nothing else is said. Rendered by
`python scripts/render.py` from the logs in `model_cards/data/logs` and the reports in `model_cards/reports`.

± is the standard deviation over the seeds. *Higher* and *lower* mark differences from the plain network whose 95 %
interval (Welch's, in brackets) excludes zero. Each network is judged alone: with five against one, the chance that at
least one interval excludes zero although nothing differs is up to 25 %. The attentions are not compared with one
another, and several metrics of the same runs are not independent evidence. The networks and data are small, and the
training is short; none of this says what an attention does for a large network on ImageNet.
"""
    if plot_data():
        text += f'\n![{CAPTION}](data/results.png)\n'
    text += ''.join([*map(_study_section, STUDIES.values()), *map(_experiment_section, EXPERIMENTS.values())])
    for study in STUDIES.values():
        if not _study_section(study):
            begun = any(study.unfinished(start).exists() for start in study.starts)
            state = 'Under way' if begun else 'Not run yet'
            command = f'python scripts/studies.py {study.name} --data-dir DIR'
            text += _section(f'{state}: {study.title}', study.about) + f'\n```sh\n{command}\n```\n'
    for experiment in EXPERIMENTS.values():
        if not _experiment_section(experiment):
            command = f'python scripts/evidence.py {experiment.name} --data-dir DIR'
            command += ' --weights FILE' * experiment.needs_weights
            text += _section(f'Not run yet: {experiment.title}', experiment.about) + f'\n```sh\n{command}\n```\n'
    return text


def documents() -> dict[Path, str]:
    """Pages of the documentation that show the reports, at the places that the page links."""
    pages = {}
    for study in STUDIES.values():
        for start in study.starts:
            if study.results(start):
                place = f'reports/{study.report(start).name}/report.md'
                include = f'```{{include}} ../../../model_cards/{place}\n:relative-images:\n:start-line: 1\n```'
                pages[ROOT / 'docs' / place] = f'# {study.title}, {_from(start)}\n\n{include}\n'
    return pages


def _from(start: str) -> str:
    return 'from scratch' if start == 'scratch' else f'from {start.replace("cifar10", "CIFAR-10")} weights'


def _section(title: str, about: str) -> str:
    """Title and first paragraph of a section."""
    return f'\n## {title}\n\n{textwrap.fill(about, 120)}\n'


def _study_section(study: Study) -> str:
    """What a comparison of classifiers has found; empty where it was not run."""
    results, where = '', []
    for start in study.starts:
        if runs := runs_of_study(study, start):
            step = step_of_study(study, start)
            results += f'\n### {next(iter(runs))} {_from(start)}\n\n{table(runs, step)}\n\n{helps(runs, step)}\n'
            where.append(f'[{_from(start)}](reports/{study.report(start).name}/report.md)')
    if not results:
        return ''
    about = f'{study.about} Recipe: `{RECIPES}/{study.recipe}.yaml`; reports with all numbers: {", ".join(where)}.'
    return _section(study.title, about) + results


def _experiment_section(experiment: Experiment) -> str:
    """What a comparison of detectors or segmenters has found; empty where it was not run."""
    results = ''
    for column, label in experiment.metrics:
        if runs := runs_of(experiment, column):
            said = f'\n{helps(runs)}\n' if len(runs) > 1 else ''
            what = f'{experiment.models[0]} from {experiment.start}: {label}, {experiment.split} images'
            results += f'\n### {what}\n\n{table(runs)}\n{said}'
    if not results:
        return ''
    commands = f'model_cards/data/logs/{experiment.name}/commands.txt'
    about = f'{experiment.about} Recipe: `{RECIPES}/{experiment.name}.yaml`; commands: `{commands}`.'
    if resumed := experiment.resumed():
        about += f' Interrupted and resumed: {", ".join(resumed)}.'
    return _section(experiment.title, about) + results


def plot_data() -> list[dict]:
    """What the plot shows: one panel for each comparison of classifiers and start."""
    panels = []
    for study in STUDIES.values():
        for start in study.starts:
            if runs := runs_of_study(study, start):
                panels.append(dict(title=study.title, start=start, runs=runs, step=step_of_study(study, start)))
    return panels


def _bars(axis, runs: Runs, step: float) -> None:
    """Horizontal bars: each network's mean difference to the plain one, with the interval of it.

    Args:
        axis: Axis of matplotlib.
        runs: The results.
        step: Step between possible results.
    """
    for y, found in enumerate(differences(runs, step).values()):
        low, high = (found.mean, found.mean) if found.low is None else (found.low, found.high)
        axis.barh(
            y, found.mean, 0.62, color='0.75' if not found.differs else '#3b76af' if found.mean >= 0 else '#d9822b'
        )
        axis.plot([low, high], [y, y], color='0.2', linewidth=1.5)
        edge, offset, side = (high, 5, 'left') if found.mean >= 0 else (low, -5, 'right')
        text = dict(textcoords='offset points', ha=side, va='center')
        axis.annotate(f'{found.mean:+.1f}', (edge, y), (offset, 0), **text)
    axis.axvline(0, color='0.2', linewidth=1)
    plain, *others = runs
    axis.set_yticks(range(len(others)), [_short(model, plain) for model in others])
    axis.invert_yaxis()
    axis.margins(x=0.2)
    axis.tick_params(length=0)
    axis.set_xticks([])  # each bar has its value
    for edge in ('top', 'right', 'bottom', 'left'):
        axis.spines[edge].set_visible(False)


def _short(model: str, plain: str) -> str:
    """Name of the attention, where the rest of a network's name is that of the plain one."""
    attention = model.removesuffix(plain).rstrip('_')
    return model if attention == model else attention.upper()


def _draw(plt):
    """Difference of each network to the plain one; panels below each other, which a phone shows at full width."""
    panels = plot_data()
    with plt.rc_context({'font.size': 13}):
        figure, axes = plt.subplots(
            len(panels), 1, figsize=(6.4, 2.5 * len(panels)), layout='constrained', squeeze=False
        )
        for axis, panel in zip(axes.flat, panels, strict=True):
            runs, start = panel['runs'], panel['start']
            plain = statistics.mean(runs[next(iter(runs))].values())
            title = f'{panel["title"]}, {_from(start)} (plain: {plain:.1f} %)'
            axis.set_title(title, loc='left', fontsize='medium')
            _bars(axis, runs, panel['step'])
        figure.supxlabel(
            'Points of top-1 above or below the plain network, with the\n95 % interval. Grey: no clear difference.',
            fontsize='medium',
        )
        return figure


def is_stale() -> bool:
    """Whether the plot shows other data than the logs and the reports hold."""
    return plot_is_stale(PLOT, plot_data())


def write_plot() -> None:
    """Draw the plot."""
    save_plot(PLOT, plot_data(), _draw)
