"""Deprecated name of ``scripts/render.py``."""

import sys

from render import main

if __name__ == '__main__':
    print('scripts/model_cards.py is deprecated, use: python scripts/render.py', file=sys.stderr)
    sys.exit(main())
