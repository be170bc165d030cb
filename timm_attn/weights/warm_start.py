"""Warm starts: a plain backbone's weights in a network with attention, which starts as an exact identity.

Every gate here is sigmoid(0) = 0.5 once the layer before it is zero, and a power of two is exact in floating point: the
layer next to the attention takes up the factor, so that the network computes what the plain backbone does,
bit for bit. The zeroed layers receive gradients from the first step on.
"""

from collections.abc import Iterator

import torch
from torch import nn

from ..layers import Attention, attention_of


def attention_sites(model: nn.Module) -> Iterator[tuple[str, nn.Module, dict[str, nn.Module]]]:
    """Attention layers of a model.

    Args:
        model: Its class names in ``absorbs_gate`` what the blocks call their attention, and which layers beside it can
            take up a factor: the first one that the block has. Where the blocks of a stage share one attention,
            ``*.bn3`` is the layer ``bn3`` of each of them.

    Yields:
        Name of the attention, the attention, and the layers that take up its factor by name.
    """
    for name, block in model.named_modules():
        for attn_name, neighbours in model.absorbs_gate.items():
            attn = getattr(block, attn_name, None)
            if attn is None or isinstance(attn, nn.Identity):
                continue
            found = next((found for neighbour in neighbours if (found := _layers(block, neighbour))), {})
            yield f'{name}.{attn_name}', attn, {f'{name}.{key}': layer for key, layer in found.items()}


def _layers(block: nn.Module, name: str) -> dict[str, nn.Module]:
    """Layers that a name stands for: one of the block, or with ``*.`` one of each of its children; none if missing."""
    parents = {'': block}
    if name.startswith('*.'):
        name = name.removeprefix('*.')
        parents = {f'{key}.': child for key, child in block.named_children()}
    return {key + name: getattr(parent, name) for key, parent in parents.items() if hasattr(parent, name)}


def attention_keys(model: nn.Module) -> set[str]:
    """Keys of the state dict that the plain backbone does not have."""
    return {f'{name}.{key}' for name, attn, *_ in attention_sites(model) for key in attn.state_dict()}


def warm_start(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Extend the state dict of a plain backbone to that of the model, its attention an exact identity.

    Args:
        state_dict: The plain backbone's tensors under the model's names.
        model: The model, freshly built: layers of the attention that need not be zero keep its values.

    Returns:
        A new state dict; the tensors that need no change are those of ``state_dict``.

    Raises:
        ValueError: If the model holds an attention that cannot be an identity, such as one with another gate.
    """
    state_dict = dict(state_dict)
    for name, attn, neighbours in attention_sites(model):
        row = _half_gates(name, attn)
        if row.gates and not neighbours:
            raise ValueError(f'No layer beside {name} can take up its factor.')
        for key, value in attn.state_dict().items():
            is_zero = row.is_zeroed(key)
            # A hidden layer of a single ReLU would be dead for every image at every second draw: after an activation
            # its inputs are not negative, so that its weights need only be positive.
            is_single = key.startswith('fc1.') and value.shape[0] == 1
            value = torch.zeros_like(value) if is_zero else value.abs() if is_single else value.clone()
            state_dict[f'{name}.{key}'] = value
        for neighbour_name, neighbour in neighbours.items():
            # A norm before the attention is scaled as a whole; of a convolution after it only the products are.
            for key in ('weight',) if isinstance(neighbour, nn.Conv2d) else ('weight', 'bias'):
                if getattr(neighbour, key, None) is None:
                    raise ValueError(f'{neighbour_name} has no {key} that could take up the factor of {name}.')
                if f'{neighbour_name}.{key}' in state_dict:
                    state_dict[f'{neighbour_name}.{key}'] = state_dict[f'{neighbour_name}.{key}'] * 2**row.gates
    return state_dict


def _half_gates(name: str, attn: nn.Module) -> Attention:
    """Row of an attention, whose gates are checked to be one half at zero."""
    row = attention_of(attn)
    if row is None:
        raise ValueError(f'{name} is a {type(attn).__name__}, for which no start as an identity is known.')
    if not row.zeroed:
        raise ValueError(f'{name} is a {type(attn).__name__}, which no weights make an identity.')
    gates = [module for key, module in attn.named_modules() if key.endswith('gate')]
    zero = torch.zeros(1, 2, 3, 3)
    halves = [bool((gate(zero) == 0.5).all()) for gate in gates]
    if getattr(attn, 'has_skip', False) or not all(halves) or (row.gates and not halves):
        raise ValueError(f'{name} cannot start as an identity: its gate at zero is not one half.')
    return row
