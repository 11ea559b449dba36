"""`python3 dev.py bench`: what a guided step costs, as ratios to CFG's in one run; Markdown tables.

On a GPU the models have their real sizes, and time is the device's, by its events. On a CPU they are reduced, and time is the
processor's, in one thread, so that other programs hardly count.
"""

import argparse
import platform
import shlex
import statistics
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import comfy.samplers
import torch

from ...guiders.attach import on_model
from ...guiders.checks import describe
from ...guiders.options import Options
from ...guiders.step import alpha
from ...reg import refresh
from ...reg.profile import Profile
from .. import markdown
from . import models

GPU = torch.cuda.is_available()
STEPS = 9  # of a run that is timed; with doubling gaps it measures at steps 0, 1, 2, 4 and 8
LENGTHS = (8, 20, 30, 50)  # of the runs whose cost is worked out from that one
TARGETS = {  # × CFG: time of a run of 30 steps, peak memory
    "elementwise, backward": (1.12, 1.30),
    "elementwise, backward, checkpointed": (None, 1.05),
    "elementwise, difference": (1.10, 1.05),
    "profile": (1.01, 1.05),
    "profile, half of the unconditional passes skipped": (0.85, 1.05),
}


@dataclass
class Cost:
    """Of one run."""

    steps: list[float]  # seconds of each
    peak: int  # bytes, the weights among them
    refresh: int = refresh.DOUBLING
    from_noise: bool = False  # does the run begin where α is 0, and a measurement says nothing (flow models)?

    def measured(self, length: int) -> list[int]:
        """The steps at which a run measures: gaps count from the first measurement that says something."""
        start = int(self.from_noise)
        return [*range(start), *(start + step for step in refresh.measured_steps(length - start, self.refresh))]

    def of(self, measured: bool) -> float:
        """Seconds of a step that measures, or of one that does not; the first is neither: it finds things out, once."""
        at = self.measured(STEPS)
        seconds = [time for i, time in enumerate(self.steps) if i and (i in at) == measured]
        return statistics.median(seconds or self.steps[1:])

    def run(self, length: int) -> float:
        """Seconds of a run."""
        more = len(self.measured(length)) - 1
        return self.steps[0] + more * self.of(measured=True) + (length - 1 - more) * self.of(measured=False)


def flat_profile(about: dict[str, str], middle: float) -> Profile:
    """A profile under which guidance does something above a noise level only."""
    sigmas = torch.tensor([middle * 1e-3, middle, middle * 1.001])
    ones, effect = torch.ones(3), torch.tensor([0.0, 0.0, 1.0])
    return Profile(sigmas, ones[:, None].expand(-1, int(about["channels"])), ones, ones, effect, about)


def variants(profile: Profile) -> dict[str, Options]:
    """Name -> what is asked of REG."""
    return {
        "elementwise, backward": Options("elementwise", "backward", checkpoint="off"),
        "elementwise, backward, checkpointed": Options("elementwise", "backward", checkpoint="always"),
        "elementwise, difference": Options("elementwise", "difference"),
        "elementwise, backward, every step": Options("elementwise", "backward", checkpoint="off", refresh=1),
        "jacobian, backward": Options("jacobian", "backward", checkpoint="off"),
        "jacobian, difference": Options("jacobian", "difference"),
        "ratio": Options("ratio", "difference"),
        "profile": Options("ratio", "profile", profile=profile),
        "profile, half of the unconditional passes skipped": Options(
            "ratio", "profile", profile=profile, skip_below=0.1
        ),
    }


def moment() -> torch.cuda.Event | float:
    """Now: on a GPU where its work has come to, without waiting for it; else the processor's time."""
    if not GPU:
        return time.process_time()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(moments: list) -> list[float]:
    """From each moment to the next."""
    if not GPU:
        return [after - before for before, after in pairwise(moments)]
    moments[-1].synchronize()
    return [before.elapsed_time(after) / 1000 for before, after in pairwise(moments)]


def sample(model, architecture: models.Architecture, steps: int) -> list[float]:
    """Seconds of each step of a run."""
    moments = [moment()]
    architecture.euler(model, steps, lambda *args: moments.append(moment()))
    return seconds_between(moments)


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
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", STEPS)
    middle, from_noise = float(sigmas[STEPS // 2]), float(alpha(sampling, sigmas[:1], sigmas[:1])) == 0
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
            every = 1 if name.endswith("every step") else refresh.DOUBLING
            costs[name].append(Cost(sample(variant, architecture, STEPS), peaks[name], every, from_noise))
    return costs


def table(costs: dict[str, list[Cost]]) -> str:
    """Markdown: medians over rounds of ratios to CFG in the same round, and peak memory."""
    rows = []
    for name, runs in costs.items():
        pairs = list(zip(runs, costs["CFG"], strict=True))
        steps = [statistics.median(run.of(m) / cfg.of(False) for run, cfg in pairs) for m in (True, False)]
        lengths = {n: statistics.median(run.run(n) / cfg.run(n) for run, cfg in pairs) for n in LENGTHS}
        memory = runs[0].peak / costs["CFG"][0].peak
        time_target, memory_target = TARGETS.get(name, (None, None))
        numbers = [f"{value:.2f}" for value in (*steps, *lengths.values())]
        time, peak = judged(lengths[30], time_target), judged(memory, memory_target)
        rows.append([name, *numbers, time, f"{memory:.2f}", peak])
    lengths = [f"{n} steps" for n in LENGTHS]
    return markdown.table(
        rows, ["× CFG", "a step that measures", "one that does not", *lengths, "target at 30", "peak memory", "target"]
    )


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
        f"batch 1, Euler, cfg 5, {str(dtype).removeprefix('torch.')}; median of {arguments.rounds} rounds of {STEPS} steps, "
        f"all in one run, from which the cost of longer runs is worked out. Measured with doubling gaps, at steps 0, 1, 2, 4, "
        f"8, 16, …, where nothing else is said. "
        f"Peak memory is of two steps, the weights among it. {device}, torch {torch.__version__}, "
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
