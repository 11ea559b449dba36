"""Makes ComfyUI and the pack importable: import it before anything of either."""

import sys
import types
from pathlib import Path

import torch
from comfy.cli_args import args

args.cpu = not torch.cuda.is_available()  # ComfyUI reads its options when it is imported
ROOT = Path(__file__).parents[1]
pack = sys.modules.setdefault("pack", types.ModuleType("pack"))
pack.__path__ = [str(ROOT)]
