"""Weights that ship inside the package."""

from pathlib import Path


def bundled(name: str) -> str:
    """Path of a weight file that ships with the package."""
    return str(Path(__file__).with_name(name))
