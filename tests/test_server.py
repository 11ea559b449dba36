"""A real ComfyUI server loads the pack and samples what the same code samples here."""

import pytest
import torch
from safetensors.torch import load as load_safetensors

from pack.devtools import prompts, workflow
from pack.devtools.client import PromptError

comfy_sample = pytest.importorskip("comfy.sample")

from pack.guiders.attach import on_model  # noqa: E402
from pack.guiders.options import Options  # noqa: E402
from pack.nodes.demo import REGDemoModel, REGDemoPrompt  # noqa: E402

STEPS = 6


def graph(server, seed: int, rectification: str | None, steps: int = STEPS, **options) -> dict:
    """A prompt that saves the latent sampled with CFG, or with REG where a rectification is given."""
    defaults = workflow.widget_values({}, server.object_info()["REGModel"])
    options = defaults | {"rectification": rectification, "every": 1} | options
    return prompts.demo(seed, options if rectification else None, steps)


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
    positive, negative = (REGDemoPrompt.execute(**prompt).args[0] for prompt in (prompts.PROMPT, prompts.EMPTY))
    latent = torch.zeros(1, 3, 64, 64)
    noise = comfy_sample.prepare_noise(latent, seed)
    return comfy_sample.sample(
        model, noise, STEPS, prompts.CFG, "euler", "normal", positive, negative, latent, seed=seed
    )


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
