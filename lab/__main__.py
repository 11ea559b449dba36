"""`python -m lab`: measure guidance rules in worlds whose exact answer is known."""

import sys
import types
from pathlib import Path

# The lab imports `..reg`, as it must inside ComfyUI: give the repository the package name the tests use, too.
pack = types.ModuleType("pack")
pack.__path__ = [str(Path(__file__).resolve().parents[1])]
sys.modules.setdefault("pack", pack)

from pack.lab.tables import main  # noqa: E402

main()
