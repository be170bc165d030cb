r"""Put the result of a training run into the package, with a row in the manifest.

    python scripts/bundle_weight.py csa_resnet20_cifar.cifar10 --data-dir cifar10 --recipe cifar10_long \
        --run output/finetune/RUN

A run is a folder of ``timm-attn finetune``, or one of those under ``runs`` of ``timm-attn compare``. Its top-1 is
measured on the whole test split, in float32. The tensors are loaded strictly and written without the training state;
the log goes to ``model_cards/data/logs``.
"""

import argparse
import dataclasses
import os
import shutil
from pathlib import Path

import timm
from common import LOGS, RECIPES, ROOT
from measure_weights import cifar10_metric, measure_cost, measure_file, measure_top1, write_manifest
from safetensors.torch import save_file
from torch import nn

from timm_attn.weights import bundled, weights


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write a model's tensors as safetensors; a crash leaves no partial file under that name.

    Args:
        model: The model.
        path: File to write or replace.
    """
    part = f'{path}.part'
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, part, metadata={'format': 'pt'})
    os.replace(part, path)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description='Put the result of a training run into the package.')
    parser.add_argument('name', help='architecture.tag of the weight')
    parser.add_argument('--run', required=True, metavar='DIR', help='folder with last.pth.tar and summary.csv')
    parser.add_argument('--recipe', required=True, help='recipe of the run')
    parser.add_argument('--note', action='append', default=[], help='what its card must say; may be repeated')
    parser.add_argument('--data-dir', required=True, metavar='DIR', help='CIFAR-10 as DIR/test/<class>/*.jpg')
    args = parser.parse_args()
    arch = args.name.partition('.')[0]
    rows = list(weights().values())
    places = [row for row in rows if row.arch == arch and row.kind in ('trained', 'untrained')]
    if not places:
        parser.error(f'the manifest has no row for {arch} that it could replace or follow')
    replaced = next((row for row in places if row.name == args.name or row.kind == 'untrained'), None)
    row = replaced or places[-1]
    model = timm.create_model(arch, checkpoint_path=f'{args.run}/last.pth.tar')
    top1 = round(measure_top1(model, args.data_dir), 2)
    log = LOGS / f'{args.name}.csv'
    shutil.copyfile(f'{args.run}/summary.csv', log)
    file = f'{args.name}.safetensors'
    save_weights(model, bundled(file))
    trained = dataclasses.replace(
        row,
        **measure_cost(row),
        **measure_file(file),
        name=args.name,
        kind='trained',
        file=file,
        license='apache-2.0',
        license_url='https://www.apache.org/licenses/LICENSE-2.0',
        redistributable=True,
        dataset='uoft-cs/cifar10',
        recipe=(RECIPES / f'{args.recipe}.yaml').as_posix(),
        log=log.relative_to(ROOT).as_posix(),
        metrics=(cifar10_metric(top1),),
        notes=tuple(args.note),
    )
    at = rows.index(row)
    # the first row of a network is its default
    rows[at : at + 1] = [trained] if replaced else [row, trained]
    write_manifest(rows)
    print(f'{args.name}: top-1 {top1:.2f} %, {os.path.getsize(bundled(file))} bytes')


if __name__ == '__main__':
    main()
