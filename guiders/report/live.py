"""What a run tells its user: one line in the log, and on the node that is sampling."""

import logging
import textwrap
import time

from comfy_execution.utils import get_executing_context
from torch import Tensor

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 0.5
REASON = 120  # characters


def warn_user(message: str) -> None:
    """Write a line to the log and show it on the node being executed, if a server is running one."""
    log.warning("REG: %s", message)
    show(message)


def show(message: str) -> None:
    """Show a line on the node being executed, to the one who queued it, if a server is running one."""
    context, server = get_executing_context(), _server()
    if context is not None and server is not None and server.client_id is not None:
        server.send_progress_text(f"REG: {message}", context.node_id, server.client_id)


def _server():
    """ComfyUI's server, if this is one."""
    from server import PromptServer  # only there, and cheap, inside ComfyUI's server

    return getattr(PromptServer, "instance", None)


class LiveLine:
    """What a run is doing, on the node that samples, while it samples."""

    def __init__(self, kept_name: str):
        self.kept_name = kept_name
        self.on = get_executing_context() is not None
        self.total: Tensor | float = 0.0  # of the means of the steps so far, on the device
        self.steps = 0
        self.shown_at = 0.0

    def step(self, kept: Tensor, method: str, fallback: str) -> None:
        """A guided step was taken. The line tells of the steps before: their numbers are there without waiting."""
        if not self.on:
            return
        now = time.monotonic()
        if self.steps and now - self.shown_at > SECONDS_BETWEEN_LINES:
            why = f" ({textwrap.shorten(fallback, REASON)})" if fallback else ""  # comes last: a node shows two lines
            show(f"{method}, mean {self.kept_name} {float(self.total) / self.steps:.2f}{why}")
            self.shown_at = now
        self.total = self.total + kept.mean()
        self.steps += 1
