r"""Run the comparisons of model_cards/RESULTS.md that need timm's train.py, or are of detection and segmentation.

    python scripts/evidence.py flowers12 --data-dir flowers12 --train-script pytorch-image-models/train.py
    python scripts/evidence.py imagenette128 --data-dir imagenette128 --train-script pytorch-image-models/train.py
    python scripts/evidence.py bccd --data-dir BCCD --weights mobilenetv2_100.imagenette128.safetensors
    python scripts/evidence.py camvid --data-dir camvid --weights mobilenetv2_100.imagenette128.safetensors
    python scripts/evidence.py tiny_coco --data-dir tiny_coco

The second needs a GPU, the others fit one CPU core; -- --amp shortens the last three where it has bfloat16. The weights
that bccd and camvid start from are made on a core in under an hour by

    timm-attn finetune imagenette128 --model mobilenetv2_100 --no-pretrained --img-size 128 --epochs 14 \
        --scale 0.25 1 -b 64 --opt adamw --lr 2e-3 --layer-decay 1 --warmup-epochs 1 --color-jitter 0.2 --reprob 0 --amp

Run it again after an interruption: finished runs are skipped, an unfinished one resumes from its last epoch. A run
leaves its log in model_cards/data/logs/NAME/ and its command in commands.txt there; ``python scripts/render.py`` then
renders the page. Options after ``--`` go to train.py as they are, such as ``-- --device cpu``; for detection and
segmentation they go to timm-attn.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import yaml
from common import LOGS, RECIPES, ROOT

from timm_attn.train.argument_types import positive_int
from timm_attn.train.log import read_summary
from timm_attn.train.recipes import recipe_path

_ONE_AT_A_TIME = Lock()
CIFAR_RESNETS = tuple(f'{attn}resnet20_cifar' for attn in ('', 'se_', 'cbam_', 'ca_', 'csa_', 'scsa_'))


@dataclass(frozen=True)
class Experiment:
    """Networks that are compared under one recipe.

    Attributes:
        name: Name of the experiment, and of the folder of its logs.
        title: Title of its section on the page.
        about: What was done, in a sentence or two.
        recipe: Name of the recipe.
        models: Networks in families, the plain backbone of each family first.
        starts: What the networks start from -> the options of train.py for it.
        seeds: Seeds of the runs.
        tool: timm's train.py, or a command of timm-attn.
        metrics: Columns of the log that are compared -> their names; all are shown in percent.
        split: Images that they were measured on.
    """

    name: str
    title: str
    about: str
    recipe: str
    models: tuple[tuple[str, ...], ...]
    starts: dict[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    tool: str = 'train.py'
    metrics: tuple[tuple[str, str], ...] = (('eval_top1', 'top-1'),)
    split: str = 'test'

    @property
    def epochs(self) -> int:
        """Epochs of a run."""
        return yaml.safe_load(recipe_path(self.recipe).read_text())['epochs']

    def runs(self) -> Iterator[tuple[str, str, int]]:
        """Model, start and seed of each run."""
        for seed in self.seeds:
            for family in self.models:
                for model in family:
                    for start in self.starts:
                        yield model, start, seed

    def log(self, model: str, start: str, seed: int) -> Path:
        """Where the log of a run is kept."""
        return LOGS / self.name / f'{model}.{start}.seed{seed}.csv'

    @property
    def needs_weights(self) -> bool:
        """Whether the runs start from weights in a file."""
        return self.tool != 'train.py' and 'scratch' not in self.starts

    def percent(self, row: dict[str, float], column: str) -> float:
        """A metric in a row of a log, in percent; timm's top-1 is so already."""
        return row[column] * (1 if self.tool == 'train.py' else 100)

    @property
    def commands(self) -> Path:
        """Where the commands of the runs are kept, one on each line."""
        return LOGS / self.name / 'commands.txt'

    def resumed(self) -> list[str]:
        """Names of the runs that were interrupted and resumed."""
        commands = map(shlex.split, read_lines(self.commands))
        return sorted(self.name_of(words) for words in commands if '--resume' in words)

    @staticmethod
    def name_of(words: list[str]) -> str:
        """Name of the run of a command; a resumed run of timm-attn is named by its folder alone."""
        option = '--experiment' if '--experiment' in words else '--resume'
        return words[words.index(option) + 1].rpartition('/')[2]

    def command(
        self, model: str, start: str, seed: int, resumes: bool, places: 'Places', options: list[str]
    ) -> list[str]:
        """Words of the command of a run, after ``python``."""
        name = self.log(model, start, seed).stem
        recipe, folder = f'{RECIPES}/{self.recipe}.yaml', f'{places.output}/{name}'
        if self.tool == 'train.py':
            resume = ['--resume', f'{folder}/last.pth.tar'] if resumes else []
            return [
                places.script, '--config', recipe, '--device-modules', 'timm_attn', '--model', model,
                '--seed', str(seed), *self.starts[start], *options,
                '--data-dir', places.data_dir, '--output', places.output, '--experiment', name, *resume,
            ]  # fmt: skip
        if resumes:
            return ['-m', 'timm_attn', self.tool, '--resume', folder]
        weights = ['--pretrained-path', places.weights] if self.needs_weights else []
        return [
            '-m', 'timm_attn', self.tool, places.data_dir, '--config', recipe, '--backbone', model,
            '--seed', str(seed), *self.starts[start], *weights, *options,
            '--output', places.output, '--experiment', name,
        ]  # fmt: skip


@dataclass(frozen=True)
class Places:
    """Where a run finds what it needs, and where it writes."""

    data_dir: str
    script: str
    weights: str
    output: str


_START = (
    'Both backbones start from the same weights of MobileNetV2, trained on Imagenette at 128 px for 14 epochs '
    '(62.2 % top-1); the attention starts as an exact identity.'
)

EXPERIMENTS = {
    e.name: e
    for e in (
        Experiment(
            name='flowers12',
            title='Twelve flowers',
            about='Oxford Flowers, 12 classes of 60 training and 20 test images, at 48 px, for 30 epochs in bfloat16: '
            'from scratch, and from weights of the same network that were trained on CIFAR-10 for 12 epochs, which '
            'shipped up to version 0.11.',
            recipe='flowers12_resnet20',
            models=(CIFAR_RESNETS,),
            starts={'scratch': (), 'cifar10': ('--pretrained',)},
            seeds=(0, 1, 2),
        ),
        Experiment(
            name='imagenette128',
            title='Imagenette',
            about='Imagenette, ten classes of ImageNet, at 128 px for 50 epochs; needs a GPU.',
            recipe='imagenette128',
            models=(
                ('resnet50', 'seresnet50', 'csa_resnet50', 'scsa_resnet50'),
                ('mobilenetv2_100', 'mbv2_se', 'mbv2_cbam', 'mbv2_ca', 'mbv2_scsa'),
            ),
            starts={'scratch': ()},
            seeds=(0, 1),
        ),
        Experiment(
            name='bccd',
            title='Detection: SSDLite on blood cells',
            about='BCCD, 205 images to train and 87 to validate, SSDLite at 320 px for 40 epochs in bfloat16 on a CPU. '
            f'{_START} AP is that of COCO.',
            recipe='bccd',
            models=(('mobilenetv2_100', 'mbv2_ca'),),
            starts={'imagenette128': ()},
            seeds=(42, 43),
            tool='train-detection',
            metrics=(('eval_AP', 'AP'), ('eval_AP50', 'AP50'), ('eval_mAP_voc07', 'mAP of VOC 2007')),
            split='validation',
        ),
        Experiment(
            name='camvid',
            title='Segmentation: DeepLabV3 on street scenes',
            about='CamVid at 360 x 270 pixels, eleven classes, 367 images to train and 101 to validate, DeepLabV3 at '
            f'stride 16 for 12 epochs in bfloat16 on a CPU. {_START}',
            recipe='camvid',
            models=(('mobilenetv2_100', 'mbv2_ca'),),
            starts={'imagenette128': ()},
            seeds=(42, 43),
            tool='train-segmentation',
            metrics=(('eval_mIoU', 'mIoU'), ('eval_pixel_accuracy', 'pixel accuracy')),
            split='validation',
        ),
        Experiment(
            name='tiny_coco',
            title='The whole path: Mask R-CNN on eight images',
            about='Eight images of COCO, with 96 objects of many classes, are trained on and evaluated, from random '
            'weights. That tells nothing of other images, but that reader, losses, masks and metric fit together.',
            recipe='tiny_coco',
            models=(('csa_resnet50',),),
            starts={'scratch': ()},
            seeds=(42,),
            tool='train-detection',
            metrics=(('eval_AP', 'AP'), ('eval_AP50', 'AP50'), ('eval_mask_AP', 'AP of masks')),
            split='training',
        ),
    )
}


def read_lines(path: Path) -> list[str]:
    """Lines of a file; none when there is no file."""
    return path.read_text().splitlines() if path.exists() else []


def is_finished(log: Path, epochs: int) -> bool:
    """Whether a log reaches the last epoch."""
    rows = read_summary(log)
    return bool(rows) and rows[-1]['epoch'] == epochs - 1


def run(experiment: Experiment, model: str, start: str, seed: int, args: argparse.Namespace) -> bool:
    """Train one network, unless its log is complete already.

    Args:
        experiment: The experiment.
        model: Network to train.
        start: Name of its start.
        seed: Seed.
        args: The command line.

    Returns:
        Whether the run is finished.
    """
    log = experiment.log(model, start, seed)
    if is_finished(log, experiment.epochs):
        return True
    name = log.stem
    folder = Path(args.output).resolve() / name
    resumes = (folder / 'last.pth.tar').exists()
    print(f'{name}: {"resumes" if resumes else "starts"}', flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / 'train.log').open('a') as output:
        paths = (str(Path(path or '').resolve()) for path in (args.data_dir, args.train_script, args.weights))
        places = Places(*paths, str(folder.parent))
        train = [sys.executable, *experiment.command(model, start, seed, resumes, places, args.options)]
        status = subprocess.run(train, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT).returncode
    summary = folder / 'summary.csv'
    if status or not is_finished(summary, experiment.epochs):
        print(f'{name}: failed, see {folder / "train.log"}', flush=True)
        return False
    log.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(summary, log)
    places = Places(Path(args.data_dir).name, 'train.py', Path(args.weights or '').name, 'OUTPUT')
    kept = shlex.join(['python', *experiment.command(model, start, seed, resumes, places, args.options)])
    with _ONE_AT_A_TIME:
        others = [line for line in read_lines(experiment.commands) if name != experiment.name_of(shlex.split(line))]
        experiment.commands.write_text('\n'.join(sorted([*others, kept])) + '\n')
    column, label = experiment.metrics[0]
    print(f'{name}: {label} {experiment.percent(read_summary(log)[-1], column):.2f} %', flush=True)
    return True


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description='Run comparisons of model_cards/RESULTS.md.')
    parser.add_argument('experiment', choices=sorted(EXPERIMENTS))
    parser.add_argument('--data-dir', required=True, metavar='DIR', help='the data set, split into folders of classes')
    parser.add_argument('--train-script', metavar='FILE', help="timm's train.py, for classification")
    parser.add_argument('--weights', metavar='FILE', help='of the plain backbone, for detection and segmentation')
    parser.add_argument('--output', default='output/evidence', metavar='DIR', help='folder of the runs')
    parser.add_argument('--jobs', type=positive_int, default=1, metavar='N', help='runs at the same time')
    own, options = sys.argv[1:], []
    if '--' in own:
        own, options = own[: own.index('--')], own[own.index('--') + 1 :]
    args = parser.parse_args(own, argparse.Namespace(options=options))
    experiment = EXPERIMENTS[args.experiment]
    needed = ['data_dir', *['train_script'] * (experiment.tool == 'train.py'), *['weights'] * experiment.needs_weights]
    for name in needed:
        path = getattr(args, name)
        if not path:
            parser.error(f'{experiment.name} needs --{name.replace("_", "-")}')
        if not os.path.exists(path):
            parser.error(f'{path} does not exist')
    with ThreadPoolExecutor(args.jobs) as pool:
        finished = list(pool.map(lambda one: run(experiment, *one, args), experiment.runs()))
    return 0 if all(finished) else 1


if __name__ == '__main__':
    sys.exit(main())
