"""Makes the pack importable as `pack`, as ComfyUI would under a name of its own, and ComfyUI importable where it is.

The repository's root cannot be imported by name: its `nodes` would hide ComfyUI's. Tests of the pure maths run without
ComfyUI; `python3 dev.py test` names ComfyUI's folder in COMFYUI_PATH.
"""

import os
import sys
import types
from pathlib import Path

import pytest

# The networks here are tiny: on a busy machine, threads that wait for each other cost far more than they give.
os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch

pack = types.ModuleType("pack")
pack.__path__ = [str(Path(__file__).parents[1])]
sys.modules["pack"] = pack

if comfyui := os.environ.get("COMFYUI_PATH"):
    sys.path.insert(0, comfyui)
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()  # before anything else of ComfyUI is imported

ODD_NAME = "REG, ein Übungs-Paket v1.0 (日本)"


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A client of a real ComfyUI, one for the whole session, that loads the pack from a folder with an odd name."""
    pytest.importorskip("comfy")
    from pack.devtools.server import Server

    with Server(tmp_path_factory.mktemp("comfyui"), ODD_NAME) as client:
        yield client
