"""What was read off pictures is kept for good, and only what was made alike is used together."""

from dataclasses import replace

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import numpy as np

from pack.research.decode import Decoded
from pack.research.quality import measures, stacked, sweep
from pack.research.quality.cells import PROMPTS, Cell
from pack.research.quality.readings import FIELDS, Readings
from pack.research.quality.tables import distances_of

CELL = Cell("digest", "shape=star", "cfg", 3.0, seed=0, batch=40, steps=10, sampler="dpmpp_2m")


def seen(seed, n=40):
    rng = np.random.default_rng(seed)
    discrete = {name: rng.integers(3, size=n) for name, kind in FIELDS.items() if kind is int}
    return Decoded(
        **discrete,
        hue=rng.uniform(0, 2 * np.pi, n),
        phase=rng.uniform(-np.pi, np.pi, n),
        radius=rng.uniform(5, 20, n),
        x=rng.uniform(-20, 20, n),
        y=rng.uniform(-20, 20, n),
    )


def test_what_was_added_is_there_for_the_next_who_looks(tmp_path):
    one, other = replace(CELL, seed=1), replace(CELL, seed=1, rule="cfg + ratio")
    kept = Readings(tmp_path)
    kept.add(one, seen(1))
    kept.add(other, seen(2))
    found = Readings(tmp_path)
    assert one in found and other in found and CELL not in found and replace(one, cfg=5.0) not in found
    both = found.get([other, one])
    for name, kind in FIELDS.items():
        truth = np.concatenate([getattr(seen(2), name), getattr(seen(1), name)])
        np.testing.assert_allclose(getattr(both, name), truth, rtol=0 if kind is int else 2**-11, atol=1e-6)


def test_half_precision_changes_no_distance(tmp_path):
    kept = Readings(tmp_path)
    kept.add(CELL, seen(3))
    exact, half = (
        distances_of(measures.Seen(decoded), CELL.prompt, {"target": 2.0}) for decoded in (seen(3), kept.get([CELL]))
    )
    for name in ("target", "accuracy"):
        assert half[name] == pytest.approx(exact[name], abs=3e-4)


def test_what_was_made_otherwise_is_refused(tmp_path):
    Readings(tmp_path).add(CELL, seen(0))
    with pytest.raises(ValueError, match="delete it to sample anew"):
        _ = replace(CELL, steps=20) in Readings(tmp_path)


def test_each_cfg_has_all_its_pictures_and_all_cfgs_as_many_as_all_have(tmp_path):
    kept, cells = Readings(tmp_path / "readings"), []
    for prompt in PROMPTS:
        for rule in ("cfg", "cfg + ratio"):
            for cfg, seeds in ((3.0, 1), (5.0, 2)):
                for seed in range(seeds):
                    cells.append(replace(CELL, prompt=prompt, rule=rule, cfg=cfg, seed=seed))
                    kept.add(cells[-1], seen(len(cells)))
    begun = replace(CELL, cfg=8.0)  # of one prompt only
    kept.add(begun, seen(0))
    stacked.write(kept, [*cells, begun], tmp_path, "command")
    text = (tmp_path / "stacked.md").read_text()
    assert "## cfg 8" not in text
    assert "## cfg 3\n\n40 pictures of each prompt" in text and "## cfg 5\n\n80 pictures of each prompt" in text
    assert (tmp_path / "stacked.png").stat().st_size > 10_000
    each = {cfg: stacked.complete([cell for cell in cells if cell.cfg == cfg]) for cfg in (3.0, 5.0)}
    assert {len(group) for group in stacked.alike(each).values()} == {1}


@pytest.mark.parametrize(
    ("network", "unfit"),
    [("demo", {"rectified-cfg++"}), ("flow", {"autoguidance"}), ("eps", {"rectified-cfg++", "autoguidance"})],
)
def test_a_network_is_not_asked_for_what_is_not_for_it(network, unfit):
    weights = next(sweep.OUTPUT.parents[1].rglob(f"weights/{network}.safetensors"))
    wanted = {cell.rule for cell in sweep.fit(sweep.cells("model", sweep.STACKED), weights)}
    assert unfit.isdisjoint(wanted) and {"cfg", "gibbs-like"} <= wanted
    assert ("autoguidance" in wanted) == (network == "demo") and ("rectified-cfg++" in wanted) == (network == "flow")
