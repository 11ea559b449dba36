"""`python3 dev.py soak`: many mixed prompts in one server, with REG and without; what grows. A Markdown table."""

import argparse
import random
import shlex
import statistics
import sys
import tempfile
from pathlib import Path

import psutil

from ..devtools import workflow
from ..devtools.client import PromptError
from ..devtools.server import Server

STEPS = 4
PROMPT = {"shape": "square", "colour": "green", "background": "light", "count": "1"}
EMPTY = dict.fromkeys(PROMPT, "any")
RULES = ("REG (paper)", "whole Jacobian", "ratio")


def graph(seed: int, options: dict | None, steps: int = STEPS) -> dict:
    """A prompt with the demo model, with REG if there are options."""
    nodes = {
        "model": ("REGDemoModel", {}),
        "positive": ("REGDemoPrompt", PROMPT),
        "negative": ("REGDemoPrompt", EMPTY),
        "empty": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1 + seed % 2}),
        "reg": ("REGModel", {"model": ["model", 0], **(options or {})}),
        "sample": (
            "KSampler",
            {
                "model": ["reg" if options else "model", 0],
                "positive": ["positive", 0],
                "negative": ["negative", 0],
                "latent_image": ["empty", 0],
                **{"seed": seed, "cfg": 4.0, "steps": steps},
                **{"sampler_name": "euler", "scheduler": "normal", "denoise": 1.0},
            },
        ),
        "report": ("REGReport", {"latent": ["sample", 0], "theme": "dark"}),
        "save": ("SaveLatent", {"samples": ["sample", 0], "filename_prefix": "soak"}),
    }
    if options is None:
        del nodes["reg"], nodes["report"]
    elif seed % 3:
        del nodes["report"]
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


def mixed(server, seed: int, reg: bool) -> None:
    """One prompt of a mix: every rule and estimator; a tenth is interrupted, a tenth is refused."""
    draw = random.Random(seed)
    options = None
    if reg:
        defaults = workflow.widget_values({}, server.object_info()["REGModel"])
        chosen = {"rectification": draw.choice(RULES), "estimator": draw.choice(["auto", "backward", "difference"])}
        options = defaults | chosen | {"every": draw.choice([0, 1, 2]), "checkpoint": draw.choice(["auto", "always"])}
    kind = seed % 10
    prompt = graph(seed, options, steps=200 if kind == 3 else STEPS)
    if kind == 7 and reg:
        prompt["reg"]["inputs"] |= {"start_percent": 0.9, "end_percent": 0.1}
    try:
        identity = server.queue(prompt)
        server.wait(identity, (lambda *_: server.interrupt(identity)) if kind == 3 else (lambda *_: None))
    except PromptError:
        if kind not in (3, 7):
            raise


def soak(prompts: int, every: int, reg: bool) -> list[tuple[int, float, int, int]]:
    """After each `every` prompts: how many, megabytes of memory, threads and open files of a server of its own."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        with server as client:
            process = psutil.Process(server.process.pid)
            for seed in range(prompts):
                mixed(client, seed, reg)
                if (seed + 1) % every == 0:
                    rows.append((seed + 1, process.memory_info().rss / 1e6, process.num_threads(), process.num_fds()))
                    print("with REG" if reg else "plain", *rows[-1], flush=True)
    return rows


def growth(rows: list[tuple]) -> float:
    """Megabytes for each 100 prompts, over the second half: the median slope between pairs (Theil and Sen)."""
    half = rows[len(rows) // 2 :]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for i, a in enumerate(half) for b in half[i + 1 :]]
    return 100 * statistics.median(slopes) if slopes else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="dev.py soak", description=__doc__)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--every", type=int, default=25, help="prompts between two readings")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    both = {name: soak(arguments.prompts, arguments.every, name == "REG") for name in ("plain", "REG")}
    lines = [
        "| prompts | plain: MB | threads | files | with REG: MB | threads | files |",
        "|---|---|---|---|---|---|---|",
    ]
    for plain, reg in zip(*both.values(), strict=True):
        lines.append(f"| {plain[0]} | {plain[1]:.0f} | {plain[2]} | {plain[3]} | {reg[1]:.0f} | {reg[2]} | {reg[3]} |")
    grown = ", ".join(f"{name} {growth(rows):+.1f}" for name, rows in both.items())
    text = f"Made by `{shlex.join(['python3', 'dev.py', 'soak', *sys.argv[1:]])}`. MB for each 100 prompts, over the second half: {grown}.\n\n"
    text += "\n".join(lines) + "\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")
