"""The graph that the server is executing, seen from the node that is being executed."""

from collections.abc import Container

from comfy_execution.graph import DynamicPrompt
from comfy_execution.graph_utils import is_link
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context

REPORT = "REGReport"  # node id of the report


def report_follows() -> bool:
    """Does a report stand downstream of the node that is being executed? False outside a server."""
    prompt, node = _here()
    if prompt is None:
        return False
    reports = [n for n in prompt.all_node_ids() if prompt.get_node(n)["class_type"] == REPORT]
    places = {node, prompt.get_real_node_id(node)}  # a node that another one expanded to stands where that one stands
    return any(places & upstream(prompt, report) for report in reports)


def rectification_precedes(rectifiers: Container[str]) -> bool:
    """Does a node that rectifies guidance stand upstream of the one that is being executed? True outside a server.

    Args:
        rectifiers: ids of such nodes.
    """
    prompt, node = _here()
    if prompt is None:
        return True
    before = [prompt.get_node(n) for n in upstream(prompt, node)]
    return any(found["class_type"] in rectifiers and _rectifies(prompt, found["inputs"]) for found in before)


def _rectifies(prompt: DynamicPrompt, inputs: dict) -> bool:
    preset = inputs.get("preset")
    share = prompt.get_node(preset[0])["inputs"].get("share") if is_link(preset) else None
    return inputs.get("strength") != 0 and share != 0


def upstream(prompt: DynamicPrompt, node: str) -> set[str]:
    """Every node that the given one is made from."""
    found, left = set(), [node]
    while left:
        inputs = prompt.get_node(left.pop())["inputs"].values()
        new = {value[0] for value in inputs if is_link(value) and prompt.has_node(value[0])} - found
        found |= new
        left.extend(new)
    return found


def _here() -> tuple[DynamicPrompt | None, str]:
    """The prompt and the node being executed."""
    context, state = get_executing_context(), get_progress_state()
    if context is None or state.prompt_id != context.prompt_id or not state.dynprompt.has_node(context.node_id):
        return None, ""
    return state.dynprompt, context.node_id
