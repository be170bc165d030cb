"""The layer whose map is looked at, and a model that is left as it was."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def target_layer(model: nn.Module, name: str | None = None) -> tuple[str, nn.Module]:
    """Find the layer whose map explains a model.

    Args:
        model: A model of timm.
        name: Dotted name of a module; by default the last level of the model's ``feature_info``.

    Returns:
        Name and module.

    Raises:
        ValueError: If there is no such layer.
    """
    modules = {key: module for key, module in model.named_modules() if key}
    if name is None:
        info = getattr(model, 'feature_info', None) or []
        levels = list(getattr(info, 'info', info))
        name = levels[-1]['module'] if levels else None
        if name is None or name not in modules:
            raise ValueError(f'{type(model).__name__} does not tell its last map in feature_info: name a layer.')
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=3, cutoff=0.5) or list(dict(model.named_children()))
        raise ValueError(f'{type(model).__name__} has no layer {name!r}; there are: {", ".join(near)}.')
    return name, modules[name]


def check_map(output: object, name: str, model: nn.Module) -> torch.Tensor:
    """Check that what a layer returns is a map (B, C, H, W) with more than one position.

    Args:
        output: Output of the layer.
        name: Name of the layer.
        model: Its model.

    Returns:
        ``output``.

    Raises:
        ValueError: If it is none.
    """
    if not isinstance(output, torch.Tensor) or output.ndim != 4:
        what = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(
            f'The output of {name} is no map (B, C, H, W) but {what}: name a layer before pooling that returns one, '
            'or take a model with convolution maps.'
        )
    if getattr(model, 'output_fmt', 'NCHW') != 'NCHW':
        raise ValueError(
            f'{type(model).__name__} has maps with the channels last, (B, H, W, C): take a model whose maps are '
            '(B, C, H, W).'
        )
    if output.shape[2] * output.shape[3] == 1:
        raise ValueError(
            f'The map of {name} has a single position, which tells no place: take an earlier layer or larger images.'
        )
    return output


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Context in which a model is in evaluation mode, its parameters take no gradients, and nothing is checkpointed.

    Gradient checkpointing calls the parts of a stage and not the stage, whose hooks would then not run. Afterwards the
    mode of every module, ``requires_grad``, the gradients and the checkpointing are what they were before.

    Args:
        model: The model.
    """
    modes = [(module, module.training) for module in model.modules()]
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    checkpointed = [module for module in model.modules() if getattr(module, 'grad_checkpointing', None) is True]
    try:
        model.eval()
        for module in checkpointed:
            module.grad_checkpointing = False
        for p, _, _ in parameters:
            p.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module in checkpointed:
            module.grad_checkpointing = True
        for p, requires_grad, grad in parameters:
            p.requires_grad_(requires_grad)
            p.grad = grad


def as_input(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Copy of images on the device and in the type of a model, which takes gradients.

    Gradients at the input make every map of the network take them, whichever parameters are frozen.
    """
    weight = next(model.parameters())
    return images.detach().to(weight.device, weight.dtype, copy=True).requires_grad_()
