"""Recipes: option files for ``--config`` of timm's ``train.py``, each headed by its source and what to expect."""

from pathlib import Path

FOLDER = Path(__file__).parent


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
