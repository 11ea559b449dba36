"""Figures of docs/lab.md: those of the toy nodes, and two more."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from ...lab import chains, fields, measure, optimal
from ...lab.figures import COLOURS, NAMES, arrows, curves, error_map, guided, narrowing, samples
from . import steps


def pictures(w: float = 6.0, share: float = 0.6, seed: int = 11, count: int = 3) -> Figure:
    """Gaussian fields from the same noise under each rule, a rule a column; a distance is W2 a pixel over 32 fields."""
    pair = fields.field(seed, share)
    target = optimal.gaussian_target(pair, w)
    start = chains.noise((32, 32, 32), torch.Generator().manual_seed(seed))
    rules = ("none", "cfg", "elementwise", "jacobian", "ratio", "exact")
    figure = Figure(figsize=(1.9 * len(rules), 2 * count + 0.6), layout="constrained")
    figure.suptitle(f"Gaussian fields from the same noise, w = {w:g}: W2 a pixel to the exact target")
    for column, rule in zip(figure.subplots(count, len(rules)).T, rules, strict=True):
        denoise = target.denoise if rule == "exact" else guided(rule, pair, w)
        x = chains.euler(denoise, start, chains.karras(40))
        column[0].set_title(f"{NAMES[rule]}\n{measure.field_distance(start, x, target):.3f}", fontsize="medium")
        for axes, picture in zip(column, x, strict=False):
            axes.imshow(picture, cmap="RdBu_r", vmin=-3.5, vmax=3.5)
            axes.set_axis_off()
    return figure


def step_errors(w: float = 2.0, seeds: tuple[int, ...] = (11, 12, 13, 14, 15, 16)) -> Figure:
    """One step in the plane: win ratio over CFG and RMS error by noise level, averaged over mixtures."""
    sigmas = np.geomspace(0.05, 20, 11)
    found = [[steps.step_errors("plane", seed, w, float(sigma)) for seed in seeds] for sigma in sigmas]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(f"One step against the exact guidance, {len(seeds)} mixtures, w = {w:g}")
    wins, rms = figure.subplots(1, 2)
    for rule in steps.RULES:
        if rule != "cfg":
            wins.plot(
                sigmas, [np.mean([e.wins(rule) for e in row]) for row in found], color=COLOURS[rule], label=NAMES[rule]
            )
        rms.plot(sigmas, [np.mean([e.rms(rule) for e in row]) for row in found], color=COLOURS[rule], label=NAMES[rule])
    wins.set(xscale="log", xlabel="σ", ylabel="nearer than CFG", ylim=(0, 1.02))
    rms.set(xscale="log", yscale="log", xlabel="σ", ylabel="RMS error of the prediction")
    rms.legend(fontsize="small")
    return figure


def write_all(folder: Path) -> None:
    """Every figure that docs/lab.md shows, as PNG."""
    made = {
        "curves": curves(),
        "error-map": error_map(),
        "arrows": arrows(),
        "samples": samples(),
        "pictures": pictures(),
        "narrowing": narrowing(),
        "step-errors": step_errors(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in made.items():
        figure.savefig(folder / f"{name}.png", dpi=100)
        print(folder / f"{name}.png")
