"""The networks of a comparison, as they are named on the command line."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..layers.attach import WHERE, AttachError, resolve_attention
from .options import RunError

_LOCAL = 'local-dir:'


@dataclass(frozen=True)
class Contestant:
    """A network of a comparison.

    Attributes:
        label: Its name on the command line and in the report.
        model: Name for timm.
        kwargs: Arguments of the model.
    """

    label: str
    model: str
    kwargs: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def folder(self) -> str:
        """Its name as that of a file; of a long one the end."""
        return ''.join(letter if letter.isalnum() or letter in '._-+@' else '_' for letter in self.label)[-100:]

    @property
    def options(self) -> list[str]:
        """It as options of ``timm-attn finetune``."""
        kwargs = [f'{key}={value}' for key, value in self.kwargs.items()]
        return ['--model', self.model, *(['--model-kwargs', *kwargs] if kwargs else [])]


def parse_contestant(name: str) -> Contestant:
    """A network from its name: ``MODEL``, or ``MODEL+ATTENTION`` or ``MODEL+ATTENTION@WHERE`` for an attached one.

    Raises:
        RunError: If a part of the name is empty, there is no such attention, or the place is none of those of
            :func:`timm_attn.attach`.
    """
    if name.startswith(_LOCAL):  # the same from any folder that the comparison is resumed in
        name = f'{_LOCAL}{Path(name.removeprefix(_LOCAL)).resolve()}'
        return Contestant(name, name)
    backbone, plus, attention = name.partition('+')
    if not plus or ':' in backbone:
        return Contestant(name, name)
    attention, at, where = attention.partition('@')
    if not backbone or not attention or (at and where not in WHERE):
        raise RunError(f'--models {name}: write MODEL+ATTENTION or MODEL+ATTENTION@WHERE, WHERE {" or ".join(WHERE)}.')
    try:
        resolve_attention(attention)
    except AttachError as e:
        raise RunError(f'--models {name}: {e}') from None
    kwargs = dict(backbone=backbone, attention=attention) | (dict(where=where) if at else {})
    return Contestant(name, 'attached', kwargs)


def parse_contestants(names: Sequence[str]) -> list[Contestant]:
    """Networks from their names, the first of which the others are compared with.

    Raises:
        RunError: If there are fewer than two, one is named twice, or a name is not valid.
    """
    if len(names) < 2:
        raise RunError('--models needs two or more: the first is what the others are compared with.')
    contestants = [parse_contestant(name) for name in names]
    folders = [one.folder.casefold() for one in contestants]
    if twice := sorted({name for name, folder in zip(names, folders, strict=True) if folders.count(folder) > 1}):
        raise RunError(f'--models names {" and ".join(twice)} more than once, or too much alike for folders of runs.')
    return contestants
