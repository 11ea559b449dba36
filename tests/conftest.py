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

version, collect_ignore = None, []
if comfyui := os.environ.get("COMFYUI_PATH"):
    sys.path.insert(0, comfyui)
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()  # before anything else of ComfyUI is imported

    from comfyui_version import __version__ as version

    if tuple(map(int, version.split("."))) < (0, 30, 0):  # these build every model that the pinned ComfyUI has
        collect_ignore = ["test_families.py", "test_families_build.py"]
        collect_ignore += ["guiders/test_checkpointing.py", "guiders/test_company.py"]

ODD_NAME = "REG, ein Übungs-Paket v1.0 (日本)"


def pytest_report_header() -> str:
    """Which ComfyUI is tested, and what is left out on it."""
    return f"ComfyUI {version}" + (f", too old for {', '.join(collect_ignore)}" if collect_ignore else "")


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A client of a real ComfyUI, one for the whole session, that loads the pack from a folder with an odd name."""
    pytest.importorskip("comfy")
    from pack.devtools.server import Server

    with Server(tmp_path_factory.mktemp("comfyui"), ODD_NAME) as client:
        yield client
