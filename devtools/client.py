"""ComfyUI's HTTP and websocket interface, as far as the demo and the tests need it."""

import json
import uuid
from collections.abc import Callable

import requests
import websocket

SILENCE_SECONDS = 120  # a server that says nothing for so long while a prompt runs has hung


class PromptError(Exception):
    """A prompt was refused, failed or was interrupted; the message is the server's own."""


class Client:
    """Queues prompts, follows them and fetches what they made."""

    def __init__(self, address: str):
        self.url = f"http://{address}"
        self.identity = uuid.uuid4().hex
        self.session = requests.Session()
        self.session.trust_env = False  # a loopback address must not go through a proxy
        self.socket = websocket.create_connection(f"ws://{address}/ws?clientId={self.identity}", SILENCE_SECONDS)
        self.ended: set[str] = set()

    def close(self) -> None:
        self.socket.close()
        self.session.close()

    def object_info(self) -> dict:
        """Every node's inputs and outputs, by node id."""
        return self._get("/object_info").json()

    def queue(self, prompt: dict) -> str:
        """Queue a prompt in the API's format; gives its id. The server would run one that is half valid; this fails."""
        answer = self.session.post(f"{self.url}/prompt", json={"prompt": prompt, "client_id": self.identity}).json()
        if answer.get("error") or answer["node_errors"]:
            raise PromptError(f"The server refused the prompt: {json.dumps(answer, indent=1)}")
        return answer["prompt_id"]

    def wait(self, prompt_id: str, on_step: Callable[[int, int], None] = lambda step, steps: None) -> dict:
        """Follow a prompt to its end; gives its outputs by node id. `on_step` hears each sampling step."""
        while prompt_id not in self.ended:
            kind, data = self._receive()
            if kind == "executing" and data["node"] is None:
                self.ended.add(data["prompt_id"])
            elif kind == "progress" and data["prompt_id"] == prompt_id:
                on_step(data["value"], data["max"])
        record = self._get(f"/history/{prompt_id}").json()[prompt_id]
        if not record["status"]["completed"]:
            raise PromptError(reason(record["status"]["messages"]))
        return record["outputs"]

    def interrupt(self, prompt_id: str) -> None:
        self.session.post(f"{self.url}/interrupt", json={"prompt_id": prompt_id}).raise_for_status()

    def fetch(self, file: dict) -> bytes:
        """The content of a file that an output names."""
        return self._get("/view", params=file).content

    def _get(self, path: str, **options) -> requests.Response:
        answer = self.session.get(self.url + path, **options)
        answer.raise_for_status()
        return answer

    def _receive(self) -> tuple[str, dict]:
        """The next message that is not a picture preview."""
        message = self.socket.recv()
        while isinstance(message, bytes):
            message = self.socket.recv()
        message = json.loads(message)
        return message["type"], message["data"]


def reason(messages: list[tuple[str, dict]]) -> str:
    """Why a prompt did not complete, out of its history."""
    for kind, data in messages:
        if kind == "execution_error":
            return f"{data['node_type']}: {data['exception_message'].strip()}"
        if kind == "execution_interrupted":
            return "interrupted"
    return "the server gives no reason"
