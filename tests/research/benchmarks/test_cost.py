"""The cost of a guided step as a ratio to CFG's, on a network whose cost is known: its passes are the clock."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch

from pack.guiders.attach import on_model
from pack.guiders.options import Options
from pack.research.benchmarks import cost
from pack.research.quality.cells import counted
from pack.tests.guiders import by_hand, tiny

EXPECTED = {  # of two evaluations a step, over 8 steps; by hand
    "CFG": 1,
    "elementwise, backward": 3 / 2,
    "jacobian, backward": 3 / 2,
    "elementwise, difference, batched": 3 / 2,
    "jacobian, difference": 3 / 2,
    "ratio": 4 / 2,
    "elementwise, backward, every 4": 1 + 1 / 2 / 4,
    "ratio, every 4": 1 + 2 / 2 / 4,
    "profile": 1,
    "profile, half of the unconditional passes skipped": 3 / 4,
}


class Tiny:
    """An architecture as the benchmark has them."""

    latent, core = (tiny.CHANNELS, 4, 4), None

    def __init__(self, network):
        self.network = network

    def build(self, dtype):
        return tiny.as_model(self.network, dtype=dtype)

    def prompts(self):
        return [tiny.POSITIVE, tiny.NEGATIVE]


@pytest.fixture
def costs(monkeypatch):
    """Every variant's costs, in passes of the network."""
    network = by_hand.Narrowing()
    monkeypatch.setattr(cost, "GPU", False)  # where this model is not
    with counted(network) as passes:
        monkeypatch.setattr(cost, "now", lambda: float(sum(passes.values())))
        yield cost.measure(Tiny(network), torch.float32, rounds=2)


def test_ratios_are_the_passes(costs):
    ratios = {name: runs[0].seconds / costs["CFG"][0].seconds for name, runs in costs.items()}
    assert {name: ratios[name] for name in EXPECTED} == pytest.approx(EXPECTED)
    assert all(first.seconds == second.seconds for first, second in costs.values())


def test_the_table_has_medians_of_ratios_within_a_round():
    """A machine that slows down threefold in one round slows CFG as much."""
    runs = {"CFG": [(1.0, 100), (3.0, 100), (1.2, 100)], "ratio": [(2.0, 110), (6.3, 110), (2.28, 110)]}
    lines = cost.table({name: [cost.Cost(*run) for run in of] for name, of in runs.items()}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[2] == ["CFG", "1.200", "1.00", "", "1.00", ""]
    assert cells[3] == ["ratio", "2.280", "2.00", "2.00", "1.10", "1.05, missed by 0.05"]


@pytest.mark.parametrize(("value", "told"), [(1.5, "1.50"), (1.504, "1.50"), (1.62, "1.50, missed by 0.12")])
def test_a_target_that_is_missed_says_by_how_much(value, told):
    assert cost.judged(value, 1.5) == told


class Spendthrift(tiny.Network):
    """Holds `extra` bytes more while it computes."""

    extra = 0

    def forward(self, *args, **kwargs):
        held = torch.empty(self.extra, dtype=torch.uint8)
        out = super().forward(*args, **kwargs)
        del held
        return out


def test_peak_memory_is_what_is_held_at_once_and_the_weights(monkeypatch):
    monkeypatch.setattr(cost, "GPU", False)  # where this model is not

    def peak(extra):
        network = Spendthrift()
        network.extra = extra
        return cost.peak(tiny.as_model(network), Tiny(network)), sum(w.nbytes for w in network.parameters())

    (large, weights), (small, _) = peak(3 << 20), peak(1 << 20)
    assert large - small == 2 << 20
    assert weights + (1 << 20) < small < weights + (1 << 20) + (1 << 18)


def test_the_profile_skips_where_guidance_does_nothing():
    """Guidance does something above a noise level only."""
    profile = cost.flat_profile({"channels": "3"}, middle=2.0)
    assert profile.at("effect", torch.tensor([0.5, 1.9, 2.1, 9.0])).tolist() == [0, 0, 1, 1]
    assert profile.at("rho", torch.tensor([0.5, 9.0])).tolist() == [1, 1]


def test_a_profile_guides_as_cfg_does():
    """Its ρ is 1 everywhere: what is measured is the cost alone."""
    model = tiny.as_model(by_hand.Narrowing())
    profile = cost.flat_profile({"channels": "3", "prediction": "EPS"}, middle=1.0)
    guided = on_model(model, Options("ratio", "profile", profile=profile))
    x = tiny.latent()
    plain, rectified = (tiny.predict(tiny.guider(m), (x, 1.7))[0] for m in (model, guided))
    torch.testing.assert_close(rectified, plain)
