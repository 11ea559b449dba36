"""What is varied in workflows as people export them."""

import json

import pytest

from pack.pilot.arms import UNGUIDED, Arm, Cell
from pack.pilot.workflow import Workflow, WorkflowError, read

REG = Arm("ratio", 3.0, (("every", 2),))


def workflow(**changes) -> dict:
    """SDXL with a ControlNet, REG on the model, a second sampler without REG, and a report."""
    nodes = {
        "ckpt": ("CheckpointLoaderSimple", {"ckpt_name": "sd_xl.safetensors"}),
        "words": ("PrimitiveStringMultiline", {"value": "a cat"}),
        "pos": ("CLIPTextEncodeSDXL", {"text_g": ["words", 0], "text_l": "a cat", "width": 1024, "clip": ["ckpt", 1]}),
        "neg": ("CLIPTextEncode", {"text": "ugly", "clip": ["ckpt", 1]}),
        "cn": ("ControlNetApplyAdvanced", {"positive": ["pos", 0], "negative": ["neg", 0], "strength": 0.8}),
        "size": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 4}),
        "reg": ("REGModel", {"model": ["ckpt", 0], "rectification": "elementwise", "strength": 0.7, "every": 4}),
        "k": (
            "KSampler",
            {
                **{"model": ["reg", 0], "positive": ["cn", 0], "negative": ["cn", 1], "latent_image": ["size", 0]},
                **{"seed": ["seed", 0], "cfg": 6.5, "steps": 20},
            },
        ),
        "seed": ("PrimitiveInt", {"value": 1}),
        "dec": ("VAEDecode", {"samples": ["k", 0], "vae": ["ckpt", 2]}),
        "save": ("SaveImage", {"images": ["dec", 0], "filename_prefix": "mine"}),
        "plain": ("KSampler", {"model": ["ckpt", 0], "positive": ["pos", 0], "seed": 5, "cfg": 8.0}),
        "dec2": ("VAEDecode", {"samples": ["plain", 0], "vae": ["ckpt", 2]}),
        "save2": ("SaveImage", {"images": ["dec2", 0], "filename_prefix": "mine"}),
        "report": ("REGReport", {"latent": ["k", 0]}),
    }
    nodes.update(changes)
    return {key: {"class_type": kind, "inputs": dict(inputs)} for key, (kind, inputs) in nodes.items() if kind}


def test_everything_is_found_and_varied():
    whole = workflow()
    found = Workflow(whole)
    assert (found.cfg, found.model, found.output) == (6.5, "sd_xl.safetensors", "save")
    made = found.of(Cell(REG, "a dog", 77))
    assert made["reg"]["inputs"] | {"model": 0} == {"model": 0, "rectification": "ratio", "strength": 1.0, "every": 2}
    assert (made["k"]["inputs"]["cfg"], made["k"]["inputs"]["seed"]) == (3.0, 77)
    assert (made["pos"]["inputs"]["text_g"], made["pos"]["inputs"]["text_l"]) == ("a dog", "a dog")
    assert made["neg"]["inputs"]["text"] == "ugly"
    assert made["size"]["inputs"]["batch_size"] == 1
    assert made["save"] == {"class_type": "PreviewImage", "inputs": {"images": ["dec", 0]}}
    assert not {"report", "plain", "dec2", "save2"} & made.keys()  # what makes another picture, or none
    assert whole == workflow()


def test_plain_guidance_is_reg_with_no_strength():
    found = Workflow(workflow())
    cfg, none = found.of(Cell(Arm("cfg", 5.0), "a", 1)), found.of(Cell(UNGUIDED, "a", 1))
    assert (cfg["reg"]["inputs"]["strength"], cfg["k"]["inputs"]["cfg"]) == (0.0, 5.0)
    assert none["k"]["inputs"]["cfg"] == 1.0


def test_reg_on_a_sampler_varies_the_guider_beside_it():
    found = Workflow(
        workflow(
            reg=("REGSampler", {"sampler": ["euler", 0], "rectification": "ratio", "strength": 1.0}),
            euler=("KSamplerSelect", {"sampler_name": "euler"}),
            guider=("CFGGuider", {"model": ["ckpt", 0], "positive": ["cn", 0], "negative": ["cn", 1], "cfg": 4.0}),
            noise=("RandomNoise", {"noise_seed": 3}),
            k=("SamplerCustomAdvanced", {"noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["reg", 0]}),
        )
    )
    made = found.of(Cell(REG, "a dog", 9))
    assert (made["guider"]["inputs"]["cfg"], made["noise"]["inputs"]["noise_seed"]) == (3.0, 9)
    assert made["reg"]["inputs"]["rectification"] == "ratio" and made["pos"]["inputs"]["text_g"] == "a dog"


def test_a_guider_is_its_own_cfg_and_prompt():
    reg = (
        "REGGuider",
        {"model": ["ckpt", 0], "positive": ["pos", 0], "negative": ["neg", 0], "cfg": 2.0, "strength": 1.0},
    )
    k = ("SamplerCustomAdvanced", {"noise": ["noise", 0], "guider": ["reg", 0], "sampler": ["euler", 0]})
    found = Workflow(workflow(reg=reg, k=k, noise=("RandomNoise", {"noise_seed": 3}), euler=("KSamplerSelect", {})))
    assert found.of(Cell(REG, "x", 1))["reg"]["inputs"]["cfg"] == 3.0 and found.cfg == 2.0


def test_a_profile_keeps_its_own_seed():
    calibrate = ("REGCalibrate", {"model": ["ckpt", 0], "positive": ["pos", 0], "seed": 11, "cfg": 4.0})
    reg = ("REGModel", {"model": ["ckpt", 0], "profile": ["cal", 0], "strength": 1.0})
    made = Workflow(workflow(reg=reg, cal=calibrate)).of(Cell(REG, "x", 1))
    assert (made["cal"]["inputs"]["seed"], made["cal"]["inputs"]["cfg"]) == (11, 4.0)


def test_any_node_can_be_named_for_the_prompt():
    pos = ("REGDemoPrompt", {"shape": "star", "colour": "any"})
    found = Workflow(workflow(pos=pos), prompt_node="pos", prompt_input="shape")
    assert found.of(Cell(REG, "circle", 1))["pos"]["inputs"] == {"shape": "circle", "colour": "any"}


@pytest.mark.parametrize(
    ("changes", "options", "told"),
    [
        ({"reg": ("FreeU", {"model": ["ckpt", 0]})}, {}, "there is no REG node in the workflow: put one between"),
        ({"save": ("", {}), "save2": ("", {})}, {}, "no Save Image or Preview Image"),
        ({"pos": ("MyEncoder", {"words": "x"})}, {}, "no prompt: name the node"),
        (
            {"cn": ("ConditioningCombine", {"conditioning_1": ["pos", 0], "conditioning_2": ["neg", 0]})},
            {},
            "several prompts",
        ),
        ({}, {"prompt_node": "nowhere"}, "nowhere"),
        ({}, {"prompt_node": "size"}, "no input for a text"),
        ({}, {"output_node": "save2"}, "node save2 is no node that shows"),
    ],
)
def test_what_cannot_be_piloted_is_told(changes, options, told):
    with pytest.raises(WorkflowError, match=r"^REG: ") as error:
        Workflow(workflow(**changes), **options)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not JSON"),
        ('{"nodes": [], "links": []}', "Export (API)"),
        ("[]", "Export (API)"),
        ('{"1": {}}', "Export (API)"),
    ],
)
def test_files_that_are_no_workflow(tmp_path, content, told):
    (file := tmp_path / "workflow.json").write_text(content)
    with pytest.raises(WorkflowError, match=r"^REG: ") as error:
        read(file)
    assert told in str(error.value)
    with pytest.raises(WorkflowError, match="cannot be read"):
        read(tmp_path / "none.json")


def test_a_workflow_is_read(tmp_path):
    (file := tmp_path / "workflow.json").write_text(json.dumps(workflow()))
    assert read(file) == workflow()


def test_what_would_replace_the_options_or_the_cfg_is_left_out():
    """A schedule stands in place of the cfg that the settings are about."""
    curve, preset = ("REGSchedule", {"shape": "linear"}), ("REGLoadPreset", {"name": "mine.json"})
    inputs = {"model": ["ckpt", 0], "schedule": ["curve", 0], "preset": ["kept", 0], "every": 4, "step": ["number", 0]}
    found = Workflow(workflow(curve=curve, kept=preset, reg=("REGModel", inputs)))
    for arm in (REG, UNGUIDED, Arm("cfg", 5.0)):
        assert not {"schedule", "preset"} & found.of(Cell(arm, "a", 1))["reg"]["inputs"].keys()
    assert found.options == {"every": 4}  # which a preset of this workflow has, too
