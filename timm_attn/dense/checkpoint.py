"""A detector or segmenter as one safetensors file that knows how it was built and what its classes are called."""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..weights import CheckpointError
from .builders import BUILDERS

_KEY = 'timm_attn'
_NOT_FROM_A_FILE = ('pretrained', 'pretrained_cfg', 'pretrained_cfg_overlay', 'checkpoint_path', 'cache_dir', 'url')
"""Arguments of timm.create_model that read other files."""


def save(model: nn.Module, path: str | Path) -> None:
    """Write a model that a builder of this package made, its weights, and the names of its classes.

    The file is complete or is not written at all.

    Args:
        model: The model.
        path: File to write or replace, by convention ``*.safetensors``.

    Raises:
        ValueError: If the model was not made by a builder, or with an argument that a file cannot hold.
    """
    recipe = getattr(model, 'recipe', None)
    if recipe is None:
        raise ValueError(
            f'This {type(model).__name__} was not made by a builder of timm_attn.dense, so that a file could not tell '
            'how to build it. Save model.state_dict() instead.'
        )
    args = recipe['args']
    for name, value in args.items():
        try:
            json.dumps(value)
        except TypeError:
            raise ValueError(
                f'{recipe["builder"]} was given {name}={type(value).__name__}, which a file cannot hold. Save '
                'model.state_dict() instead.'
            ) from None
    path = Path(path)
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    part = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        save_file(tensors, part, metadata={_KEY: json.dumps(dict(builder=recipe['builder'], args=args))})
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)  # safetensors writes files that only their owner may read
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load(path: str | Path, backbone: nn.Module | None = None) -> nn.Module:
    """Build the model of a file that :func:`save` wrote, and load its weights. Nothing is downloaded.

    Args:
        path: The file.
        backbone: The backbone, if the saved model was built on a module and not on a name; it is taken over.

    Returns:
        The model in evaluation mode; ``model.classes`` are the names of its classes, or None.

    Raises:
        CheckpointError: If the file cannot be read, was not written by :func:`save`, or does not fit.
        ValueError: If the backbone is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f'There is no file {str(path)!r}.')
    try:
        with safe_open(path, framework='pt') as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f'Cannot read {str(path)!r} as a safetensors file: {str(e)[:200]}') from None
    name, args = _recipe(metadata, path)
    if args.get('backbone') is None:
        if backbone is None:
            raise ValueError(f'The model in {str(path)!r} was built on a module: pass it as backbone.')
        args['backbone'] = backbone
    elif backbone is not None:
        raise ValueError(f'The model in {str(path)!r} is built on {args["backbone"]!r}; pass no backbone.')
    try:
        model = BUILDERS[name](**args)
    except (ValueError, TypeError, RuntimeError) as e:
        raise CheckpointError(f'The model in {str(path)!r} cannot be built: {str(e)[:500]}') from e
    _check_fit(tensors, model, path)
    model.load_state_dict(tensors)
    return model.eval()


def _recipe(metadata: dict[str, str], path: Path) -> tuple[str, dict]:
    """Builder and arguments of a file, as far as they can be trusted."""
    if _KEY not in metadata:
        raise CheckpointError(
            f'{str(path)!r} does not say how its model was built: it was not written by timm_attn.dense.save. Build '
            'the model and load the tensors with safetensors.torch.load_file and load_state_dict.'
        )
    try:
        recipe = json.loads(metadata[_KEY])
        name, args = recipe['builder'], dict(recipe['args'])
        backbone, backbone_args = args.get('backbone'), dict(args.get('backbone_args') or {})
    except (ValueError, TypeError, KeyError):
        raise CheckpointError(f'The metadata of {str(path)!r} are damaged.') from None
    if name not in BUILDERS:
        raise CheckpointError(f'{str(path)!r} holds a {str(name)[:50]!r}; known are: {", ".join(BUILDERS)}.')
    # A file names a network, and must not make timm read or fetch another file.
    if backbone is not None and (not isinstance(backbone, str) or ':' in backbone or '/' in backbone):
        raise CheckpointError(f'The backbone in {str(path)!r} is not the name of a model: {str(backbone)[:50]!r}.')
    if refused := [key for key in backbone_args if key in _NOT_FROM_A_FILE]:
        raise CheckpointError(f'{str(path)!r} sets {", ".join(refused)} of its backbone, which is refused.')
    args |= dict(pretrained_backbone=False, trainable_layers=None)
    return name, args


def _check_fit(tensors: dict[str, torch.Tensor], model: nn.Module, path: Path) -> None:
    own = {key: value.shape for key, value in model.state_dict().items()}
    wrong = [key for key in {**own, **tensors} if own.get(key) != getattr(tensors.get(key), 'shape', None)]
    if wrong:
        raise CheckpointError(
            f'{len(wrong)} tensors of {str(path)!r} are missing, unexpected or of another shape ({", ".join(wrong[:3])}'
            '): it was changed after it was saved.'
        )
    if odd := [k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()]:
        raise CheckpointError(f'{str(path)!r} holds values that are not finite, in {", ".join(odd[:3])}.')
