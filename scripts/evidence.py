r"""Run the comparisons of model_cards/RESULTS.md that are of detection and segmentation.

    python scripts/evidence.py bccd --data-dir BCCD --weights mobilenetv2_100.imagenette128.safetensors
    python scripts/evidence.py camvid --data-dir camvid --weights mobilenetv2_100.imagenette128.safetensors
    python scripts/evidence.py tiny_coco --data-dir tiny_coco

They fit one CPU core; ``-- --amp`` shortens them where it has bfloat16. The weights that bccd and camvid start from are
made on a core in under an hour by

    timm-attn finetune imagenette128 --model mobilenetv2_100 --no-pretrained --img-size 128 --epochs 14 \
        --scale 0.25 1 -b 64 --opt adamw --lr 2e-3 --layer-decay 1 --warmup-epochs 1 --color-jitter 0.2 --reprob 0 --amp

Run it again after an interruption: finished runs are skipped, an unfinished one resumes from its last epoch. A run
leaves its log in model_cards/data/logs/NAME/ and its command in commands.txt there; ``python scripts/render.py`` then
renders the page. Options after ``--`` go to timm-attn as they are. ``scripts/studies.py`` compares classifiers.
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


@dataclass(frozen=True)
class Experiment:
    """Networks that are compared under one recipe.

    Attributes:
        name: Name of the experiment, of its recipe, and of the folder of its logs.
        title: Title of its section on the page.
        about: What was done, in a sentence or two.
        command: Command of timm-attn that trains them.
        models: Networks, the plain backbone first.
        start: What the networks start from.
        seeds: Seeds of the runs.
        metrics: Columns of the log that are compared -> their names; all are shares, shown in percent.
        split: Images that they were measured on.
    """

    name: str
    title: str
    about: str
    command: str
    models: tuple[str, ...]
    start: str
    seeds: tuple[int, ...]
    metrics: tuple[tuple[str, str], ...]
    split: str = 'validation'

    @property
    def epochs(self) -> int:
        """Epochs of a run."""
        return yaml.safe_load(recipe_path(self.name).read_text())['epochs']

    def runs(self) -> Iterator[tuple[str, int]]:
        """Model and seed of each run."""
        for seed in self.seeds:
            for model in self.models:
                yield model, seed

    def log(self, model: str, seed: int) -> Path:
        """Where the log of a run is kept."""
        return LOGS / self.name / f'{model}.{self.start}.seed{seed}.csv'

    @property
    def needs_weights(self) -> bool:
        """Whether the runs start from weights in a file."""
        return self.start != 'scratch'

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
        """Name of the run of a command; a resumed run is named by its folder alone."""
        option = '--experiment' if '--experiment' in words else '--resume'
        return words[words.index(option) + 1].rpartition('/')[2]

    def words(self, model: str, seed: int, resumes: bool, places: 'Places', options: list[str]) -> list[str]:
        """Words of the command of a run, after ``python``."""
        name = self.log(model, seed).stem
        if resumes:
            return ['-m', 'timm_attn', self.command, '--resume', f'{places.output}/{name}']
        weights = ['--pretrained-path', places.weights] if self.needs_weights else []
        return [
            '-m', 'timm_attn', self.command, places.data_dir, '--config', f'{RECIPES}/{self.name}.yaml',
            '--backbone', model, '--seed', str(seed), *weights, *options,
            '--output', places.output, '--experiment', name,
        ]  # fmt: skip


@dataclass(frozen=True)
class Places:
    """Where a run finds what it needs, and where it writes."""

    data_dir: str
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
            name='bccd',
            title='Detection: SSDLite on blood cells',
            about='BCCD, 205 images to train and 87 to validate, SSDLite at 320 px for 40 epochs in bfloat16 on a CPU. '
            f'{_START} AP is that of COCO.',
            models=('mobilenetv2_100', 'mbv2_ca'),
            start='imagenette128',
            seeds=(42, 43),
            command='train-detection',
            metrics=(('eval_AP', 'AP'), ('eval_AP50', 'AP50'), ('eval_mAP_voc07', 'mAP of VOC 2007')),
        ),
        Experiment(
            name='camvid',
            title='Segmentation: DeepLabV3 on street scenes',
            about='CamVid at 360 x 270 pixels, eleven classes, 367 images to train and 101 to validate, DeepLabV3 at '
            f'stride 16 for 12 epochs in bfloat16 on a CPU. {_START}',
            models=('mobilenetv2_100', 'mbv2_ca'),
            start='imagenette128',
            seeds=(42, 43),
            command='train-segmentation',
            metrics=(('eval_mIoU', 'mIoU'), ('eval_pixel_accuracy', 'pixel accuracy')),
        ),
        Experiment(
            name='tiny_coco',
            title='Sanity check: Mask R-CNN on eight images',
            about='Eight images of COCO, with 96 objects of many classes, are trained on and evaluated, from random '
            'weights. This checks that reader, losses, masks and metric work together; it says nothing about '
            'other images.',
            models=('csa_resnet50',),
            start='scratch',
            seeds=(42,),
            command='train-detection',
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


def run(experiment: Experiment, model: str, seed: int, args: argparse.Namespace) -> bool:
    """Train one network, unless its log is complete already.

    Args:
        experiment: The experiment.
        model: Network to train.
        seed: Seed.
        args: The command line.

    Returns:
        Whether the run is finished.
    """
    log = experiment.log(model, seed)
    if is_finished(log, experiment.epochs):
        return True
    name = log.stem
    folder = Path(args.output).resolve() / name
    resumes = (folder / 'last.pth.tar').exists()
    print(f'{name}: {"resumes" if resumes else "starts"}', flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / 'train.log').open('a') as output:
        paths = (str(Path(path or '').resolve()) for path in (args.data_dir, args.weights))
        places = Places(*paths, str(folder.parent))
        train = [sys.executable, *experiment.words(model, seed, resumes, places, args.options)]
        status = subprocess.run(train, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT).returncode
    summary = folder / 'summary.csv'
    if status or not is_finished(summary, experiment.epochs):
        print(f'{name}: failed, see {folder / "train.log"}', flush=True)
        return False
    log.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(summary, log)
    places = Places(Path(args.data_dir).name, Path(args.weights or '').name, 'OUTPUT')
    kept = shlex.join(['python', *experiment.words(model, seed, resumes, places, args.options)])
    with _ONE_AT_A_TIME:
        others = [line for line in read_lines(experiment.commands) if name != experiment.name_of(shlex.split(line))]
        experiment.commands.write_text('\n'.join(sorted([*others, kept])) + '\n')
    column, label = experiment.metrics[0]
    print(f'{name}: {label} {100 * read_summary(log)[-1][column]:.2f} %', flush=True)
    return True


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description='Run the comparisons of detectors and segmenters in model_cards/RESULTS.md.'
    )
    parser.add_argument('experiment', choices=sorted(EXPERIMENTS))
    parser.add_argument('--data-dir', required=True, metavar='DIR', help='the data set')
    parser.add_argument('--weights', metavar='FILE', help='of the plain backbone, for all but tiny_coco')
    parser.add_argument('--output', default='output/evidence', metavar='DIR', help='folder of the runs')
    parser.add_argument('--jobs', type=positive_int, default=1, metavar='N', help='runs at the same time')
    own, options = sys.argv[1:], []
    if '--' in own:
        own, options = own[: own.index('--')], own[own.index('--') + 1 :]
    args = parser.parse_args(own, argparse.Namespace(options=options))
    experiment = EXPERIMENTS[args.experiment]
    for name in ['data_dir', *['weights'] * experiment.needs_weights]:
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
