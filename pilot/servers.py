"""ComfyUI servers that make pictures: running ones by their address, and ones of our own."""

import asyncio
import contextlib
import ctypes
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import aiohttp
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from .arms import address as content_address
from .workflow import PICTURES

ATTEMPTS = 5  # of a request
FIRST_WAIT, LONGEST_WAIT = 0.3, 5.0  # seconds between them
POLL_SECONDS = 0.15
POLLS_BETWEEN_DOUBTS = 10  # whether the server still knows of a prompt
REQUEST_SECONDS = 60
START_SECONDS = 300
STOP_SECONDS = 10


class Refused(RuntimeError):
    """A server does not take the workflow; no other one will."""


class Failed(RuntimeError):
    """One picture could not be made; the message is the server's."""


class Lost(RuntimeError):
    """A server does not answer any more, or only with errors."""


class _Trouble(Exception):
    """Worth another try."""


@dataclass(frozen=True)
class Made:
    """A finished picture."""

    content: bytes  # of the file
    seconds: float | None  # that the server took


class Server:
    """A running ComfyUI, by its HTTP interface."""

    def __init__(self, address: str):
        self.name = address
        self.url = (address if address.startswith("http") else f"http://{address}").rstrip("/")
        self.session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Server":
        self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS))
        return self

    async def __aexit__(self, *_) -> None:
        await self.session.close()

    async def node_inputs(self) -> dict:
        """What ComfyUI says of the REG Model node.

        Raises:
            Refused: this server does not have the pack.
            Lost: it does not answer.
        """
        found = await self._get("/object_info/REGModel")
        if "REGModel" not in found:
            raise Refused(f"REG: the ComfyUI at {self.name} does not have this pack: install it there.")
        return found["REGModel"]["input"]

    async def answers(self) -> bool:
        try:
            async with self.session.get(f"{self.url}/system_stats") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def run(self, prompt: dict) -> Made:
        """Make the picture of a prompt. Asked again after a lost answer, the server does not make it twice.

        Raises:
            Refused: the server does not take the prompt.
            Failed: it stopped with an error.
            Lost: the server is gone.
        """
        identity = str(uuid.uuid5(uuid.NAMESPACE_URL, content_address(prompt)))
        try:
            await self._queue(prompt, identity)
            record = await self._finished(identity)
            picture = await self._get("/view", raw=True, **_picture(prompt, record["outputs"]))
        except asyncio.CancelledError:
            await asyncio.shield(self._withdraw(identity))
            raise
        with contextlib.suppress(Lost):
            await self._post("/history", {"delete": [identity]})
        return Made(picture, _seconds(record["status"]["messages"]))

    async def _queue(self, prompt: dict, identity: str) -> None:
        if await self._is_known(identity):
            return
        answer = await self._post("/prompt", {"prompt": prompt, "prompt_id": identity})
        if answer.get("error") or answer.get("node_errors"):
            raise Refused(f"REG: the ComfyUI at {self.name} refuses the workflow: {_complaint(answer)}")

    async def _finished(self, identity: str) -> dict:
        """The record of a prompt when it has ended. Raises Failed, and Lost where the server forgot it."""
        for poll in count(1):
            if found := (await self._get(f"/history/{identity}")).get(identity):
                if found["status"]["completed"]:
                    return found
                await self._post("/history", {"delete": [identity]})
                raise Failed(_reason(found["status"]["messages"]))
            if poll % POLLS_BETWEEN_DOUBTS == 0 and not await self._is_known(identity):
                raise Lost(f"{self.name} has forgotten what it was asked for; it was started anew")
            await asyncio.sleep(POLL_SECONDS)

    async def _is_known(self, identity: str) -> bool:
        """Is the prompt in its queue or, since, in its history?"""
        queue = await self._get("/queue")
        if any(identity == item[1] for part in ("queue_running", "queue_pending") for item in queue[part]):
            return True
        return identity in await self._get(f"/history/{identity}")

    async def _withdraw(self, identity: str) -> None:
        """Leave nothing of ours in a server's queue."""
        with contextlib.suppress(Lost, Refused):
            await self._post("/queue", {"delete": [identity]})
            await self._post("/interrupt", {"prompt_id": identity})

    async def _get(self, path: str, raw: bool = False, **query):
        return await self._request("GET", path, raw, params=query)

    async def _post(self, path: str, data: dict) -> dict:
        return await self._request("POST", path, False, json=data)

    async def _request(self, method: str, path: str, raw: bool, **options):
        """Raises Lost: no good answer after ATTEMPTS."""
        try:
            return await self._once(method, path, raw, **options)
        except _Trouble as error:
            raise Lost(f"{self.name} {error}") from error

    @retry(
        retry=retry_if_exception_type(_Trouble),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_random_exponential(FIRST_WAIT, LONGEST_WAIT),
        reraise=True,
    )
    async def _once(self, method: str, path: str, raw: bool, **options):
        try:
            async with self.session.request(method, self.url + path, **options) as answer:
                if answer.status >= 500 or answer.status == 429:
                    raise _Trouble(f"answers {answer.status}")
                if raw:
                    answer.raise_for_status()
                    return await answer.read()
                content = await answer.read()
                return await answer.json(content_type=None) if content else {}
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise _Trouble(f"does not answer ({type(error).__name__})") from error


def _picture(prompt: dict, outputs: dict) -> dict:
    """Where the picture lies, by the node that is there to show it: reports and curves show pictures, too."""
    showing = [key for key, node in prompt.items() if node["class_type"] in PICTURES]
    for key in showing:
        for file in outputs.get(key, {}).get("images", []):
            return {key: file[key] for key in ("filename", "subfolder", "type")}
    raise Failed("no picture came out")


def _seconds(messages: list) -> float | None:
    """From the start to the end of a prompt, by the server's clock."""
    times = {kind: data["timestamp"] for kind, data in messages if "timestamp" in data}
    if {"execution_start", "execution_success"} <= times.keys():
        return (times["execution_success"] - times["execution_start"]) / 1000
    return None


def _complaint(answer: dict) -> str:
    """What a server has against a prompt, in one line."""
    told = [
        f"{node.get('class_type')}: {error.get('message')} {error.get('details')}"
        for node in answer.get("node_errors", {}).values()
        for error in node.get("errors", [])
    ]
    error = answer.get("error")
    told += [error.get("message", "") if isinstance(error, dict) else str(error)] if error else []
    return _one_line("; ".join(told))


def _reason(messages: list) -> str:
    for kind, data in messages:
        if kind == "execution_error":
            return _one_line(f"{data.get('node_type')}: {data.get('exception_message', '')}")
        if kind == "execution_interrupted":
            return "it was interrupted there"
    return "the server gives no reason"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:400]


class OwnServer:
    """A ComfyUI of our own on a free port of this machine, for the length of a `with` block. Ends with this process."""

    def __init__(self, comfyui: Path, options: str, log: Path):
        self.main = comfyui / "main.py"
        self.options = shlex.split(options)
        self.log = log
        self.address = f"127.0.0.1:{_free_port()}"

    def __enter__(self) -> "OwnServer":
        """Raises Lost: it does not start; the message ends with the end of its log."""
        command = [sys.executable, str(self.main), "--port", self.address.split(":")[1], "--disable-auto-launch"]
        self.temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # ComfyUI empties it when it starts
        command += ["--temp-directory", self.temporary.name, "--database-url", "sqlite:///:memory:", *self.options]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **_ends_with_us()
            )
        deadline = time.monotonic() + START_SECONDS
        while not _listens(self.address):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                tail = self.log.read_text(errors="replace").splitlines()[-8:]
                raise Lost("REG: a ComfyUI of our own did not start; its log ends with:\n" + "\n".join(tail))
            time.sleep(0.2)
        return self

    def __exit__(self, *_) -> None:
        for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number) if hasattr(os, "killpg") else self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
                break
        self.temporary.cleanup()


def _ends_with_us() -> dict:
    """On Linux a server is told to end when its parent dies, however that was killed (prctl PR_SET_PDEATHSIG)."""
    if not sys.platform.startswith("linux"):
        return {}
    prctl = ctypes.CDLL(None).prctl
    return {"preexec_fn": lambda: prctl(1, signal.SIGTERM)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _listens(address: str) -> bool:
    host, port = address.split(":")
    try:
        with socket.create_connection((host, int(port)), timeout=2):
            return True
    except OSError:
        return False


def find_comfyui(given: str) -> Path:
    """The folder of the ComfyUI that has this pack, or the one that is given.

    Raises:
        ValueError: there is none.
    """
    here = Path(__file__).resolve()
    candidates = [Path(given)] if given else [Path(os.environ.get("COMFYUI_PATH", "")), *here.parents]
    for folder in candidates:
        if (folder / "main.py").is_file() and (folder / "comfy").is_dir():
            return folder.resolve()
    raise ValueError(
        "REG: no ComfyUI was found: give its folder with --comfyui, or the address of a running one with --server."
    )
