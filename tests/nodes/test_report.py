"""The report node, in prompts run by ComfyUI's own executor."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import dataclasses
import re
from types import SimpleNamespace

import torch
from comfy_api.latest import io
from comfy_extras import nodes_custom_sampler, nodes_preview_any
from execution import CacheType, PromptExecutor

import nodes
from pack.guiders.report import record, status
from pack.nodes import draw
from pack.nodes.guidance import REGModel, REGSampler
from pack.nodes.report import REGReport
from pack.tests.guiders import tiny

STEPS = 3


class TinyModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema("TinyModel", outputs=[io.Model.Output(), io.Conditioning.Output(), io.Conditioning.Output()])

    @classmethod
    def execute(cls):
        return io.NodeOutput(tiny.as_model(tiny.Network()), tiny.POSITIVE, tiny.NEGATIVE)


class TinyLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema("TinyLatent", outputs=[io.Latent.Output()])

    @classmethod
    def execute(cls):
        return io.NodeOutput({"samples": torch.zeros(1, tiny.CHANNELS, 4, 4)})


class Server:
    """What the executor needs of a server: somebody to tell."""

    client_id = last_node_id = None

    def __init__(self):
        self.lines = []

    def send_sync(self, *args):
        pass

    def send_progress_text(self, text, node_id, client_id):
        self.lines.append((node_id, text, client_id))


class Executor:
    def __init__(self, monkeypatch):
        self.server = Server()
        monkeypatch.setattr(status, "_server", lambda: self.server)
        self.executor = PromptExecutor(self.server, CacheType.CLASSIC, {"ram": 0, "ram_inactive": 0, "lru": 0})
        self.count = 0

    def run(self, prompt, *outputs, client="browser"):
        """Run a prompt, as a browser queues it or, without a client, a script; gives what its nodes show."""
        self.count += 1
        prompt = {key: {"class_type": kind, "inputs": dict(inputs)} for key, (kind, inputs) in prompt.items()}
        self.executor.execute(
            prompt, f"prompt {self.count}", {"client_id": client} if client else {}, outputs or ["report"]
        )
        return self.executor.history_result["outputs"] if self.executor.success else {}

    @property
    def error(self):
        """(node, message) of the last prompt's failure."""
        data = next(data for kind, data in self.executor.status_messages if kind == "execution_error")
        return data["node_id"], data["exception_message"].strip()


@pytest.fixture
def executor(monkeypatch, tmp_path):
    monkeypatch.setattr("folder_paths.temp_directory", str(tmp_path))
    ours = (TinyModel, TinyLatent, REGModel, REGSampler, REGReport)
    theirs = (nodes_custom_sampler.SamplerCustom, nodes_custom_sampler.KSamplerSelect)
    theirs += (nodes_custom_sampler.BasicScheduler, nodes_custom_sampler.SamplerCustomAdvanced)
    theirs += (nodes_custom_sampler.CFGGuider, nodes_custom_sampler.RandomNoise)
    for node in (*ours, *theirs):
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, node.GET_SCHEMA().node_id, node)
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "PreviewAny", nodes_preview_any.PreviewAny)
    record._records.clear()
    return Executor(monkeypatch)


REG = {"rectification": "elementwise", "strength": 1.0}


def ksampler(model, latent="empty", seed=1, steps=STEPS):
    links = {"model": [model, 0], "positive": ["tiny", 1], "negative": ["tiny", 2], "latent_image": [latent, 0]}
    numbers = {"seed": seed, "steps": steps, "cfg": 4.0, "denoise": 1.0}
    return "KSampler", {**links, **numbers, "sampler_name": "euler", "scheduler": "normal"}


def report(latent="sampler", theme="dark", slot=0):
    return "REGReport", {"latent": [latent, slot], "theme": theme}


def graph(**changes):
    return {
        "tiny": ("TinyModel", {}),
        "empty": ("TinyLatent", {}),
        "reg": ("REGModel", {"model": ["tiny", 0], **REG}),
        "sampler": ksampler("reg"),
        "report": report(),
        **changes,
    }


def text(outputs, node="report"):
    return outputs[node]["text"][0]


def test_a_report_shows_its_run(executor):
    shown = executor.run(graph())
    assert text(shown).startswith("REG: elementwise by backward")
    assert f"{STEPS} cond, {STEPS} uncond, 0 extra, {STEPS} reverse" in text(shown)
    (picture,) = shown["report"]["images"]
    assert (picture["type"], picture["subfolder"]) == ("temp", "")


def test_the_latent_passes_and_the_outputs_follow(executor):
    executor.run(graph(sampler2=ksampler("tiny", "report"), preview=("PreviewAny", {"source": ["sampler2", 0]})))
    assert executor.executor.success


def test_a_sampler_from_the_cache_still_has_its_record(executor):
    first = executor.run(graph())
    second = executor.run(graph(report=report(theme="light")))
    assert text(second) == text(first)  # with its seconds: the same run


def test_connecting_a_report_to_a_graph_that_has_run_samples_anew(executor):
    without = graph(save=("PreviewAny", {"source": ["sampler", 0]}))
    del without["report"]
    executor.run(without, "save")
    assert not record._records
    assert "elementwise" in text(executor.run(graph()))


def test_several_samplers_and_reports(executor):
    shown = executor.run(
        graph(
            reg2=("REGModel", {"model": ["tiny", 0], "rectification": "ratio", "strength": 1.0}),
            sampler2=ksampler("reg2", "sampler"),
            report2=report("sampler2"),
        ),
        "report",
        "report2",
    )
    assert "elementwise" in text(shown)
    assert "ratio" in text(shown, "report2")


def test_two_users_with_the_same_graph_and_one_with_another(executor):
    mine, theirs = graph(), graph(sampler=ksampler("reg", seed=2, steps=2))
    first, other, again = (executor.run(prompt) for prompt in (mine, theirs, mine))
    assert f"{STEPS} cond" in text(first)
    assert "2 cond" in text(other)
    assert f"{STEPS} cond" in text(again)


@pytest.mark.parametrize("slot", [0, 1], ids=["output", "denoised_output"])
def test_custom_sampling(executor, slot):
    advanced = {"noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["regsampler", 0], "sigmas": ["sigmas", 0]}
    prompt = {
        "tiny": ("TinyModel", {}),
        "empty": ("TinyLatent", {}),
        "select": ("KSamplerSelect", {"sampler_name": "euler_ancestral"}),
        "regsampler": ("REGSampler", {"sampler": ["select", 0], **REG}),
        "sigmas": ("BasicScheduler", {"model": ["tiny", 0], "scheduler": "normal", "steps": STEPS, "denoise": 1.0}),
        "noise": ("RandomNoise", {"noise_seed": 1}),
        "guider": ("CFGGuider", {"model": ["tiny", 0], "positive": ["tiny", 1], "negative": ["tiny", 2], "cfg": 4.0}),
        "sampler": ("SamplerCustomAdvanced", {**advanced, "latent_image": ["empty", 0]}),
        "report": report(slot=slot),
    }
    assert "elementwise" in text(executor.run(prompt))


def test_without_reg_it_is_refused_before_anything_is_sampled(executor, monkeypatch):
    monkeypatch.setattr(nodes, "common_ksampler", lambda *args, **kwargs: pytest.fail("it sampled"))
    for model in ("tiny", "reg"):
        executor.run(graph(reg=("REGModel", {"model": ["tiny", 0], **REG, "strength": 0.0}), sampler=ksampler(model)))
        node, message = executor.error
        assert node == "report"
        assert message.startswith("REG: there is nothing to report on")


def test_a_latent_that_no_rectified_run_made_gets_a_sentence_in_place_of_a_report(executor):
    shown = executor.run(graph(plain=ksampler("tiny", "sampler"), report=report("plain")))
    assert text(shown).startswith("REG: no rectified run")
    assert shown["report"]["images"]


def test_a_live_line_on_the_sampling_node(executor, monkeypatch):
    monkeypatch.setattr(status, "SECONDS_BETWEEN_LINES", 0)
    executor.run(graph())
    assert len(executor.server.lines) == STEPS - 1
    node, line, client = executor.server.lines[-1]
    assert (node, client) == ("sampler", "browser")
    assert line.startswith("REG: elementwise by backward, mean f ")


def test_the_live_line_is_rare_and_not_without_a_server(executor):
    executor.run(graph(sampler=ksampler("reg", steps=20)))
    assert len(executor.server.lines) < 10
    assert not status.LiveLine("f").on


def test_the_live_line_says_why_the_estimator_is_another(executor, monkeypatch):
    def without_gradient(self, v):
        raise RuntimeError("derivative for fused::op is not implemented")

    monkeypatch.setattr(status, "SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setattr("pack.reg.estimators.Evaluation.pull_back", without_gradient)
    executor.run(graph())
    _, line, _ = executor.server.lines[-1]
    assert re.fullmatch(r"REG: elementwise by difference, mean f -?\d\.\d\d \(no gradient: .*fused::op.*\)", line)


def test_nobody_else_sees_the_live_line(executor, monkeypatch):
    """ComfyUI sends a text without a client's name to every browser, where a node of the same id would show it."""
    monkeypatch.setattr(status, "SECONDS_BETWEEN_LINES", 0)
    executor.run(graph(), client=None)
    assert not executor.server.lines


CASES = {
    **{f"{theme}, {steps} steps": (theme, steps, (8, 8)) for theme in draw.THEMES for steps in (0, 1, 20)},
    "wide": ("dark", 2, (4, 64)),
    "sound": ("dark", 2, (1, 64)),
    "one pixel": ("dark", 2, (1, 1)),
}


@pytest.mark.parametrize(("theme", "steps", "shape"), CASES.values(), ids=CASES)
def test_every_record_can_be_drawn(theme, steps, shape):
    image = draw.record(example(steps, shape), theme)
    assert image.shape == (1, draw.HEIGHT, draw.WIDTH, 3)
    assert 0 <= image.min() < image.max() <= 1
    paper = image[0, -1, -1].mean()
    assert paper > 0.9 if theme == "light" else paper < 0.2


def example(steps, shape):
    curve = torch.linspace(0, 1, steps)
    guider = SimpleNamespace(conds={})
    made = record.Recorder(record.Options(), guider, on=True)._record()
    curves = dict.fromkeys(("kept", "spread", "plain_cfg", "cfg", "correction", "seconds"), curve)
    maps = [(1.0, torch.rand(shape))] * min(steps, record.MAPS_KEPT)
    return dataclasses.replace(made, sigma=14 - 13 * curve, maps=maps, fallback="a long reason " * 30, **curves)
