"""The report node, in prompts run by ComfyUI's own executor."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import asyncio
import dataclasses
import re
from types import SimpleNamespace

import folder_paths
import torch
from comfy import latent_formats
from comfy_api.latest import io
from comfy_extras import nodes_custom_sampler, nodes_preview_any
from execution import CacheType, PromptExecutor, validate_prompt

import nodes
from pack.guiders.options import Options
from pack.guiders.report import live, record
from pack.nodes import draw, picture
from pack.nodes.guidance import REGModel, REGSampler
from pack.nodes.preset import FOLDER, REGLoadPreset
from pack.nodes.profile import REGLoadProfile
from pack.nodes.report import WITHOUT_REG, REGReport
from pack.nodes.schedule import REGSchedule
from pack.pilot.arms import Arm
from pack.pilot.preset import Preset
from pack.reg.rectification import named
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
        monkeypatch.setattr(live, "_server", lambda: self.server)
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
    ours = (TinyModel, TinyLatent, REGModel, REGSampler, REGReport, REGLoadProfile, REGLoadPreset)
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
    assert re.match(r"REG: cfg 4\.0 → \d\.\d, REG \(paper\) by backward\n", text(shown))
    assert re.search(rf"passes: {STEPS} cond, {STEPS} uncond, \d extra, {STEPS} reverse; \d+\.\d s", text(shown))
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
    assert "REG (paper)" in text(executor.run(graph()))


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
    assert "REG (paper)" in text(shown)
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
    assert "REG (paper)" in text(executor.run(prompt))


@pytest.mark.parametrize("model", ["tiny", "reg"], ids=["without a REG node", "at strength 0"])
def test_without_reg_the_latent_passes_with_a_sentence(executor, model):
    """So does one behind a bypassed node, which the browser leaves out of the prompt."""
    prompt = graph(reg=("REGModel", {"model": ["tiny", 0], **REG, "strength": 0.0}), sampler=ksampler(model))
    shown = executor.run(
        {**prompt, "sampler2": ksampler("tiny", "report"), "report2": report("sampler2")}, "report", "report2"
    )
    assert executor.executor.success
    assert text(shown) == text(shown, "report2") == WITHOUT_REG
    assert shown["report"]["images"]


@pytest.mark.parametrize("rule", ["elementwise", "REG (paper)", "jacobian", "whole Jacobian", "ratio"])
def test_saved_workflows_may_name_a_rule_as_they_did(executor, rule):
    reg = ("REGModel", {"model": ["tiny", 0], "rectification": rule, "every": 4})
    assert named(rule).label in text(executor.run(graph(reg=reg)))


@pytest.fixture
def presets(monkeypatch, tmp_path):
    """A folder with a preset."""
    (tmp_path / "mine.json").write_text(Preset.of(Arm("ratio", 4.0), {}, evidence="better").text())
    monkeypatch.setitem(folder_paths.folder_names_and_paths, FOLDER, ([str(tmp_path)], {".json"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})


def test_a_preset_of_no_share_is_no_reg(executor, presets):
    reg = ("REGModel", {"model": ["tiny", 0], **REG, "preset": ["preset", 0]})
    prompt = graph(reg=reg, preset=("REGLoadPreset", {"name": "mine.json", "share": 0.0}))
    assert text(executor.run(prompt)) == WITHOUT_REG


def test_a_rule_that_is_left_out_is_the_default_one(executor):
    prompt = graph(reg=("REGModel", {"model": ["tiny", 0]}), plain=ksampler("tiny", "sampler"), report=report("plain"))
    assert text(executor.run(prompt)).startswith("REG: no rectified run")


def test_what_has_a_default_may_be_left_out(executor):
    prompt = graph(reg=("REGModel", {"model": ["tiny", 0]}), report=("REGReport", {"latent": ["sampler", 0]}))
    assert validated(prompt)[0]
    assert "strength 1, percent 0 to 1, measured with doubling gaps" in text(executor.run(prompt))


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine", "interval"])
def test_a_schedule_needs_only_its_shape(executor, monkeypatch, shape):
    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, "REGSchedule", REGSchedule)
    prompt = {"schedule": ("REGSchedule", {"shape": shape})}
    assert validated(prompt)[0]
    shown = executor.run(prompt, "schedule")
    assert executor.executor.success, executor.error
    assert shown["schedule"]["images"]


MISTAKES = {
    "percents": (
        {"start_percent": 0.8, "end_percent": 0.2},
        "start_percent (0.8) comes after end_percent (0.2): swap them.",
    ),
    "no profile": ({"estimator": "profile"}, "estimator = profile needs a profile: connect REG Load Profile"),
    "skip": (
        {"skip_below": 0.1},
        "skip_below needs a profile: connect REG Load Profile or REG Calibrate, or set it to 0.",
    ),
    "rule": ({"rectification": "reg"}, "rectification must be one of REG (paper), whole Jacobian, ratio, not reg."),
    "strength": ({"strength": 5}, "strength must be between 0 and 4, not 5"),
    "wrong wire": ({"model": ["tiny", 1]}, "model takes MODEL, and CONDITIONING is connected to it"),
}


@pytest.mark.parametrize(("inputs", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_before_anything_loads(executor, inputs, sentence):
    sound, _, _, errors = validated(graph(reg=("REGModel", {"model": ["tiny", 0], **inputs})))
    assert not sound
    (error,) = errors["reg"]["errors"]
    assert error["details"].startswith(f"REG: {sentence}")


def test_a_connected_profile_is_enough(executor):
    """It is not made yet when a prompt is looked at."""
    reg = ("REGModel", {"model": ["tiny", 0], "estimator": "profile", "skip_below": 0.1, "profile": ["load", 0]})
    assert validated(graph(reg=reg, load=("REGLoadProfile", {"name": "reg-demo.safetensors"})))[0]


def test_a_preset_may_set_right_what_the_node_has(executor, presets):
    """Each option is looked at by itself then; what they say together is known when the preset is."""
    inputs = {"model": ["tiny", 0], "estimator": "profile", "preset": ["load", 0]}
    load = ("REGLoadPreset", {"name": "mine.json", "share": 1.0})
    assert "reg" not in validated(graph(reg=("REGModel", inputs), load=load))[3]
    assert "reg" in validated(graph(reg=("REGModel", inputs | {"strength": 5}), load=load))[3]


def validated(prompt):
    """What the server says of a prompt before it runs: (sound, error, outputs, errors by node)."""
    prompt = {key: {"class_type": kind, "inputs": dict(inputs)} for key, (kind, inputs) in prompt.items()}
    return asyncio.run(validate_prompt("prompt", prompt, None))


def test_a_latent_that_no_rectified_run_made_gets_a_sentence_in_place_of_a_report(executor):
    shown = executor.run(graph(plain=ksampler("tiny", "sampler"), report=report("plain")))
    assert text(shown).startswith("REG: no rectified run")
    assert shown["report"]["images"]


LINE = re.compile(r"REG: (cfg \d+\.\d → -?\d+\.\d), (.+?)( · .*)?")


@pytest.mark.parametrize("rule", ["elementwise", "jacobian", "ratio"])
def test_the_line_on_the_sampler_ends_on_what_the_report_says(executor, monkeypatch, rule):
    monkeypatch.setattr(live, "SECONDS_BETWEEN_LINES", 0)
    shown = executor.run(graph(reg=("REGModel", {"model": ["tiny", 0], "rectification": rule})))
    assert len(executor.server.lines) == STEPS  # one after each step but the last, and the mean at the end
    node, line, client = executor.server.lines[-1]
    assert (node, client) == ("sampler", "browser")
    cfg, label, warnings = LINE.fullmatch(line).groups()
    assert (label, warnings) == (named(rule).label, None)
    assert text(shown).startswith(f"REG: {cfg}, {label} by ")
    table = re.findall(r"(\d+\.\d\d) → +(\d+\.\d\d)", text(shown))
    means = [sum(map(float, column)) / STEPS for column in zip(*table, strict=True)]
    assert means == pytest.approx([float(number) for number in re.findall(r"\d+\.\d", cfg)], abs=0.06)


def test_the_line_comes_without_a_report_too(executor):
    prompt = graph(save=("PreviewAny", {"source": ["sampler", 0]}))
    del prompt["report"]
    executor.run(prompt, "save")
    (_, line, _) = executor.server.lines[-1]
    assert LINE.fullmatch(line)


def test_the_live_line_is_rare_and_not_without_a_server(executor, monkeypatch):
    monkeypatch.setattr(live, "SECONDS_BETWEEN_LINES", 3600)
    executor.run(graph(sampler=ksampler("reg", steps=20)))
    assert 1 <= len(executor.server.lines) <= 2  # the first and the last
    assert not live.LiveLine("REG (paper)").on


def without_gradient(self, v):
    raise RuntimeError("derivative for fused::op is not implemented")


def test_a_warning_stays_on_the_line_until_the_next_run(executor, monkeypatch):
    monkeypatch.setattr(live, "SECONDS_BETWEEN_LINES", 0)
    with monkeypatch.context() as broken:
        broken.setattr("pack.reg.estimators.Evaluation.pull_back", without_gradient)
        executor.run(graph())
    lines = [line for _, line, _ in executor.server.lines]
    first = next(i for i, line in enumerate(lines) if "fused::op" in line)
    assert all("no gradient" in line and "fused::op" in line for line in lines[first:])
    assert LINE.fullmatch(lines[-1])[3]
    executor.run(graph(sampler=ksampler("reg", seed=2)))
    assert LINE.fullmatch(executor.server.lines[-1][1])[3] is None


def test_nobody_else_sees_the_live_line(executor, monkeypatch):
    """ComfyUI sends a text without a client's name to every browser, where a node of the same id would show it."""
    monkeypatch.setattr(live, "SECONDS_BETWEEN_LINES", 0)
    executor.run(graph(), client=None)
    assert not executor.server.lines


RUNS = ((0, "ratio"), (1, "elementwise"), (20, "jacobian"))
CASES = {
    **{f"{theme}, {steps} steps": (theme, steps, (8, 8), rule) for theme in draw.THEMES for steps, rule in RUNS},
    "wide": ("dark", 2, (4, 64), "elementwise"),
    "sound": ("dark", 2, (1, 64), "ratio"),
    "one pixel": ("dark", 2, (1, 1), "elementwise"),
}


@pytest.mark.parametrize(("theme", "steps", "shape", "rule"), CASES.values(), ids=CASES)
def test_every_record_can_be_drawn(theme, steps, shape, rule):
    image = picture.record(example(steps, shape, rule), theme)
    assert image.shape == (1, draw.HEIGHT, draw.WIDTH, 3)
    assert 0 <= image.min() < image.max() <= 1
    paper = image[0, -1, -1].mean()
    assert paper > 0.9 if theme == "light" else paper < 0.2


def example(steps, shape, rule):
    curve = torch.linspace(0, 1, steps)
    guider = SimpleNamespace(conds={})
    made = record.Recorder(Options(rule), guider, on=True)._record()
    curves = dict.fromkeys(("kept", "spread", "plain_cfg", "cfg", "correction", "seconds"), curve)
    maps = [(1.0, torch.rand(shape))] * min(steps, record.MAPS_KEPT)
    preview = torch.zeros(*shape, 3, dtype=torch.uint8)
    previews = [(1.0, preview, preview)] * min(steps, record.PREVIEWS_KEPT) if min(shape) > 1 else []
    return dataclasses.replace(
        made, sigma=14 - 13 * curve, maps=maps, previews=previews, fallback="a long reason " * 30, **curves
    )


def test_previews_are_the_predictions_without_and_with_reg(executor):
    """Of the first sample, by the factors by which ComfyUI previews its latents."""
    d_cond, g, r = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    step = SimpleNamespace(d_cond=d_cond, guidance=g, strength=0.5)
    before, after = record._first_frames(step, r)
    torch.testing.assert_close(before, (d_cond + g)[:1])
    torch.testing.assert_close(after, (d_cond + g / 2 + r / 2)[:1])
    shown = record.previewer(latent_formats.SD15(), before)(before)
    rgb = torch.einsum("chw,cr->hwr", before[0], torch.tensor(latent_formats.SD15().latent_rgb_factors))
    expected = ((rgb + 1) / 2).clamp(0, 1) * 255
    torch.testing.assert_close(shown.float(), expected, atol=1.0, rtol=0)
    assert record.previewer(latent_formats.LatentFormat(), before) is None
