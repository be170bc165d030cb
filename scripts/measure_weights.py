"""Measure what the manifest claims of the models and weights, and write it there.

    python scripts/measure_weights.py                              # parameters, multiply-adds, activations, files
    python scripts/measure_weights.py --data-dir cifar10           # also the accuracy of the weights in the package

The accuracy is top-1 on the whole test split, in float32.
"""

import argparse
import dataclasses
import hashlib
import json
from pathlib import Path

import timm
import torch
from common import write_text
from timm.data import create_dataset, create_loader, resolve_data_config
from torch import nn

from timm_attn.models import zoo_models
from timm_attn.models.info import count_cost, find_weight
from timm_attn.weights import Metric, Weight, bundled, weights
from timm_attn.weights.manifest import MANIFEST


def new_row(arch: str) -> Weight:
    """Row for a model that the manifest does not list yet; what is reported about it has to be added by hand."""
    weight = find_weight(arch)
    if weight.kind == 'untrained':
        return weight
    url = f'https://huggingface.co/timm/{weight.base_weight}'
    return dataclasses.replace(weight, dataset='ILSVRC/imagenet-1k', license_url=url, redistributable=True)


def measure_cost(weight: Weight) -> dict:
    """Parameters, multiply-adds and activations of the model, on the meta device."""
    model = timm.create_model(weight.arch, device='meta').eval()
    gmacs, activations = count_cost(model, weight.input_size)
    params = sum(p.numel() for p in model.parameters())
    return dict(params=params, gmacs=round(gmacs, 6), activations=round(activations, 6))


def measure_file(file: str) -> dict:
    """Size and checksum of a file in the package."""
    content = Path(bundled(file)).read_bytes()
    return dict(file_size=len(content), sha256=hashlib.sha256(content).hexdigest())


def measure_top1(model: nn.Module, data_dir: str | Path, split: str = 'test', batch_size: int = 250) -> float:
    """Top-1 in percent on all images of a split, in float32 on the CPU.

    Args:
        model: The model.
        data_dir: Folder that holds the split, one folder a class.
        split: Name of the split's folder.
        batch_size: Images in a batch.

    Raises:
        ValueError: If the folders are not the model's classes.
    """
    model.eval()
    dataset = create_dataset('', root=data_dir, split=split, class_map='')
    if tuple(dataset.reader.class_to_idx) != tuple(model.pretrained_cfg['label_names']):
        raise ValueError(f'The folders in {data_dir}/{split} are not the classes of the model.')
    config = resolve_data_config(model=model)
    loader = create_loader(
        dataset, batch_size=batch_size, is_training=False, use_prefetcher=False, num_workers=2,
        device=torch.device('cpu'),
        **{k: config[k] for k in ('input_size', 'interpolation', 'mean', 'std', 'crop_pct')},
    )  # fmt: skip
    with torch.inference_mode():
        correct = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in loader)
    return 100 * correct / len(dataset)


def cifar10_metric(top1: float) -> Metric:
    """Entry of the manifest for the accuracy of :func:`measure_top1`."""
    return Metric(
        name='top-1',
        value=top1,
        dataset='CIFAR-10 (re-encoded as JPEG)',
        split='test',
        input_size=32,
        crop_pct=1.0,
        measured=True,
        source='scripts/measure_weights.py --data-dir cifar10',
    )


def write_manifest(rows: list[Weight]) -> None:
    """Write the manifest, without empty fields; a crash leaves the old one complete."""
    table = [
        {k: v for k, v in dataclasses.asdict(row).items() if v not in (None, ()) and v is not False} for row in rows
    ]
    write_text(MANIFEST, json.dumps(table, indent=2, ensure_ascii=False) + '\n')


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description='Measure the models and weights and write it into the manifest.')
    parser.add_argument('--data-dir', metavar='DIR', help='CIFAR-10 as DIR/test/<class>/*.jpg: measure the accuracy')
    parser.add_argument('--only', default='', metavar='FILTER', help='wildcard of models, such as "*_cifar"')
    args = parser.parse_args()
    names = zoo_models(args.only)
    if not names:
        parser.error(f'no model matches {args.only!r}; see timm-attn list')
    rows = []
    for weight in [*weights().values(), *map(new_row, sorted(set(names) - {w.arch for w in weights().values()}))]:
        if weight.arch in names:
            changes = measure_cost(weight)
            if weight.kind == 'trained':
                changes |= measure_file(weight.file)
                if args.data_dir:
                    top1 = measure_top1(timm.create_model(weight.name, pretrained=True), args.data_dir)
                    changes |= dict(metrics=(cifar10_metric(round(top1, 2)),))
            weight = dataclasses.replace(weight, **changes)
            print(weight.name, changes, flush=True)
        rows.append(weight)
    write_manifest(rows)


if __name__ == '__main__':
    main()
