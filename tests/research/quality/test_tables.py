"""Tables have each rule's numbers at each cfg, and differences to CFG in pairs."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import numpy as np
import pandas as pd

from pack.research.quality import measures, tables
from pack.research.quality.cells import Cell


def row(rule, cfg, target, noise):
    """A row of means, whose replicates all move by the same noise."""
    moved = noise * np.random.default_rng(0).normal(size=measures.RESAMPLES)
    return {"rule": rule, "cfg": cfg, "target": target, "target replicates": target + moved, "clipped": 10 * target}


MEANS = pd.DataFrame(
    [
        row("cfg", 8.0, 0.5, 0.1),
        row("cfg", 3.0, 0.3, 0.1),
        row("apg", 3.0, 0.25, 0.1),
        row("ratio", 8.0, 0.2, 0.05),
        row("none", 2.0, 0.9, 0.1),
    ]
)


def cells(text):
    head, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return head, {first: rest for first, *rest in lines}


def test_rules_keep_their_order_and_cfgs_rise():
    head, rows = cells(tables.rules_by_cfg(MEANS, "clipped"))
    assert head == ["rule", "cfg 2", "cfg 3", "cfg 8"]
    assert list(rows.items()) == [
        ("cfg", ["", "3.00", "5.00"]),
        ("apg", ["", "2.50", ""]),
        ("ratio", ["", "", "2.00"]),
        ("none", ["9.00", "", ""]),
    ]


def test_differences_are_paired():
    """Noise that a rule shares with CFG is none of its difference; half of it leaves half."""
    head, rows = cells(tables.over_cfg(MEANS))
    assert head == ["rule", "cfg 3", "cfg 8"]
    assert rows["apg"] == ["-0.050 (-0.050 to -0.050)", ""]
    noise = 0.05 * np.random.default_rng(0).normal(size=measures.RESAMPLES)
    low, high = -0.3 + np.percentile(-(noise - noise.mean()), (2.5, 97.5))
    assert rows["ratio"] == ["", f"-0.300 ({low:+.3f} to {high:+.3f})"]


def test_groups_with_fewer_seeds_than_most_wait():
    groups = [("cfg", 2), ("ratio", 3), ("apg", 1)]
    made = [Cell("model", "shape=star", rule, 3.0, seed) for rule, seeds in groups for seed in range(seeds)]
    complete = tables.complete(made)
    assert {rule: [cell.seed for cell in group] for (_, rule, _), group in complete.items()} == {
        "cfg": [0, 1],
        "ratio": [0, 1],
    }


def test_the_last_prompts_cfg_is_never_left_out():
    """Where just over half of the groups have the newest seed."""
    counts = {("a", "cfg"): 2, ("a", "ratio"): 2, ("b", "cfg"): 1}
    made = [Cell("", prompt, rule, 3.0, seed) for (prompt, rule), seeds in counts.items() for seed in range(seeds)]
    assert {key[:2]: len(group) for key, group in tables.complete(made).items()} == dict.fromkeys(counts, 1)
