"""Rules are compared where they follow the prompt equally well, not at equal cfg."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import numpy as np
import pandas as pd

from pack.research.quality import contest, measures


def line(rule, accuracies, distances, spread=0.0):
    """A rule's points, one for each cfg, with replicates that move both quantities."""
    moved = spread * np.random.default_rng(0).normal(size=measures.RESAMPLES)
    return [
        {
            "rule": rule,
            "cfg": cfg,
            "accuracy": accuracy,
            "target": distance,
            "accuracy replicates": np.full(measures.RESAMPLES, accuracy),
            "target replicates": distance + moved,
        }
        for cfg, accuracy, distance in zip((3.0, 5.0, 8.0), accuracies, distances, strict=True)
    ]


MEANS = pd.DataFrame(
    line("cfg", (0.8, 0.9, 1.0), (0.2, 0.3, 0.5), spread=0.1) + line("ratio", (0.7, 0.8, 0.86), (0.07, 0.17, 0.23), 0.1)
)


def test_between_two_cfgs_a_rule_lies_on_the_line():
    assert contest.at_accuracy(MEANS, "cfg", 0.85)[0] == pytest.approx(0.25)
    assert contest.at_accuracy(MEANS, "cfg", 0.95)[0] == pytest.approx(0.4)
    assert contest.at_accuracy(MEANS, "ratio", 0.83)[0] == pytest.approx(0.2)


def test_an_accuracy_that_no_cfg_reaches_is_not_made_up():
    assert np.isnan(contest.at_accuracy(MEANS, "ratio", 0.9)).all()
    assert np.isnan(contest.at_accuracy(MEANS, "cfg", 0.75)).all()


@pytest.mark.parametrize(("level", "slope"), [(0.805, 1), (0.85, 1), (0.995, 2)])
def test_at_the_end_of_a_line_an_interval_is_as_wide_as_within(level, slope):
    """A replicate that does not reach the accuracy must not stop at the end."""
    one = pd.DataFrame(line("cfg", (0.8, 0.9, 1.0), (0.2, 0.3, 0.5)))
    moved = 0.01 * np.random.default_rng(1).normal(size=measures.RESAMPLES)
    one["accuracy replicates"] = [replicates + moved for replicates in one["accuracy replicates"]]
    found = contest.at_accuracy(one, "cfg", level)
    assert found[1:].mean() == pytest.approx(found[0], abs=3e-3)
    assert found[1:].std() == pytest.approx(0.01 * slope, rel=0.1)


def test_where_accuracy_hardly_rises_nothing_is_known():
    one = pd.DataFrame(line("cfg", (0.8, 0.9, 0.9001), (0.2, 0.3, 0.5)))
    moved = 0.01 * np.random.default_rng(1).normal(size=measures.RESAMPLES)
    one["accuracy replicates"] = [replicates + moved for replicates in one["accuracy replicates"]]
    assert contest.at_accuracy(one, "cfg", 0.9).max() == 1


def test_noise_that_two_rules_share_is_none_of_their_difference():
    assert contest.reached(MEANS) == [0.8, 0.85, 0.9, 0.95]
    line = contest.equal_accuracy(MEANS, "cfg").splitlines()[2]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["ratio", "-0.030 (-0.030 to -0.030)", "-0.030 (-0.030 to -0.030)", "", ""]


def test_a_line_that_turns_back_is_read_at_the_highest_accuracy_so_far():
    turned = pd.DataFrame(line("cfg", (0.8, 0.9, 0.85), (0.2, 0.3, 0.5)))
    assert contest.at_accuracy(turned, "cfg", 0.85)[0] == pytest.approx(0.25)
