"""Makes the pack importable as `pack`, as ComfyUI would under a name of its own, and ComfyUI importable where it is.

The repository's root cannot be imported by name: its `nodes` would hide ComfyUI's. Tests of the pure maths run without
ComfyUI; `python3 dev.py test` names ComfyUI's folder in COMFYUI_PATH.
"""

import json
import os
import sys
import types
from pathlib import Path

import pytest

# The networks here are tiny: on a busy machine, threads that wait for each other cost far more than they give.
os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch

ROOT = Path(__file__).parents[1]
WORKFLOWS = ROOT / "workflows"

pack = types.ModuleType("pack")
pack.__path__ = [str(ROOT)]
sys.modules["pack"] = pack

from pack.tests import skips  # noqa: E402
from pack.tests.skips import pytest_make_collect_report, pytest_runtest_makereport  # noqa: E402, F401

PINNED = (0, 30, 0)  # the ComfyUI whose models, patches and page are known to these tests
version, collect_ignore = None, []


def stand_in_for_newer_models() -> None:
    """Let the list of tiny models be imported where some of the classes that it names do not exist yet."""
    from comfy import supported_models
    from comfy.supported_models_base import BASE

    def missing(name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (BASE,), {"unet_config": {}})

    supported_models.__getattr__ = missing


if comfyui := os.environ.get("COMFYUI_PATH"):
    sys.path.insert(0, comfyui)
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()  # before anything else of ComfyUI is imported

    import utils.install_util  # noqa: F401  (as ComfyUI's main does, before `comfy/utils.py` gets in its way)
    from comfyui_version import __version__ as version

    if tuple(map(int, version.split("."))) < PINNED:
        collect_ignore = ["test_families.py", "test_families_build.py", "browser"]
        collect_ignore += ["guiders/test_compatibility.py", "guiders/test_added_networks.py"]
        stand_in_for_newer_models()
        skips.EXPECTED += ["this ComfyUI does not", "this ComfyUI has no", "could not import 'comfy"]
else:
    skips.EXPECTED += ["needs ComfyUI", "could not import 'comfy"]

ODD_NAME = "REG, ein Übungs-Paket v1.0 (日本)"


def pytest_report_header() -> str:
    """Which ComfyUI is tested, and what is left out on it."""
    return f"ComfyUI {version}" + (f", too old for {', '.join(collect_ignore)}" if collect_ignore else "")


def pytest_terminal_summary(terminalreporter) -> None:
    """Tests that this machine lacks a program for are counted aloud."""
    reasons = [report.longrepr[2] for report in terminalreporter.stats.get("skipped", [])]
    for reason in sorted({reason for reason in reasons if "installed here" in reason}):
        line = f"NOT TESTED, {reasons.count(reason)} tests: {reason.removeprefix('Skipped: ')}"
        terminalreporter.write_line(line, red=True, bold=True)


@pytest.fixture(scope="session")
def comfyui_folder(tmp_path_factory):
    """Where the server of the session has its models, input and output. An empty file stands for each model of a template."""
    folder = tmp_path_factory.mktemp("comfyui")
    for template in WORKFLOWS.glob("*.json"):
        for node in json.loads(template.read_text(encoding="utf-8"))["nodes"]:
            for model in [*node["properties"].get("models", []), *node["properties"].get("converted", [])]:
                file = folder / "models" / model["directory"] / model["name"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
    return folder


@pytest.fixture(scope="session")
def server(comfyui_folder):
    """A client of a real ComfyUI, one for the whole session, that loads the pack from a folder with an odd name."""
    pytest.importorskip("comfy")
    from pack.devtools.server import Server

    with Server(comfyui_folder, ODD_NAME) as client:
        yield client
