"""A trained model as a folder that loads by ``local-dir:`` and, after an upload to the Hub, by ``hf-hub:``."""

import argparse
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import timm
import torch
import yaml
from timm.data import create_dataset
from timm.models import load_checkpoint, save_for_hf
from torch import nn

from ..export_formats import image_config
from ..weights.convert import explain_unreadable
from ..whole_file import give_usual_permissions

_OF_THE_SOURCE = (
    'url', 'file', 'hf_hub_id', 'hf_hub_filename', 'source', 'tag', 'origin_url', 'paper_ids', 'notes', 'license',
    'test_input_size', 'test_crop_pct', 'label_names', 'label_descriptions',
)  # fmt: skip
"""Entries of a pretrained cfg that do not hold for weights which were trained further."""


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Write a folder under another name; once it is complete, it takes its own name and replaces an older one.

    Args:
        folder: Folder to write.

    Yields:
        Where to write.
    """
    part, old = (folder.with_name(f'.{folder.name}.{end}') for end in ('part', 'old'))
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        yield part
        for path in part.iterdir():
            give_usual_permissions(path)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
        os.replace(part, folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def save_model(model: nn.Module, folder: Path, model_args: dict | None = None) -> None:
    """Write a model in timm's format for the Hub, in the form that transformers loads too.

    Args:
        model: The model; the names of its classes are those in its ``pretrained_cfg``.
        folder: Folder to write to.
        model_args: Arguments that the model was created with.
    """
    save_for_hf(model, folder, model_args=model_args, safe_serialization=True)
    path = folder / 'config.json'
    config = json.loads(path.read_text(encoding='utf-8'))
    # transformers passes the number of classes of the config on to timm, and all of model_args beside it
    config.get('model_args', {}).pop('num_classes', None)
    for key in ('label_names', 'label_descriptions'):  # timm reads both places, transformers the outer one
        if labels := config['pretrained_cfg'].pop(key, None) or model.pretrained_cfg.get(key):
            config[key] = labels
    path.write_text(json.dumps(config, indent=2), encoding='utf-8')


def export_run(
    run: str | Path,
    folder: str | Path,
    label_names: Sequence[str] | None = None,
    checkpoint: str = 'model_best.pth.tar',
) -> nn.Module:
    """Write the model of a training run as a folder for the Hub: safetensors and a config with everything to load it.

    Args:
        run: Output folder of timm's train.py or of ``timm-attn finetune``, with ``args.yaml``.
        folder: Folder to write or replace.
        label_names: Names of the classes; if None, those of the data set, where it is a folder that still exists.
        checkpoint: File in ``run``; its averaged weights (EMA) are taken where it has them.

    Returns:
        The model.

    Raises:
        ValueError: If ``run`` is not such a folder, or the number of names differs from that of the classes.
        CheckpointError: If the checkpoint cannot be read or does not fit the model.
    """
    model, model_args = load_run(run, label_names, checkpoint)
    export_model(model, folder, model_args)
    return model


def export_model(model: nn.Module, folder: str | Path, model_args: dict | None = None) -> None:
    """Write a model as a folder for the Hub.

    Args:
        model: The model.
        folder: Folder to write or replace.
        model_args: Arguments that the model was created with.
    """
    with atomic_folder(Path(folder)) as part:
        save_model(model, part, model_args)
        timm.create_model(f'local-dir:{part}', pretrained=True)  # raises where the folder would not load


def load_run(
    run: str | Path, label_names: Sequence[str] | None = None, checkpoint: str = 'model_best.pth.tar'
) -> tuple[nn.Module, dict]:
    """Load the model of a training run.

    Args:
        run: Output folder of timm's train.py or of ``timm-attn finetune``, with ``args.yaml``.
        label_names: Names of the classes; if None, those of the data set, where it is a folder that still exists.
        checkpoint: File in ``run``; its averaged weights (EMA) are taken where it has them.

    Returns:
        The model in evaluation mode, its ``pretrained_cfg`` with the preprocessing of its images and the names of its
        classes, and the arguments that it was created with.

    Raises:
        ValueError: If ``run`` is not such a folder, or the number of names differs from that of the classes.
        CheckpointError: If the checkpoint cannot be read or does not fit the model.
    """
    run = Path(run)
    if not (run / 'args.yaml').is_file():
        raise ValueError(f'{run} is not the folder of a training run: it has no args.yaml.')
    if not (run / checkpoint).is_file():
        there = ', '.join(sorted(path.name for path in run.glob('*.tar'))) or 'none yet'
        raise ValueError(f'{run} has no checkpoint {checkpoint}; it has: {there}.')
    try:
        args = yaml.safe_load((run / 'args.yaml').read_text(encoding='utf-8'))
    except yaml.YAMLError as e:
        raise ValueError(f'Cannot read {run / "args.yaml"}: {e}') from e
    kinds = dict(model=str, num_classes=int | None, model_kwargs=dict | None, in_chans=int | None, gp=str | None)
    if not isinstance(args, dict) or not all(isinstance(args.get(key), kind) for key, kind in kinds.items()):
        raise ValueError(f'{run / "args.yaml"} does not contain the options of a training run.')
    # `trainable` froze layers during training; whoever loads the model decides that again
    model_args = {k: v for k, v in (args.get('model_kwargs') or {}).items() if k != 'trainable'}
    options = dict(in_chans=args.get('in_chans'), global_pool=args.get('gp'))
    model_args |= {k: v for k, v in options.items() if v is not None}
    model = timm.create_model(args['model'], num_classes=args.get('num_classes'), **model_args).eval()
    torch.serialization.add_safe_globals([argparse.Namespace])  # train.py saves its options with the weights
    try:
        load_checkpoint(model, str(run / checkpoint), use_ema=True)
    except Exception:
        explain_unreadable(str(run / checkpoint))
        raise
    label_names = label_names or args.get('class_names') or _classes_of_folder(args, model.num_classes)
    cfg = {k: v for k, v in model.pretrained_cfg.items() if k not in _OF_THE_SOURCE}
    model.pretrained_cfg = {**cfg, **image_config(model, args), 'num_classes': model.num_classes}
    name_classes(model, label_names)
    return model, model_args


def name_classes(model: nn.Module, label_names: Sequence[str] | None) -> None:
    """Put the names of the classes into the ``pretrained_cfg`` of a model.

    Raises:
        ValueError: If their number differs from that of the classes.
    """
    if label_names and len(label_names) != model.num_classes:
        raise ValueError(f'Got {len(label_names)} names for {model.num_classes} classes.')
    if label_names:
        model.pretrained_cfg['label_names'] = list(label_names)
        model.pretrained_cfg.pop('label_descriptions', None)  # of the names before


def _classes_of_folder(args: dict, num_classes: int) -> list[str] | None:
    """Classes of the data set of a run of train.py, where it is an image folder that still exists."""
    root = args.get('data_dir') or args.get('data')
    if args.get('dataset') or not root or not os.path.exists(root):
        return None
    reader = create_dataset('', root, split=args['train_split'], class_map=args.get('class_map')).reader
    names = sorted(reader.class_to_idx, key=reader.class_to_idx.get)
    return names if len(names) == num_classes else None
