"""The table of attentions: one row each, from which everything by name follows.

The file of a layer ends in its row. Warm starts, the benchmark, the documentation's table and the tests of
every property read the table, so a new attention is covered as soon as its row is there.
"""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, kw_only=True)
class Attention:
    """One row: a published attention that maps (B, C, H, W) to itself.

    Attributes:
        name: Short name, such as ``csa``.
        title: Name in words.
        layer: Builds the layer with the published arguments: ``layer(channels, **kwargs)``.
        layer_cls: Class of the layers that it builds.
        paper: arXiv identifier, such as ``arXiv:2405.05755``.
        placement: Original placement.
        zeroed: Layers whose weight and bias are zero at an identity start, which leaves every gate at sigmoid(0).
        gates: Number of gates that multiply the feature map; at an identity start it is scaled by ``0.5 ** gates``.
        formula: Name of the reference implementation in ``scripts/formulas.py`` that the benchmark compares with.
        authors_keys: Patterns and replacements that turn keys of the authors' layer into ours.
    """

    name: str
    title: str
    layer: Callable[..., nn.Module]
    layer_cls: type[nn.Module]
    paper: str
    placement: str
    zeroed: tuple[str, ...]
    gates: int
    formula: str | None = None
    authors_keys: tuple[tuple[str, str], ...] = ()

    def rename_key(self, key: str) -> str:
        """Key of the authors' layer -> our key; our own are returned as they are."""
        for pattern, replacement in self.authors_keys:
            key = re.sub(pattern, replacement, key)
        return key


_ATTENTIONS: dict[str, Attention] = {}


def register_attention(row: Attention) -> Attention:
    """Add a row to the table.

    Raises:
        ValueError: If the name is taken.
    """
    known = _ATTENTIONS.get(row.name)
    if known and known.layer.__module__ != row.layer.__module__:  # the same one may be loaded again
        raise ValueError(f'An attention named {row.name!r} is registered already.')
    _ATTENTIONS[row.name] = row
    return row


def list_attentions() -> list[str]:
    """Names of the registered attentions, sorted."""
    return sorted(_ATTENTIONS)


def get_attention(name: str) -> Attention:
    """Row of the table.

    Raises:
        ValueError: If there is no attention of that name; the message lists the nearest names.
    """
    if name not in _ATTENTIONS:
        near = difflib.get_close_matches(name, _ATTENTIONS, n=3)
        hint = f'did you mean {" or ".join(near)}?' if near else f'it must be one of {", ".join(list_attentions())}.'
        raise ValueError(f'Unknown attention {name!r}: {hint}')
    return _ATTENTIONS[name]


def attention_of(layer: nn.Module) -> Attention | None:
    """Row of a layer's class; None if it is not a registered attention."""
    rows = {row.layer_cls: row for row in _ATTENTIONS.values()}
    return next((rows[cls] for cls in type(layer).__mro__ if cls in rows), None)  # the most specific class
