"""REG on other guidance is compared with that guidance: at its cfg, and at its accuracy."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import numpy as np
import pandas as pd

from pack.research.quality import stacked
from pack.research.quality.cells import Cell
from pack.tests.research.quality.test_contest import line

MEANS = pd.DataFrame(
    line("cfg", (0.8, 0.9, 1.0), (0.2, 0.3, 0.5), spread=0.1)
    + line("apg", (0.7, 0.8, 0.9), (0.1, 0.2, 0.3), spread=0.1)
    + line("cfg + ratio", (0.8, 0.9, 1.0), (0.15, 0.2, 0.3), spread=0.1)
    + line("apg + ratio", (0.7, 0.8, 0.9), (0.15, 0.3, 0.45), spread=0.1)
)


def cells(text):
    return {
        first: rest
        for first, *rest in ([cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines()[2:])
    }


def test_at_a_cfg_the_noise_that_both_share_is_none_of_their_difference():
    assert cells(stacked.by_cfg(MEANS, 5.0)) == {
        "cfg": ["0.300 (0.90)", "**-0.100 (-0.100 to -0.100)**, 0.90"],
        "apg": ["0.200 (0.80)", "**+0.100 (+0.100 to +0.100)**, 0.80"],
    }


def test_at_an_accuracy_what_no_cfg_reaches_is_left_out():
    found = cells(stacked.at_equal_accuracy(MEANS))
    assert found["cfg + ratio"] == [
        "**-0.050 (-0.050 to -0.050)**",
        "**-0.075 (-0.075 to -0.075)**",
        "**-0.100 (-0.100 to -0.100)**",
        "**-0.150 (-0.150 to -0.150)**",
    ]
    assert found["apg + ratio"][0] == "**+0.100 (+0.100 to +0.100)**" and found["apg + ratio"][-1] == ""


def test_an_interval_that_holds_0_is_not_bold():
    one, other = np.array([0.1, 0.0, 0.3]), np.array([0.05, 0.1, 0.0])
    assert stacked.difference(one, other) == "+0.050 (-0.140 to +0.240)"


def test_without_cfg_there_is_no_table(tmp_path):
    cells = [Cell("", prompt, "apg", 5.0, 0) for prompt in ("shape=star", "colour=gold")]
    with pytest.raises(SystemExit, match="CFG, which the others are compared with"):
        stacked.write(None, cells, tmp_path, "command")


def test_the_plot_has_a_panel_for_each_guidance(tmp_path):
    stacked.plot(MEANS, tmp_path / "stacked.png")
    assert (tmp_path / "stacked.png").stat().st_size > 10_000
