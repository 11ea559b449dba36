"""Cells are sampled by ComfyUI once, and their address is made of what their pictures depend on."""

from dataclasses import fields, replace

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")
pytest.importorskip("lightning", reason="needs Lightning: python3 dev.py test")
pytest.importorskip("ot", reason="needs POT: python3 dev.py test")

import numpy as np
import torch
from safetensors.torch import save_file
from scipy import stats

from pack.demo import models, train, world
from pack.demo.quality import cells, rules, sweep
from pack.demo.quality.cells import Cell


def weight(like):
    """Random, and large enough for the output to depend on the prompt."""
    return torch.randn_like(like) / like[0].numel() ** 0.5 if like.ndim > 1 else torch.ones_like(like)


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    torch.manual_seed(0)
    network = models.build().diffusion_model
    folder = tmp_path_factory.mktemp("quality")
    state = {name: weight(w) for name, w in network.state_dict().items()}
    save_file(state, folder / "random.safetensors")
    return cells.Studio(folder / "random.safetensors", folder / "cache")


def cell(studio, **changes):
    return replace(Cell(studio.digest, "colour=gold", "cfg", 3.0, seed=0, batch=2, steps=2), **changes)


def test_a_cell_is_sampled_once(studio, monkeypatch):
    first = studio.get(cell(studio))
    monkeypatch.setattr(studio, "sample", None)
    again = studio.get(cell(studio))
    assert np.array_equal(first.pictures, again.pictures)
    assert first.pictures.shape == (2, 64, 64, 3) and first.forward == 4 and first.reverse == 0


def test_everything_a_cell_says_is_in_its_address(studio):
    base = cell(studio)
    others = [
        replace(base, **{field.name: value + ("x" if isinstance(value, str) else 1)})
        for field in fields(base)
        for value in [getattr(base, field.name)]
    ]
    files = {c.file(studio.cache) for c in [base, *others]}
    assert len(files) == len(fields(base)) + 1


def test_digests_see_the_tensors_and_not_the_header(studio, tmp_path):
    from safetensors.torch import load_file

    state = load_file(studio.weights)
    save_file(state, tmp_path / "same.safetensors", metadata={"licence": "Apache-2.0"})
    assert cells.digest(tmp_path / "same.safetensors") == studio.digest
    state["out.2.bias"] = state["out.2.bias"] + 1
    save_file(state, tmp_path / "other.safetensors")
    assert cells.digest(tmp_path / "other.safetensors") != studio.digest


@pytest.mark.parametrize(
    "rule",
    [n for n in rules.NAMES if n.startswith("broken") or n in ("jacobian natural", "apg", "c2fg", "spectral ratio")],
)
def test_rules_differ_from_cfg(studio, rule):
    plain, ruled = studio.sample(cell(studio)), studio.sample(cell(studio, rule=rule))
    assert not np.array_equal(plain.pictures, ruled.pictures)


def test_adaptive_guidance_stops_where_the_noises_agree(studio, monkeypatch):
    monkeypatch.setattr(rules, "ALIGNED", -1.0)  # at once
    assert studio.sample(cell(studio, rule="adaptive")).forward == 2 + 1
    monkeypatch.setattr(rules, "ALIGNED", 1.0)  # never
    plain, adaptive = studio.sample(cell(studio)), studio.sample(cell(studio, rule="adaptive"))
    assert np.array_equal(plain.pictures, adaptive.pictures) and adaptive.forward == 4


def test_autoguidance_by_the_model_itself_is_no_guidance(studio, monkeypatch):
    monkeypatch.setattr(cells, "weak_model", lambda: models.load(studio.weights)[0])
    none, auto = studio.sample(cell(studio, rule="none")), studio.sample(cell(studio, rule="autoguidance"))
    assert np.abs(none.pictures.astype(int) - auto.pictures).max() <= 1


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


def test_even_prompts_change_no_conditional_distribution(monkeypatch):
    """A prompt states each shape as often; what it leaves open is distributed as the world says."""
    monkeypatch.setattr(train, "BATCH", 40_000)
    seen = {}
    monkeypatch.setattr(world, "draw_picture", lambda attributes, i: np.zeros((1, 1, 3), np.uint8))
    monkeypatch.setattr(models, "encode_prompts", lambda index: seen.setdefault("index", index))
    monkeypatch.setattr(world, "draw_batch", remember(seen, world.draw_batch))
    train.draw_training_batch((1, 0), even=True)
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


def test_broken_rules_break_nothing_else(studio):
    before = studio.sample(cell(studio, rule="jacobian")).pictures
    studio.sample(cell(studio, rule="broken: jacobian of another"))
    assert np.array_equal(studio.sample(cell(studio, rule="jacobian")).pictures, before)


def test_the_sweep_has_no_cell_twice():
    wanted = sweep.cells("model")
    assert len(wanted) == len(set(wanted)) and {c.rule for c in wanted} <= set(rules.NAMES)
