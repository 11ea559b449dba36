"""`python -m research COMMAND`: what `dev.py` starts for its commands that measure or train."""

import sys
from importlib import import_module

from . import start  # noqa: F401  (in a worker process, too, so that it knows the pack by the same name)

COMMANDS = {
    "lab": "lab.tables",
    "quality": "quality.sweep",
    "train": "train",
    "decode": "decode",
    "bench": "benchmarks.cost",
    "steps": "benchmarks.steps",
    "recording": "benchmarks.recording",
    "holding": "holding",
    "few-steps": "few_steps",
    "imagenet": "imagenet.command",
    "faults": "faults",
    "soak": "soak",
    "gpu": "gpu",
}

if __name__ == "__main__":
    command = COMMANDS[sys.argv.pop(1)]
    sys.exit(import_module(f"pack.research.{command}").main())
