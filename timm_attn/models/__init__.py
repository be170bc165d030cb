"""The model families. Importing this package registers every model in timm."""

import importlib
import pkgutil

from .builder import zoo_models

__all__ = ['zoo_models']

# Every file here is imported, so that a new family is registered without a line in this one.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f'{__name__}.{_module.name}')
