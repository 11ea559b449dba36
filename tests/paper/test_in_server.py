"""A tiny DiT and a tiny EDM2 in a real server: loader, classes, REG, sampler and decoder give what they give here."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load as load_safetensors

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import comfy.sample
import comfy.samplers

from pack.devtools import workflow
from pack.devtools.client import PromptError
from pack.guiders.attach import on_model
from pack.guiders.options import Options
from pack.nodes.imagenet import REGImageNetClass
from pack.paper import models, sampling
from pack.tests.paper import tiny

CLASS = "golden retriever (207)"
CFG, SEED = 3.0, 7


@pytest.fixture(scope="module")
def files(comfyui_folder):
    folder = comfyui_folder / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    tiny.save(tiny.dit_state(classes=1000), folder / "tiny-dit.pt")
    edm2 = tiny.edm2_state(classes=1000, in_channels=3, resolution=16, channels=(64, 64))
    tiny.save(edm2, folder / "tiny-edm2.safetensors")
    return folder


def prompt(server, rest: dict, size: int) -> dict:
    """A graph with classes, an empty latent and REG measured at every step, and the rest."""
    info = server.object_info()
    nodes = {
        "classes": ("REGImageNetClass", {"name": CLASS, "more": "tench"}),
        "empty": ("EmptyLatentImage", {"width": size, "height": size, "batch_size": 2}),
        "reg": (
            "REGModel",
            {"model": ["load", 0], "rectification": "elementwise", "estimator": "backward", "every": 1},
        ),
        **rest,
    }
    filled = {
        key: {"class_type": kind, "inputs": workflow.widget_values({}, info[kind]) | inputs}
        for key, (kind, inputs) in nodes.items()
    }
    for node in filled.values():
        node["inputs"] = {name: value for name, value in node["inputs"].items() if value is not None}
    return filled


def rectified(model):
    return on_model(model, Options(rectification="elementwise", estimator="backward", refresh=1))


@torch.inference_mode()
def test_dit(server, files):
    guided = {"model": ["reg", 0], "positive": ["classes", 0], "negative": ["classes", 1], "cfg": CFG}
    sampled = {"noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["ddpm", 0], "sigmas": ["ddpm", 1]}
    graph = prompt(
        server,
        {
            "load": ("REGDiTLoader", {"ckpt_name": "tiny-dit.pt"}),
            "ddpm": ("REGDDPM", {"model": ["load", 0], "steps": 5}),
            "guider": ("CFGGuider", guided),
            "noise": ("RandomNoise", {"noise_seed": SEED}),
            "sample": ("SamplerCustomAdvanced", {**sampled, "latent_image": ["empty", 0]}),
            "save": ("SaveLatent", {"samples": ["sample", 0], "filename_prefix": "tiny-dit"}),
        },
        size=64,
    )
    (file,) = server.wait(server.queue(graph))["save"]["latents"]
    there = load_safetensors(server.fetch(file))["latent_tensor"]
    model = models.load_dit(files / "tiny-dit.pt")
    guider = comfy.samplers.CFGGuider(rectified(model))
    guider.set_conds(*REGImageNetClass.execute(CLASS, "tench").args)
    guider.set_cfg(CFG)
    latent = torch.zeros(2, 4, 8, 8)
    noise = comfy.sample.prepare_noise(latent, SEED)
    sigmas = sampling.spaced_sigmas(model, 5)
    here = guider.sample(noise, latent, sampling.ddpm(), sigmas, disable_pbar=True, seed=SEED)
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4 * float(here.abs().max()))


@torch.inference_mode()
def test_edm2_to_the_picture(server, files):
    sampled = {
        "model": ["reg", 0],
        "positive": ["classes", 0],
        "negative": ["classes", 1],
        "latent_image": ["empty", 0],
    }
    sampled |= {"seed": SEED, "cfg": CFG, "steps": 5, "sampler_name": "heun", "scheduler": "karras", "denoise": 1.0}
    graph = prompt(
        server,
        {
            "load": ("REGEDM2Loader", {"ckpt_name": "tiny-edm2.safetensors"}),
            "sample": ("KSampler", sampled),
            "decode": ("VAEDecode", {"samples": ["sample", 0], "vae": ["load", 1]}),
            "save": ("SaveImage", {"images": ["decode", 0], "filename_prefix": "tiny-edm2"}),
        },
        size=16,
    )
    there = [
        np.asarray(Image.open(io.BytesIO(server.fetch(file))), dtype=int)
        for file in server.wait(server.queue(graph))["save"]["images"]
    ]
    model = rectified(models.load_edm2(files / "tiny-edm2.safetensors"))
    conds, latent = REGImageNetClass.execute(CLASS, "tench").args, torch.zeros(2, 3, 16, 16)
    noise = comfy.sample.prepare_noise(latent, SEED)
    out = comfy.sample.sample(model, noise, 5, CFG, "heun", "karras", *conds, latent, seed=SEED)
    here = (255 * models.pixel_vae().decode(out)).clamp(0, 255)
    assert len(there) == 2 and np.abs(np.stack(there) - here.numpy()).max() <= 1.5
    assert np.stack(there).std() > 5


def test_a_latent_of_another_size_is_refused_in_a_sentence(server, files):
    graph = prompt(
        server,
        {
            "load": ("REGEDM2Loader", {"ckpt_name": "tiny-edm2.safetensors"}),
            "sample": (
                "KSampler",
                {
                    **{"model": ["load", 0], "positive": ["classes", 0], "negative": ["classes", 1]},
                    **{"latent_image": ["empty", 0], "steps": 2, "sampler_name": "heun", "scheduler": "karras"},
                },
            ),
            "save": ("SaveLatent", {"samples": ["sample", 0]}),
        },
        size=32,
    )
    with pytest.raises(PromptError, match="REG: this EDM2 draws 16x16 pixels and nothing else"):
        server.wait(server.queue(graph))
