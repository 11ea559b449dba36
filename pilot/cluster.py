"""A Ray cluster, where each worker owns one ComfyUI and one GPU. Ray starts dead workers anew, with what they were at."""

import asyncio
import os
import tempfile
from pathlib import Path

from .servers import Failed, Lost, Made, OwnServer, Refused, Server

RESTARTS = 3  # of a worker, and tries of what it was at


class RayMissing(ValueError):
    """Ray is not installed, or there is no such cluster; the message says what to do."""


class Station:
    """What runs on a worker: a ComfyUI of its own, asked over HTTP."""

    def __init__(self, comfyui: str, options: str):
        self.log = Path(tempfile.gettempdir()) / f"reg-pilot-comfyui-{os.getpid()}.log"
        self.server = OwnServer(Path(comfyui), options, self.log).__enter__()  # ends with this process

    def node_inputs(self) -> dict:
        return asyncio.run(_ask(self.server.address, "node_inputs"))

    def run(self, prompt: dict) -> tuple[bytes, float | None] | str:
        """The picture's file and seconds, or why it failed."""
        try:
            made = asyncio.run(_ask(self.server.address, "run", prompt))
        except Lost:  # let Ray start us anew, with a new ComfyUI
            os._exit(1)
        except Failed as error:
            return str(error)
        return made.content, made.seconds

    def process(self) -> int:
        return os.getpid()


async def _ask(address: str, what: str, *arguments):
    """Not a method of Station, which Ray would then run in an event loop."""
    async with Server(address) as server:
        return await getattr(server, what)(*arguments)


class RayWorker:
    """A station somewhere in the cluster, for the dispatcher."""

    def __init__(self, name: str, actor):
        self.name, self.actor = name, actor

    async def node_inputs(self) -> dict:
        return await self._ask(self.actor.node_inputs)

    async def run(self, prompt: dict) -> Made:
        answer = await self._ask(self.actor.run, prompt)
        if isinstance(answer, str):
            raise Failed(answer)
        return Made(*answer)

    async def answers(self) -> bool:
        return False  # Ray has tried RESTARTS times

    async def _ask(self, method, *arguments):
        import ray

        try:
            return await method.remote(*arguments)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, Refused | Lost):
                raise error.cause from error
            raise
        except (ray.exceptions.ActorDiedError, ray.exceptions.ActorUnavailableError) as error:
            raise Lost(f"{self.name} died ({str(error).splitlines()[0][:120]})") from error


def connect(address: str, workers: int, gpus: float, comfyui: Path, options: str) -> list[RayWorker]:
    """One worker for each GPU of the cluster, or as many as are asked for.

    Raises:
        RayMissing: Ray or its cluster is not there, or it has no GPU.
    """
    try:
        import ray
    except ImportError as error:
        raise RayMissing("REG: --ray needs Ray: pip install ray, and run again.") from error
    here = Path(__file__).parent
    options_of_ray = dict(runtime_env={"py_modules": [str(here)]}, log_to_driver=False, logging_level="error")
    try:
        ray.init(address, **options_of_ray)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RayMissing(f"REG: there is no Ray cluster at {address} ({str(error).splitlines()[0][:160]}).") from error
    count = workers or int(ray.cluster_resources().get("GPU", 0) / gpus if gpus else 0)
    if not count:
        raise RayMissing("REG: the cluster has no GPU: give --workers, and --gpus-per-worker 0 if they shall use none.")
    actor = ray.remote(num_gpus=gpus, max_restarts=RESTARTS, max_task_retries=RESTARTS)(Station)
    return [RayWorker(f"Ray worker {i + 1}", actor.remote(str(comfyui), options)) for i in range(count)]
