"""``python -m timm_attn``: the command ``timm-attn``."""

import sys

from .cli import main

if __name__ == '__main__':
    sys.exit(main())
