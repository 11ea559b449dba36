"""The training's loss, of every kind of demo model."""

from types import SimpleNamespace

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import numpy as np
import torch
from scipy import stats

from pack.demo import models, world
from pack.research import train


@pytest.mark.parametrize("name", models.CONFIGS)
def test_a_perfect_network_has_no_loss(name, monkeypatch):
    """The loss knows what each model's output means: where it makes the drawn picture, nothing is left."""
    training = train.Training(name, seed=1, steps=1, learning_rate=0.0)
    pictures, _ = train.draw_training_batch((1, 0))
    sampling = training.sampling
    seen = {}
    scaling = sampling.noise_scaling

    def remember(sigma, noise, latent):
        seen["sigma"], seen["x"] = sigma, scaling(sigma, noise, latent)
        return seen["x"]

    def perfect(scaled, t, context):
        zero = torch.zeros_like(scaled)
        at_zero = sampling.calculate_denoised(seen["sigma"], zero, seen["x"])
        per_unit = sampling.calculate_denoised(seen["sigma"], zero + 1, seen["x"]) - at_zero
        return (pictures - at_zero) / per_unit

    monkeypatch.setattr(sampling, "noise_scaling", remember)
    assert training.loss(perfect, train.draw_training_batch((1, 0)), (1, 0)) < 1e-5


def test_even_prompts_change_no_conditional_distribution(monkeypatch):
    """A prompt states each shape as often; what it leaves open is distributed as the world says."""
    seen = {}
    monkeypatch.setattr(world, "draw_picture", lambda attributes, i: np.zeros((1, 1, 3), np.uint8))
    monkeypatch.setattr(models, "encode_prompts", lambda index: seen.setdefault("index", index))
    monkeypatch.setattr(world, "draw_batch", remember(seen, world.draw_batch))
    train.draw_training_batch((1, 0), 40_000, even=True)
    stated, shape, colour = seen["index"][:, 0].numpy() >= 0, *seen["attributes"][:, :2].T
    assert share(shape[stated], 4) == pytest.approx(np.full(4, 0.25), abs=0.02)
    assert share(shape[~stated], 4) == pytest.approx(world.P_SHAPE, abs=0.02)
    stars = colour[stated & (shape == 3)]
    assert share(stars, 5) == pytest.approx(world.P_COLOUR_GIVEN_SHAPE[3], abs=0.03)


def share(values, n):
    return np.bincount(values, minlength=n) / len(values)


def remember(seen, draw):
    def drawn(*arguments):
        pictures, seen["attributes"] = draw(*arguments)
        return pictures, seen["attributes"]

    return drawn


def test_a_run_that_goes_on_draws_what_it_would_have_drawn():
    training = train.Training("demo", seed=1, steps=9, learning_rate=0.1, batch=2)
    training.trainer = SimpleNamespace(global_step=4)
    pictures, tokens = next(iter(training.train_dataloader()))
    expected = train.draw_training_batch((1, 4), 2, even=True)
    assert torch.equal(pictures, expected[0]) and torch.equal(tokens, expected[1])


def test_held_out_noise_does_not_depend_on_the_batch_or_the_run():
    losses = []
    for seed, batch in ((1, 2), (5, 7)):
        torch.manual_seed(0)
        training = train.Training("demo", seed, 9, 0.1, batch)
        drawn = next(iter(training.val_dataloader()))
        losses.append(training.loss(lambda x, t, context: torch.zeros_like(x), drawn, (train.HELD_OUT_SEED, 0)))
    assert len(drawn[0]) == train.BATCH and losses[0] == losses[1]


def test_noise_levels_are_spread_evenly_and_stay_normal():
    drawn = [train.spread_normal(32, torch.Generator().manual_seed(seed)) for seed in range(200)]
    assert all((stats.norm.cdf(one) * 32).astype(int).tolist() == list(range(32)) for one in drawn)
    assert stats.kstest(torch.cat(drawn), "norm").pvalue > 0.01


def test_the_learning_rate_is_constant_and_then_falls_to_zero():
    training = train.Training("demo", seed=1, steps=1000, learning_rate=0.5)
    made = training.configure_optimizers()
    rate = made["lr_scheduler"]["scheduler"].lr_lambdas[0]
    assert [rate(step) for step in (49, 99, 600, 800, 1000)] == [0.5, 1.0, 1.0, 0.5, 0.0]
    chosen = [p for group in made["optimizer"].param_groups for p in group["params"]]
    assert len({id(p) for p in chosen}) == len(chosen) == len(list(training.model.parameters()))
