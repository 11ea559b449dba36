"""What a run tells its user: one line in the log, and on the node that is sampling."""

import logging
import textwrap
import time

from comfy_execution.utils import get_executing_context
from torch import Tensor

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 0.5
REASON = 120  # characters of a warning

_warnings: list[str] = []  # of the run that is going on; ComfyUI executes one node at a time


def begin() -> None:
    """Forget the warnings of the run before."""
    _warnings.clear()


def warn_user(message: str) -> None:
    """Write a line to the log, and show it on the node being executed, where it stays for the rest of the run."""
    log.warning("REG: %s", message)
    _warnings.append(message)
    show(message)


def show(message: str) -> None:
    """Show a line on the node being executed, to the one who queued it, if a server is running one."""
    context = get_executing_context()
    server = None if context is None else _server()
    if server is not None and server.client_id is not None:
        server.send_progress_text(f"REG: {message}", context.node_id, server.client_id)


def _server():
    """ComfyUI's server, if this is one."""
    from server import PromptServer  # where nodes are executed it is there, and cheap; elsewhere it brings a great deal

    return getattr(PromptServer, "instance", None)


class CfgMean:
    """The mean over a run's rectified steps of the cfg without and with REG. It stays on the device until it is read."""

    def __init__(self):
        self.total: Tensor | None = None  # [2]
        self.steps = 0

    def add(self, cfg: Tensor) -> None:
        """cfg without and with REG in one step, [2]."""
        self.total = cfg if self.total is None else self.total + cfg
        self.steps += 1

    def read(self) -> tuple[float, float]:
        """The mean without and with REG, which waits for the device. (1, 1) before the first step."""
        if self.total is None:
            return 1.0, 1.0
        before, after = (self.total / self.steps).tolist()
        return before, after


def cfg_change(cfg: tuple[float, float]) -> str:
    """What REG made of the cfg, as the line and the report have it."""
    before, after = cfg
    return f"cfg {before:.1f} → {after:.1f}"


class LiveLine:
    """What is left of the guidance, on the node that samples, while it samples and afterwards."""

    def __init__(self, label: str):
        self.label = label
        self.on = get_executing_context() is not None
        self.shown_at = 0.0

    def step(self, cfg: CfgMean) -> None:
        """A step is about to be added to `cfg`: the numbers of those before are there without waiting."""
        if self.on and cfg.steps and time.monotonic() - self.shown_at > SECONDS_BETWEEN_LINES:
            self._show(cfg)
            self.shown_at = time.monotonic()

    def finish(self, cfg: CfgMean) -> None:
        """The run has ended: its mean stays on the node."""
        if self.on and cfg.steps:
            self._show(cfg)

    def _show(self, cfg: CfgMean) -> None:
        why = "".join(f" · {textwrap.shorten(warning, REASON)}" for warning in _warnings)  # a node shows two lines
        show(f"{cfg_change(cfg.read())}, {self.label}{why}")
