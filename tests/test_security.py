"""What the pack's own code may do: a scan of every program that users get.

Imports are an allowlist, so that a new one is a decision. The scan sees names, not what they are bound to: it keeps
honest code honest, and is no sandbox.
"""

import ast
import re
from pathlib import Path

import pytest

from pack.devtools.shipped import shipped

ROOT = Path(__file__).parents[1]
PROGRAMS = [path for path in shipped() if path.endswith(".py")]
COMFYUI = {"comfy", "comfy_api", "comfy_execution", "comfy_kitchen", "folder_paths", "latent_preview", "server"}
LIBRARIES = {"PIL", "einops", "matplotlib", "numpy", "safetensors", "scipy", "torch", "torchvision"}
LIBRARIES |= {"filelock", "jinja2", "transformers"}  # of the pilot; they come with torch and ComfyUI
STANDARD = {  # neither os, sys, subprocess, sockets, pickle nor importlib
    *(
        "bisect",
        "collections",
        "contextlib",
        "copy",
        "dataclasses",
        "difflib",
        "enum",
        "functools",
        "hashlib",
        "itertools",
        "json",
        "logging",
    ),
    *("math", "pathlib", "textwrap", "time", "typing", "warnings", "weakref"),
    *("base64", "csv", "datetime", "errno", "inspect", "io", "platform", "re", "shlex", "stat", "threading", "uuid"),
}
OF_SAVING = {"reg/profile.py": {"os"}}  # fsync and replace, for a file that is there whole or not at all
COMMANDS = {  # `python3 -m pilot` starts and asks servers, as whoever types it wants; no node imports these
    f"pilot/{name}.py" for name in ("__main__", "cluster", "dispatch", "outside", "servers", "watch", "workflow")
}
OF_COMMANDS = {
    *("aiohttp", "argparse", "asyncio", "copy", "ctypes", "os", "ray", "signal", "socket", "subprocess", "sys"),
    *("tempfile", "tenacity", "tqdm", "uuid"),
}
NEVER = {"eval", "exec", "compile", "__import__", "breakpoint", "input"}
NEVER_OF = {("torch", "load"), ("torch", "save"), ("torch", "hub"), ("np", "load"), ("numpy", "load"), ("np", "save")}
WRITES = {
    *("open", "write_text", "write_bytes", "mkdir", "touch", "unlink", "rename", "rmdir", "symlink_to", "hardlink_to"),
    *("chmod", "savefig", "save_file", "tofile"),
}
MAY_WRITE = {
    "nodes/profile.py": {"mkdir"},  # models/reg_profiles, below; the name is checked by safe_path
    "reg/profile.py": {"open", "unlink"},  # where nodes/profile.py says
    "pilot/store.py": {"mkdir", "open", "unlink"},  # the folder of a pilot, which nodes/pilot.py names
    "pilot/collect.py": {"open"},  # reference pictures, to read them
    "pilot/page.py": {"unlink"},  # an earlier preset there
    "pilot/plots.py": {"savefig"},  # into memory
    "pilot/outside.py": {"open"},  # a picture in memory, and the places of a command
    "pilot/servers.py": {"open"},  # the log of a server
}


def nodes(path: str):
    return list(ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))))


def imported(path: str) -> set[str]:
    """Top-level names of what a program imports, its own pack left out."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def called(path: str) -> tuple[set[str], set[str]]:
    """What a program calls: by plain name, and by the last name of anything, as in Path(…).open()."""
    functions = [node.func for node in nodes(path) if isinstance(node, ast.Call)]
    plain = {function.id for function in functions if isinstance(function, ast.Name)}
    return plain, plain | {function.attr for function in functions if isinstance(function, ast.Attribute)}


def of_modules(path: str) -> set[tuple[str, str]]:
    """(name, attribute) of every `name.attribute`."""
    pairs = [node for node in nodes(path) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    return {(node.value.id, node.attr) for node in pairs}


def test_there_are_programs_to_scan():
    assert {"__init__.py", "nodes/guidance.py", "guiders/run.py", "reg/profile.py"} <= set(PROGRAMS)


@pytest.mark.parametrize("path", PROGRAMS)
def test_program_keeps_to_what_is_allowed(path):
    plain, every = called(path)
    more = OF_COMMANDS if path in COMMANDS else OF_SAVING.get(path, set())
    assert imported(path) <= COMFYUI | LIBRARIES | STANDARD | more
    assert not plain & NEVER
    assert not of_modules(path) & NEVER_OF
    assert every & WRITES <= MAY_WRITE.get(path, set())


def test_one_script_runs_in_the_browser_and_asks_for_nothing():
    """It folds advanced inputs away and clears a line, which ComfyUI has no other way for."""
    assert [path for path in shipped() if path.endswith((".js", ".mjs", ".html"))] == ["web/reg.js"]
    script = (ROOT / "web" / "reg.js").read_text(encoding="utf-8")
    assert re.findall(r'from "(.*)"', script) == ["../../scripts/api.js", "../../scripts/app.js"]
    asks = (
        "fetch",
        "import(",
        "eval",
        "Function(",
        "innerHTML",
        "document",
        "XMLHttp",
        "WebSocket",
        "queuePrompt",
        "storage",
    )
    assert not [word for word in asks if word in script]


def test_no_node_imports_a_command():
    """Nor does what a node imports."""
    names = {Path(path).stem for path in COMMANDS}
    for path in set(PROGRAMS) - COMMANDS:
        for node in nodes(path):
            if (
                isinstance(node, ast.ImportFrom)
                and node.level
                and (path.startswith("pilot/") or "pilot" in str(node.module))
            ):
                assert not names & {alias.name for alias in node.names}, path
                assert not names & set((node.module or "").split(".")), path


def test_no_pickles_are_shipped():
    assert not [path for path in shipped() if path.endswith((".pt", ".pth", ".ckpt", ".bin", ".pkl", ".npy", ".npz"))]
