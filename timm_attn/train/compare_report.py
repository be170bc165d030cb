"""The report of a comparison."""

import shlex
from collections.abc import Mapping, Sequence

from .. import __version__
from ..report import Block, Cell, Code, Column, Page, Section, Table, Text
from ..report.figures import intervals, scatter
from .answers import BINS
from .compare_results import Network, Results
from .report_blocks import class_blocks, confusion_figures, curves_figures, recipe_table, reliability_figures

_NOTES = {'higher': 'better', 'lower': 'worse'}


def make_page(results: Results, disagreements: Sequence[Block] = (), without: Mapping[str, str] | None = None) -> Page:
    """The report of a comparison.

    Args:
        results: What it has found.
        disagreements: The images on which the networks disagree.
        without: Networks that have no maps: why.
    """
    finished = results.finished
    answers = {network.label: list(network.answers.values()) for network in finished}
    sections = [
        Section('Result', _result(results)),
        Section('Cost', _cost(results)),
        Section('Over the epochs', curves_figures({n.label: list(n.logs.values()) for n in finished})),
        Section('By class', class_blocks(answers)),
        Section('Confusion', confusion_figures(answers)),
        Section('Calibration', _calibration(results, answers)),
        Section('Where they disagree', [*disagreements, *_without_maps(without or {})]),
        Section('How it was made', _how(results)),
    ]
    where = ', '.join(f'{key} {value}' for key, value in results.machine.items() if value)
    return Page(
        title=f'{_contestants(results)} on {results.data}',
        lead=_lead(results),
        sections=[section for section in sections if section.blocks],
        footer=f'Made by timm-attn {__version__} on {where}.',
    )


def _contestants(results: Results) -> str:
    labels = [network.label for network in results.networks]
    return ', '.join(labels) if len(labels) <= 3 else f'{labels[0]} and {len(labels) - 1} other networks'


def _lead(results: Results) -> str:
    reference, *others = results.networks
    parts = []
    for network in others:
        found = results.difference(network)
        if found is None:
            continue
        interval = '' if found.low is None else f' (95 % interval {found.low:+.2f} to {found.high:+.2f})'
        parts.append(f'**{network.label}**: {found.mean:+.2f} points of top-1{interval}, {found.words}.')
    start = 'their pretrained weights' if results.pretrained else 'random weights'
    about = (
        f'Each network was trained on {results.trained_on} images from {start}, and tested on {results.tested_on}. '
        f'Against **{reference.label}**: '
    )
    return about + (' '.join(parts) or 'nothing can be said, as it has no result or nothing else has.')


def _result(results: Results) -> list[Block]:
    reference = results.networks[0]
    columns = [
        Column('network', 'network'),
        Column('seeds', 'seeds', help='Runs that were finished.'),
        Column('top1', 'top-1', 2, '%', 'Mean over the seeds after the last epoch; no epoch was chosen.'),
        Column('deviation', 'deviation', 2, '', 'Standard deviation over the seeds.'),
        Column('difference', 'difference', 2, 'points', f'Mean top-1 minus that of {reference.label}.'),
        Column('interval', '95 % interval', align='right', help="Welch's interval of the difference."),
        Column('verdict', 'verdict', help='Whether the interval excludes zero.'),
    ]
    rows = [_row(results, network) for network in results.networks]
    blocks: list[Block] = [Table(columns, rows, 'Accuracy on the test images'), Text(_how_to_read(results))]
    drawn = [(n.label, n.mean, *_bounds(n)) for n in results.finished]
    of_reference = reference.mean if reference.answers else None
    blocks.append(intervals(drawn, 'top-1 (%): mean, lowest and highest seed', of_reference))
    found = [(n.label, d) for n in results.finished if (d := results.difference(n)) and d.low is not None]
    if found:
        rows_of = [(label, d.mean, d.low or 0.0, d.high or 0.0) for label, d in found]
        blocks.append(intervals(rows_of, 'difference (points of top-1)', 0.0))
    seeds = _seeds(results)
    of_runs = [Column('network', 'network'), *(Column(str(seed), f'seed {seed}', 2, '%') for seed in seeds)]
    runs = [{'network': n.label, **{str(seed): a.top1 for seed, a in n.answers.items()}} for n in results.finished]
    blocks.append(Table(of_runs, runs, 'Top-1 of each run'))
    for network in results.networks:
        for seed, why in network.failures.items():
            blocks.append(Text(f'**{network.label}, seed {seed}, failed**: {why}'))
    return blocks


def _row(results: Results, network: Network) -> dict[str, object]:
    row: dict[str, object] = dict(network=network.label, seeds=len(network.answers))
    if not network.answers:
        return row | dict(verdict=Cell('failed', 'failed'))
    row |= dict(top1=network.mean, deviation=network.deviation)
    if network is results.networks[0]:
        return row | dict(verdict=Cell('', 'reference'))
    if found := results.difference(network):
        row['difference'] = Cell(found.mean, f'{found.mean:+.2f}')
        if found.low is not None:
            row['interval'] = Cell(found.low, f'{found.low:+.2f} to {found.high:+.2f}')
        row['verdict'] = Cell(found.words, found.words, _NOTES.get(found.words, ''))  # type: ignore[arg-type]
    return row


def _bounds(network: Network) -> tuple[float, float]:
    return min(network.top1), max(network.top1)


def _seeds(results: Results) -> list[int]:
    return sorted({seed for network in results.networks for seed in network.answers})


def _how_to_read(results: Results) -> str:
    others = len(results.finished) - 1
    many = (
        f' With {others} networks against one, the chance that at least one interval excludes zero although nothing '
        f'differs is up to {min(5 * others, 100)} %.'
        if others > 1
        else ''
    )
    return (
        "A difference is called higher or lower only if its 95 % interval (Welch's, over the seeds, which are not "
        'paired) excludes zero. Identical networks are called different in about 5 % of comparisons or fewer.'
        f'{many} The interval says what other seeds would change; other images may change more. Accuracies are those '
        'of float32, whatever the precision of the training.'
    )


def _cost(results: Results) -> list[Block]:
    measured = [network for network in results.networks if network.cost]
    if not measured:
        return []
    first = measured[0].label
    columns = [
        Column('network', 'network'),
        Column('size', 'images', 0, 'px', 'Side of the images that it was trained on.'),
        Column('params', 'parameters', 3, 'M'),
        Column('gmacs', 'multiply-adds', 3, 'G', 'Of one image, counted in convolutions and matrix products.'),
        Column('inference', 'inference', 2, 'x', f'Time of a forward pass relative to {first}: median of the turns.'),
        Column('training', 'training step', 2, 'x', f'Time of a training step relative to {first}.'),
        Column('memory', 'training memory', 2, 'x', f'Peak memory of a training step relative to {first}.'),
        Column(
            'hours',
            'hours trained',
            2,
            'h',
            'Wall-clock time of all runs of the network, validation included; other work on the machine counts.',
        ),
    ]
    rows, points = [], []
    for network in measured:
        cost = network.cost
        assert cost is not None
        rows.append(
            dict(
                network=network.label,
                size=cost.size,
                params=cost.params / 1e6,
                gmacs=cost.gmacs,
                inference=_times(cost.inference, cost.inference_range),
                training=_times(cost.training, cost.training_range),
                memory=cost.memory,
                hours=network.seconds / 3600,
            )
        )
        points.append((network.label, cost.inference, network.mean, *_bounds(network), ''))
    return [
        Table(columns, rows, f'Cost; times and memory in float32, relative to {first}, with the range over the turns'),
        scatter(points, 'time of a forward pass (reference: 1)', 'top-1 (%)'),
    ]


def _times(median: float, bounds: tuple[float, float]) -> Cell:
    return Cell(median, f'{median:.2f} ({bounds[0]:.2f} to {bounds[1]:.2f})')


def _calibration(results: Results, answers: dict) -> list[Block]:
    columns = [
        Column('network', 'network'),
        Column('error', 'expected calibration error', 2, '%', 'Mean over the seeds; smaller is better.'),
    ]
    rows = [dict(network=n.label, error=n.calibration_error) for n in results.finished]
    text = (
        'Of the answers that a network gives with a confidence of 80 %, 80 % should be right. The expected calibration '
        f'error is the mean distance from that, over {BINS} bins of confidence (arXiv 1706.04599, equation 5).'
    )
    return [Text(text), Table(columns, rows, 'Calibration'), *reliability_figures(answers)]


def _without_maps(without: Mapping[str, str]) -> list[Block]:
    return [Text(f'**{label}** has no maps: {why}') for label, why in without.items()]


def _how(results: Results) -> list[Block]:
    blocks: list[Block] = [Code(shlex.join(results.command))]
    if results.plan:
        blocks.append(Text(f'`{results.plan}`'))
    blocks.append(
        Text('Each run is `timm-attn finetune` with these options, and with the model and the seed of its folder.')
    )
    blocks.append(recipe_table(results.recipe, 'Recipe of all runs'))
    return blocks
