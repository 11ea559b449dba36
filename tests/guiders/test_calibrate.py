"""Profiles measured on a model whose Jacobians are known, and on any model through the nodes."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch
from comfy.nested_tensor import NestedTensor

from pack.guiders.attach import on_model
from pack.guiders.calibrate import calibrate
from pack.guiders.options import Options
from pack.nodes import profile as nodes
from pack.tests.guiders import tiny

NARROW, WIDE, MEAN = 0.5, 1.5, 0.8


class Gaussians(torch.nn.Module):
    """The ε-network of p(x0|y) = N(MEAN, NARROW²) for the positive prompt and p(x0) = N(0, WIDE²) for the other."""

    dtype = torch.float32

    narrow = torch.tensor(NARROW)  # or one for each channel, [channels, 1, 1]

    def forward(self, x, t, context=None, **kwargs):
        sigma = self.sigma_of(t).view(-1, 1, 1, 1)
        positive = (context == tiny.POSITIVE[0][0]).all(dim=(1, 2)).view(-1, 1, 1, 1)
        std, mean = torch.where(positive, self.narrow, WIDE), torch.where(positive, MEAN, 0.0)
        x = x * (1 + sigma**2).sqrt()
        return (x - mean) * sigma / (std**2 + sigma**2)


@pytest.fixture
def gaussians():
    network = Gaussians()
    model = tiny.as_model(network)
    network.sigma_of = model.model.model_sampling.sigma
    return model


@torch.inference_mode()
def measure(model, **changes):
    settings = {"cfg": 3.0, "steps": 6, "points": 7, "seed": 1} | changes
    return calibrate(model, tiny.POSITIVE, tiny.NEGATIVE, torch.zeros(2, 3, 8, 8), **settings)


def test_curves_of_gaussians_are_the_closed_forms(gaussians):
    measured = measure(gaussians)
    sigma = gaussians.model.model_sampling.sigma(gaussians.model.model_sampling.timestep(measured.sigmas))
    narrow, wide = (std**2 / (std**2 + sigma**2) for std in (NARROW, WIDE))
    torch.testing.assert_close(measured.gain, narrow, rtol=0.02, atol=0.005)
    torch.testing.assert_close(measured.rho, narrow / wide, rtol=0.02, atol=0.005)
    torch.testing.assert_close(measured.factor, narrow[:, None].expand(-1, 3), rtol=0.02, atol=0.005)
    assert (measured.effect > 0).all()


def test_it_measures_along_the_guidance_that_patches_leave(gaussians):
    """As DiT's in three of four channels; here in the first, which is narrower than the others."""
    gaussians.model.diffusion_model.narrow = torch.tensor([NARROW, 1.2, 1.2]).view(-1, 1, 1)

    def first_only(args):
        cond, uncond = args["conds_out"]
        return [cond, torch.cat([uncond[:, :1], cond[:, 1:]], dim=1)]

    gaussians.set_model_sampler_pre_cfg_function(first_only)
    measured = measure(gaussians)
    sigma = gaussians.model.model_sampling.sigma(gaussians.model.model_sampling.timestep(measured.sigmas))
    narrow, wide = (std**2 / (std**2 + sigma**2) for std in (NARROW, WIDE))
    torch.testing.assert_close(measured.gain, narrow, rtol=0.02, atol=0.005)
    torch.testing.assert_close(measured.rho, narrow / wide, rtol=0.02, atol=0.005)


@torch.inference_mode()
def test_latents_of_several_parts_are_refused_as_such():
    parts = NestedTensor([torch.zeros(1, tiny.CHANNELS, 4, 4), torch.zeros(1, 2, 8)])
    with pytest.raises(ValueError, match="REG: latents of several parts cannot be profiled"):
        nodes.REGCalibrate.execute(tiny.as_model(tiny.Network()), tiny.POSITIVE, tiny.NEGATIVE, {"samples": parts})


def test_it_is_reproducible_and_counts_its_progress():
    model, seen = tiny.as_model(tiny.Network()), []
    first = measure(model)
    second = measure(on_model(model, Options()), progress=lambda done, total: seen.append((done, total)))
    assert torch.equal(first.rho, second.rho) and torch.equal(first.factor, second.factor)
    assert seen == [(i, 13) for i in range(1, 14)]
    assert first.about["prediction"] == "EPS" and first.about["channels"] == "3"


def test_it_takes_few_evaluations():
    model = tiny.as_model(tiny.Network())
    measure(model, steps=6, points=7)
    assert model.model.diffusion_model.evaluated == 2 * (2 + 2 * 6 + 5 * 7)


class PredictsNan(tiny.Network):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs) * torch.nan


class TurnsNan(tiny.Network):
    """Predicts NaN at low noise only."""

    def forward(self, x, t, *args, **kwargs):
        return super().forward(x, t, *args, **kwargs) / (t > 200).view(-1, 1, 1, 1)


@pytest.mark.parametrize(
    ("network", "changes", "sentence"),
    [
        (tiny.Network, {"positive": []}, "REG: the positive conditioning is empty: connect a prompt."),
        (tiny.Network, {"negative": []}, "REG: the negative conditioning is empty: connect a prompt."),
        (
            tiny.Network,
            {"negative": tiny.POSITIVE},
            "REG: the model predicts the same .* connect two different prompts.",
        ),
        (PredictsNan, {}, "REG: the model predicts NaN or infinite values.* without REG."),
        (TurnsNan, {}, "REG: the model predicts NaN or infinite values.* without REG."),
        (tiny.Network, {"points": 1}, "REG: points must be between 2 and 1000, not 1."),
        (tiny.Network, {"points": 10**9}, "REG: points must be between 2 and 1000, not 1000000000."),
        (tiny.Network, {"steps": 0}, "REG: steps must be between 2 and 1000, not 0."),
        (tiny.Network, {"steps": 10**9}, "REG: steps must be between 2 and 1000, not 1000000000."),
    ],
)
@torch.inference_mode()
def test_what_cannot_be_measured_is_one_true_sentence(network, changes, sentence):
    model = tiny.as_model(network())
    settings = {"positive": tiny.POSITIVE, "negative": tiny.NEGATIVE, "cfg": 3.0, "steps": 6, "points": 7, "seed": 1}
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        calibrate(model, latent=torch.zeros(2, 3, 8, 8), **(settings | changes))
    if network is not TurnsNan:
        assert model.model.diffusion_model.evaluated <= 4  # found before anything was sampled


def test_save_load_use(tmp_path, monkeypatch):
    monkeypatch.setattr(nodes.folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setitem(
        nodes.folder_paths.folder_names_and_paths, nodes.FOLDER, ([str(tmp_path / nodes.FOLDER)], {".safetensors"})
    )
    model = tiny.as_model(tiny.Network())
    measured = measure(model)
    nodes.REGSaveProfile.execute(measured, "my model")
    loaded = nodes.REGLoadProfile.execute("my model.safetensors").args[0]
    for rectification in ("elementwise", "jacobian", "ratio"):
        used = [Options(rectification, "profile", profile=profile) for profile in (measured, loaded)]
        fresh, again = (tiny.sample(tiny.guider(on_model(model, options))) for options in used)
        assert torch.equal(fresh, again)


@pytest.mark.parametrize("name", ["", " ", "../up", "a/b", "a\\b", "/root", ".hidden", ".."])
def test_names_cannot_leave_the_folder(name):
    with pytest.raises(ValueError, match=r"REG: .*is not a file name"):
        nodes.safe_path(name)
