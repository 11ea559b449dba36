"""The cost of a guided step as a ratio to CFG's, on a network whose cost is known: its passes are the clock."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch

from pack.guiders.attach import on_model
from pack.guiders.options import Options
from pack.research.benchmarks import cost, models
from pack.research.quality.cells import counted
from pack.tests.guiders import by_hand, tiny

# In evaluations of the model: of the first step, of one that measures, of one that does not; a reverse pass counts as one.
EXPECTED = {
    "CFG": (2, 2, 2),
    "elementwise, backward": (2 + 1 + 2, 3, 2),  # the first: checked against ComfyUI's, with a graph of its own
    "jacobian, backward": (2 + 1 + 2, 3, 2),
    "elementwise, difference": (2 + 1 + 1 + 3, 3, 2),  # a probe alone, and one in the batch to compare it with
    "jacobian, difference": (2 + 1 + 1, 3, 2),
    "ratio": (2 + 2 + 2, 4, 2),
    "profile": (2, 2, 2),
}
MEASURED = {8: 4, 20: 6, 30: 6, 50: 7}  # steps 0, 1, 2, 4, 8, 16, 32 of a run


class Tiny(models.Architecture):
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
        monkeypatch.setattr(cost, "moment", lambda: float(sum(passes.values())))
        yield cost.measure(Tiny(network), torch.float32, rounds=2)


def test_costs_are_the_passes(costs):
    for name, (first, measured, held) in EXPECTED.items():
        (run, again) = costs[name]
        assert run.steps == again.steps
        assert (run.steps[0], run.of(measured=True), run.of(measured=False)) == (first, measured, held), name
        for length, count in MEASURED.items():
            assert run.run(length) == first + (count - 1) * measured + (length - count) * held
    every = costs["elementwise, backward, every step"][0]
    assert every.run(30) == 2 + 1 + 2 + 29 * 3


def test_half_of_the_unconditional_passes_are_skipped(costs):
    """Of nine steps, those below the middle of the noise levels."""
    (run, _), (cfg, _) = costs["profile, half of the unconditional passes skipped"], costs["CFG"]
    assert sum(cfg.steps) - sum(run.steps) in (4, 5)


def test_the_table_has_medians_of_ratios_within_a_round():
    """A machine that slows down threefold in one round slows CFG as much."""

    def steps(cfg, ratio):
        """Steps 0, 1, 2, 4 and 8 measure and take `ratio` as long."""
        return [cfg * (ratio if i in (0, 1, 2, 4, 8) else 1) for i in range(9)]

    runs = {
        "CFG": [(steps(1.0, 1), 100), (steps(3.0, 1), 100), (steps(1.2, 1), 100)],
        "elementwise, difference": [(steps(1.0, 2.0), 110), (steps(3.0, 2.1), 110), (steps(1.2, 1.9), 110)],
    }
    lines = cost.table({name: [cost.Cost(*run) for run in of] for name, of in runs.items()}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[2] == ["CFG", "1.00", "1.00", "1.00", "1.00", "1.00", "1.00", "", "1.00", ""]
    at = [f"{1 + count / length:.2f}" for length, count in MEASURED.items()]
    judged = ["1.10, missed by 0.10", "1.10", "1.05, missed by 0.05"]
    assert cells[3] == ["elementwise, difference", "2.00", "1.00", *at, *judged]


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
