"""The exact world through ComfyUI's own samplers and the pack's real nodes, against the lab's own chains."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import comfy.samplers
import torch

from pack.demo import toy
from pack.guiders.attach import on_model
from pack.guiders.options import Options
from pack.lab import chains, guides, worlds
from pack.nodes.toy import SEED
from pack.reg import schedules
from pack.reg.rectification import RECTIFICATIONS

W = 3.0
SIGMAS = chains.karras(12)


def points(n=64):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(4)) * chains.SIGMA_MAX


@torch.inference_mode()
def through_comfyui(model, sampler, start):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(toy.conditioning(True), toy.conditioning(False))
    guider.set_cfg(1 + W)
    noise = start.view(-1, 2, 1, 1) / (1 + chains.SIGMA_MAX**2) ** 0.5  # ComfyUI starts at sigma √(1 + 1/sigma²)
    sampler = comfy.samplers.sampler_object(sampler)
    return guider.sample(noise, torch.zeros_like(noise), sampler, torch.tensor(SIGMAS), disable_pbar=True)[..., 0, 0]


@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("none", None),
        ("elementwise", Options("elementwise", "backward", refresh=1)),
        ("elementwise", Options("elementwise", "difference", step=0.001, refresh=1)),
        ("jacobian", Options("jacobian", "backward", refresh=1)),
        ("natural", Options("jacobian", "difference", refresh=1)),
        ("ratio", Options("ratio", step=0.001, refresh=1)),
    ],
)
def test_whole_chains_are_the_labs(sampler, rule, options):
    pair, model = worlds.classes(SEED), toy.model(SEED)
    guide = guides.Guide(pair, schedules.constant(W), guides.all_rules()[rule])
    expected = chains.SAMPLERS[sampler](guide, points().double(), SIGMAS)
    found = through_comfyui(on_model(model, options) if options else model, sampler, points())
    error = (found - expected).norm(dim=-1)
    assert error.median() < 2e-3, error.median()  # single precision, and differences
    assert error.quantile(0.9) < 0.02, error.quantile(0.9)


def test_refreshed_every_few_steps_as_in_the_lab():
    guide = guides.Guide(worlds.classes(SEED), schedules.constant(W), RECTIFICATIONS["elementwise"], refresh=4)
    expected = chains.euler(guide, points().double(), SIGMAS)
    found = through_comfyui(on_model(toy.model(SEED), Options("elementwise", "backward", refresh=4)), "euler", points())
    assert (found - expected).norm(dim=-1).median() < 2e-3


def test_it_computes_on_the_processor_beside_any_card(monkeypatch):
    """In double precision, which not every card has."""
    monkeypatch.setattr("comfy.model_management.get_torch_device", lambda: torch.device("meta"))
    assert toy.model(SEED).load_device == torch.device("cpu")
