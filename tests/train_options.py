"""Options of timm's train.py, which is not part of the timm package: from a checkout, or recorded from one.

python tests/train_options.py pytorch-image-models/train.py    # record them
"""

import argparse
import json
import os
import runpy
import sys
from pathlib import Path

RECORD = Path(__file__).parent / 'data' / 'train_options.json'
SCRIPTS = os.environ.get('TIMM_SCRIPTS')  # a checkout of timm, to test with its scripts


def parser_of(script):
    return runpy.run_path(str(script), run_name='train')['parser']


def options_of(parser):
    """What each option takes: 'flag', or the name of its type, and in a list if it takes several."""
    options = {}
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        if action.nargs == 0:
            kind = 'flag'
        elif type(action).__name__ == 'ParseKwargs':
            kind = 'dict'
        else:
            kind = getattr(action.type, '__name__', 'str')
        options[action.dest] = [kind] if action.nargs in ('+', '*', 2, 3) and kind != 'dict' else kind
    return options


def recorded():
    return json.loads(RECORD.read_text())


if __name__ == '__main__':
    import timm

    checkout = Path(sys.argv[1]).parent
    version = runpy.run_path(str(checkout / 'timm' / 'version.py'))['__version__']
    options = options_of(parser_of(sys.argv[1]))
    RECORD.write_text(json.dumps(dict(timm=version, options=options), indent=1) + '\n')
    print(f'{len(options)} options of timm {version}, read with timm {timm.__version__}')
