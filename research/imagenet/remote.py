"""The batches on a Ray cluster, one GPU each. A worker's death loses the batch that it was at, which is made again.

The models' files must lie at the same paths on every machine, as on a shared disk.
"""

import os
import socket
from collections.abc import Iterable, Iterator
from importlib import import_module

RETRIES = 5  # of a batch whose worker died
SECONDS_TO_CONNECT = 10


class Trouble(ValueError):
    """Ray is not installed, there is no cluster, or a batch cannot be sampled; one sentence says which."""


def sample(batch: dict) -> dict:
    """In a worker: a process of its own, in which neither the pack nor ComfyUI is known yet. Plain data in and out."""
    import_module("research.start")
    batches = import_module("pack.research.imagenet.batches")
    return vars(batches.sample(batches.Batch.of(batch)))


def run(todo: Iterable[dict], address: str) -> Iterator[tuple[dict, dict]]:
    """(batch, result) of each batch, as they are done. Raises Trouble."""
    try:
        import ray
    except ImportError as error:
        raise Trouble("REG: --ray needs Ray: `pip install ray`.") from error
    here = {name: os.environ[name] for name in ("PYTHONPATH", "COMFYUI_PATH", "OMP_NUM_THREADS") if name in os.environ}
    try:
        _knock(address)
        ray.init(address=address, runtime_env={"env_vars": here}, log_to_driver=False)
    except Exception as error:
        raise Trouble(
            f"REG: there is no Ray cluster at {address} ({_first_line(error)}): start one with `ray start --head`."
        ) from error
    try:
        yield from _spread(ray, iter(todo))
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Is there anything at host:port? Ray itself would try for minutes. Raises OSError."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), SECONDS_TO_CONNECT).close()


def _spread(ray, todo: Iterator[dict]) -> Iterator[tuple[dict, dict]]:
    """A batch on each GPU, or on each machine where there is no GPU, and as many again in waiting."""
    gpus = int(ray.cluster_resources().get("GPU", 0))
    processors = [int(node["Resources"].get("CPU", 1)) for node in ray.nodes() if node["Alive"]]
    needs = {"num_gpus": 1} if gpus else {"num_cpus": min(processors)}
    known_to_workers = import_module("research.imagenet.remote").sample  # not by the pack's name
    task = ray.remote(max_retries=RETRIES, **needs)(known_to_workers)
    slots = 2 * (gpus or len(processors))
    running = {}
    while True:
        while len(running) < slots and (batch := next(todo, None)) is not None:
            running[task.remote(batch)] = batch
        if not running:
            return
        (done,), _ = ray.wait(list(running), num_returns=1)
        try:
            yield running.pop(done), ray.get(done)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", error)
            raise Trouble(cause.args[0] if isinstance(cause, ValueError) else f"REG: {_first_line(cause)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
