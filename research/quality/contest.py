"""The rules that matter, on all the prompts and seeds they share, compared where they follow the prompt equally well."""

import numpy as np
import pandas as pd

from .. import markdown
from . import rules
from .tables import interval, over_cfg, over_prompts, rules_by_cfg

LEVELS = tuple(level / 20 for level in range(8, 20))  # of condition accuracy
BASES = ("cfg", "c2fg", rules.BEST[0])  # what the others are compared with


def at_accuracy(means: pd.DataFrame, rule: str, level: float) -> np.ndarray:
    """A rule's distance to the target where it has that condition accuracy, on the line through its cfgs: value and
    replicates [1 + draws]; NaN where no cfg reaches it.

    Replicates that do not reach it go on as the line itself ends, within what a distance can be: near the end of a line,
    or where its accuracy hardly rises, they show how little is known.
    """
    line = means[means.rule == rule].sort_values("cfg")
    distance, accuracy = (
        np.column_stack([line[name], np.stack(line[f"{name} replicates"].to_list())]) for name in ("target", "accuracy")
    )
    accuracy = np.maximum.accumulate(accuracy) + 1e-9 * np.arange(len(line))[:, None]
    if not accuracy[0, 0] <= level <= accuracy[-1, 0]:
        return np.full(accuracy.shape[1], np.nan)
    found = np.array([np.interp(level, a, d) for a, d in zip(accuracy.T, distance.T, strict=True)])
    slopes = np.diff(distance[:, 0]) / np.diff(accuracy[:, 0]) if len(line) > 1 else np.zeros(1)
    beyond = slopes[0] * (level - accuracy[0]).clip(max=0) + slopes[-1] * (level - accuracy[-1]).clip(min=0)
    return np.where(beyond == 0, found, (found + beyond).clip(0, 1))


def reached(means: pd.DataFrame) -> list[float]:
    """The levels of accuracy that CFG and half of the rules have at some cfg."""
    lines = means[means.rule != "none"].groupby("rule").accuracy
    low, high = lines.min(), lines.max()
    return [x for x in LEVELS if low["cfg"] <= x <= high["cfg"] and ((low <= x) & (x <= high)).mean() >= 0.5]


def equal_accuracy(means: pd.DataFrame, base: str | None = None) -> str:
    """Distance to the target at equal condition accuracy; with a base rule, less the base's, in pairs."""
    levels = reached(means)
    rows = []
    for rule in means.rule.unique():
        if rule in ("none", base):
            continue
        found = [at_accuracy(means, rule, x) - (at_accuracy(means, base, x) if base else 0) for x in levels]
        rows.append([rule, *map(entry_of, found)])
    return markdown.table(rows, ["rule", *(f"accuracy {x:g}" for x in levels)])


def entry_of(found: np.ndarray) -> str:
    """Value and replicates [1 + draws] as text."""
    value, low, high = (found[0], *interval(found[0], found[1:]))
    return "" if np.isnan(value) else f"{value:.3f} ({low:.3f} to {high:.3f})"


def contest(frame: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """The contenders' tables from their rows, and the means that they are made of."""
    means = over_prompts(frame)
    shared = (
        f"Prompts: {', '.join(frame.prompt.unique())}; {frame.pictures.max()} pictures of each at every rule and cfg."
    )
    parts = [f"## The contenders\n\n{shared}"]
    parts += [f"Distance to the target less CFG's at the same cfg:\n\n{over_cfg(means)}"]
    parts += [f"Distance to the target:\n\n{rules_by_cfg(means, 'target')}"]
    parts += [f"Condition accuracy:\n\n{rules_by_cfg(means, 'accuracy')}"]
    parts += [f"Distance to the target at equal condition accuracy:\n\n{equal_accuracy(means)}"]
    parts += [f"The same less that of {base}, in pairs:\n\n{equal_accuracy(means, base)}" for base in BASES]
    return "\n\n".join(parts), means
