"""A stand-in for ComfyUI's HTTP interface; as a program, `main.py` of a ComfyUI that takes half a second for a picture."""

import argparse
import asyncio
import io
import json
from collections import Counter

import numpy as np
from aiohttp import web
from PIL import Image

RULES = ["COMBO", {"options": ["ratio", "elementwise", "jacobian"]}]
NODE = {"REGModel": {"input": {"required": {"model": ["MODEL"], "rectification": RULES}}}}


def asked(**data) -> dict:
    """A prompt that shows a picture; `refuse` and `fail`, if they are true, are heard."""
    nodes = {key: {"class_type": "Data", "inputs": {"value": str(value)}} for key, value in data.items() if value}
    return nodes | {"8": {"class_type": "PreviewImage", "inputs": {}}}


class FakeComfyUI:
    """Answers as ComfyUI does. `trouble` may raise or give a response in place of any answer."""

    def __init__(self, trouble=lambda comfyui, request: None, port: int = 0, seconds: float = 0.02):
        self.trouble, self.port, self.seconds = trouble, port, seconds
        self.made, self.records, self.largest_queue = Counter(), {}, 0
        self.queue: list[str] = []

    async def __aenter__(self) -> str:
        app = web.Application(middlewares=[self._troubled])
        app.router.add_get("/object_info/REGModel", self._node)
        app.router.add_get("/system_stats", self._nothing)
        app.router.add_post("/prompt", self._prompt)
        app.router.add_get("/history/{id}", self._history)
        app.router.add_post("/history", self._forget)
        app.router.add_get("/queue", self._waiting)
        app.router.add_post("/queue", self._delete)
        app.router.add_post("/interrupt", self._nothing)
        app.router.add_get("/view", self._view)
        self.runner = web.AppRunner(app, shutdown_timeout=0)
        await self.runner.setup()
        self.site = web.TCPSite(self.runner, "127.0.0.1", self.port)
        await self.site.start()
        self.address = f"127.0.0.1:{self.site._server.sockets[0].getsockname()[1]}"
        return self.address

    async def __aexit__(self, *_):
        await self.runner.cleanup()

    @web.middleware
    async def _troubled(self, request, handler):
        return self.trouble(self, request) or await handler(request)

    async def _node(self, request):
        return web.json_response(NODE)

    async def _nothing(self, request):
        return web.json_response({})

    async def _waiting(self, request):
        return web.json_response({"queue_running": [], "queue_pending": [[0, identity] for identity in self.queue]})

    async def _prompt(self, request):
        data = await request.json()
        if data["prompt"].get("refuse"):
            error = {"errors": [{"message": "Value not in list", "details": "ckpt"}], "class_type": "Loader"}
            return web.json_response({"error": {"message": "bad"}, "node_errors": {"1": error}}, status=400)
        identity = data["prompt_id"]
        self.queue.append(identity)
        self.largest_queue = max(self.largest_queue, len(self.queue))
        asyncio.get_running_loop().call_later(self.seconds, self._finish, identity, data["prompt"])
        return web.json_response({"prompt_id": identity, "node_errors": {}})

    def _finish(self, identity, prompt):
        if identity not in self.queue:
            return
        self.queue.remove(identity)
        self.made[json.dumps(prompt, sort_keys=True)] += 1
        error = ["execution_error", {"node_type": "KSampler", "exception_message": "out of\n memory", "timestamp": 9}]
        good = ["execution_success", {"timestamp": 2500}]
        messages = [["execution_start", {"timestamp": 1000}], error if prompt.get("fail") else good]
        status = {"completed": not prompt.get("fail"), "messages": messages}
        shows = next(key for key, node in prompt.items() if node["class_type"] == "PreviewImage")
        report, picture = ([{"filename": name, "subfolder": "", "type": "temp"}] for name in ("report.png", "x.png"))
        self.records[identity] = {
            "status": status,
            "outputs": {"report": {"images": report}, shows: {"images": picture}},
        }

    async def _history(self, request):
        identity = request.match_info["id"]
        return web.json_response({k: v for k, v in self.records.items() if k == identity})

    async def _forget(self, request):
        for identity in (await request.json())["delete"]:
            self.records.pop(identity, None)
        return web.Response()

    async def _delete(self, request):
        for identity in (await request.json())["delete"]:
            if identity in self.queue:
                self.queue.remove(identity)
        return web.Response()

    async def _view(self, request):
        assert request.query["filename"] == "x.png"
        file = io.BytesIO()
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, "PNG")
        return web.Response(body=file.getvalue())


async def serve(port: int) -> None:
    async with FakeComfyUI(port=port, seconds=0.5):
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    asyncio.run(serve(parser.parse_known_args()[0].port))
