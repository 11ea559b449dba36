"""The demo models are plain MODELs: what ComfyUI's own nodes make of them is what the equations say."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import comfy.samplers
import comfy.sd
import latent_preview
import numpy as np
import torch
from comfy.cli_args import LatentPreviewMethod

import nodes  # ComfyUI's
from pack.demo import models
from pack.nodes.demo import VERSIONS, weights

STAR, CIRCLE, EMPTY = (
    [[models.prompt_tokens(**stated), {}]] for stated in ({"shape": "star"}, {"shape": "circle"}, {})
)
SEED, STEPS, CFG = 3, 3, 2.0


def load(version):
    return models.load(weights(version))


@pytest.fixture(scope="module", params=VERSIONS)
def version(request):
    return request.param


@pytest.fixture(scope="module")
def loaded(version):
    return load(version)


@pytest.fixture
def model(loaded):
    return loaded[0]


def denoise(model, x, sigma, tokens):
    return model.model.apply_model(x, torch.full([len(x)], sigma), c_crossattn=tokens, transformer_options={})


def sample(model, positive, latent):
    return nodes.KSampler().sample(model, SEED, STEPS, CFG, "euler", "simple", positive, EMPTY, latent)[0]["samples"]


def blank():
    return {"samples": torch.zeros(1, 3, 64, 64)}


@torch.inference_mode()
def test_ksampler_takes_euler_steps_along_the_guided_prediction(model):
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", STEPS)
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(SEED))
    x = sampling.noise_scaling(sigmas[0], noise, torch.zeros_like(noise), True)
    for sigma, after in zip(sigmas.tolist(), sigmas[1:].tolist(), strict=False):
        cond, uncond = (denoise(model, x, sigma, c[0][0]) for c in (STAR, EMPTY))
        x = x + (x - (uncond + CFG * (cond - uncond))) / sigma * (after - sigma)
    torch.testing.assert_close(sample(model, STAR, blank()), x, atol=1e-3, rtol=1e-3)


@torch.inference_mode()
def test_a_lora_adds_its_product_to_the_weights(model, version):
    name, rank = "time_embed.2.weight", 2
    rows, columns = model.model.diffusion_model.get_parameter(name).shape
    generator = torch.Generator().manual_seed(SEED)
    up, down = (0.3 * torch.randn(shape, generator=generator) for shape in ((rows, rank), (rank, columns)))
    key = f"diffusion_model.{name.removesuffix('.weight')}"
    lora = {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}
    patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 0.7, 0.0)
    with_lora = sample(patched, STAR, blank())

    other, _ = load(version)
    weight = other.model.diffusion_model.get_parameter(name)
    weight.copy_(weight.float() + 0.7 * up @ down)
    torch.testing.assert_close(with_lora, sample(other, STAR, blank()), atol=2e-3, rtol=2e-3)
    assert (with_lora - sample(model, STAR, blank())).abs().max() > 0.05


@torch.inference_mode()
def test_an_area_is_drawn_by_its_own_prompt(model):
    area = nodes.ConditioningSetAreaPercentage()
    halves = [area.append(cond, 0.5, 1.0, x, 0.0, 1.0)[0] for cond, x in ((STAR, 0.0), (CIRCLE, 0.5))]
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", STEPS)
    found = {}

    def watch(args):
        found.update(x=args["input"], sigma=args["sigma"].item(), denoised=args["denoised"])
        return args["denoised"]

    watched = model.clone()
    watched.set_model_sampler_post_cfg_function(watch)
    guider = comfy.samplers.CFGGuider(watched)
    guider.set_conds(halves[0] + halves[1], EMPTY)
    guider.set_cfg(1.0)
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(SEED))
    guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True)
    x, sigma = found["x"], found["sigma"]
    left, right = (denoise(model, part, sigma, c[0][0]) for part, c in zip(x.chunk(2, -1), (STAR, CIRCLE), strict=True))
    torch.testing.assert_close(found["denoised"], torch.cat([left, right], -1), atol=1e-3, rtol=1e-3)


@torch.inference_mode()
def test_inpainting_keeps_what_is_not_masked(model):
    latent = {"samples": torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(SEED)) * 2 - 1}
    mask = torch.zeros(64, 64)
    mask[16:48, 16:48] = 1
    masked = nodes.SetLatentNoiseMask().set_mask(latent, mask)[0]
    change = (sample(model, STAR, masked) - latent["samples"]).abs()
    assert (change * (1 - mask)).max() < 1e-5 and (change * mask).max() > 0.1


@torch.inference_mode()
def test_previews_and_the_vae_show_the_picture(loaded, monkeypatch):
    model, vae = loaded
    monkeypatch.setattr(latent_preview.args, "preview_method", LatentPreviewMethod.Latent2RGB)
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(SEED)) * 2 - 1
    expected = (x + 1) / 2
    preview = latent_preview.get_previewer(torch.device("cpu"), model.model.latent_format).decode_latent_to_preview(x)
    assert np.abs(np.asarray(preview) - 255 * expected[0].permute(1, 2, 0).numpy()).max() <= 1
    decoded = nodes.VAEDecode().decode(vae, {"samples": x})[0]
    torch.testing.assert_close(decoded, expected.permute(0, 2, 3, 1), atol=1e-5, rtol=0)
