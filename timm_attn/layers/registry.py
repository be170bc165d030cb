"""The table of attentions: one row each, from which everything by name follows.

The file of a layer ends in its row. Warm starts, the benchmark, the documentation's table and the tests of
every property read the table, so a new attention is covered as soon as its row is there.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .gates import DoubleSigmoid


def _as_it_is(key: str, value: torch.Tensor) -> torch.Tensor:
    return value


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention:
    """One row: a published attention.

    It maps (B, C, H, W) to itself unless ``part_of`` is set. How it starts as an exact identity follows from ``gates``
    and ``zeroed``: through its gates; by itself where layers are zeroed but no gate is named; through a residual weight
    where neither is.

    Attributes:
        name: Short name, such as ``csa``.
        title: Name in words.
        layer: Builds the layer with the published arguments: ``layer(channels, **kwargs)``.
        layer_cls: Class of the layers that it builds.
        paper: arXiv identifier, such as ``arXiv:2405.05755``, or URL of a paper that is not there.
        placement: Original placement.
        zeroed: Layers whose weight and bias, or parameters that themselves, are zero at an identity start, which leaves
            the input of every gate at zero.
        gates: Number of gates that multiply the feature map. With ``zeroed`` at zero it is scaled by ``0.5 ** gates``
            where they are sigmoids, which a warm start needs; another gate can start as an identity through
            ``identity_gate`` alone.
        identity_gate: Gate in place of the published one that is one at zero; ``layer`` takes it as ``gate_layer``.
        slots: Where in a residual block it was published: ``mid``, after the spatial convolution in the middle, or
            ``out``, after the last norm, before the addition of the shortcut.
        blocks: The blocks of a stage that have it as published: ``all``, or the ``last`` one.
        between_stages: Whether it was published at the end of every stage but the last.
        same_as: Classes of timm that are the same kind of attention, by name, for a model that has it already.
        attach_args: Arguments of ``layer`` where it is attached, if they are others than where models here use it.
        size_arg: Argument of ``layer`` for the side of the map that it is made for, where it depends on one.
        part_of: What a block or stage must hand to it, in words, where it is no map from (B, C, H, W) to itself.
        formula: Name of the reference implementation in ``scripts/formulas.py`` that the benchmark compares with.
        authors_keys: Patterns and replacements that turn keys of the authors' layer into ours; a tensor whose key
            becomes empty is left out.
        authors_tensor: Turns a tensor of the authors' layer into ours, given our key, where more than its name differs.
    """

    name: str
    title: str
    layer: Callable[..., nn.Module]
    layer_cls: type[nn.Module]
    paper: str
    placement: str
    zeroed: tuple[str, ...] = ()
    gates: int = 0
    identity_gate: type[nn.Module] = DoubleSigmoid
    slots: tuple[str, ...] = ()
    blocks: str = 'all'
    between_stages: bool = False
    same_as: tuple[str, ...] = ()
    attach_args: Mapping[str, Any] = field(default_factory=dict)
    size_arg: str | None = None
    part_of: str | None = None
    formula: str | None = None
    authors_keys: tuple[tuple[str, str], ...] = ()
    authors_tensor: Callable[[str, torch.Tensor], torch.Tensor] = _as_it_is

    def is_zeroed(self, key: str) -> bool:
        """Whether a tensor of the layer is zero at an identity start."""
        layer, _, name = key.rpartition('.')
        return key in self.zeroed or (layer in self.zeroed and name in ('weight', 'bias'))

    def rename_key(self, key: str) -> str:
        """Key of the authors' layer -> our key; our own are returned as they are."""
        for pattern, replacement in self.authors_keys:
            key = re.sub(pattern, replacement, key)
        return key

    def convert(self, key: str, value: torch.Tensor) -> tuple[str, torch.Tensor] | None:
        """Key and tensor of the authors' layer -> ours, None where ours has none; our own are returned as they are."""
        ours = self.rename_key(key)
        if ours == key:
            return key, value
        return (ours, self.authors_tensor(ours, value)) if ours else None


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


def list_attentions(parts: bool = False) -> list[str]:
    """Names of the registered attentions, sorted.

    Args:
        parts: Also those that are part of a block or a stage, which are no maps from (B, C, H, W) to itself.
    """
    return sorted(name for name, row in _ATTENTIONS.items() if parts or not row.part_of)


def get_attention(name: str) -> Attention:
    """Row of the table.

    Raises:
        ValueError: If there is no attention of that name; the message lists the nearest names.
    """
    if name not in _ATTENTIONS:
        near = difflib.get_close_matches(name.lower(), _ATTENTIONS, n=3)
        hint = (
            f'did you mean {" or ".join(near)}?'
            if near
            else f'it must be one of {", ".join(list_attentions(parts=True))}.'
        )
        raise ValueError(f'Unknown attention {name!r}: {hint}')
    return _ATTENTIONS[name]


def attention_of(layer: nn.Module) -> Attention | None:
    """Row of a layer's class; None if it is not a registered attention."""
    rows = {row.layer_cls: row for row in _ATTENTIONS.values()}
    return next((rows[cls] for cls in type(layer).__mro__ if cls in rows), None)  # the most specific class
