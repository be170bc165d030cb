"""A detector or segmenter as one safetensors file that knows how it was built and what its classes are called."""

import json
import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..printable import printable
from ..weights import CheckpointError
from ..whole_file import write_whole
from .builders import BUILDERS, NOT_IN_A_FILE, is_plain_name
from .features import maps_of

_KEY = 'timm_attn'
_FILES = ('model.safetensors', 'model/model.safetensors')  # in a folder with a model, and in that of a training run
_MOST = 2**63  # of whole numbers that tensors hold


def save(model: nn.Module, path: str | Path) -> None:
    """Write a model that a builder of this package made, its weights, and the names of its classes.

    The file holds what was given to the builder, which parameters are frozen, and ``model.classes``; of the data that
    it was trained on also ``model.category_ids``, the id of each class in the data set, and ``model.ignore_index``,
    where they are set. No other attribute that was changed since is kept. It is complete or is not written at all.

    Args:
        model: The model.
        path: File to write or replace, by convention ``*.safetensors``.

    Raises:
        ValueError: If the model was not made by a builder, or with an argument that a file cannot hold,
            ``category_ids`` or ``ignore_index`` do not go with the classes, or there is no such folder.
    """
    recipe = getattr(model, 'recipe', None)
    if recipe is None:
        raise ValueError(
            f'This {type(model).__name__} was not made by a builder of timm_attn.dense, so that a file could not tell '
            'how to build it. Save model.state_dict() instead.'
        )
    args = {**recipe['args'], 'classes': model.classes}
    for name, value in args.items():
        try:
            json.dumps(value)
        except TypeError:
            raise ValueError(
                f'{recipe["builder"]} was given {name}={type(value).__name__}, which a file cannot hold. Save '
                'model.state_dict() instead.'
            ) from None
    mean, std = _normalization(model)
    frozen = [key for key, parameter in model.named_parameters() if not parameter.requires_grad]
    content = dict(builder=recipe['builder'], args=args, mean=mean, std=std, frozen=frozen)
    for name in ('category_ids', 'ignore_index'):
        content[name] = getattr(model, name, None)
    _check_ids(content)
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise ValueError(f'There is no folder {str(path.parent)!r} to write {path.name!r} to.')
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    metadata = {_KEY: json.dumps(content)}
    write_whole(path, lambda part: save_file(tensors, part, metadata=metadata))


def load(path: str | Path, backbone: nn.Module | None = None) -> nn.Module:
    """Build the model of a file that :func:`save` wrote, and load its weights. Nothing is downloaded.

    Args:
        path: The file, or a folder that holds ``model.safetensors`` or ``model/model.safetensors``, such as that of a
            training run.
        backbone: The backbone, if the saved model was built on a module, or on a place such as ``hf-hub:``, and not on
            the name of a network; it is taken over.

    Returns:
        The model in evaluation mode, with the parameters frozen that were. ``model.classes`` are the names of its
        classes, ``model.category_ids`` their ids in the data set, and ``model.ignore_index`` is the id of pixels
        without a class; each is None if the file does not have it.

    Raises:
        CheckpointError: If the file cannot be read, was not written by :func:`save`, or does not fit.
        ValueError: If the backbone is missing.
    """
    path = _file_of(Path(path))
    try:
        with safe_open(path, framework='pt') as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f'Cannot read {str(path)!r} as a safetensors file: {str(e)[:200]}') from None
    content = _content(metadata, path)
    name, args = content['builder'], content['args']
    if args.get('backbone') is None:
        if backbone is None:
            raise ValueError(f'The model in {str(path)!r} was not built on the name of a network: pass its backbone.')
        args['backbone'] = backbone
    elif backbone is not None:
        raise ValueError(f'The model in {str(path)!r} is built on {args["backbone"]!r}; pass no backbone.')
    try:
        model = BUILDERS[name](**args)
    except Exception as e:  # of any kind: the arguments may be anything
        reason = str(e)[:500] or type(e).__name__
        raise CheckpointError(f'The model in {str(path)!r} cannot be built: {reason}') from e
    _check_fit(tensors, model, path)
    model.load_state_dict(tensors)
    _set_normalization(model, content['mean'], content['std'])
    model.category_ids, model.ignore_index = content['category_ids'], content['ignore_index']
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key not in content['frozen'])
    return model.eval()


def _file_of(path: Path) -> Path:
    if path.is_dir():
        for name in _FILES:
            if (path / name).is_file():
                return path / name
        there = sorted(entry.name for entry in path.iterdir())
        has = f'it has: {", ".join(there[:10])}{", ..." if len(there) > 10 else ""}' if there else 'it is empty'
        raise CheckpointError(
            f'There is no model in {str(path)!r}, neither {" nor ".join(_FILES)}; {printable(has)}. A training run '
            'writes its model after the first epoch.'
        )
    if not path.is_file():
        raise CheckpointError(f'There is no file {str(path)!r}.')
    return path


def _check_ids(content: dict) -> None:
    """Check the ids of classes and of ignored pixels, if there are any.

    Raises:
        ValueError: If they are no whole numbers, or do not go with the classes.
    """
    classes, ids, ignored = content['args'].get('classes'), content['category_ids'], content['ignore_index']
    if ids is not None:
        if not isinstance(ids, list | tuple) or not all(map(_is_id, ids)):
            raise ValueError('category_ids must be a list of whole numbers.')
        if not isinstance(classes, list | tuple) or not len(classes) == len(ids) == len(set(ids)):
            count = len(classes) if isinstance(classes, list | tuple) else 0
            raise ValueError(
                f'category_ids must be different numbers, one for each of the {count} names of classes; there are '
                f'{len(ids)}, {len(set(ids))} of them different.'
            )
    if ignored is not None:
        if not _is_id(ignored):
            raise ValueError('ignore_index must be a whole number.')
        if isinstance(classes, list | tuple) and 0 <= ignored < len(classes):
            raise ValueError(f'ignore_index {ignored} is one of the classes 0 to {len(classes) - 1}.')


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -_MOST <= value < _MOST


def _normalization(model: nn.Module) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the images: those of a detector, or those that a segmenter tells its user."""
    if hasattr(model, 'transform'):
        return list(model.transform.image_mean), list(model.transform.image_std)
    return list(maps_of(model).mean), list(maps_of(model).std)


def _set_normalization(model: nn.Module, mean: list[float], std: list[float]) -> None:
    if hasattr(model, 'transform'):
        model.transform.image_mean, model.transform.image_std = mean, std
    else:
        maps_of(model).mean, maps_of(model).std = tuple(mean), tuple(std)


def _content(metadata: dict[str, str], path: Path) -> dict:
    """What a file tells of its model, as far as it can be trusted."""
    if _KEY not in metadata:
        raise CheckpointError(
            f'{str(path)!r} does not say how its model was built: it was not written by timm_attn.dense.save. Build '
            'the model and load the tensors with safetensors.torch.load_file and load_state_dict.'
        )
    try:
        content = json.loads(metadata[_KEY])
        name, args, frozen = content['builder'], dict(content['args']), set(content['frozen'])
        numbers = [list(map(float, content[key])) for key in ('mean', 'std')]
        backbone, backbone_args = args.get('backbone'), dict(args.get('backbone_args') or {})
        known = BUILDERS.get(name)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise CheckpointError(f'The metadata of {str(path)!r} are damaged.') from None
    if known is None:
        raise CheckpointError(f'{str(path)!r} holds a {str(name)[:50]!r}; known are: {", ".join(BUILDERS)}.')
    mean, std = numbers
    if len(mean) != len(std) or not all(map(math.isfinite, mean + std)) or min(std, default=0) <= 0:
        raise CheckpointError(f'The mean and std in {str(path)!r} are not those of images.')
    # A file names a network, and must not make timm read or fetch another file.
    if backbone is not None and not (isinstance(backbone, str) and is_plain_name(backbone)):
        raise CheckpointError(f'The backbone in {str(path)!r} is not the name of a model: {str(backbone)[:50]!r}.')
    if refused := [key for key in backbone_args if key in NOT_IN_A_FILE]:
        raise CheckpointError(f'{str(path)!r} sets {", ".join(refused)} of its backbone, which is refused.')
    ids = dict(category_ids=content.get('category_ids'), ignore_index=content.get('ignore_index'))
    try:
        _check_ids(dict(args=args, **ids))
    except ValueError as e:
        raise CheckpointError(f'The metadata of {str(path)!r} are damaged: {e}') from None
    # the weights are here, and which of them are frozen is told by name
    args |= dict(pretrained_backbone=False, trainable_layers=None)
    return dict(builder=name, args=args, frozen=frozen, mean=mean, std=std, **ids)


def _check_fit(tensors: dict[str, torch.Tensor], model: nn.Module, path: Path) -> None:
    own = {key: value.shape for key, value in model.state_dict().items()}
    wrong = [key for key in {**own, **tensors} if own.get(key) != getattr(tensors.get(key), 'shape', None)]
    if wrong:
        raise CheckpointError(
            f'{len(wrong)} tensors of {str(path)!r} are missing, unexpected or of another shape ({", ".join(wrong[:3])}'
            '): the model was changed after it was built, or the file after it was saved.'
        )
    if odd := [k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()]:
        raise CheckpointError(f'{str(path)!r} holds values that are not finite, in {", ".join(odd[:3])}.')
