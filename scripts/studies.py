r"""Run the comparisons of classifiers in model_cards/RESULTS.md, which are those of ``timm-attn compare``.

    python scripts/studies.py flowers12 --data-dir flowers12
    python scripts/studies.py cifar10 --data-dir cifar10

Run it again after an interruption: what is finished is not repeated. The reports are kept in ``model_cards/reports``,
without pictures of the data; ``python scripts/render.py`` then renders the page. Of a study that is interrupted, what
its finished runs answered is kept there, without their weights, so that another machine can go on with it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import yaml
from common import CARDS, RECIPES, ROOT

REPORTS = CARDS / 'reports'


@dataclass(frozen=True)
class Study:
    """A comparison of classifiers, from one or more starts.

    Attributes:
        name: Its name.
        recipe: Name of its recipe.
        title: Title of its section on the page.
        about: What was done, in a sentence or two.
        starts: What the networks start from -> the options of ``timm-attn compare`` for it.
    """

    name: str
    recipe: str
    title: str
    about: str
    starts: dict[str, tuple[str, ...]]

    def report(self, start: str) -> Path:
        """Folder of a report."""
        return REPORTS / f'{self.name}.{start}'

    def unfinished(self, start: str) -> Path:
        """Archive of the finished runs of a study that is not finished."""
        return self.report(start) / 'unfinished.zip'

    def results(self, start: str) -> dict | None:
        """What was found; None where it was not run, or not to its end."""
        file = self.report(start) / 'results.json'
        return json.loads(file.read_text()) if file.exists() else None


STUDIES = {
    study.name: study
    for study in (
        Study(
            name='cifar10',
            recipe='cifar10',
            title='CIFAR-10',
            about='ResNet-20 with each attention, from random weights, for 8 epochs, which is far from convergence. '
            'The weights of the runs with seed 2 ship with the package. Takes some hours on two CPU cores with '
            'bfloat16.',
            starts={'scratch': ()},
        ),
        Study(
            name='flowers12',
            recipe='flowers12',
            title='Twelve flowers',
            about='Oxford Flowers, 12 classes of 60 training and 20 test images, at 48 px, for 30 epochs in bfloat16: '
            'from scratch, and from the CIFAR-10 weights of the same network.',
            starts={'cifar10': (), 'scratch': ('--no-pretrained',)},
        ),
        *(
            Study(
                name=f'imagenette128_{family}',
                recipe='imagenette128',
                title=f'Imagenette, {title}',
                about='Imagenette, ten classes of ImageNet, at 128 px for 50 epochs; needs a GPU.',
                starts={'scratch': ('--models', *models)},
            )
            for family, title, models in (
                ('resnet50', 'ResNet-50', ('resnet50', 'seresnet50', 'csa_resnet50', 'scsa_resnet50')),
                ('mobilenetv2', 'MobileNetV2', ('mobilenetv2_100', 'mbv2_se', 'mbv2_cbam', 'mbv2_ca', 'mbv2_scsa')),
            )
        ),
    )
}


def run(study: Study, start: str, data_dir: str, output: Path, jobs: int = 1) -> int:
    """Run a comparison, or what is left of it, and keep its report.

    Args:
        study: The study.
        start: Name of its start.
        data_dir: The data set.
        output: Folder of the comparisons.
        jobs: Runs at the same time.

    Returns:
        Exit status of ``timm-attn compare``.
    """
    folder, unfinished = output / f'{study.name}.{start}', study.unfinished(start)
    if unfinished.exists() and not folder.exists():
        with zipfile.ZipFile(unfinished) as archive:
            archive.extractall(folder)
    if (folder / 'args.yaml').exists():
        words = [data_dir, '--resume', str(folder)]
    else:
        recipe = ROOT / RECIPES / f'{study.recipe}.yaml'
        place = ['--output', str(output), '--experiment', folder.name]
        words = [data_dir, '--config', str(recipe), *study.starts[start], *place]
    words += ['--jobs', str(jobs)]
    status = subprocess.run([sys.executable, '-m', 'timm_attn', 'compare', *words]).returncode
    if not status:
        keep(folder, study.report(start))
    elif (folder / 'answers').is_dir():
        pack(folder, unfinished)
    return status


def pack(folder: Path, archive: Path) -> None:
    """Keep what a comparison needs of its finished runs to go on.

    Args:
        folder: Folder of the comparison.
        archive: The archive to write or replace.
    """
    answers = sorted((folder / 'answers').glob('*.json'))
    logs = [folder / 'runs' / file.stem / 'summary.csv' for file in answers]
    kept = [folder / 'recipe.yaml', folder / 'split.json', *answers, *logs]
    options = yaml.safe_load((folder / 'args.yaml').read_text())
    here = ('data_dir', 'output', 'experiment')  # places on this machine
    elsewhere = yaml.safe_dump({key: value for key, value in options.items() if key not in here}, sort_keys=False)
    archive.parent.mkdir(parents=True, exist_ok=True)
    part = archive.with_name(f'{archive.name}.part')
    with zipfile.ZipFile(part, 'w', zipfile.ZIP_LZMA) as writer:
        for path in kept:
            writer.write(path, path.relative_to(folder))
        writer.writestr('args.yaml', elsewhere)
    os.replace(part, archive)


def keep(folder: Path, report: Path) -> None:
    """Copy the report of a comparison.

    Args:
        folder: Folder of the comparison.
        report: Folder to write to.
    """
    shutil.rmtree(report, ignore_errors=True)
    shutil.copytree(folder / 'report_files', report / 'report_files')
    for name in ('results.json', 'report.html', 'report.md'):
        shutil.copyfile(folder / name, report / name)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description='Run the comparisons of classifiers in model_cards/RESULTS.md.')
    parser.add_argument('study', choices=sorted(STUDIES))
    parser.add_argument('--data-dir', required=True, metavar='DIR', help='the data set, split into folders of classes')
    parser.add_argument('--output', type=Path, default='output/studies', metavar='DIR', help='folder of the runs')
    parser.add_argument('--jobs', type=int, default=1, metavar='N', help='runs at the same time (default: %(default)s)')
    args = parser.parse_args()
    study = STUDIES[args.study]
    output = Path(args.output).resolve()
    for start in study.starts:
        if status := run(study, start, args.data_dir, output, args.jobs):
            return status  # interrupted, or to be looked at before more is trained
    return 0


if __name__ == '__main__':
    sys.exit(main())
