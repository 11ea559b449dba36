"""Trials, their cache and their tables."""

from dataclasses import replace

import pandas as pd
import pytest

from pack.research.lab import tables, trials

TRIAL = trials.Trial("plane", 11, "cfg+ratio/4", 3.0, samples=50, steps=6)


def test_a_trial_is_computed_once(tmp_path, monkeypatch):
    first = trials.cached(TRIAL, tmp_path)
    monkeypatch.setattr(trials, "run", lambda trial: pytest.fail("computed again"))
    assert trials.cached(TRIAL, tmp_path) == first


def test_another_trial_and_other_code_are_computed_anew(tmp_path, monkeypatch):
    trials.cached(TRIAL, tmp_path)
    monkeypatch.setattr(trials, "run", lambda trial: {"distance": trial.steps})
    assert trials.cached(replace(TRIAL, steps=7), tmp_path) == {"distance": 7}
    assert trials.cached(TRIAL, tmp_path) != {"distance": 6}
    monkeypatch.setattr(trials, "code_digest", lambda with_candidates: "other code")
    assert trials.cached(TRIAL, tmp_path) == {"distance": 6}


@pytest.mark.parametrize("world", trials.WORLDS)
def test_every_world_runs(world):
    result = trials.run(trials.Trial(world, 11, "interval+jacobian/2", 2.0, samples=8, steps=4))
    assert 0 <= result["distance"] < 20


@pytest.mark.parametrize("sampler", ["euler", "heun", "ancestral"])
def test_the_same_trial_gives_the_same_number(sampler):
    trial = trials.Trial("plane", 12, "c2fg+profile:ratio", 3.0, sampler, samples=50, steps=6)
    assert trials.run(trial) == trials.run(trial)


def test_sweeps_name_rules_that_exist():
    for table in tables.TABLES.values():
        for trial in {t.rule: t for t in table.trials(quick=True)}.values():
            if trial.rule not in tables.ENDS:
                trials.guided(trial.rule, trials.WORLDS[trial.world](1), trial.w)


def test_table_has_a_line_a_rule_and_a_column_a_setting():
    rows = [
        {"world": "plane", "sampler": "euler", "steps": 40, "w": w, "rule": rule, "seed": seed, "distance": 1.0 + seed}
        for w in (1.0, 3.0)
        for rule in ("none", "cfg")
        for seed in range(3)
    ]
    text = tables.rules_by_world(tables.summary(pd.DataFrame(rows)))
    head, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert head == ["rule", "plane euler w = 1", "plane euler w = 3"]
    assert [line[0] for line in lines] == ["none", "cfg"]
    assert all(cell.startswith("2.000 ± ") for line in lines for cell in line[1:])
    more = tables.rules_by_world(tables.summary(pd.DataFrame(rows + [row | {"steps": 8} for row in rows])))
    assert "plane euler w = 1 40 steps" in more and "plane euler w = 3 8 steps" in more


def test_relative_distance_is_paired():
    rows = [
        {
            "world": "plane",
            "world_seed": 1,
            "sampler": "euler",
            "w": 1.0,
            "rule": rule,
            "seed": seed,
            "distance": distance,
        }
        for rule, distances in {"cfg+ratio": (1.0, 2.0, 4.0), "cfg": (2.0, 4.0, 8.0)}.items()
        for seed, distance in enumerate(distances)
    ]
    table = tables.relative(pd.DataFrame(rows), "cfg+ratio").set_index("rule")
    assert table.loc["cfg", ["mean", "low", "high"]].tolist() == pytest.approx([2.0, 2.0, 2.0])
    assert table.loc["cfg+ratio", "mean"] == pytest.approx(1.0)
