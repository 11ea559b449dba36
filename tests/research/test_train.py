"""The training's loss, of every kind of demo model."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch

from pack.demo import models
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
    assert training.loss(perfect, (1, 0)) < 1e-5
