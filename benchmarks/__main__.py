"""`python -m benchmarks`: what a guided step costs, as ratios to CFG's in one run; a Markdown table."""

import argparse
import platform
import shlex
import statistics
import sys
import time
import types
from pathlib import Path

import torch
from comfy.cli_args import args as comfy_options

comfy_options.cpu = not torch.cuda.is_available()
ROOT = Path(__file__).parents[1]
pack = sys.modules.setdefault("pack", types.ModuleType("pack"))
pack.__path__ = [str(ROOT)]

import comfy.samplers  # noqa: E402  (ComfyUI reads its options when it is imported)
from comfy_extras.nodes_pag import PerturbedAttentionGuidance  # noqa: E402

from pack.guiders.options import Options  # noqa: E402
from pack.guiders.ways_in import on_model  # noqa: E402
from pack.reg.profile import Profile  # noqa: E402

from . import models  # noqa: E402


def flat_profile() -> Profile:
    """A profile under which guidance does something at the noisier half of the steps only."""
    ones = torch.ones(3)
    effect = torch.tensor([0.0, 0.0, 1.0])
    about = {"prediction": "EPS", "channels": "4"}
    return Profile(torch.tensor([0.01, 1.0, 1.1]), ones[:, None].expand(-1, 4), ones, ones, effect, about)


def variants() -> dict[str, Options | None]:
    """Name -> what is asked of REG; None is ComfyUI's own CFG."""
    measured = {
        "elementwise, backward": Options("elementwise", "backward"),
        "elementwise, backward, every 4": Options("elementwise", "backward", every=4),
        "elementwise, difference": Options("elementwise", "difference"),
        "elementwise, difference, every 4": Options("elementwise", "difference", every=4),
        "jacobian, backward": Options("jacobian", "backward"),
        "jacobian, backward, every 4": Options("jacobian", "backward", every=4),
        "jacobian, difference": Options("jacobian", "difference"),
        "jacobian, difference, every 4": Options("jacobian", "difference", every=4),
        "ratio": Options("ratio", "difference"),
        "ratio, every 4": Options("ratio", "difference", every=4),
    }
    profile = flat_profile()
    profiled = {
        "profile": Options("ratio", "profile", profile=profile),
        "profile, half the unconditional passes skipped": Options("ratio", "profile", profile=profile, skip_below=0.1),
    }
    return {"CFG": None, **measured, **profiled}


@torch.inference_mode()
def seconds(model, conds, noise: torch.Tensor, steps: int) -> tuple[float, int]:
    """Seconds per step of an Euler run at cfg 5, and its peak of device memory in bytes (0 where there is none)."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*conds)
    guider.set_cfg(5.0)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    sampler = comfy.samplers.sampler_object("euler")
    guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True)
    if cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / steps, torch.cuda.max_memory_allocated() if cuda else 0


def measure(model, size: int, steps: int, rounds: int) -> dict[str, list[tuple[float, int]]]:
    """Every variant once a round, so that a machine that slows down slows all of them."""
    conds = [[[torch.randn(1, 77, 768), {}]] for _ in range(2)]
    noise = torch.randn(1, 4, size, size)
    models_by_name = {name: on_model(model, options) if options else model for name, options in variants().items()}
    models_by_name["PAG with CFG (core)"] = PerturbedAttentionGuidance.execute(model, 3.0).args[0]
    seconds(model, conds, noise, 1)
    times = {name: [] for name in models_by_name}
    for _ in range(rounds):
        for name, variant in models_by_name.items():
            times[name].append(seconds(variant, conds, noise, steps))
    return times


def table(times: dict[str, list[tuple[float, int]]]) -> str:
    """Markdown: median seconds a step, and the median over rounds of the ratio to CFG in the same round."""
    lines = ["| guided step | s | × CFG | peak memory × CFG |", "|---|---|---|---|"]
    for name, runs in times.items():
        ratio = statistics.median(run[0] / cfg[0] for run, cfg in zip(runs, times["CFG"], strict=True))
        memory = f"{runs[0][1] / times['CFG'][0][1]:.2f}" if times["CFG"][0][1] else "–"
        lines.append(f"| {name} | {statistics.median(run[0] for run in runs):.3f} | {ratio:.2f} | {memory} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--channels", type=int, default=320 if torch.cuda.is_available() else 64, help="UNet width")
    parser.add_argument("--size", type=int, default=64 if torch.cuda.is_available() else 32, help="latent side")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    dtype = torch.float16 if torch.cuda.is_available() else torch.float32
    times = measure(models.sd15(arguments.channels, dtype), arguments.size, arguments.steps, arguments.rounds)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    text = (
        f"Stable Diffusion 1.5's UNet, {arguments.channels} channels, random weights, latent {arguments.size}², batch 1, "
        f"Euler, cfg 5, {dtype}; median of {arguments.rounds} rounds of {arguments.steps} steps, all in one run. "
        f"{device}, torch {torch.__version__}, Python {platform.python_version()}.\n"
        f"Made by `{shlex.join(['python3', 'dev.py', 'bench', *sys.argv[1:]])}`.\n\n{table(times)}\n"
    )
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
