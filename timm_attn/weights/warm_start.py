"""Warm starts: a plain backbone's weights in a network with attention, which starts as an exact identity.

Every gate here is sigmoid(0) = 0.5 once the layer before it is zero, and a power of two is exact in floating point: the
layer next to the attention takes up the factor, so that the network computes what the plain backbone does,
bit for bit. The zeroed layers receive gradients from the first step on.
"""

from collections.abc import Iterator

import torch
from torch import nn

from ..layers import Attention, attention_of


def attention_sites(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module, str]]:
    """Attention layers of a model.

    Args:
        model: Its class names in ``absorbs_gate`` what the blocks call their attention, and which layers beside it can
            take up a factor: the first one that the block has.

    Yields:
        Name of the attention, the attention, the layer that takes up its factor, and that layer's name.
    """
    for name, block in model.named_modules():
        for attn_name, neighbours in model.absorbs_gate.items():
            attn = getattr(block, attn_name, None)
            if attn is None or isinstance(attn, nn.Identity):
                continue
            neighbour = next(n for n in neighbours if hasattr(block, n))
            yield f'{name}.{attn_name}', attn, getattr(block, neighbour), f'{name}.{neighbour}'


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
    for name, attn, neighbour, neighbour_name in attention_sites(model):
        row = _half_gates(name, attn)
        for key, value in attn.state_dict().items():
            is_zero = key.rpartition('.')[0] in row.zeroed and key.endswith(('.weight', '.bias'))
            # A hidden layer of a single ReLU would be dead for every image at every second draw: after an activation
            # its inputs are not negative, so that its weights need only be positive.
            is_single = key.startswith('fc1.') and value.shape[0] == 1
            value = torch.zeros_like(value) if is_zero else value.abs() if is_single else value.clone()
            state_dict[f'{name}.{key}'] = value
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
    gates = [module for key, module in attn.named_modules() if key.endswith('gate')]
    zero = torch.zeros(1, 2, 3, 3)
    if getattr(attn, 'has_skip', False) or not gates or not all(bool((gate(zero) == 0.5).all()) for gate in gates):
        raise ValueError(f'{name} cannot start as an identity: its gate at zero is not one half.')
    return row
