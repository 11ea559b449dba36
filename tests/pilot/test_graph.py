"""The pilot in ComfyUI: its pictures are those of ComfyUI's own nodes, and what is finished is not made again."""

from types import SimpleNamespace

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import comfy.model_management
import comfy.model_sampling
import folder_paths
import numpy as np
import torch
from comfy_api.latest._io import HiddenHolder

import nodes  # ComfyUI's
from pack.demo import world
from pack.nodes import pilot as node
from pack.nodes.demo import REGDemoModel, REGDemoPrompt
from pack.nodes.guidance import REGModel
from pack.nodes.preset import FOLDER, REGLoadPreset
from pack.pilot import graph
from pack.pilot.arms import UNGUIDED, Arm, Cell
from pack.pilot.preset import Preset

STEPS, ANY = 3, dict.fromkeys(world.ATTRIBUTES, "any")
CFG, REG = Arm("cfg", 4.0), Arm("ratio", 4.0, (("every", 1),))


def prompt(**stated):
    return REGDemoPrompt.execute(**(ANY | stated)).args[0]


@pytest.fixture(scope="module")
def loaded():
    return REGDemoModel.execute().args


def studio(loaded, model=None, **changes):
    settings = dict(sampler="euler", scheduler="karras", steps=STEPS, judges_itself=False) | changes
    empty = {"samples": torch.zeros(2, 4, 8, 8), "downscale_ratio_spacial": 8}  # as Empty Latent Image gives it
    positives = {"star": prompt(shape="star"), "circle": prompt(shape="circle")}
    return graph.Studio(model or loaded[0], positives, prompt(), loaded[1], empty, rectified=node.rectified, **settings)


def name(studio, cell):
    return studio.name(cell, node.node_options(cell.arm))


@torch.inference_mode()
def test_pictures_are_those_of_comfyuis_own_nodes(loaded):
    for arm, model in ((CFG, loaded[0]), (REG, REGModel.execute(loaded[0], **node.node_options(REG)).args[0])):
        picture, _, latent = studio(loaded).make(Cell(arm, "star", 7), lambda *_: None)
        empty = {"samples": torch.zeros(1, 3, 64, 64)}
        sampled = nodes.KSampler().sample(
            model, 7, STEPS, arm.cfg, "euler", "karras", prompt(shape="star"), prompt(), empty
        )[0]
        assert np.allclose(latent, sampled["samples"][0].numpy(), atol=2e-3)
        decoded = nodes.VAEDecode().decode(loaded[1], sampled)[0][0]
        assert np.abs(picture - 255 * decoded.numpy()).max() <= 0.51


@torch.inference_mode()
def test_reg_on_the_model_that_comes_in_does_not_count(loaded):
    with_reg = REGModel.execute(loaded[0], **node.node_options(REG)).args[0]
    pictures = [studio(loaded, m).make(Cell(CFG, "star", 7), lambda *_: None)[0] for m in (loaded[0], with_reg)]
    assert (pictures[0] == pictures[1]).all()


@torch.inference_mode()
def test_evaluations_are_counted(loaded):
    make = studio(loaded).make
    count = {arm: make(Cell(arm, "star", 7), lambda *_: None)[1]["evaluations"] for arm in (UNGUIDED, CFG, REG)}
    assert (count[UNGUIDED], count[CFG]) == (STEPS, 2 * STEPS) and count[REG] > 2 * STEPS


@torch.inference_mode()
def test_the_model_tells_its_prompts_apart(loaded):
    """On pictures that the world draws, the model's own judgement is that of who knows."""
    attributes = world.sample_attributes(4, np.random.default_rng(0))
    attributes.shape[:] = [0, 3] * 2
    found = np.zeros((4, 2))
    for i in range(4):
        latent = torch.from_numpy(world.draw_picture(attributes, i).copy()).movedim(-1, 0)[None].float() / 127.5 - 1
        for j, shape in enumerate(("circle", "star")):
            found[i, j] = graph.own_agreement(loaded[0], prompt(shape=shape), prompt(), latent, i)
    assert (found[[0, 2], 0] > found[[0, 2], 1]).all()
    assert (found[[1, 3], 1] > found[[1, 3], 0]).all()


@pytest.mark.parametrize("ratio", [1.0, 4.0])
def test_noise_levels_of_every_kind_of_model(ratio):
    class Eps(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
        pass

    class Flow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    assert graph.sigma_at(Eps(), ratio) == pytest.approx(ratio, rel=1e-3)
    assert graph.sigma_at(Flow(), ratio) == pytest.approx(ratio / (1 + ratio), rel=1e-3)


@torch.inference_mode()
def test_addresses_tell_apart_what_makes_another_picture(loaded):
    cell = Cell(REG, "star", 7)
    first = studio(loaded)
    same = name(first, cell)
    assert same == name(studio(loaded), cell) == name(studio(REGDemoModel.execute().args), cell)
    weak = REGDemoModel.execute("weak").args
    others = [
        name(studio(weak), cell),
        name(studio(loaded, steps=STEPS + 1), cell),
        name(studio(loaded, scheduler="simple"), cell),
        name(studio(loaded, graph=["FreeU"]), cell),
        name(first, Cell(REG, "circle", 7)),
        name(first, Cell(REG, "star", 8)),
        name(first, Cell(Arm("ratio", 4.0), "star", 7)),
    ]
    lora = loaded[0].clone()
    lora.add_patches({"diffusion_model.time_embed.2.bias": (torch.ones(256),)}, 0.5)
    others.append(name(studio(loaded, lora), cell))
    assert len({same, *others}) == 1 + len(others)


@pytest.fixture
def run(loaded, tmp_path, monkeypatch):
    """Executes the node; counts the pictures that were made."""
    made = []
    make = graph.Studio.make

    def counting(self, cell, on_step):
        out = make(self, cell, on_step)
        made.append(cell)
        return out

    monkeypatch.setattr(graph.Studio, "make", counting)
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    defaults = {entry.id: entry.default for entry in node.REGPilot.GET_SCHEMA().inputs if hasattr(entry, "default")}

    @torch.inference_mode()
    def execute(**changes):
        positives = {"positive0": prompt(shape="star"), "positive1": prompt(shape="circle")}
        inputs = (
            defaults
            | dict(steps=1, pictures_per_prompt=1, settings="ratio 3", positives=positives, ask_model=False)
            | changes
        )
        clone = type("Clone", (node.REGPilot,), {"hidden": HiddenHolder.from_dict(None)})
        empty = {"samples": torch.zeros(1, 4, 8, 8), "downscale_ratio_spacial": 8}
        model, vae = loaded
        return clone.execute(model=model, negative=prompt(), vae=vae, latent_image=empty, **inputs).args

    return SimpleNamespace(execute=execute, made=made, folder=tmp_path / node.OUTPUT / "my model")


def test_a_second_run_with_one_more_setting_makes_only_that(run):
    report, pictures, text = run.execute()
    assert len(run.made) == 6 and "2 pictures of 2 prompts" in text and report.shape[-1] == pictures.shape[-1] == 3
    run.execute()
    assert len(run.made) == 6
    run.execute(settings="ratio 3\njacobian 3")
    assert [cell.arm.label for cell in run.made[6:]] == ["jacobian 3"] * 2
    run.execute(settings="ratio 3\njacobian 3", pictures_per_prompt=2)
    assert len(run.made) == 16
    assert (run.folder / "pilot.html").exists() and (run.folder / "pictures.csv").exists()


def test_a_clip_encodes_the_prompts(run):
    """A stand-in that reads shapes: the demo model has no CLIP."""
    clip = SimpleNamespace(tokenize=str.split, encode_from_tokens_scheduled=lambda words: prompt(shape=words[-1]))
    _, _, text = run.execute(positives={}, prompts="a star\n\na circle\n", clip=clip)
    assert {cell.prompt for cell in run.made} == {"a star", "a circle"} and "2 prompts" in text
    with_conditionings = len(run.made)
    run.execute(prompts="a star\na circle")  # the same conditionings under the same names are the same pictures
    assert len(run.made) == with_conditionings


def test_an_interrupted_run_goes_on(run, monkeypatch):
    make = graph.Studio.make

    def interrupted(self, cell, on_step):
        if len(run.made) == 4:
            comfy.model_management.interrupt_current_processing()
        return make(self, cell, on_step)

    monkeypatch.setattr(graph.Studio, "make", interrupted)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run.execute()
    assert len(run.made) == 4 == len(list((run.folder / "cells").glob("*.json")))
    monkeypatch.setattr(graph.Studio, "make", make)
    run.execute()
    assert len(run.made) == 6


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"settings": "magic 3"}, "'magic'"),
        ({"settings": "ratio 3 strength=9"}, "strength must be between 0 and 4"),
        ({"prompts": "one"}, "2 conditionings are connected and 1 prompts"),
        ({"positives": {}}, "there are no prompts"),
        ({"positives": {}, "prompts": "a"}, "nothing encodes the prompts"),
        ({"name": "../up"}, "no name for a folder"),
        ({"scorer": "gone"}, "a scorer compares pictures with texts"),
        ({"scorer": "gone", "prompts": "a\nb"}, "the folder 'gone' is no longer there"),
        ({"questions": "a / b"}, "need a scorer"),
    ],
)
def test_wrong_inputs_are_told_before_anything_is_made(run, changes, told):
    with pytest.raises(ValueError, match=r"^REG: ") as error:
        run.execute(**changes)
    assert told in str(error.value) and not run.made


def test_nan_is_told(loaded):
    vae = SimpleNamespace(decode=lambda latent: torch.full((1, 8, 8, 3), float("nan")))
    with pytest.raises(ValueError, match=r"^REG: the VAE gives no picture but NaN"):
        graph.decoded(vae, torch.zeros(1, 3, 8, 8))


def test_a_preset_is_loaded_and_scaled(tmp_path, monkeypatch):
    (tmp_path / "mine.json").write_text(Preset.of(REG, {}, evidence="better").text())
    monkeypatch.setitem(folder_paths.folder_names_and_paths, FOLDER, ([str(tmp_path)], {".json"}))
    preset, cfg, text = REGLoadPreset.execute("mine.json", 0.5).args
    assert cfg == 4.0 and preset.options == {"rectification": "ratio", "strength": 0.5, "every": 1} and "better" in text
    model = REGDemoModel.execute().args[0]
    assert REGModel.execute(model, **(node.node_defaults() | preset.options)).args[0] is not model


def test_a_changed_reference_is_judged_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path))
    (tmp_path / "mine").mkdir()
    before = node.REGPilot.fingerprint_inputs(scorer="none", references="mine", seed=0)
    (tmp_path / "mine" / "one.png").write_bytes(b"")
    after = node.REGPilot.fingerprint_inputs(scorer="none", references="mine", seed=0)
    assert before != after == node.REGPilot.fingerprint_inputs(scorer=None, references="mine", seed=0)
    assert node.REGPilot.fingerprint_inputs(scorer="none", references="none") == []


def test_of_a_controlnet_content_tells_too_little():
    """Its strength, say, is seen in the graph only."""
    control = type("ControlNet", (), {})()
    plain = [[torch.ones(2), {"area": (1, 2), "name": "a", "strength": 0.5, "mask": None}]]
    assert graph.is_plain(plain) and not graph.is_plain([[torch.ones(2), {"control": control}]])


@pytest.mark.parametrize("name", ["..", " ..", ". ", " ", "a/b", "a\\b", ".hidden"])
def test_a_folder_is_one_below_the_pilots_own(name):
    with pytest.raises(ValueError, match="no name for a folder"):
        node.plain_name(name)
    assert node.plain_name(" my model ") == "my model"
