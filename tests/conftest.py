"""Makes the pack importable as `pack`, as ComfyUI would under a name of its own, and ComfyUI importable where it is.

The repository's root cannot be imported by name: its `nodes` would hide ComfyUI's. Tests of the pure maths run without
ComfyUI; `python3 dev.py test` names ComfyUI's folder in COMFYUI_PATH.
"""

import os
import sys
import types
from pathlib import Path

import torch

pack = types.ModuleType("pack")
pack.__path__ = [str(Path(__file__).parents[1])]
sys.modules["pack"] = pack

if comfyui := os.environ.get("COMFYUI_PATH"):
    sys.path.insert(0, comfyui)
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()  # before anything else of ComfyUI is imported
