"""`python3 dev.py recording`: what a report costs the run it records; a Markdown table.

Each round samples the same run twice, with a report behind the sampler and without. Their ratio is as noisy as the
machine, so what recording itself takes is timed, too: every call of the recorder within the run. Times are of the
processor, in one thread, so that other programs hardly count.
"""

import argparse
import platform
import shlex
import statistics
import sys
import time
from functools import wraps
from pathlib import Path

import comfy.samplers
import torch
from comfy_execution.graph import DynamicPrompt
from comfy_execution.progress import reset_progress_state
from comfy_execution.utils import CurrentNodeContext

from ...guiders.attach import on_model
from ...guiders.options import Options
from ...guiders.report import record
from .. import markdown
from . import models

SAMPLER = {"class_type": "KSampler", "inputs": {}}
REPORT = {"class_type": "REGReport", "inputs": {"latent": ["sampler", 0]}}
PROMPTS = {False: {"sampler": SAMPLER}, True: {"sampler": SAMPLER, "report": REPORT}}
RECORDING = ("step", "finish")  # of the recorder
clock = time.process_time


class Stopwatch:
    """Adds up the time that some methods of a class take."""

    def __init__(self, kind: type, names: tuple[str, ...]):
        self.seconds = 0.0
        for name in names:
            setattr(kind, name, self.timed(getattr(kind, name)))

    def timed(self, method):
        @wraps(method)
        def call(*args, **kwargs):
            started = clock()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += clock() - started

        return call


@torch.inference_mode()
def sample(model, noise: torch.Tensor, steps: int, recorded: bool) -> tuple[float, torch.Tensor]:
    """Seconds of a run at cfg 5, and its latents."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*([[torch.ones(1, 77, 768) * sign, {}]] for sign in (1, -1)))
    guider.set_cfg(5.0)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
    reset_progress_state("prompt", DynamicPrompt(PROMPTS[recorded]))
    with CurrentNodeContext("prompt", "sampler", 0):
        started = clock()
        euler = comfy.samplers.sampler_object("euler")
        samples = guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True)
        return clock() - started, samples


def kilobytes(found: record.Record) -> float:
    """What a record keeps in memory."""
    curves = [value for value in vars(found).values() if isinstance(value, torch.Tensor)]
    return sum(kept.numel() * kept.element_size() for kept in [*curves, *(pixels for _, pixels in found.maps)]) / 1000


def measure(rectification: str, model, size: int, steps: int, rounds: int, watch: Stopwatch) -> list[str]:
    """A row of the table."""
    guided = on_model(model, Options(rectification))
    noise = torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(0))
    sample(guided, noise, 2, recorded=True)
    runs = []
    for _ in range(rounds):
        plain, _ = sample(guided, noise, steps, recorded=False)
        watch.seconds = 0.0
        recorded, samples = sample(guided, noise, steps, recorded=True)
        runs.append((recorded / plain, recorded / steps, watch.seconds / steps, watch.seconds / recorded))
    ratio, step, recording, share = (statistics.median(values) for values in zip(*runs, strict=True))
    kept = kilobytes(record.find(samples))
    cells = [f"{size}²", f"{step:.3f}", f"{ratio:.3f}", f"{1000 * recording:.2f}", f"{share:.2%}", f"{kept:.0f}"]
    return [rectification, *cells]


def main() -> None:
    parser = argparse.ArgumentParser(prog="dev.py recording", description=__doc__)
    parser.add_argument("--channels", type=int, default=64, help="width of the UNet; Stable Diffusion 1.5 has 320")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64], help="sides of the latent")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = models.sd15(arguments.channels, torch.float32)
    watch = Stopwatch(record.Recorder, RECORDING)
    rows = [
        measure(rectification, model, size, arguments.steps, arguments.rounds, watch)
        for rectification in ("elementwise", "jacobian")
        for size in arguments.sizes
    ]
    columns = ["latent", "s a step, recorded", "× not recorded", "recording, ms a step", "share", "kB kept"]
    table = markdown.table(rows, ["rectification", *columns])
    text = (
        f"Stable Diffusion 1.5's UNet, {arguments.channels} channels, random weights, batch 1, Euler, cfg 5, by backward; "
        f"median of {arguments.rounds} rounds of {arguments.steps} steps, all in one run; seconds of the processor, one "
        f"thread. torch {torch.__version__}, Python {platform.python_version()}.\n"
        f"Made by `{shlex.join(['python3', 'dev.py', 'recording', *sys.argv[1:]])}`.\n\n" + table + "\n"
    )
    print(text)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")
