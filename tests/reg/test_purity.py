"""The maths stands alone."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import importlib, pathlib, sys, types
pack = sys.modules["pack"] = types.ModuleType("pack")
pack.__path__ = ["."]
for path in sorted(pathlib.Path("reg").glob("*.py")) + sorted(pathlib.Path("lab").glob("*.py")):
    if path.stem != "__main__":
        importlib.import_module(f"pack.{path.parent.name}.{path.stem}")
print([name for name in sys.modules if name.split(".")[0] in ("comfy", "comfy_api", "nodes")])
"""


def test_the_maths_and_the_lab_import_no_comfyui():
    out = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
