"""pytest plugin: timm's own model tests, run over the models of timm_attn in place of timm's.

timm's test file asks ``timm.list_models`` for the names to test. Here that answers with our models wherever it would
have answered with ResNets and MobileNets, so the file itself runs as it is. Of the pretrained weights it names those
inside the package: the others come from the network, and the tests here load them from a server of their own.
"""

import os

import timm
from timm.models import get_pretrained_cfg
from timm.models import list_models as _list_models

from timm_attn.models import zoo_models

_BODIES = {'resnet', 'efficientnet'}  # timm's modules of our bodies; a test limited to other modules is not ours


def _list_zoo(filter='', module='', pretrained=False, exclude_filters='', name_matches_cfg=False, include_tags=None):
    names = zoo_models(
        os.environ.get('ZOO_FILTER', ''),
        exclude_filters=exclude_filters,
        pretrained=pretrained,
        name_matches_cfg=name_matches_cfg,
        include_tags=include_tags,
    )
    if pretrained:
        names = [n for n in names if get_pretrained_cfg(n).file]
    modules = {module} if isinstance(module, str) else set(module)
    if modules - {''} and not modules & _BODIES:
        return []
    if filter:
        wanted = set(_list_models(filter, include_tags=include_tags))
        names = [n for n in names if n in wanted]
    return names


def _list_pretrained_zoo(filter='', exclude_filters=''):
    return _list_zoo(filter, exclude_filters=exclude_filters, pretrained=True)


timm.list_models = _list_zoo
timm.list_pretrained = _list_pretrained_zoo


def pytest_collection_modifyitems(config, items):
    """Keep the tests that were generated from the list of models."""
    names = set(zoo_models()) | set(zoo_models(include_tags=True))
    ours = [i for i in items if getattr(i, 'callspec', None) and i.callspec.params.get('model_name') in names]
    config.hook.pytest_deselected(items=[i for i in items if i not in ours])
    items[:] = ours
