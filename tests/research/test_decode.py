"""The decoder reads fresh pictures as well as its header says, and the measures find what is wrong with pictures."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from scipy import stats

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

from pack.demo import world
from pack.research import decode, target
from pack.research.quality import measures

GOLD = (("colour", "gold"),)


@pytest.fixture(scope="module")
def decoder():
    return decode.load()


@pytest.fixture(scope="module")
def gold(decoder):
    return measures.drawn(150, dict(GOLD), decoder)


def total(read, w=0.0, prompt=GOLD):
    return measures.distances(read, measures.draws(len(read)), measures.references(w, prompt))[:, 0].mean()


def test_the_errors_are_those_it_was_shipped_with(decoder):
    with safe_open(decode.WEIGHTS, framework="pt") as file:
        shipped = json.loads(file.metadata()["errors"])
    for name, error in decode.errors(decoder, n=400).items():
        assert error < 1.5 * shipped[name] + 0.01
    assert shipped["shape"] < 0.03 and shipped["hue"] < 0.05 and shipped["radius"] < 0.3


def test_what_was_decoded_can_be_drawn_again(gold):
    assert np.median(gold.off) < 0.03


def test_drawn_pictures_are_as_near_as_exact_draws(gold):
    floor = measures.floor(len(gold), 0.0, GOLD)
    assert total(gold) < 1.5 * floor
    assert total(gold) < total(gold, w=6.0)


def test_distances_along_the_line_and_around_the_circle():
    rng = np.random.default_rng(3)
    values, weights = rng.normal(size=(40, 3)), rng.integers(0, 3, size=(40, 3))
    weights[:, 2] = 0  # nothing to compare
    exact = target.Distribution(np.linspace(-2, 2, 30), rng.dirichlet(np.ones(30)))
    found = measures.wasserstein("radius", values, weights, exact)
    for i in (0, 1):
        expected = stats.wasserstein_distance(values[:, i], exact.values, weights[:, i], exact.p)
        assert found[i] == pytest.approx(expected, rel=1e-6)
    assert found[2] == 0
    across = measures.wasserstein(
        "hue", np.full((5, 1), 0.1), np.ones((5, 1)), target.Distribution(np.array([6.2]), np.ones(1))
    )
    assert across[0] == pytest.approx(0.1 + 2 * np.pi - 6.2, rel=1e-6)


def test_pictures_of_another_prompt_are_far(decoder, gold):
    blue = measures.drawn(150, {"colour": "blue"}, decoder)
    assert total(blue) > 2 * total(gold)
    assert measures.accuracy(blue, dict(GOLD)).mean() < 0.05 < 0.75 < measures.accuracy(gold, dict(GOLD)).mean()
    near, far = (measures.frechet(read.features, gold.features) for read in (gold, blue))
    assert near < 1e-3 < far


def test_neighbourhoods_know_copies_and_strangers(gold):
    same = measures.neighbourhoods(gold.features, gold.features)
    far = measures.neighbourhoods(gold.features + 100, gold.features)
    one = measures.neighbourhoods(np.repeat(gold.features[:1], 150, axis=0), gold.features)
    assert set(same.values()) == {1.0} and set(far.values()) == {0.0}
    assert one["precision"] == 1.0 and one["coverage"] < 0.2


def test_what_is_no_shape_is_drawn_as_nothing():
    zero = np.zeros(1, dtype=int)
    read = decode.Decoded(
        shape=zero,
        background=zero,
        count=zero,
        hue=zero + 0.5,
        radius=zero - 1.0,
        x=zero + 0.0,
        y=zero + 0.0,
        phase=zero + 0.0,
    )
    nothing = world.draw_picture(read.attributes(), 0).astype(float)
    assert np.abs(nothing - nothing[0, 0]).mean() < 0.1
