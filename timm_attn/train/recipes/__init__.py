"""Recipes: option files for ``--config``, each headed by its source and what to expect.

They are for timm's ``train.py``, and for the commands of this package that train.
"""

from pathlib import Path

import yaml

FOLDER = Path(__file__).parent

_COMMANDS = dict(
    detector='train-detection', segmenter='train-segmentation', models='compare', val_fraction='finetune'
)  # fmt: skip
"""Options that only one command has -> the command."""


def list_recipes() -> list[str]:
    """Names of the recipes, sorted."""
    return sorted(path.stem for path in FOLDER.glob('*.yaml'))


def recipe_path(name: str) -> Path:
    """Path of a recipe.

    Raises:
        ValueError: If there is no recipe of that name.
    """
    name = name.removesuffix('.yaml')
    if name not in list_recipes():
        raise ValueError(f'Unknown recipe {name!r}: it must be one of {", ".join(list_recipes())}.')
    return FOLDER / f'{name}.yaml'


def command_of(name: str) -> str:
    """Command that a recipe is for: ``train.py``, or ``finetune``, ``compare``, ``train-detection``, ....

    Raises:
        ValueError: If there is no recipe of that name.
    """
    options = yaml.safe_load(recipe_path(name).read_text(encoding='utf-8'))
    return next((command for option, command in _COMMANDS.items() if option in options), 'train.py')
