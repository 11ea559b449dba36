"""Every input of every node, every wrong value that JSON can carry: refused in a sentence, before anything is sampled."""

import json
import math

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

from pack.devtools import workflow
from pack.devtools.client import PromptError

WRONG = {
    "NaN": math.nan,
    "infinite": math.inf,
    "minus infinite": -math.inf,
    "huge": 1e30,
    "minus huge": -1e30,
    "beyond 64 bits": 2**70,
    "words": "words",
    "no words": "",
    "null": None,
    "a list": [1, 2, 3],
    "an object": {"a": 1},
    "a link to nothing": ["nowhere", 0],
    "a link to the wrong kind": ["prompt", 0],
    "missing": ...,
}
SOURCES = {  # what stands for an input that is linked
    "MODEL": ["model", 0],
    "CONDITIONING": ["prompt", 0],
    "LATENT": ["empty", 0],
    "SAMPLER": ["sampler", 0],
    "REG_PROFILE": ["profile", 0],
    "REG_SCHEDULE": ["schedule", 0],
}
OPTIONAL_LINKS = ("profile", "schedule")
# Nodes with inputs of their own, but those that need files which are not here; those that share the options are asked for
# them once, on REGModel.
NODES = ("REGModel", "REGGuider", "REGSampler", "REGAutoGuider", "REGDemoModel", "REGDemoPrompt", "REGSaveProfile")
NODES += ("REGLoadProfile", "REGCalibrate", "REGToy", "REGToyModel", "REGToyPlot", "REGSchedule", "REGReport")
NODES += ("REGImageNetClass", "REGDDPM")


def base(info: dict) -> dict:
    """Nodes that the inputs of others are linked to."""

    def default(kind, **inputs):
        return {"class_type": kind, "inputs": workflow.widget_values({}, info[kind]) | inputs}

    return {
        "model": default("REGDemoModel"),
        "prompt": default("REGDemoPrompt"),
        "empty": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "sampler": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "profile": {"class_type": "REGLoadProfile", "inputs": {"name": "reg-demo.safetensors"}},
        "schedule": {"class_type": "REGSchedule", "inputs": {"shape": "constant", "shape.cfg": 4.0}},
    }


def good_inputs(kind: str, info: dict) -> dict:
    """A node's own defaults, with its links made; a measurement is kept short."""
    inputs = dict(workflow.widget_values({}, info[kind]))
    for name, (type_, *_) in info[kind]["input"].get("required", {}).items():
        if isinstance(type_, str) and type_ in SOURCES:
            inputs[name] = SOURCES[type_]
    return inputs | ({"steps": 2, "points": 2} if kind == "REGCalibrate" else {})


def is_legal(value, spec: list) -> bool:
    """Is it a value that the input may have, in a form that ComfyUI converts?"""
    type_, options = spec[0], (spec[1] if len(spec) > 1 else {})
    if type_ in ("INT", "FLOAT"):
        try:
            return options.get("min", -math.inf) <= float(value) <= options.get("max", math.inf)
        except (TypeError, ValueError):
            return False
    if type_ == "STRING":
        empty = ("",) if options.get("default") else ()  # a box that begins empty may stay so
        return not isinstance(value, list | dict) and value not in (..., *empty)  # null is a word, too
    if type_ == "BOOLEAN":  # ComfyUI takes anything for a truth value, and so does Python
        return not isinstance(value, list) or len(value) != 2
    return False


def ask(server, prompt: dict) -> str:
    """ "refused" by ComfyUI before it runs, the sentence that the node answers with, or "accepted"."""
    body = json.dumps({"prompt": prompt, "client_id": server.identity})  # NaN and all
    answer = server.session.post(f"{server.url}/prompt", data=body, headers={"Content-Type": "application/json"})
    found = answer.json() if answer.headers.get("Content-Type", "").startswith("application/json") else {}
    if answer.status_code != 200 or found.get("node_errors"):
        return "refused" if answer.status_code < 500 else f"status {answer.status_code}"
    try:
        server.wait(found["prompt_id"])
    except PromptError as error:
        return str(error).split(": ", 1)[-1]
    return "accepted"


def of_options(kind: str, name: str, info: dict) -> bool:
    """Is it one of the shared options, which are asked for on REGModel?"""
    shared = {**info["REGModel"]["input"]["required"], **info["REGModel"]["input"].get("optional", {})}
    return kind != "REGModel" and name in shared and "rectification" in info[kind]["input"]["required"]


@pytest.mark.parametrize("kind", NODES)
def test_no_wrong_value_is_taken_in_silence(server, kind):
    info = server.object_info()
    specs = {**info[kind]["input"].get("required", {}), **info[kind]["input"].get("optional", {})}
    good, failed = good_inputs(kind, info), {}
    for name, spec in specs.items():
        if of_options(kind, name, info):
            continue
        for what, value in WRONG.items():
            if (kind, name, what) == ("REGSchedule", "shape", "a link to nothing"):
                continue  # ComfyUI checks no link of a dynamic input, and its worker ends: nothing of ours is asked
            inputs = {key: kept for key, kept in good.items() if key != name}
            if value is not ...:
                inputs[name] = value
            prompt = {**base(info), "node": {"class_type": kind, "inputs": inputs}}
            output = info[kind]["output"]
            if output and not info[kind]["output_node"]:
                prompt["show"] = {"class_type": "PreviewAny", "inputs": {"source": ["node", 0]}}
            became = ask(server, prompt)
            optional = name in info[kind]["input"].get("optional", {})
            fine = is_legal(value, spec) or (optional and value in (..., None))
            fine = fine or (what == "a link to the wrong kind" and spec[0] == "CONDITIONING")
            if became != "refused" and not became.startswith("REG:") and not (became == "accepted" and fine):
                failed[kind, name, what] = became
    assert failed == {}
