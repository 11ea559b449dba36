"""Every tiny family samples as ComfyUI samples, and its prediction depends on what it should."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import comfy.samplers
import torch
from comfy import supported_models

from pack.tests.families import FAMILIES, LEFT_OUT

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # ComfyUI's own

IGNORES_NOISE = {"WAN21_FlowRVS"}  # it starts from the latent it is given


@pytest.fixture(autouse=True)
def one_thread():
    """More threads only wait for each other in models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pieces(latent):
    return latent.unbind() if latent.is_nested else [latent]


def distance(a, b):
    """Relative to b, over all parts of a nested latent."""
    differences = [(x - y).norm() for x, y in zip(pieces(a), pieces(b), strict=True)]
    return torch.stack(differences).norm() / torch.stack([y.norm() for y in pieces(b)]).norm()


def sample(family, model, *, positive=1, negative=2, cfg=3.0, seed=0):
    """Two Euler steps from an empty latent."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(family.conditioning(positive), family.conditioning(negative))
    guider.set_cfg(cfg)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 2)
    noise = family.latent(seed)
    return guider.sample(
        noise, noise * 0.0, comfy.samplers.sampler_object("euler"), sigmas, seed=seed, disable_pbar=True
    )


def test_every_config_of_comfyui_is_in_the_table_or_left_out():
    built = {family.config.__name__ for family in FAMILIES.values()}
    left_out = {config.__name__ for config in LEFT_OUT}
    assert built | left_out == {config.__name__ for config in supported_models.models}
    assert not built & left_out


@torch.inference_mode()
@pytest.mark.parametrize("name", FAMILIES)
def test_family_samples(name):
    family = FAMILIES[name]
    model = family.build()
    guided = sample(family, model)

    out = model.model.process_latent_out
    assert [part.shape for part in pieces(guided)] == [out(torch.zeros(shape)).shape for shape in family.latents]
    assert all(part.isfinite().all() for part in pieces(guided))

    again = sample(family, family.build())
    assert all(torch.equal(a, b) for a, b in zip(pieces(guided), pieces(again), strict=True))

    positive, negative = (sample(family, model, positive=prompt, cfg=1.0) for prompt in (1, 2))
    assert distance(positive, negative) > 1e-3
    if name not in IGNORES_NOISE:
        assert distance(positive, sample(family, model, cfg=1.0, seed=1)) > 1e-2
