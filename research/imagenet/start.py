"""Makes the pack importable as `pack`, here and in the workers of a cluster, and ComfyUI on this machine's device."""

import sys
import types
from pathlib import Path

import torch
from comfy.cli_args import args

args.cpu = not torch.cuda.is_available()  # ComfyUI reads its options when it is imported
pack = sys.modules.setdefault("pack", types.ModuleType("pack"))
pack.__path__ = [str(Path(__file__).resolve().parents[2])]
