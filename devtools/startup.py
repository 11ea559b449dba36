"""Measure what the pack adds to the start of ComfyUI: a server with and without it, and its import alone."""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .server import PACK, Server

IMPORT = """
import importlib.util, sys, time
from comfy.cli_args import args
args.cpu = True
import comfy_api.latest, comfy.samplers, comfy.sd, nodes  # as ComfyUI has when it comes to the packs
before = set(sys.modules)
wall, work = time.perf_counter(), time.process_time()
spec = importlib.util.spec_from_file_location("reg_pack", sys.argv[1] + "/__init__.py")
sys.modules["reg_pack"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
wall, work = time.perf_counter() - wall, time.process_time() - work
print("\\n".join(sorted(set(sys.modules) - before)))
print(wall, work)
"""


def import_alone() -> tuple[list[str], float, float]:
    """What a fresh ComfyUI imports for the pack, and the seconds and processor seconds that takes."""
    out = subprocess.run([sys.executable, "-P", "-c", IMPORT, str(PACK)], capture_output=True, text=True, check=True)
    *modules, seconds = out.stdout.splitlines()
    wall, work = map(float, seconds.split())
    return modules, wall, work


def server_start(pack_name: str | None) -> float:
    """Seconds until a fresh server answers."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with Server(Path(folder), pack_name):
            return time.perf_counter() - start


def line(what: str, values: list[float]) -> str:
    return f"{what:28} {statistics.median(values):7.2f} s   ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="dev.py startup", description=__doc__)
    parser.add_argument("--repeat", type=int, default=3, help="how often; default: %(default)s")
    repeat = range(parser.parse_args().repeat)
    imports = [import_alone() for _ in repeat]
    servers = [(server_start(None), server_start("ComfyUI-REG")) for _ in repeat]  # in turn, against a drifting machine
    print(f"median (and range) of {len(repeat)}")
    print(line("import of the pack", [wall for _, wall, _ in imports]))
    print(line("  processor time", [work for _, _, work in imports]))
    print(line("server without the pack", [without for without, _ in servers]))
    print(line("server with the pack", [having for _, having in servers]))


if __name__ == "__main__":
    main()
