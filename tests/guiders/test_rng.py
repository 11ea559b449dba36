"""Random numbers are drawn again as they were, and nobody else's are touched."""

import threading

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch
from torch.nn import functional

from pack.guiders.attach import on_model
from pack.guiders.options import Options
from pack.guiders.rng import RNGState
from pack.tests.guiders import tiny

CPU = torch.device("cpu")
X = torch.zeros(5, 7).t()
HALF = torch.full([9], 0.5)
CALLS = {
    "rand": lambda: torch.rand(20),
    "randn": lambda: torch.randn(3, 17, device="cpu"),
    "randint": lambda: torch.randint(2, 9, (9,), dtype=torch.int32),
    "randperm": lambda: torch.randperm(30),
    "rand_like": lambda: torch.rand_like(X),
    "randn_like": lambda: torch.randn_like(X, dtype=torch.float64),
    "randint_like": lambda: torch.randint_like(X, 7),
    "randint_like, two ends": lambda: torch.randint_like(X, 2, 7),
    "randint_like, named": lambda: torch.randint_like(X, low=2, high=7),
    "randint_like, one named": lambda: torch.randint_like(X, high=7),
    "bernoulli": lambda: torch.bernoulli(HALF),
    "Tensor.bernoulli": lambda: HALF.bernoulli(),
    "multinomial": lambda: torch.multinomial(torch.ones(9), 3),
    "normal": lambda: torch.normal(torch.zeros(4), torch.ones(4)),
    "normal of numbers": lambda: torch.normal(0.0, 1.0, size=(4,)),
    "poisson": lambda: torch.poisson(torch.ones(9)),
    "normal_": lambda: torch.empty(20).normal_(),
    "uniform_": lambda: torch.empty(20).uniform_(1, 2),
    "bernoulli_": lambda: torch.empty(9).bernoulli_(HALF),
    "exponential_": lambda: torch.empty(20).exponential_(),
    "random_": lambda: torch.empty(20).random_(2, 9),
    "geometric_": lambda: torch.empty(20).geometric_(0.3),
    "cauchy_": lambda: torch.empty(20).cauchy_(),
    "log_normal_": lambda: torch.empty(20).log_normal_(),
    "dropout": lambda: functional.dropout(torch.ones(40), 0.3),
    "dropout, in place": lambda: functional.dropout(torch.ones(40), 0.3, inplace=True),
    "Dropout": lambda: torch.nn.Dropout(0.3)(torch.ones(40)),
    "several": lambda: torch.cat([torch.randn(3), torch.randn(17), torch.rand(5)]),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_way_to_draw_draws_the_same_again(call):
    torch.manual_seed(4)
    torch.randn(3)
    before = RNGState(CPU)
    first = CALLS[call]()
    assert before.has_moved()
    after = torch.get_rng_state()
    with before.replayed():
        inner = RNGState(CPU)
        again = CALLS[call]()
        assert inner.has_moved()
        with inner.replayed():
            once_more = CALLS[call]()
        still = RNGState(CPU)
    assert torch.equal(first, again) and torch.equal(first, once_more)
    assert torch.equal(torch.get_rng_state(), after)
    assert torch.equal(still.states["cpu"], after)  # the replay is where the process was after the first


def test_a_generator_of_their_own_is_left_to_them():
    generator = torch.Generator().manual_seed(3)
    with RNGState(CPU).replayed():
        drawn = torch.randn(5, generator=generator)
    assert torch.equal(drawn, torch.randn(5, generator=torch.Generator().manual_seed(3)))


class Drawing(tiny.Network):
    """Draws in every evaluation, in all the ways that patches do."""

    def forward(self, x, *args, **kwargs):
        out = super().forward(x, *args, **kwargs)
        return out + 0.01 * (torch.rand(1) + torch.randn_like(out[:1]) + torch.randperm(4)[0])


@pytest.mark.parametrize("rectification", ["elementwise", "jacobian", "ratio"])
def test_a_second_thread_draws_no_number_twice(rectification):
    """It draws from the process's generator all the time while runs replay."""
    model = on_model(tiny.as_model(Drawing()), Options(rectification, refresh=1))
    drawn, done = [], threading.Event()

    def draw():
        while not done.is_set():
            drawn.append(float(torch.rand((), dtype=torch.float64)))

    thread = threading.Thread(target=draw)
    thread.start()
    for _ in range(3):
        tiny.sample(tiny.guider(model), steps=10)
    done.set()
    thread.join()
    assert len(drawn) > 100
    assert len(set(drawn)) == len(drawn)
