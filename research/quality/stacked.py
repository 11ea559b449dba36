"""REG laid on other guidance, against that guidance alone: at the same cfg, and where both follow the prompt equally well."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from tqdm import tqdm

from ...lab.figures import COLOURS
from .. import markdown
from . import rules
from .cells import Cell
from .contest import at_accuracy, equal_accuracy, reached
from .measures import Seen
from .readings import Readings
from .tables import complete, distance, distances_of, interval, over_prompts, signed

COLUMNS = 4  # of the plot


def pairs(means: pd.DataFrame) -> list[tuple[str, str]]:
    """(guidance, rectification) of what was laid on something, in order."""
    return [tuple(rule.split(" + ")) for rule in means.rule.unique() if " + " in rule]


def difference(one: np.ndarray, other: np.ndarray) -> str:
    """One less the other, [1 + draws] each, with the interval in pairs; bold beyond 0, empty where one is unknown."""
    less = one - other
    low, high = interval(less[0], less[1:])
    if np.isnan(less[0]):
        return ""
    return f"**{signed(less)}**" if low * high > 0 else signed(less)


def by_cfg(means: pd.DataFrame, cfg: float) -> str:
    """Distance to the target (accuracy) of each guidance alone, and what REG on it changes."""
    at = means[means.cfg == cfg].set_index("rule")
    rectifications = list(dict.fromkeys(rule for _, rule in pairs(means)))
    rows = []
    for guidance, alone in at[~at.index.str.contains(" + ", regex=False)].iterrows():
        row = [guidance, f"{alone.target:.3f} ({alone.accuracy:.2f})"]
        for rule in rectifications:
            name = rules.on(guidance, rule)
            found = at.loc[name] if name in at.index else None
            row.append("" if found is None else f"{difference(distance(found), distance(alone))}, {found.accuracy:.2f}")
        rows.append(row)
    return markdown.table(rows, ["guidance", "alone (accuracy)", *(f"+ {rule}" for rule in rectifications)])


def at_equal_accuracy(means: pd.DataFrame) -> str:
    """What REG on a guidance takes off its distance where both have the same condition accuracy."""
    levels = reached(means)
    rows = [
        [
            rules.on(*pair),
            *(difference(*(at_accuracy(means, r, x) for r in (rules.on(*pair), pair[0]))) for x in levels),
        ]
        for pair in pairs(means)
    ]
    return markdown.table(rows, ["", *(f"accuracy {x:g}" for x in levels)])


def plot(means: pd.DataFrame, path: Path) -> None:
    """A panel for each guidance: distance over accuracy, alone and with REG on it; grey is CFG."""
    laid = pairs(means)
    bases = list(dict.fromkeys(guidance for guidance, _ in laid))
    rows = max(1, -(-len(bases) // COLUMNS))
    figure = Figure(figsize=(14, 3.6 * rows), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in panels[len(bases) :]:
        axes.set_axis_off()
    for axes, base in zip(panels, bases, strict=False):
        curve(axes, means, "cfg", "#bbbbbb", "CFG")
        curve(axes, means, base, COLOURS["cfg"], "alone")
        for rule in (rule for guidance, rule in laid if guidance == base):
            curve(axes, means, rules.on(base, rule), COLOURS[rule], f"+ {rule}")
        axes.set_title(base)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    figure.supxlabel("condition accuracy")
    figure.supylabel("distance to the exact target")
    figure.savefig(path, dpi=90)


def curve(axes, means: pd.DataFrame, rule: str, colour: str, label: str) -> None:
    """A rule's line through its cfgs."""
    points = means[means.rule == rule].sort_values("cfg")
    axes.plot(points.accuracy, points.target, "o-", color=colour, label=label, markersize=4)


def equally_obedient(frame: pd.DataFrame) -> list[str]:
    """Sections on where rules have the same condition accuracy, if their cfgs reach the same."""
    means = over_prompts(frame)
    if not reached(means):
        return []
    return [
        f"## Where both have the same condition accuracy\n\n{frame.pictures.max()} pictures of each.\n\n"
        f"{at_equal_accuracy(means)}",
        f"## All, at equal condition accuracy\n\nDistance to the target:\n\n{equal_accuracy(means)}",
        f"The same less CFG's, in pairs:\n\n{equal_accuracy(means, 'cfg')}",
    ]


def table(readings: Readings, groups: dict[tuple, list[Cell]]) -> pd.DataFrame:
    """A row for each prompt, rule and cfg."""
    rows = []
    for (prompt, rule, cfg), cells in tqdm(groups.items(), desc="measuring"):
        seen = Seen(readings.get(cells))
        row = {"prompt": prompt, "rule": rule, "cfg": cfg, "pictures": len(seen)}
        rows.append(row | distances_of(seen, prompt, {"target": cfg - 1}))
    return pd.DataFrame(rows)


def write(readings: Readings, cells: list[Cell], output: Path, command: str) -> None:
    """stacked.md, stacked.csv and stacked.png in a folder: each cfg with all of its pictures, and all cfgs with as many
    of each as all have."""
    prompts = {cell.prompt for cell in cells}
    each = {cfg: complete([cell for cell in cells if cell.cfg == cfg]) for cfg in sorted({cell.cfg for cell in cells})}
    each = {cfg: groups for cfg, groups in each.items() if all((prompt, "cfg", cfg) in groups for prompt in prompts)}
    if not each:
        sys.exit("CFG, which the others are compared with, was not sampled yet for every prompt: run it for longer.")
    frame = pd.concat([table(readings, groups) for groups in each.values()])
    means = over_prompts(frame)
    means.drop(columns=[f"{name} replicates" for name in ("target", "accuracy")]).round(5).to_csv(
        output / "stacked.csv", index=False
    )
    shared = frame if frame.pictures.nunique() == 1 else table(readings, alike(each))
    parts = [
        f"# REG on other guidance\n\n`{command}`",
        f"Prompts: {', '.join(frame.prompt.unique())}; {cells[0].sampler}, {cells[0].steps} steps. Distance to the exact "
        "target, in brackets the condition accuracy; then what REG on it changes, with 95 % intervals in pairs, and the "
        "accuracy then. Bold is beyond 0.",
        *(f"## cfg {cfg:g}\n\n{heading(means, cfg)}\n\n{by_cfg(means, cfg)}" for cfg in each),
        *equally_obedient(shared),
        "![Distance over accuracy](stacked.png)",
    ]
    (output / "stacked.md").write_text("\n\n".join(parts) + "\n")
    plot(over_prompts(shared), output / "stacked.png")


def heading(means: pd.DataFrame, cfg: float) -> str:
    """How many pictures there are of a cfg, and what a perfect rule would score with them."""
    at = means[means.cfg == cfg].iloc[0]
    return f"{at.pictures:g} pictures of each prompt by every rule; exact draws would score {at['target floor']:.3f}."


def alike(each: dict[float, dict[tuple, list[Cell]]]) -> dict[tuple, list[Cell]]:
    """The groups of all cfgs, with as many pictures of each as all have: with more, a distance is smaller."""
    fewest = min(len(cells) for groups in each.values() for cells in groups.values())
    return {key: cells[:fewest] for groups in each.values() for key, cells in groups.items()}
