r"""Put the better of several training runs into the package, with all their results in the manifest.

    python scripts/bundle_weight.py csa_resnet20_cifar.cifar10 --data-dir cifar10 \
        --run 0=OUTPUT/csa_resnet20_cifar.seed0 --run 1=OUTPUT/csa_resnet20_cifar.seed1

A run is named by its seed and its folder, with ``last.pth.tar`` and ``summary.csv`` in it: one of timm's train.py, or
with another ``--recipe`` of ``timm-attn finetune``. Its top-1 is measured on the whole test split, in float32. The
tensors are loaded strictly and written without the training state; the logs go to ``model_cards/data/logs``.
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

from timm_attn.weights import Weight, bundled, weights


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
    parser = argparse.ArgumentParser(description='Put the better of several training runs into the package.')
    parser.add_argument('name', help='architecture.tag of the weight')
    parser.add_argument('--run', action='append', required=True, metavar='SEED=FOLDER', help='a run; may be repeated')
    parser.add_argument('--recipe', default='cifar10_resnet20', help='recipe of the runs (default: %(default)s)')
    parser.add_argument('--note', action='append', help='what the card must say of this weight; may be repeated')
    parser.add_argument('--data-dir', required=True, metavar='DIR', help='CIFAR-10 as DIR/test/<class>/*.jpg')
    args = parser.parse_args()
    arch = args.name.partition('.')[0]
    rows = list(weights().values())
    places = [row for row in rows if row.arch == arch and row.kind in ('trained', 'untrained')]
    if not places:
        parser.error(f'the manifest has no row for {arch} that it could replace or follow')
    replaced = next((row for row in places if row.name == args.name or row.kind == 'untrained'), None)
    row = replaced or places[0]
    seeds, logs, models = {}, [], {}
    for run in args.run:
        seed, _, folder = run.partition('=')
        models[seed] = timm.create_model(arch, checkpoint_path=f'{folder}/last.pth.tar')
        seeds[seed] = round(measure_top1(models[seed], args.data_dir), 2)
        logs.append((LOGS / f'{args.name}.seed{seed}.csv').relative_to(ROOT).as_posix())
        shutil.copyfile(f'{folder}/summary.csv', ROOT / logs[-1])
        print(f'{args.name}, seed {seed}: top-1 {seeds[seed]:.2f} %', flush=True)
    best = max(seeds, key=seeds.get)
    file = f'{args.name}.safetensors'
    save_weights(models[best], bundled(file))
    trained = _trained_row(row, args.name, file, args.recipe, seeds, logs)
    if args.note:
        trained = dataclasses.replace(trained, notes=tuple(args.note))
    at = rows.index(row)
    rows[at : at + bool(replaced)] = [trained]  # the first row of a network is its default
    write_manifest(rows)
    print(f'{file}: seed {best}, {os.path.getsize(bundled(file))} bytes')


def _trained_row(row: Weight, name: str, file: str, recipe: str, seeds: dict, logs: list[str]) -> Weight:
    size_and_sum = measure_file(file)
    row = dataclasses.replace(
        row,
        **size_and_sum,
        name=name,
        kind='trained',
        file=file,
        license='apache-2.0',
        license_url='https://www.apache.org/licenses/LICENSE-2.0',
        redistributable=True,
        dataset='uoft-cs/cifar10',
        recipe=(RECIPES / f'{recipe}.yaml').as_posix(),
        seeds=seeds,
        logs=tuple(logs),
        metrics=(cifar10_metric(max(seeds.values())),),
        throughput=None,
    )
    return dataclasses.replace(row, **measure_cost(row))


if __name__ == '__main__':
    main()
