"""Parts of a model that are trained while all others stay as they are."""

from collections.abc import Callable, Iterable

from timm.utils import freeze, unfreeze
from torch import nn

PARTS = ('attention', 'head')


def trainable_parts(trainable: str | Iterable[str]) -> tuple[str, ...]:
    """Parts named by the argument ``trainable`` of the models: one, several separated by commas, or a sequence.

    Raises:
        ValueError: If there is no such part.
    """
    parts = tuple(trainable.split(',')) if isinstance(trainable, str) else tuple(trainable)
    if not parts or not set(parts) <= set(PARTS):
        raise ValueError(f'trainable={trainable!r} must be one of {", ".join(map(repr, PARTS))}, {",".join(PARTS)!r}.')
    return parts


def train_only(model: nn.Module, parts: Iterable[str], is_attention: Callable[[str], bool]) -> None:
    """Freeze all of a model except some parts; batch norms outside of them also keep their running statistics.

    Args:
        model: The model; its batch norms are replaced by timm's frozen ones, with the same tensors.
        parts: ``attention``, ``head`` (the classifier) or both.
        is_attention: Whether a module is one of the model's attentions, by its name.

    Raises:
        ValueError: If the attention is asked for and the model has none.
    """
    names = []
    if 'attention' in parts:
        sites = [(name, m) for name, m in model.named_modules() if is_attention(name)]
        names += [name for name, m in sites if next(m.parameters(), None) is not None]
        if not names:
            raise ValueError('This model has no attention that could be trained alone: leave out trainable=.')
    if 'head' in parts:
        head = (getattr(model, 'pretrained_cfg', None) or {}).get('classifier')
        names += [head] if head in dict(model.named_modules()) else []
    freeze(model)
    if names:
        unfreeze(model, names)
