"""What a run tells its user: one line in the log, and on the node that is sampling."""

import logging

from comfy_execution.utils import get_executing_context

log = logging.getLogger(__name__)


def tell(message: str) -> None:
    """Write a line to the log and show it on the node being executed, if a server is running one."""
    log.warning("REG: %s", message)
    show(message)


def show(message: str) -> None:
    """Show a line on the node being executed, if a server is running one."""
    from server import PromptServer  # only there, and cheap, inside ComfyUI's server

    context = get_executing_context()
    server = getattr(PromptServer, "instance", None)
    if context is not None and server is not None:
        server.send_progress_text(f"REG: {message}", context.node_id)
