"""What recording takes: every call of the recorder by a clock of our own, and what a record keeps."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

from types import SimpleNamespace

import torch

from pack.research.benchmarks import recording


def test_a_stopwatch_adds_up_the_named_methods_alone(monkeypatch):
    time = [0.0]
    monkeypatch.setattr(recording, "clock", lambda: time[0])

    class Worker:
        def step(self, seconds):
            time[0] += seconds
            return seconds

        def finish(self):
            time[0] += 10
            raise KeyError

        def other(self):
            time[0] += 100

    watch, worker = recording.Stopwatch(Worker, ("step", "finish")), Worker()
    assert worker.step(2.0) == 2.0 and worker.step(3.0) == 3.0
    worker.other()
    with pytest.raises(KeyError):  # what fails took time, too
        worker.finish()
    assert watch.seconds == 15


def test_kilobytes_of_a_record():
    """Curves of 25 and 50 numbers of four bytes, two maps of 8×8, and what is no tensor."""
    maps = [(1.0, torch.zeros(8, 8)), (2.0, torch.zeros(8, 8))]
    found = SimpleNamespace(sigma=torch.zeros(25), cfg=torch.zeros(50), maps=maps, fallback="none")
    assert recording.kilobytes(found) == pytest.approx((75 * 4 + 2 * 64 * 4) / 1000)
