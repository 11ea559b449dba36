"""Pareto plots, a plot against cost, grids of pictures."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from ...lab import figures
from . import rules
from .cells import Cell, Studio
from .tables import EXTREMES

GRID_CFG, GRID_COLUMNS = 5.0, 12
COLOURS = figures.COLOURS | {
    rules.BEST[0]: "#b8860b",
    rules.BEST[1]: "#7a4fc0",
    "jacobian natural": figures.COLOURS["natural"],
    "c2fg": figures.COLOURS["characteristic"],
    "ratio profile": "#e8a5cb",
    "ratio every 4": "#7a1f5a",
    "elementwise every 4": "#6baed6",
    "jacobian every 4": "#74c9ad",
}
NAMES = {
    "accuracy": "condition accuracy",
    "conditional": "distance to the plain conditional",
    "coverage": "coverage of drawn pictures",
    "off": "distance to the world, %",
    "clipped": "clipped values, %",
    "cfg": "cfg",
    "target": "distance to the exact target",
}
LINES = ("none", "cfg", *rules.BEST, "elementwise", "jacobian natural", "jacobian", "ratio")


def front(means: pd.DataFrame, lines: tuple[str, ...], x: str, y: str, path: Path, title: str) -> None:
    """A line for each rule through its cfgs."""
    figure = Figure(figsize=(8, 5.5), layout="tight")
    axes = figure.subplots()
    for rule, group in means.groupby("rule", sort=False):
        if rule not in lines:
            continue
        group = group.sort_values("cfg").head(1 if rule == "none" and "target" not in (x, y) else None)
        axes.plot(group[x], group[y], "o-", color=COLOURS[rule], label=rule, markersize=4, linewidth=1.5)
        if y in EXTREMES:
            axes.vlines(group[x], group[f"{y} low"], group[f"{y} high"], color=COLOURS[rule], alpha=0.35)
        if rule == "none":
            continue
        for _, row in group.iterrows():
            axes.annotate(
                f"{row.cfg:g}",
                (row[x], row[y]),
                fontsize=7,
                color=COLOURS[rule],
                xytext=(3, 3),
                textcoords="offset points",
            )
    axes.set_xlabel(NAMES[x])
    axes.set_ylabel(NAMES[y])
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def cost_plot(means: pd.DataFrame, path: Path) -> None:
    """Distance to the target against cost, every rule, at the cfg where most rules are."""
    cfg = means.cfg.mode()[0]
    at = means[means.cfg == cfg]
    figure = Figure(figsize=(9, 5.5), layout="tight")
    axes = figure.subplots()
    cost = at.seconds / at[at.rule == "cfg"].seconds.iloc[0]
    colours = [COLOURS.get(rule, "#666666") for rule in at.rule]
    axes.scatter(cost, at.target, color=colours)
    axes.vlines(cost, at["target low"], at["target high"], colors=colours, alpha=0.4)
    for c, row in zip(cost, at.itertuples(), strict=True):
        axes.annotate(row.rule, (c, row.target), fontsize=7, xytext=(4, 3), textcoords="offset points")
    axes.set_xlabel("processor time over CFG's")
    axes.set_ylabel("distance to the exact target")
    axes.set_title(f"cfg {cfg:g}", fontsize=10)
    axes.grid(alpha=0.25)
    figure.savefig(path, dpi=110)


def grid(studio: Studio, cells: list[Cell], prompt: str, path: Path) -> list[str]:
    """The same noises under every rule, a row each; gives the rules from the top."""
    chosen = [
        c for c in cells if c.prompt == prompt and c.seed == cells[0].seed and (c.cfg == GRID_CFG or c.rule == "none")
    ]
    chosen.sort(key=lambda c: c.rule != "none")
    if not chosen:
        return []
    rows = [np.concatenate(list(studio.get(cell).pictures[:GRID_COLUMNS]), axis=1) for cell in chosen]
    Image.fromarray(np.concatenate(rows)).save(path, quality=85)
    return [cell.rule for cell in chosen]


def plots(means: pd.DataFrame, contenders: pd.DataFrame, output: Path) -> None:
    """The fronts."""
    for x, y, better, file in (
        ("accuracy", "target", "Lower right", "pareto-target"),
        ("accuracy", "conditional", "Lower right", "pareto-conditional"),
        ("accuracy", "coverage", "Upper right", "pareto-coverage"),
        ("off", "coverage", "Upper left", "pareto-world"),
        ("clipped", "conditional", "Lower left", "pareto-clipped"),
        ("cfg", "target", "Lower", "target"),
    ):
        front(means, LINES, x, y, output / f"{file}.png", f"{better} is better")
    front(contenders, rules.CONTENDERS, "accuracy", "target", output / "contenders.png", "Lower right is better")
    cost_plot(means, output / "cost.png")
