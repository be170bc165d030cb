r"""Run the comparisons of model_cards/RESULTS.md: networks under one recipe, several seeds, with timm's train.py.

    python scripts/evidence.py flowers12 --data-dir flowers12 --train-script pytorch-image-models/train.py
    python scripts/evidence.py imagenette128 --data-dir imagenette128 --train-script pytorch-image-models/train.py

The first fits one CPU core, the second needs a GPU. Run it again after an interruption: finished runs are skipped, an
unfinished one resumes from its last epoch. A run leaves its log in model_cards/data/logs/NAME/ and its command in
commands.txt there; ``python scripts/render.py`` then renders the page. Options after ``--`` go to train.py as they
are, such as ``-- --device cpu``.
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

from timm_attn.train.log import read_summary
from timm_attn.train.options import positive_int
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
    """

    name: str
    title: str
    about: str
    recipe: str
    models: tuple[tuple[str, ...], ...]
    starts: dict[str, tuple[str, ...]]
    seeds: tuple[int, ...]

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
    def commands(self) -> Path:
        """Where the commands of the runs are kept, one on each line."""
        return LOGS / self.name / 'commands.txt'

    def resumed(self) -> list[str]:
        """Names of the runs that were interrupted and resumed."""
        commands = map(shlex.split, read_lines(self.commands))
        return sorted(words[words.index('--experiment') + 1] for words in commands if '--resume' in words)


EXPERIMENTS = {
    e.name: e
    for e in (
        Experiment(
            name='flowers12',
            title='Twelve flowers',
            about='Oxford Flowers, 12 classes of 60 training and 20 test images, at 48 px, for 30 epochs in bfloat16: '
            'from scratch, and from the CIFAR-10 weights of the same network.',
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
    options = [
        '--config', f'{RECIPES}/{experiment.recipe}.yaml', '--device-modules', 'timm_attn', '--model', model,
        '--seed', str(seed), *experiment.starts[start], *args.options,
    ]  # fmt: skip
    resumes = (folder / 'last.pth.tar').exists()

    def command(script: str, data_dir: str, output: str) -> list[str]:
        resume = ['--resume', f'{output}/{name}/last.pth.tar'] if resumes else []
        return [script, *options, '--data-dir', data_dir, '--output', output, '--experiment', name, *resume]

    print(f'{name}: {"resumes" if resumes else "starts"}', flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / 'train.log').open('a') as output:
        places = (str(Path(path).resolve()) for path in (args.train_script, args.data_dir, folder.parent))
        train = [sys.executable, *command(*places)]
        status = subprocess.run(train, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT).returncode
    summary = folder / 'summary.csv'
    if status or not is_finished(summary, experiment.epochs):
        print(f'{name}: failed, see {folder / "train.log"}', flush=True)
        return False
    log.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(summary, log)
    kept = shlex.join(['python', *command('train.py', Path(args.data_dir).name, 'OUTPUT')])
    with _ONE_AT_A_TIME:
        others = [line for line in read_lines(experiment.commands) if name not in shlex.split(line)]
        experiment.commands.write_text('\n'.join(sorted([*others, kept])) + '\n')
    print(f'{name}: top-1 {read_summary(log)[-1]["eval_top1"]:.2f} %', flush=True)
    return True


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description='Run the comparisons of model_cards/RESULTS.md.')
    parser.add_argument('experiment', choices=sorted(EXPERIMENTS))
    parser.add_argument('--data-dir', required=True, metavar='DIR', help='the data set, split into folders of classes')
    parser.add_argument('--train-script', required=True, metavar='FILE', help="timm's train.py")
    parser.add_argument('--output', default='output/evidence', metavar='DIR', help='folder of the runs')
    parser.add_argument('--jobs', type=positive_int, default=1, metavar='N', help='runs at the same time')
    own, options = sys.argv[1:], []
    if '--' in own:
        own, options = own[: own.index('--')], own[own.index('--') + 1 :]
    args = parser.parse_args(own, argparse.Namespace(options=options))
    for path in (args.data_dir, args.train_script):
        if not os.path.exists(path):
            parser.error(f'{path} does not exist')
    experiment = EXPERIMENTS[args.experiment]
    with ThreadPoolExecutor(args.jobs) as pool:
        finished = list(pool.map(lambda one: run(experiment, *one, args), experiment.runs()))
    return 0 if all(finished) else 1


if __name__ == '__main__':
    sys.exit(main())
