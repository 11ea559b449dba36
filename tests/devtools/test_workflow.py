"""Saved workflows become the prompts that the browser would queue."""

import pytest

from pack.devtools.workflow import WorkflowError, to_prompt, widget_values

OBJECT_INFO = {
    "Load": {"input": {"required": {}}, "input_order": {"required": []}},
    "Sample": {
        "input": {
            "required": {
                "model": ["MODEL", {}],
                "seed": ["INT", {"default": 0, "control_after_generate": True}],
                "sampler": [["euler", "heun"], {}],
            },
            "optional": {"strength": ["FLOAT", {"default": 1.0}], "rule": ["COMBO", {"options": ["a", "b"]}]},
        },
        "input_order": {"required": ["model", "seed", "sampler"], "optional": ["strength", "rule"]},
    },
}
LINK = [7, 1, 0, 2, 0, "MODEL"]


def saved(**changes) -> dict:
    """A workflow of two nodes and a note; changes are to the second node."""
    load = {"id": 1, "type": "Load"}
    note = {"id": 3, "type": "MarkdownNote", "widgets_values": ["Read me"]}
    sample = {"id": 2, "type": "Sample", "inputs": [{"name": "model", "link": 7}]}
    sample |= {"widgets_values": [5, "fixed", "heun", 0.5, "b"]} | changes
    return {"nodes": [load, note, sample], "links": [LINK]}


def test_values_and_links_find_their_inputs():
    prompt = to_prompt(saved(), OBJECT_INFO)
    assert set(prompt) == {"1", "2"}
    assert prompt["2"]["inputs"] == {"model": ["1", 0], "seed": 5, "sampler": "heun", "strength": 0.5, "rule": "b"}


def test_a_widget_newer_than_the_workflow_has_its_default():
    prompt = to_prompt(saved(widgets_values=[5, "fixed", "heun"]), OBJECT_INFO)
    assert prompt["2"]["inputs"] == {"model": ["1", 0], "seed": 5, "sampler": "heun", "strength": 1.0, "rule": "a"}


def test_a_link_wins_over_the_widget_it_replaced():
    inputs = [{"name": "model", "link": 7}, {"name": "seed", "link": 7}, {"name": "strength", "link": None}]
    assert to_prompt(saved(inputs=inputs), OBJECT_INFO)["2"]["inputs"]["seed"] == ["1", 0]


def test_a_node_switched_off_is_left_out():
    assert set(to_prompt(saved(mode=2), OBJECT_INFO)) == {"1"}


CHOICE = {
    "input": {
        "required": {
            "curve": [
                "COMFY_DYNAMICCOMBO_V3",
                {
                    "options": [
                        {"key": "flat", "inputs": {"required": {"height": ["FLOAT", {"default": 1.0}]}}},
                        {"key": "ramp", "inputs": {"required": {"low": ["FLOAT", {}], "high": ["FLOAT", {}]}}},
                    ]
                },
            ],
            "last": ["INT", {"default": 7}],
        }
    }
}


def test_a_choice_brings_its_own_widgets():
    ramp = {"widgets_values": ["ramp", 2.0, 3.0, 4]}
    assert widget_values(ramp, CHOICE) == {"curve": "ramp", "curve.low": 2.0, "curve.high": 3.0, "last": 4}
    assert widget_values({}, CHOICE) == {"curve": "flat", "curve.height": 1.0, "last": 7}


def test_the_browser_puts_a_control_after_what_is_called_a_seed():
    seed, other = ["INT", {}], ["INT", {"default": 3}]
    node = {"widgets_values": [5, "randomize", 6]}
    assert widget_values(node, {"input": {"required": {"seed": seed, "n": other}}}) == {"seed": 5, "n": 6}
    fixed = ["INT", {"control_after_generate": False}]
    assert widget_values({"widgets_values": [5]}, {"input": {"required": {"seed": fixed, "n": other}}})["n"] == 3


def with_subgraph(linked: bool) -> dict:
    """A loader, a node that stands for two samplers in a row, and a sampler after it; the seed is an input or not."""
    inner = [{"id": n, "type": "Sample", "widgets_values": [n, "fixed", "heun", 0.5, "b"]} for n in (1, 2)]
    inner[0]["inputs"] = [{"name": "model", "link": 1}, {"name": "seed", "link": 2}]
    inner[1]["inputs"] = [{"name": "model", "link": 3}]
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    links = [(1, -10, 0, 1, 0, "MODEL"), (2, -10, 1, 1, 1, "INT"), (3, 1, 0, 2, 0, "MODEL"), (4, 2, 0, -20, 0, "MODEL")]
    definition = {"id": "twice", "inputs": [{"name": "model"}, {"name": "seed"}], "nodes": inner}
    definition["links"] = [dict(zip(names, link, strict=True)) for link in links]
    outer = {
        "id": 5,
        "type": "twice",
        "inputs": [{"name": "model", "link": 7}, {"name": "seed", "link": 8 * linked or None}],
    }
    after = {"id": 6, "type": "Sample", "inputs": [{"name": "model", "link": 9}]}
    nodes = [{"id": 1, "type": "Load"}, outer, after]
    links = [[7, 1, 0, 5, 0, "MODEL"], [8, 1, 1, 5, 1, "INT"], [9, 5, 0, 6, 0, "MODEL"]]
    return {"nodes": nodes, "links": links, "definitions": {"subgraphs": [definition]}}


def test_a_subgraph_is_its_nodes():
    prompt = to_prompt(with_subgraph(linked=True), OBJECT_INFO)
    assert set(prompt) == {"1", "5:1", "5:2", "6"}
    assert prompt["5:1"]["inputs"]["model"] == ["1", 0] and prompt["5:1"]["inputs"]["seed"] == ["1", 1]
    assert prompt["5:2"]["inputs"]["model"] == ["5:1", 0]
    assert prompt["6"]["inputs"]["model"] == ["5:2", 0]


def test_a_widget_of_a_subgraph_has_the_value_inside():
    assert to_prompt(with_subgraph(linked=False), OBJECT_INFO)["5:1"]["inputs"]["seed"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "Unheard"}, "Unheard"),
        ({"mode": 4}, "bypassed"),
        ({"widgets_values": [5, "fixed", "heun", 0.5, "b", 6]}, "6 values for 5 widgets"),
    ],
)
def test_what_cannot_be_converted_is_named(changes, message):
    with pytest.raises(WorkflowError, match=message):
        to_prompt(saved(**changes), OBJECT_INFO)
