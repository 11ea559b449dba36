"""`python -m demo.quality`: measure guidance rules on a demo model."""

import sys
import types
from pathlib import Path

import torch
from comfy.cli_args import args as comfy_options

comfy_options.cpu = not torch.cuda.is_available()  # before anything else of ComfyUI is imported
pack = sys.modules.setdefault("pack", types.ModuleType("pack"))
pack.__path__ = [str(Path(__file__).resolve().parents[2])]

from pack.demo.quality.sweep import main  # noqa: E402

if __name__ == "__main__":  # and not in a worker process
    main()
