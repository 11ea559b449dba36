"""The node in a real ComfyUI, as a graph."""

import pytest

from pack.devtools import workflow
from pack.devtools.client import PromptError

ANY = dict.fromkeys(("shape", "colour", "background", "count"), "any")


def graph(server, **changes) -> dict:
    defaults = workflow.widget_values({}, server.object_info()["REGPilot"])
    quick = {"steps": 1, "settings": "ratio 3", "pictures_per_prompt": 1, "ask_model": False, "name": "in a server"}
    links = {"model": ["model", 0], "vae": ["model", 1], "negative": ["empty", 0], "latent_image": ["latent", 0]}
    nodes = {
        "model": ("REGDemoModel", {"version": "full"}),
        "star": ("REGDemoPrompt", ANY | {"shape": "star"}),
        "gold": ("REGDemoPrompt", ANY | {"colour": "gold"}),
        "empty": ("REGDemoPrompt", ANY),
        "latent": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "pilot": (
            "REGPilot",
            defaults
            | quick
            | links
            | {"positives.positive0": ["star", 0], "positives.positive1": ["gold", 0]}
            | changes,
        ),
        "text": ("PreviewAny", {"source": ["pilot", 2]}),
        "pictures": ("PreviewImage", {"images": ["pilot", 1]}),
    }
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


def test_the_graph_gives_answer_pictures_and_page(server, comfyui_folder):
    steps = []
    out = server.wait(server.queue(graph(server)), lambda step, total: steps.append((step, total)))
    assert out["text"]["text"][0].startswith("2 pictures of 2 prompts were made with every setting")
    assert out["pictures"]["images"] and steps[-1] == (6, 6)
    folder = comfyui_folder / "output" / "reg_pilot" / "in a server"
    assert len(list((folder / "cells").glob("*.png"))) == 6 and (folder / "pilot.html").exists()
    made = {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
    server.wait(server.queue(graph(server, settings="ratio 3; ratio 5")))
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert len(list((folder / "cells").glob("*.png"))) == 8


def test_a_wrong_setting_is_one_sentence(server):
    with pytest.raises(
        PromptError, match=r"REGPilot: REG: 'magic' in the setting 'magic 3' is no rule: use one of cfg, "
    ):
        server.wait(server.queue(graph(server, settings="magic 3")))
