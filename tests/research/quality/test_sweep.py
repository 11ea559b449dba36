"""The sweep names rules that exist, each cell once."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

from pack.research.quality import rules, sweep


def test_the_sweep_has_no_cell_twice():
    wanted = sweep.cells("model")
    assert len(wanted) == len(set(wanted)) and {c.rule for c in wanted} <= set(rules.NAMES)
