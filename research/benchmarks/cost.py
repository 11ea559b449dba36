"""`python3 dev.py bench`: what a guided step costs, as ratios to CFG's in one run; Markdown tables.

On a GPU the models have their real sizes, and time is the clock's. On a CPU they are reduced, and time is the
processor's, in one thread, so that other programs hardly count.
"""

import argparse
import platform
import shlex
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import comfy.samplers
import torch

from ...guiders.attach import on_model
from ...guiders.checks import describe
from ...guiders.options import Options
from ...reg.profile import Profile
from .. import markdown
from . import models

GPU = torch.cuda.is_available()
STEPS = 9  # the first is not timed: what it finds out once is no cost of a step
TARGETS = {  # × CFG: time, peak memory
    "elementwise, backward": (1.55, None),
    "elementwise, backward, checkpointed": (None, 1.5),
    "jacobian, backward": (1.55, None),
    "jacobian, difference": (1.50, 1.05),
    "elementwise, difference, batched": (1.35, None),
    "ratio": (2.0, 1.05),
    "elementwise, backward, every 4": (1.15, None),
    "elementwise, difference, batched, every 4": (1.15, None),
    "ratio, every 4": (1.27, None),
    "profile": (1.02, 1.05),
    "profile, half of the unconditional passes skipped": (0.85, 1.05),
}


@dataclass
class Cost:
    """Of one run."""

    seconds: float  # a step
    peak: int  # bytes, the weights among them


def flat_profile(about: dict[str, str], middle: float) -> Profile:
    """A profile under which guidance does something above a noise level only."""
    sigmas = torch.tensor([middle * 1e-3, middle, middle * 1.001])
    ones, effect = torch.ones(3), torch.tensor([0.0, 0.0, 1.0])
    return Profile(sigmas, ones[:, None].expand(-1, int(about["channels"])), ones, ones, effect, about)


def variants(profile: Profile) -> dict[str, Options]:
    """Name -> what is asked of REG."""
    measured = {
        "elementwise, backward": Options("elementwise", "backward", checkpoint="off"),
        "elementwise, backward, checkpointed": Options("elementwise", "backward", checkpoint="always"),
        "elementwise, difference, batched": Options("elementwise", "difference"),
        "jacobian, backward": Options("jacobian", "backward", checkpoint="off"),
        "jacobian, backward, checkpointed": Options("jacobian", "backward", checkpoint="always"),
        "jacobian, difference": Options("jacobian", "difference"),
        "ratio": Options("ratio", "difference"),
    }
    refreshed = {
        f"{name}, every 4": Options(o.rectification, o.estimator, refresh=4, checkpoint=o.checkpoint)
        for name, o in measured.items()
    }
    return {
        **measured,
        **refreshed,
        "profile": Options("ratio", "profile", profile=profile),
        "profile, half of the unconditional passes skipped": Options(
            "ratio", "profile", profile=profile, skip_below=0.1
        ),
    }


def now() -> float:
    if GPU:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


@torch.inference_mode()
def sample(model, architecture: models.Architecture, steps: int) -> float:
    """Seconds per step of an Euler run at cfg 5, the first not counted."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*architecture.prompts())
    guider.set_cfg(5.0)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
    noise = torch.randn(1, *architecture.latent, generator=torch.Generator().manual_seed(0))
    times = []
    guider.sample(
        noise,
        torch.zeros_like(noise),
        comfy.samplers.sampler_object("euler"),
        sigmas,
        callback=lambda *args: times.append(now()),
        disable_pbar=True,
    )
    return (times[-1] - times[0]) / max(1, steps - 1)


def peak(model, architecture: models.Architecture) -> int:
    """Peak memory of two steps in bytes, the weights among it."""
    if GPU:
        torch.cuda.reset_peak_memory_stats()
        sample(model, architecture, 2)
        return torch.cuda.max_memory_allocated()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        sample(model, architecture, 2)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most + sum(w.nbytes for w in model.model.parameters())


def measure(architecture: models.Architecture, dtype: torch.dtype, rounds: int) -> dict[str, list[Cost]]:
    """Every variant once a round, so that a machine that slows down slows all of them."""
    model = architecture.build(dtype)
    sampling = model.get_model_object("model_sampling")
    middle = float(
        comfy.samplers.calculate_sigmas(sampling, "simple", STEPS)[STEPS // 2 + 1]
    )  # of those that are timed
    profile = flat_profile(describe(model.model, architecture.latent[0]), middle)
    by_name = {"CFG": model} | {name: on_model(model, options) for name, options in variants(profile).items()}
    if architecture.core:
        name, patched = architecture.core
        by_name[f"{name} (ComfyUI's own)"] = patched(model)
    sample(model, architecture, 1)
    peaks = {name: peak(variant, architecture) for name, variant in by_name.items()}
    costs = {name: [] for name in by_name}
    for _ in range(rounds):
        for name, variant in by_name.items():
            costs[name].append(Cost(sample(variant, architecture, STEPS), peaks[name]))
    return costs


def table(costs: dict[str, list[Cost]]) -> str:
    """Markdown: median seconds a step, the median over rounds of the ratio to CFG in the same round, peak memory."""
    rows = []
    for name, runs in costs.items():
        ratio = statistics.median(run.seconds / cfg.seconds for run, cfg in zip(runs, costs["CFG"], strict=True))
        memory = runs[0].peak / costs["CFG"][0].peak
        time_target, memory_target = TARGETS.get(name, (None, None))
        seconds = statistics.median(run.seconds for run in runs)
        time, peak = judged(ratio, time_target), judged(memory, memory_target)
        rows.append([name, f"{seconds:.3f}", f"{ratio:.2f}", time, f"{memory:.2f}", peak])
    return markdown.table(rows, ["guided step", "s", "time × CFG", "target", "peak memory × CFG", "target"])


def judged(value: float, target: float | None) -> str:
    """The target, and by how much it is missed."""
    if target is None:
        return ""
    return f"{target:.2f}" + (f", missed by {value - target:.2f}" if value > target + 0.005 else "")


def main() -> None:
    known = models.architectures(GPU)
    parser = argparse.ArgumentParser(
        prog="dev.py bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", choices=known, default=list(known), metavar="MODEL", help=", ".join(known)
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(torch.get_num_threads() if GPU else 1)
    dtype = torch.bfloat16 if GPU else torch.float32
    device = torch.cuda.get_device_name() if GPU else f"{platform.machine()} CPU, one thread, the processor's own time"
    parts = [
        f"# What a guided step costs\n\nMade by `{shlex.join(['python3', 'dev.py', 'bench', *sys.argv[1:]])}`. Random weights, "
        f"batch 1, Euler, cfg 5, {str(dtype).removeprefix('torch.')}; median of {arguments.rounds} rounds of {STEPS - 1} "
        f"steps, all in one run. Peak memory is of two steps, the weights among it. {device}, torch {torch.__version__}, "
        f"Python {platform.python_version()}."
    ]
    for name in arguments.models:
        architecture = known[name]
        costs = measure(architecture, dtype, arguments.rounds)
        latent = "×".join(map(str, architecture.latent))
        size = "" if GPU else ", reduced"
        parts.append(f"## {architecture.name}{size}: {architecture.size}, latent {latent}\n\n{table(costs)}")
        print(parts[-1], flush=True)
    if arguments.output:
        arguments.output.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
