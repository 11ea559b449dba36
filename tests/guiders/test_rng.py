"""Random numbers replayed: the same ones again, and nobody else's changed."""

import threading

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch

from pack.guiders.rng import RNGState

CPU = torch.device("cpu")
DRAWS = [
    lambda: torch.rand(3),
    lambda: torch.randn(2, 2),
    lambda: torch.randint(0, 1000, (4,)),
    lambda: torch.randperm(20),
    lambda: torch.randn_like(torch.zeros(3)),
    lambda: torch.empty(3).normal_(),
    lambda: torch.empty(3).uniform_(),
    lambda: torch.bernoulli(torch.full((50,), 0.5)),
    lambda: torch.multinomial(torch.ones(30), 10),
    lambda: torch.nn.functional.dropout(torch.ones(50)),
]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(3)


def drawn():
    return [draw() for draw in DRAWS]


def same(one, other):
    return all(map(torch.equal, one, other))


def test_replayed_numbers_are_those_that_came():
    state = RNGState(CPU)
    first = drawn()
    with state.replayed():
        again = drawn()
    with state.replayed():
        once_more = drawn()
    assert same(first, again) and same(first, once_more)


def test_later_numbers_are_those_that_would_have_come():
    RNGState(CPU)
    expected = [*drawn(), *drawn()]
    torch.manual_seed(3)
    state = RNGState(CPU)
    found = drawn()
    with state.replayed():
        drawn()
        torch.rand(1000)
    assert same([*found, *drawn()], expected)


def test_it_knows_whether_anybody_drew():
    state = RNGState(CPU)
    assert not state.has_moved()
    torch.zeros(3) + 1
    assert not state.has_moved()
    torch.rand(1)
    assert state.has_moved()


def test_a_replay_within_a_replay():
    """A block evaluated again in the reverse pass, within a pass that is itself replayed."""
    outer = RNGState(CPU)
    first, second = torch.rand(3), torch.rand(3)
    with outer.replayed():
        inner = RNGState(CPU)
        assert torch.equal(torch.rand(3), first)
        assert inner.has_moved()
        with inner.replayed():
            assert torch.equal(torch.rand(3), first)
        assert torch.equal(torch.rand(3), second)


def test_numbers_of_another_thread_are_its_own():
    """What it draws meanwhile is what it would have drawn."""
    expected = torch.rand(4)
    torch.manual_seed(3)
    state, seen = RNGState(CPU), []
    with state.replayed():
        torch.rand(10)
        thread = threading.Thread(target=lambda: seen.append(torch.rand(4)))
        thread.start()
        thread.join()
        torch.rand(10)
    assert torch.equal(seen[0], expected)


def test_a_generator_of_ones_own_is_left_alone():
    generator, state = torch.Generator().manual_seed(5), RNGState(CPU)
    expected = torch.rand(3, generator=torch.Generator().manual_seed(5))
    with state.replayed():
        assert torch.equal(torch.rand(3, generator=generator), expected)
    assert not state.has_moved()
