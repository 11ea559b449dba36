"""From a workflow as the browser saves it (nodes, links, widget values in order) to the prompt that the server runs.

The browser does this itself; here it lets the files that users open be the files that the tests and the demo execute.
"""

import json
from collections.abc import Iterator
from pathlib import Path

NEVER, BYPASS = 2, 4  # node modes
NOTES = ("Note", "MarkdownNote")
CONTROL = "control_after_generate"  # a widget that the browser puts after a seed; the server does not know it
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


class WorkflowError(ValueError):
    """A workflow holds something that this conversion or the server does not know."""


def load(path: Path, object_info: dict) -> dict:
    """The prompt of a saved workflow: {node id: {"class_type": ..., "inputs": {...}}}."""
    return to_prompt(json.loads(path.read_text(encoding="utf-8")), object_info)


def to_prompt(workflow: dict, object_info: dict) -> dict:
    origin = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}  # link id: [node, output slot]
    nodes = [node for node in workflow["nodes"] if node["type"] not in NOTES and node.get("mode") != NEVER]
    return {str(node["id"]): convert(node, origin, object_info) for node in nodes}


def convert(node: dict, origin: dict, object_info: dict) -> dict:
    """One node of the prompt: values of its widgets, then its links, which win over a widget turned into an input."""
    kind = node["type"]
    if kind not in object_info:
        raise WorkflowError(f"node {node['id']} is a {kind}, which this server does not have")
    if node.get("mode") == BYPASS:
        raise WorkflowError(f"node {node['id']} ({kind}) is bypassed; remove it from the workflow")
    links = {slot["name"]: origin[slot["link"]] for slot in node.get("inputs", []) if slot.get("link") is not None}
    return {
        "class_type": kind,
        "inputs": widget_values(node, object_info[kind]) | links,
        "_meta": {"title": node.get("title", kind)},
    }


def widget_values(node: dict, info: dict) -> dict:
    """Values by name. A widget that the node got after the workflow was saved has its default, as in the browser."""
    defaults = list(widgets(info))
    saved = node.get("widgets_values", [])
    if len(saved) > len(defaults):
        raise WorkflowError(f"node {node['id']} ({node['type']}) has {len(saved)} values for {len(defaults)} widgets")
    values = [*saved, *(default for _, default in defaults[len(saved) :])]
    return {name: value for (name, _), value in zip(defaults, values, strict=True) if name != CONTROL}


def widgets(info: dict) -> Iterator[tuple[str, object]]:
    """Names and defaults of a node's widgets, in the order of their saved values."""
    for group in ("required", "optional"):
        for name in info["input_order"].get(group, []):
            kind, options = (*info["input"][group][name], {})[:2]
            choices = kind if isinstance(kind, list) else options.get("options", [None])
            if (kind in WIDGETS or isinstance(kind, list)) and not options.get("forceInput"):
                yield name, options.get("default", next(iter(choices), None))
                if options.get(CONTROL):
                    yield CONTROL, "fixed"


def node_titled(prompt: dict, title: str) -> str:
    """The id of the one node with this title."""
    (found,) = (key for key, node in prompt.items() if node["_meta"]["title"] == title)
    return found
