"""EDM2's MODEL is what its paper's equations give, from the authors' file to the denoised latent."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import comfy.samplers
import comfy.sd
import torch

from pack.paper import classes, edm2, models
from pack.tests.guiders.tiny import predict
from pack.tests.paper import paper_edm2, tiny


def model(tmp_path, state, dtype="float32"):
    latents = state["unet.out_conv.weight"].shape[0] == 4
    return models.load_edm2(
        tiny.save(state | (tiny.encoder() if latents else {}), tmp_path / "edm2.safetensors"), dtype
    )


def guider(patcher, ids, cfg=1.0):
    made = comfy.samplers.CFGGuider(patcher)
    made.set_conds(classes.conditioning(ids), classes.conditioning([]))
    made.set_cfg(cfg)
    return made


SHAPES = {
    "latents": {},
    "pixels": {"in_channels": 3},
    "no classes": {"classes": 0},
    "four levels": {
        "resolution": 16,
        "channels": (64, 64, 128, 192),
        "blocks": 2,
        "attention": (False, False, True, True),
    },
}


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_it_is_what_the_paper_writes(tmp_path, changes):
    state = tiny.edm2_state(**changes)
    x = tiny.latent(2, changes.get("in_channels", 4), changes.get("resolution", 8))
    for sigma in (0.02, 1.0, 40.0):
        (here,) = predict(guider(model(tmp_path, state), [3, 7]), (x * sigma, sigma))
        label = torch.nn.functional.one_hot(torch.tensor([3, 7]), tiny.CLASSES)
        expected = paper_edm2.denoise(state, x * sigma, sigma, label)
        assert (here - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_large_activations_are_cut_at_256(tmp_path):
    state = tiny.edm2_state(attention=(False, False))  # which would take the largest alone
    state |= {name: 10 * value for name, value in state.items() if name.endswith("emb_gain")}
    label = torch.nn.functional.one_hot(torch.tensor([3, 7]), tiny.CLASSES)
    (here,) = predict(guider(model(tmp_path, state), [3, 7]), (tiny.latent(), 1.0))
    expected = paper_edm2.denoise(state, tiny.latent(), 1.0, label)
    assert (here - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_no_class_is_a_vector_of_zeros(tmp_path):
    state, x = tiny.edm2_state(), tiny.latent()
    (here,) = predict(guider(model(tmp_path, state), []), (x, 1.0))
    torch.testing.assert_close(here.double(), paper_edm2.denoise(state, x, 1.0), rtol=1e-5, atol=1e-5)


def test_the_sizes_of_the_published_family():
    """Parameters in millions, as the EDM2 paper's table 2 has them, with the 1000 classes of ImageNet."""
    family = {
        "XS": (128, 125),
        "S": (192, 280),
        "M": (256, 498),
        "L": (320, 777),
        "XL": (384, 1119),
        "XXL": (448, 1523),
    }
    for width, millions in family.values():
        config = {
            **{"resolution": 64, "in_channels": 4, "channels": tuple(width * i for i in (1, 2, 3, 4)), "blocks": 3},
            **{"attention": (False, False, True, True), "noise": width, "emb": 4 * width, "classes": 1000},
        }
        network = edm2.EDM2(**config, device="meta", operations=torch.nn)
        assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=1)


@pytest.mark.parametrize(("dtype", "error"), [("float16", 0.01), ("bfloat16", 0.06)])
def test_half_precision_is_near_and_no_class_becomes_another(tmp_path, dtype, error):
    state, x = tiny.edm2_state(classes=1000), tiny.latent()
    patcher = model(tmp_path, state, dtype)
    (here,) = predict(guider(patcher, [993, 994]), (x, 1.0))
    label = torch.nn.functional.one_hot(torch.tensor([993, 994]), 1000)
    expected = paper_edm2.denoise(state, x, 1.0, label)
    assert (here - expected).norm() <= error * expected.norm()
    exact = torch.cat([paper_edm2.denoise(state, x, 1.0, torch.eye(1000)[[i, i]]) for i in (993, 994)])
    assert (exact[0] - exact[2]).norm() > 10 * error * exact[0].norm()  # had they been one class, it would show


@torch.inference_mode()
def test_a_run_is_the_papers_run(tmp_path):
    """Heun with EDM's own noise levels, written out; here KSampler's heun and karras."""
    state, steps = tiny.edm2_state(), 6
    patcher = model(tmp_path, state)
    noise, label = tiny.latent(), torch.nn.functional.one_hot(torch.tensor([3, 7]), tiny.CLASSES)

    def denoise(x, t):
        d, ref = paper_edm2.denoise(state, x, t, label), paper_edm2.denoise(state, x, t)
        return ref + 2.0 * (d - ref)

    ramp = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    times = [*(80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, torch.tensor(0.0)]
    x = noise.double() * times[0]
    for i in range(steps):
        slope = (x - denoise(x, times[i])) / times[i]
        moved = x + (times[i + 1] - times[i]) * slope
        if i < steps - 1:
            second = (moved - denoise(moved, times[i + 1])) / times[i + 1]
            moved = x + (times[i + 1] - times[i]) * (slope + second) / 2
        x = moved
    sigmas = comfy.samplers.calculate_sigmas(patcher.get_model_object("model_sampling"), "karras", steps)
    heun = comfy.samplers.sampler_object("heun")
    run = guider(patcher, [3, 7], 2.0).sample(noise, torch.zeros_like(noise), heun, sigmas, disable_pbar=True)
    raw = patcher.model.latent_format.process_in(run)  # a run ends in the VAE's own latents
    assert (raw - x).abs().max() <= 1e-4 * x.abs().max()


def test_latents_are_the_encoders(tmp_path):
    """scale · latent + bias, and back."""
    patcher = model(tmp_path, tiny.edm2_state())
    latent, raw = tiny.latent(), tiny.encoder()
    scaled = patcher.model.latent_format.process_in(latent)
    expected = latent * raw["encoder.scale"].view(1, 4, 1, 1) + raw["encoder.bias"].view(1, 4, 1, 1)
    torch.testing.assert_close(scaled, expected)
    torch.testing.assert_close(patcher.model.latent_format.process_out(scaled), latent)


def test_the_vae_works_on_pixels_from_0():
    """The one that came in stays as it is."""
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    ours = models.for_pixels_from_0(vae)
    pixels = torch.tensor([-0.5, 0.25, 1.5])
    assert ours.process_output(pixels.clone()).tolist() == [0.0, 0.25, 1.0]
    assert ours.process_input(pixels) is pixels
    assert vae.process_output is not ours.process_output
