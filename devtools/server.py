"""A real ComfyUI server for demos and tests, which loads this pack and never touches a user's installation."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import requests
import torch

from .client import Client

PACK = Path(__file__).parents[1]
START_SECONDS = 180  # a busy machine with a cold disk needs about one of the three minutes
STOP_SECONDS = 10


class ServerError(Exception):
    """The server did not start, or stopped by itself; the message ends with the end of its log."""


class Server:
    """ComfyUI on a free loopback port for the length of a `with` block, which yields a `Client`.

    The folder becomes its base directory: models, input, output, user and `custom_nodes`. What is not there yet under the
    pack's name becomes a link to this checkout; without a name there is none.
    """

    def __init__(self, folder: Path, pack_name: str | None = "ComfyUI-REG", options: tuple[str, ...] = ()):
        self.folder = folder.resolve()
        self.log = self.folder / "comfyui.log"
        self.pack_name = pack_name
        self.options = options  # further ones of ComfyUI's
        self.address = f"127.0.0.1:{free_port()}"

    def __enter__(self) -> Client:
        self._link_pack()
        self.process = self._start()
        try:
            self._wait_until_it_answers()
            self.client = Client(self.address)
        except BaseException:
            self._stop()
            raise
        return self.client

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        died = isinstance(error, Exception) and self._ends_within(1)
        self.client.close()
        self._stop()
        if died:
            raise ServerError(self._explain("stopped by itself")) from error

    def _link_pack(self) -> None:
        packs = self.folder / "custom_nodes"
        packs.mkdir(parents=True, exist_ok=True)
        if self.pack_name and not (packs / self.pack_name).exists():
            (packs / self.pack_name).symlink_to(PACK, target_is_directory=True)

    def _start(self) -> subprocess.Popen:
        command = [sys.executable, str(Path(os.environ["COMFYUI_PATH"], "main.py"))]
        command += ["--port", self.address.split(":")[1], "--base-directory", str(self.folder)]
        command += ["--database-url", "sqlite:///:memory:", "--disable-api-nodes", "--disable-auto-launch"]
        command += [] if torch.cuda.is_available() else ["--cpu"]
        command += self.options
        with self.log.open("w") as log:
            # A session of its own makes it a process group that can be stopped whole.
            return subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not answers(self.address):
            if self.process.poll() is not None:
                raise ServerError(self._explain("did not start"))
            if time.monotonic() > deadline:
                raise ServerError(self._explain(f"did not answer within {START_SECONDS} s"))
            time.sleep(0.2)

    def _stop(self) -> None:
        """Ask the whole group to end, then insist."""
        kill_group(self.process, signal.SIGTERM)
        if not self._ends_within(STOP_SECONDS):
            kill_group(self.process, getattr(signal, "SIGKILL", signal.SIGTERM))
            self.process.wait()

    def _ends_within(self, seconds: float) -> bool:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _explain(self, what: str) -> str:
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
        return f"ComfyUI {what}; {self.log} ends with:\n{tail}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(address: str) -> bool:
    try:
        return requests.get(f"http://{address}/system_stats", timeout=5, proxies={"http": ""}).ok
    except requests.ConnectionError:
        return False


def kill_group(process: subprocess.Popen, number: signal.Signals) -> None:
    """Send a signal to a process and its children; where there are no groups, end the process."""
    if not hasattr(os, "killpg"):
        process.terminate()
        return
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        os.killpg(process.pid, number)
