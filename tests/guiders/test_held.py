"""Between two measurements: when the next one is due, what stands until then, and what is asked of the device."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch

from pack.guiders.held import Held
from pack.reg.rectification import RECTIFICATIONS
from pack.reg.refresh import ALWAYS, DOUBLING, measured_steps

STEPS = 20
SAYS_NOTHING, SAYS_SOMETHING = torch.zeros(1, 1), torch.full((1, 1), 0.5)  # of the paper's map, [1, 1]


def run(held: Held, silent: int) -> list[int]:
    """The steps that measure, where the first `silent` measurements say nothing."""
    measured, callback = [], held.counting(None)
    for step in range(STEPS):
        if held.is_due():
            held.keep(SAYS_NOTHING if len(measured) < silent else SAYS_SOMETHING, torch.zeros(1, 1))
            measured.append(step)
        callback(step, None, None, STEPS)
    return measured


@pytest.fixture
def reads(monkeypatch):
    found, read = [], Held._read

    def counted(self):
        found.append(self.clock)
        read(self)

    monkeypatch.setattr(Held, "_read", counted)
    return found


@pytest.mark.parametrize("every", [DOUBLING, ALWAYS, 2, 3])
@pytest.mark.parametrize("silent", [0, 1, 2, 5])
def test_gaps_count_from_the_first_measurement_that_says_something(every, silent):
    later = [silent + step for step in measured_steps(STEPS - silent, every)]
    assert run(Held(RECTIFICATIONS["elementwise"], every), silent) == [*range(silent), *later]


@pytest.mark.parametrize(
    ("every", "silent", "at"),
    [
        (ALWAYS, 1, []),
        (DOUBLING, 0, [3]),  # the first step that measures only if the measurement before it said nothing
        (DOUBLING, 1, [3]),
        (3, 0, [1]),
    ],
)
def test_whether_a_measurement_said_something_is_read_where_the_next_one_depends_on_it(every, silent, at, reads):
    run(Held(RECTIFICATIONS["elementwise"], every), silent)
    assert reads == at


def test_a_measurement_that_says_nothing_leaves_the_one_before(reads):
    held = Held(RECTIFICATIONS["elementwise"], ALWAYS)
    for value, noise, kept in (
        (0.0, 3.0, (0.0, 3.0)),
        (0.0, 2.5, (0.0, 2.5)),
        (0.5, 2.0, (0.5, 2.0)),
        (0.0, 1.0, (0.5, 2.0)),
        (0.0, 0.5, (0.5, 2.0)),
    ):
        held.keep(torch.full((1, 1), value), torch.full((1, 1), noise))
        assert (held.measurement.value.item(), held.measurement.noise.item()) == kept
    assert reads == []


def test_at_another_size_the_next_measurement_stands_whatever_it_says():
    held = Held(RECTIFICATIONS["elementwise"], DOUBLING)
    held.keep(SAYS_SOMETHING, torch.zeros(1, 1))
    held.forget()
    assert held.is_due()
    held.keep(torch.zeros(2, 2), torch.zeros(2, 1))
    assert held.measurement.value.shape == (2, 2)
