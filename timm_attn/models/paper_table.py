"""Table 1 of CSA-Net: what it reports of attentions in ResNets, beside what is measured of the models here.

The reported figures and the remarks are in ``csa_net_table.json``. Whether measured and reported figures agree is
computed, in the digits of the table.
"""

import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from functools import partial
from pathlib import Path

import timm
import torch
from torch import nn

from ..layers import get_attention
from ..timing import calibrate_norms, ratio, take_turns
from .info import count_cost

_FILE = Path(__file__).with_name('csa_net_table.json')


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network of the table. Reported figures have the digits of the table; None stands for what was not read.

    Attributes:
        method: Name of the attention in the table.
        depth: 50 or 101, of the ResNet.
        model: Registered model; None if there is none.
        attention: Registered attention in place of the model's own.
        params: Reported parameters in millions.
        gflops: Reported GFLOPs.
        operations_per_mac: 2 if the reported GFLOPs count multiply and add separately.
        top1_error: Reported top-1 error in percent.
        top5_error: Reported top-5 error in percent.
    """

    method: str
    depth: int
    model: str | None
    attention: str | None = None
    params: str | None = None
    gflops: str | None = None
    operations_per_mac: int = 1
    top1_error: str | None = None
    top5_error: str | None = None

    @property
    def label(self) -> str | None:
        """Name of the model, with the attention that replaces its own."""
        return f'{self.model}, {self.attention}' if self.attention else self.model

    def build(self, device: str | torch.device = 'meta') -> nn.Module:
        """The network, untrained and in eval mode.

        Args:
            device: Device of the parameters.

        Raises:
            RuntimeError: If the model is not registered.
            ValueError: If there is no model for this row.
        """
        if self.model is None:
            raise ValueError(f'{self.method} has no model; its remark in the table says why.')
        args = dict(block_args=dict(attn_layer=get_attention(self.attention).layer)) if self.attention else {}
        return timm.create_model(self.model, device=device, **args).eval()


@dataclass(frozen=True, kw_only=True)
class Method:
    """An attention of the table.

    Attributes:
        name: Its name in the table.
        title: What it is, in words or as a citation.
        basis: What the model here rests on: ``timm``, ``authors' code``, ``reconstructed`` from a text or a parameter
            count alone, or ``not derivable``.
        remark: What is reconstructed or doubtful, and which reported figures cannot be met.
        rows: Its networks.
    """

    name: str
    title: str
    basis: str
    remark: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """The table.

    Attributes:
        title: What it shows.
        paper: arXiv identifier.
        input_size: Channels, height and width of the images that its figures are for.
        notes: How to read the reported figures.
        methods: Its attentions, the plain network first.
    """

    title: str
    paper: str
    input_size: tuple[int, int, int]
    notes: tuple[str, ...]
    methods: tuple[Method, ...]

    def rows(self, depths: Iterable[int] = (50, 101)) -> list[Row]:
        """Networks of these depths, by depth and then in the order of the methods."""
        return [row for depth in depths for method in self.methods for row in method.rows if row.depth == depth]


def read_table() -> Table:
    """The reported figures and the remarks."""
    content = json.loads(_FILE.read_text(encoding='utf-8'))
    methods = []
    for method in content.pop('methods'):
        rows = tuple(Row(method=method['name'], **row) for row in method.pop('rows'))
        methods.append(Method(**method, rows=rows))
    size, notes = tuple(content.pop('input_size')), tuple(content.pop('notes'))
    return Table(**content, input_size=size, notes=notes, methods=tuple(methods))


def measure_cost(row: Row, image_size: int) -> dict:
    """What a network costs, counted on the meta device.

    Args:
        row: The network.
        image_size: Side of the image.

    Returns:
        Its ``params``, its ``gmacs`` (multiply-adds of convolutions and matrix products in billions) and its
        ``activations`` (their output elements in millions), for one image.
    """
    model = row.build()
    gmacs, activations = count_cost(model, (3, image_size, image_size))
    params = sum(p.numel() for p in model.parameters())
    return dict(params=params, gmacs=round(gmacs, 6), activations=round(activations, 6))


def measure_time(
    rows: list[Row],
    image_size: int,
    batch_size: int,
    turns: int,
    device: torch.device,
    progress: Callable[[], object] = lambda: None,
) -> list[dict]:
    """Time of inference of networks that take turns, relative to the first one, in float32.

    Weights are random and batch norms calibrated, so that no attention is switched off.

    Args:
        rows: The networks, the plain one first.
        image_size: Side of the images.
        batch_size: Images in a batch.
        turns: Number of turns, after one that warms up.
        device: Where to run.
        progress: Called after each network that is built and after each pass, ``len(rows) * (turns + 2)`` times.

    Returns:
        For each network: the median of its ``milliseconds`` for a batch, and ``ratio``, ``least`` and ``most``, which
        are the median and the range of the ratios to the first network's time in the same turn.
    """
    images = torch.randn(batch_size, 3, image_size, image_size, device=device)

    def build(row: Row) -> nn.Module:
        torch.manual_seed(0)
        model = calibrate_norms(row.build(device), images)
        progress()
        return model

    def run(model: nn.Module) -> None:
        with torch.inference_mode():
            model(images)
        progress()

    passes: dict[int, Callable[[], object]] = {i: partial(run, build(row)) for i, row in enumerate(rows)}
    seconds = take_turns(passes, turns, device)
    return [
        dict(milliseconds=round(1e3 * statistics.median(of_row), 2), **ratio(of_row, seconds[0]))
        for of_row in seconds.values()
    ]


def agreement(reported: str | None, measured: float | None) -> str | None:
    """How a measured figure agrees with a reported one.

    Args:
        reported: Figure with the digits of the table.
        measured: Figure in the same unit.

    Returns:
        ``yes`` if the measured figure, rounded to the digits of the table, is the reported one; ``cut off`` if it is
        once further digits are cut off; otherwise ``no`` and by how much the measured one differs. None if a figure is
        missing.
    """
    if reported is None or measured is None:
        return None
    wanted = Decimal(reported)
    if Decimal(measured).quantize(wanted, ROUND_HALF_UP) == wanted:
        return 'yes'
    if Decimal(measured).quantize(wanted, ROUND_DOWN) == wanted:
        return 'cut off'
    return f'no, {100 * (measured / float(wanted) - 1):+.1f} %'


def compare(row: Row, measured: dict | None, image_size: int, table: Table) -> dict[str, str | None]:
    """How the parameters and the multiply-adds of a network agree with what is reported.

    Args:
        row: The network.
        measured: What :func:`measure_cost` returned; None if there is no model.
        image_size: Side of the image it was counted for. GFLOPs are compared at the table's size alone.
        table: The table.
    """
    if measured is None:
        return dict(params=None, gflops=None)
    gflops = measured['gmacs'] * row.operations_per_mac if image_size == table.input_size[-1] else None
    return dict(params=agreement(row.params, measured['params'] / 1e6), gflops=agreement(row.gflops, gflops))


HEAD = (
    'method', 'params (M), reported', 'params (M)', 'agrees', 'GFLOPs, reported', 'GMACs', 'agrees',
    'activations (M)', 'top-1 error (%), reported', 'top-5 error (%), reported', 'time', 'model',
)  # fmt: skip
"""Columns of :func:`cells`."""


def cells(row: Row, measured: dict | None, image_size: int, table: Table) -> tuple[str, ...]:
    """One row of the printed table; a dash stands for what is missing.

    Args:
        row: The network.
        measured: What was measured of it, as :func:`measure_cost` and :func:`measure_time` return it.
        image_size: Side of the image.
        table: The table.
    """
    agrees, here = compare(row, measured, image_size, table), measured or {}
    found = (
        row.method,
        row.params,
        f'{here["params"] / 1e6:.3f}' if here else None,
        agrees['params'],
        row.gflops,
        f'{here["gmacs"]:.3f}' if here else None,
        agrees['gflops'],
        f'{here["activations"]:.2f}' if here else None,
        row.top1_error,
        row.top5_error,
        _time(here) if 'ratio' in here else None,
        row.label,
    )
    return tuple(cell or '-' for cell in found)


def _time(measured: dict) -> str:
    median, least, most = (f'{measured[key]:.2f}' for key in ('ratio', 'least', 'most'))
    return median if least == most else f'{median} ({least} to {most})'
