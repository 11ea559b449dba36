"""estimator = auto chooses before it tries, on a device made up for it, and goes on with differences where one crawls."""

import logging

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch

from pack.guiders import pace
from pack.guiders.attach import on_model
from pack.guiders.autograd.checkpointing import CHECKPOINTED, MARGIN, graph_memory
from pack.guiders.options import Options
from pack.tests.families.measure import captured_warnings
from pack.tests.guiders import networks, tiny

POINTS = [(tiny.latent() * 2 * s, 1.7 * s) for s in (1.0, 0.9, 0.8, 0.7)]
EVALUATION = 100_000_000  # bytes


class Deep(tiny.Network):
    """Twenty blocks, so that the graph of an evaluation takes five times its memory; says how each was evaluated."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList([torch.nn.Tanh() for _ in range(20)])
        self.graphs = []

    def forward(self, x, *args, **kwargs):
        if x.requires_grad:
            self.graphs.append("checkpointed" if "forward" in self.blocks[0].__dict__ else "whole")
        out = super().forward(x, *args, **kwargs)
        for block in self.blocks:
            out = out + 0.01 * block(out)
        return out


@pytest.fixture
def device(monkeypatch):
    """Sets how much memory is free on a made-up device, over what one evaluation takes."""

    def has(evaluations):
        monkeypatch.setattr("comfy.model_management.get_free_memory", lambda *a, **k: evaluations * EVALUATION)

    return has


def sampled(network, **options):
    model = tiny.as_model(network)
    model.model.memory_required = lambda shape, **kwargs: EVALUATION
    return tiny.predict(tiny.guider(on_model(model, Options("jacobian", **options))), *POINTS)


# estimator, checkpoint, free memory in evaluations: what is recorded, and the end of the reason
WHOLE, LESS = 5 * MARGIN, CHECKPOINTED * MARGIN
CHOICES = [
    (
        "auto",
        "auto",
        WHOLE + 0.1,
        "whole",
        "auto takes a gradient: its graph needs about 0.6 GB with a margin, where 0.6 GB",
    ),
    (
        "auto",
        "auto",
        WHOLE - 0.1,
        "checkpointed",
        "auto takes a gradient with checkpoints: its graph needs about 0.4 GB",
    ),
    ("auto", "auto", LESS + 0.1, "checkpointed", "auto takes a gradient with checkpoints"),
    (
        "auto",
        "auto",
        LESS - 0.1,
        None,
        "even with checkpoints its graph would need about 0.4 GB with a margin, where 0.4 GB",
    ),
    ("auto", "off", WHOLE - 0.1, None, "its graph would need about 0.6 GB with a margin, where 0.6 GB are free"),
    ("auto", "always", WHOLE + 9.0, "checkpointed", "auto takes a gradient with checkpoints"),
    ("auto", "always", LESS - 0.1, None, "even with checkpoints its graph would need"),
    ("backward", "auto", WHOLE - 0.1, "checkpointed", None),
    ("backward", "auto", 0.1, "checkpointed", None),  # asked for, so tried
    ("backward", "off", 0.1, "whole", None),
]


@pytest.mark.parametrize(("estimator", "checkpoint", "free", "graph", "reason"), CHOICES)
def test_it_takes_what_fits_and_says_why_in_one_line(device, caplog, estimator, checkpoint, free, graph, reason):
    network = Deep()
    assert graph_memory(tiny.as_model(network).model) == 5
    device(free)
    with caplog.at_level(logging.INFO):
        sampled(network, estimator=estimator, checkpoint=checkpoint)
    assert set(network.graphs) == ({graph} if graph else set())
    lines = [record.getMessage() for record in caplog.records if "REG" in record.getMessage()]
    assert len(lines) == bool(reason)
    assert all(reason in line for line in lines)


def test_what_it_did_not_choose_is_difference(device):
    device(0.5)
    with captured_warnings() as lines:
        found = sampled(Deep(), estimator="auto")
    assert len(lines) == 1 and "REG goes on with estimator = difference" in lines[0]
    torch.testing.assert_close(found, sampled(Deep(), estimator="difference"))


class Clock:
    """Stands for the clock on the wall."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


class Crawls(Deep):
    """One second for an evaluation, and `seconds` for one with a graph, from the second graph on."""

    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self, x, *args, **kwargs):
        out = super().forward(x, *args, **kwargs)
        self.clock.now += self.seconds if len(self.graphs) > 1 and x.requires_grad else len(x) / 2
        return out


@pytest.mark.parametrize(("estimator", "seconds", "graphs"), [("auto", 60, 2), ("auto", 6, 3), ("backward", 60, 3)])
def test_a_device_that_crawls_is_left_to_differences(monkeypatch, device, estimator, seconds, graphs):
    """A step without a graph takes three seconds here: three evaluations. Steps 0, 1 and 2 of four measure."""
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    device(100)
    network = Crawls(clock, seconds)
    with captured_warnings() as lines:
        found = sampled(network, estimator=estimator)
    assert len(network.graphs) == graphs
    if graphs == 2:
        (line,) = lines
        assert "a step with it took 61 s, and one without 3.0 s" in line and "estimator = difference" in line
    else:
        assert lines == []
    expected = sampled(Deep(), estimator="backward")
    torch.testing.assert_close(found[:graphs], expected[:graphs])


@pytest.mark.parametrize(
    ("network", "reason"), [(networks.NoGradient, "does not require grad"), (networks.OutOfMemory, "out of memory")]
)
@pytest.mark.parametrize("rectification", ["elementwise", "jacobian"])
def test_without_a_gradient_it_says_so_once_and_takes_the_difference(network, reason, rectification, caplog):
    model = tiny.as_model(network())
    with caplog.at_level(logging.WARNING):
        fallen_back = tiny.sample(tiny.guider(on_model(model, Options(rectification, "auto"))))
    lines = [r.getMessage() for r in caplog.records if "REG" in r.getMessage()]
    assert len(lines) == 1
    assert reason in lines[0] and "difference" in lines[0]
    expected = tiny.sample(tiny.guider(on_model(model, Options(rectification, "difference"))))
    torch.testing.assert_close(fallen_back, expected)
