"""Saved workflows become the prompts that the browser would queue."""

import pytest

from pack.devtools.workflow import WorkflowError, to_prompt

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
