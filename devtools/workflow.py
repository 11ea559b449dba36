"""From a workflow as the browser saves it (nodes, links, widget values in order) to the prompt that the server runs.

The browser does this itself; here it lets the files that users open be the files that the tests and the demo execute.
A node may stand for a subgraph: its nodes get ids as the browser gives them, "outer:inner".
"""

import json
from collections.abc import Iterator
from pathlib import Path

NEVER, BYPASS = 2, 4  # node modes
NOTES = ("Note", "MarkdownNote")
CONTROL = "control_after_generate"  # a widget that the browser puts after a seed; the server does not know it
SEEDS = ("seed", "noise_seed")  # what it takes for a seed if the server says nothing
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
NOT_SAVED = {"IMAGECOMPARE": {"__value__": ["", ""]}}  # what the prompt has there
INPUTS, OUTPUTS = -10, -20  # the two ends of a subgraph, in its links

Origin = list  # [node id, output slot], as prompts have it


class WorkflowError(ValueError):
    """A workflow holds something that this conversion or the server does not know."""


class Graph:
    """A workflow, or a subgraph as it is used at one place."""

    def __init__(
        self, graph: dict, subgraphs: dict[str, dict], path: str = "", entering: tuple[Origin | None, ...] = ()
    ):
        """
        subgraphs: the definitions, by id, which is the type of a node that stands for one.
        path: what the ids of its nodes begin with.
        entering: where the inputs of this subgraph come from; None where a widget of the outer node stands for a link.
        """
        self.path, self.entering, self.subgraphs = path, entering, subgraphs
        self.nodes = {node["id"]: node for node in graph["nodes"]}
        self.links = {link[0]: link for link in map(as_list, graph["links"])}

    def plain_nodes(self) -> Iterator[tuple[str, dict, dict[str, Origin]]]:
        """Id, node and where its inputs come from, of each node that the server is to know, in subgraphs too."""
        for key, node in self.nodes.items():
            if node["type"] in NOTES or node.get("mode") == NEVER:
                continue
            if inner := self.inside(key):
                yield from inner.plain_nodes()
            else:
                yield f"{self.path}{key}", node, self.origins(node)

    def origins(self, node: dict) -> dict[str, Origin]:
        """Where the linked inputs of a node come from, by name."""
        linked = {slot["name"]: slot["link"] for slot in node.get("inputs", []) if slot.get("link") is not None}
        found = {name: self.origin(link) for name, link in linked.items()}
        return {name: origin for name, origin in found.items() if origin}

    def origin(self, link: int) -> Origin | None:
        _, node, slot, *_ = self.links[link]
        if node == INPUTS:
            return self.entering[slot]
        inner = self.inside(node)
        return inner.leaving(slot) if inner else [f"{self.path}{node}", slot]

    def leaving(self, output: int) -> Origin | None:
        """Where an output of this subgraph comes from."""
        (link,) = (key for key, _, _, target, slot, *_ in self.links.values() if (target, slot) == (OUTPUTS, output))
        return self.origin(link)

    def inside(self, key: int) -> "Graph | None":
        """The subgraph that a node stands for, if it does."""
        definition = self.subgraphs.get(self.nodes[key]["type"])
        if not definition:
            return None
        origins = self.origins(self.nodes[key])
        entering = tuple(origins.get(slot["name"]) for slot in definition["inputs"])
        return Graph(definition, self.subgraphs, f"{self.path}{key}:", entering)


def as_list(link: list | dict) -> list:
    """[id, origin node, its output, target node, its input, type]: subgraphs have the same in words."""
    if isinstance(link, list):
        return link
    return [link[name] for name in ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")]


def load(path: Path, object_info: dict) -> dict:
    """The prompt of a saved workflow: {node id: {"class_type": ..., "inputs": {...}}}."""
    return to_prompt(json.loads(path.read_text(encoding="utf-8")), object_info)


def to_prompt(workflow: dict, object_info: dict) -> dict:
    subgraphs = {graph["id"]: graph for graph in workflow.get("definitions", {}).get("subgraphs", [])}
    nodes = Graph(workflow, subgraphs).plain_nodes()
    return {key: convert(node, origins, object_info) for key, node, origins in nodes}


def convert(node: dict, origins: dict[str, Origin], object_info: dict) -> dict:
    """One node of the prompt: values of its widgets, then its links, which win over a widget turned into an input."""
    kind = node["type"]
    if kind not in object_info:
        raise WorkflowError(f"node {node['id']} is a {kind}, which this server does not have")
    if node.get("mode") == BYPASS:
        raise WorkflowError(f"node {node['id']} ({kind}) is bypassed; remove it from the workflow")
    return {
        "class_type": kind,
        "inputs": widget_values(node, object_info[kind]) | origins,
        "_meta": {"title": node.get("title", kind)},
    }


def widget_values(node: dict, info: dict) -> dict:
    """Values by name. A widget that the node got after the workflow was saved has its default, as in the browser."""
    saved = list(node.get("widgets_values", []))
    left = iter(saved)
    values = dict(widgets(info["input"], left))
    if surplus := len(list(left)):
        widgets_there = len(saved) - surplus
        raise WorkflowError(f"node {node['id']} ({node['type']}) has {len(saved)} values for {widgets_there} widgets")
    return values


def widgets(inputs: dict, saved: Iterator, path: str = "") -> Iterator[tuple[str, object]]:
    """Names and values of widgets; takes the values from those saved, in whose order the inputs are."""
    for name, (kind, *rest) in {**inputs.get("required", {}), **inputs.get("optional", {})}.items():
        options = rest[0] if rest else {}
        if isinstance(kind, list):  # an older way to write it
            kind, options = "COMBO", {"options": kind} | options
        if kind == DYNAMIC:  # a choice that brings widgets of its own
            inner = {option["key"]: option["inputs"] for option in options["options"]}
            yield path + name, (choice := next(saved, next(iter(inner))))
            yield from widgets(inner[choice], saved, f"{path}{name}.")
        elif kind in NOT_SAVED:
            yield path + name, NOT_SAVED[kind]
        elif kind in WIDGETS and not options.get("forceInput"):
            yield path + name, next(saved, options.get("default", next(iter(options.get("options", [])), None)))
            if options.get(CONTROL, name in SEEDS):
                next(saved, None)


def node_titled(prompt: dict, title: str) -> str:
    """The id of the one node with this title."""
    (found,) = (key for key, node in prompt.items() if node["_meta"]["title"] == title)
    return found
