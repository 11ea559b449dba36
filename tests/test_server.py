"""A real ComfyUI server loads the pack and samples what the same code samples here."""

import pytest
import torch
from safetensors.torch import load as load_safetensors

from pack.devtools import workflow
from pack.devtools.client import PromptError

comfy_sample = pytest.importorskip("comfy.sample")

from pack.guiders.attach import on_model  # noqa: E402
from pack.guiders.options import Options  # noqa: E402
from pack.nodes.demo import REGDemoModel, REGDemoPrompt  # noqa: E402

PROMPT = {"shape": "square", "colour": "green", "background": "light", "count": "1"}
EMPTY = dict.fromkeys(PROMPT, "any")
CFG = 4.0
STEPS = 6


def graph(server, seed: int, rectification: str | None, steps: int = STEPS, **options) -> dict:
    """A prompt that saves the latent sampled with CFG, or with REG where a rectification is given."""
    defaults = workflow.widget_values({}, server.object_info()["REGModel"])
    options = defaults | {"rectification": rectification, "every": 1} | options
    nodes = {
        "model": ("REGDemoModel", {}),
        "positive": ("REGDemoPrompt", PROMPT),
        "negative": ("REGDemoPrompt", EMPTY),
        "empty": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "reg": ("REGModel", {"model": ["model", 0], **options}),
        "sample": (
            "KSampler",
            {
                "model": ["reg" if rectification else "model", 0],
                "positive": ["positive", 0],
                "negative": ["negative", 0],
                "latent_image": ["empty", 0],
                **{"seed": seed, "cfg": CFG, "steps": steps},
                **{"sampler_name": "euler", "scheduler": "normal", "denoise": 1.0},
            },
        ),
        "save": ("SaveLatent", {"samples": ["sample", 0], "filename_prefix": "test"}),
    }
    if not rectification:
        del nodes["reg"]
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


def sample_in_server(server, prompt_id: str) -> torch.Tensor:
    """The latent that a queued `graph` saves."""
    (file,) = server.wait(prompt_id)["save"]["latents"]
    return load_safetensors(server.fetch(file))["latent_tensor"]


@torch.inference_mode()
def sample_here(seed: int, rectification: str | None) -> torch.Tensor:
    """What `graph` samples, without a server."""
    model = REGDemoModel.execute().args[0]
    if rectification:
        model = on_model(model, Options(rectification=rectification, refresh=1))
    positive, negative = (REGDemoPrompt.execute(**prompt).args[0] for prompt in (PROMPT, EMPTY))
    latent = torch.zeros(1, 3, 64, 64)
    noise = comfy_sample.prepare_noise(latent, seed)
    return comfy_sample.sample(model, noise, STEPS, CFG, "euler", "normal", positive, negative, latent, seed=seed)


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_server_lists_the_nodes(server):
    nodes = {name: node for name, node in server.object_info().items() if name.startswith("REG")}
    assert set(nodes) >= {"REGModel", "REGGuider", "REGSampler", "REGDemoModel", "REGDemoPrompt"}
    assert all(node["description"] for node in nodes.values())


@pytest.mark.parametrize("rectification", [None, "ratio", "elementwise", "jacobian"])
def test_server_samples_what_is_sampled_here(server, rectification):
    actual = sample_in_server(server, server.queue(graph(server, 1, rectification)))
    assert_same(actual, sample_here(1, rectification))


def test_two_queued_prompts_do_not_see_each_other(server):
    queued = [(seed, rule, server.queue(graph(server, seed, rule))) for seed, rule in ((2, "jacobian"), (2, None))]
    for seed, rule, prompt_id in queued:
        assert_same(sample_in_server(server, prompt_id), sample_here(seed, rule))


def test_good_run_after_an_interrupt(server):
    prompt_id = server.queue(graph(server, 3, "elementwise", steps=1000))
    with pytest.raises(PromptError, match="interrupted"):
        server.wait(prompt_id, lambda step, steps: server.interrupt(prompt_id))
    actual = sample_in_server(server, server.queue(graph(server, 3, "elementwise")))
    assert_same(actual, sample_here(3, "elementwise"))


def test_a_bad_option_is_refused_in_a_sentence(server):
    bad = graph(server, 4, "elementwise", start_percent=0.8, end_percent=0.2)
    with pytest.raises(PromptError, match="start_percent"):
        server.wait(server.queue(bad))


def test_a_version_that_is_not_there_is_refused_in_a_sentence(server):
    bad = graph(server, 5, None)
    bad["model"]["inputs"]["version"] = "no such"
    with pytest.raises(PromptError, match="REG: the demo model has no version 'no such': choose full or weak"):
        server.wait(server.queue(bad))
