"""`python3 dev.py soak`: many mixed prompts in one server, with REG and without; what grows. A Markdown table.

What a process holds of the machine's memory rises and falls by more than a leak would add, as its allocator keeps what is
freed. So the server is asked, too, what is in use: after a collection, by the GNU C library's count.
"""

import argparse
import random
import shlex
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import psutil

from ..devtools import prompts, workflow
from ..devtools.client import PromptError
from ..devtools.server import Server
from . import markdown

STEPS = 4
RULES = ("REG (paper)", "whole Jacobian", "ratio")


def mixed(server, seed: int, reg: bool) -> None:
    """One prompt of a mix: every rule and estimator; a tenth is interrupted, a tenth is refused."""
    draw = random.Random(seed)
    options = None
    if reg:
        defaults = workflow.widget_values({}, server.object_info()["REGModel"])
        chosen = {"rectification": draw.choice(RULES), "estimator": draw.choice(["auto", "backward", "difference"])}
        options = defaults | chosen | {"every": draw.choice([0, 1, 2]), "checkpoint": draw.choice(["auto", "always"])}
    kind = seed % 10
    prompt = prompts.demo(seed, options, steps=200 if kind == 3 else STEPS, batch=1 + seed % 2)
    if reg and seed % 3 == 0:
        prompt["report"] = {"class_type": "REGReport", "inputs": {"latent": ["sample", 0], "theme": "dark"}}
    if kind == 7 and reg:
        prompt["reg"]["inputs"] |= {"start_percent": 0.9, "end_percent": 0.1}
    try:
        identity = server.queue(prompt)
        server.wait(identity, (lambda *_: server.interrupt(identity)) if kind == 3 else (lambda *_: None))
    except PromptError:
        if kind not in (3, 7):
            raise


PROBE = '''"""A pack without nodes, by which a server tells what is in use."""

import ctypes
import gc
import sys

import torch
from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS = {}
COUNTS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in COUNTS.split()]


@PromptServer.instance.routes.get("/in_use")
async def in_use(request):
    gc.collect()
    count = ctypes.CDLL(None).mallinfo2
    count.restype = Heap
    heap = count()
    tensors = sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())
    heap_bytes = heap.uordblks + heap.hblkhd  # small objects of Python's are not in it
    return web.json_response({"heap": heap_bytes / 1e6, "objects": sys.getallocatedblocks(), "tensors": tensors})
'''


class Reading(NamedTuple):
    """Of a server, after so many prompts."""

    prompts: int
    resident: float  # MB of the machine's memory
    heap: float  # MB in use
    objects: int  # of Python's
    tensors: int
    threads: int
    files: int


def read(prompts: int, client, process: psutil.Process) -> Reading:
    held = client.session.get(f"{client.url}/in_use").json()
    resident = process.memory_info().rss / 1e6
    return Reading(prompts, resident, **held, threads=process.num_threads(), files=process.num_fds())


def soak(prompts: int, every: int, reg: bool) -> list[Reading]:
    """What a server of its own holds after each `every` prompts."""
    readings = []
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder, "custom_nodes", "probe")
        probe.mkdir(parents=True)
        (probe / "__init__.py").write_text(PROBE, encoding="utf-8")
        server = Server(Path(folder))
        with server as client:
            process = psutil.Process(server.process.pid)
            for seed in range(prompts):
                mixed(client, seed, reg)
                if (seed + 1) % every == 0:
                    readings.append(read(seed + 1, client, process))
                    print("with REG" if reg else "plain", *readings[-1], flush=True)
    return readings


def growth(readings: list[Reading], what: str) -> float:
    """For each 100 prompts, over the second half: the median slope between pairs (Theil and Sen)."""
    half = [(reading.prompts, getattr(reading, what)) for reading in readings[len(readings) // 2 :]]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for i, a in enumerate(half) for b in half[i + 1 :]]
    return 100 * statistics.median(slopes) if slopes else 0.0


def page(both: dict[str, list[Reading]]) -> str:
    """Markdown: what grew, and the readings."""
    command = shlex.join(["python3", "dev.py", "soak", *sys.argv[1:]])
    grown = [
        [name, f"{growth(r, 'heap'):+.1f} MB", f"{growth(r, 'objects'):+.0f}", f"{growth(r, 'tensors'):+.0f}"]
        for name, r in both.items()
    ]
    columns = ["prompts", "resident, MB", "in use, MB", "Python's objects", "tensors", "threads", "files"]
    parts = [
        markdown.table(grown, ["for each 100 prompts, over the second half", "in use", "Python's objects", "tensors"])
    ]
    for name, readings in both.items():
        rows = [[str(r.prompts), f"{r.resident:.0f}", f"{r.heap:.1f}", *map(str, r[3:])] for r in readings]
        parts.append(f"{name}:\n\n{markdown.table(rows, columns)}")
    return f"Made by `{command}`.\n\n" + "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="dev.py soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--every", type=int, default=30, help="prompts between two readings; the mix repeats after 30")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    text = page({name: soak(arguments.prompts, arguments.every, name == "with REG") for name in ("plain", "with REG")})
    print(text)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")
