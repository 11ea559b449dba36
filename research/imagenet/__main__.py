"""`python -m research.imagenet`: what `dev.py imagenet` starts."""

import sys
from importlib import import_module

from . import start  # noqa: F401  (before anything of the pack)

if __name__ == "__main__":
    sys.exit(import_module("pack.research.imagenet.command").main())
