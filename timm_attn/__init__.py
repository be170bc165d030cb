"""Attention-augmented CNNs inside timm: ``import timm_attn`` registers the models with ``timm.create_model``."""

import sys
from importlib import import_module
from os.path import basename
from typing import TYPE_CHECKING

__version__ = '0.12.0'
__all__ = ['attach', 'models', 'optimize']


def _is_the_command() -> bool:
    """Whether this process is ``timm-attn`` or ``python -m timm_attn``.

    Such a process parses its arguments before it pays for torch and timm; its subcommands register the models.
    """
    if basename(sys.argv[0] if sys.argv else '').removesuffix('.exe') == 'timm-attn':
        return True
    # While Python looks for the module of -m, argv[0] is '-m', and the module's name precedes the arguments.
    return sys.argv[:1] == ['-m'] and sys.orig_argv[-len(sys.argv)].removeprefix('-m') == __name__


if TYPE_CHECKING or not _is_the_command():
    from . import models
    from .fold_batch_norm import optimize
    from .layers.attach import attach
else:

    def __getattr__(name):
        """Import what the command line has not needed yet."""
        if name not in __all__:
            raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
        models = import_module('.models', __name__)
        if name == 'models':
            return models
        return getattr(import_module('.layers.attach' if name == 'attach' else '.fold_batch_norm', __name__), name)
