"""Sphinx configuration: ``sphinx-build -W --keep-going -b html docs OUT``."""

import timm_attn

project = 'timm-attn'
author = 'The timm-attn authors'
release = timm_attn.__version__

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode']
myst_heading_anchors = 3

autodoc_typehints = 'description'
autodoc_typehints_description_target = 'documented'
autodoc_member_order = 'bysource'

html_theme = 'furo'
html_title = f'timm-attn {release}'
html_show_copyright = False
