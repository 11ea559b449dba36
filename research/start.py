"""Makes the pack importable as `pack`, which tests call it, too, and ComfyUI on this machine's device."""

import os
import sys
import types
from pathlib import Path

import torch
from comfy.cli_args import args

from . import stand_ins

STANDING_IN = stand_ins.install() if "REG_STAND_INS" in os.environ else []  # `dev.py COMMAND --from FOLDER`
args.cpu = not torch.cuda.is_available()  # ComfyUI reads its options when it is imported
pack = sys.modules.setdefault("pack", types.ModuleType("pack"))
pack.__path__ = [str(Path(__file__).parents[1])]
sys.modules.setdefault("pack.research.start", sys.modules[__name__])  # this is done once
