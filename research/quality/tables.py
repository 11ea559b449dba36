"""Numbers of what was sampled: a row for each prompt, rule and cfg, means over the prompts, Markdown tables of them."""

from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import chain, repeat

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from .. import decode, markdown
from . import measures
from .cells import SEARCH_SEEDS, Cell, Sampled, Studio, parse_prompt

INTERVAL = (2.5, 97.5)
EXTREMES = ("target", "conditional")
REPLICATED = (*EXTREMES, "accuracy")


class Group:
    """The pictures of one prompt, rule and cfg, all seeds together, and their numbers."""

    def __init__(self, cells: list[Cell], sampled: list[Sampled], decoder: decode.Decoder):
        first = cells[0]
        self.prompt, self.rule, self.cfg = first.prompt, first.rule, first.cfg
        pictures, clipped = (np.concatenate([getattr(s, name) for s in sampled]) for name in ("pictures", "clipped"))
        self.read = measures.read(pictures, clipped, decoder)
        self.cost = {name: np.mean([getattr(s, name) for s in sampled]) for name in ("forward", "reverse", "seconds")}

    def row(self, reference: measures.Read, w: float) -> dict:
        """Numbers, and replicates of the distances."""
        row = {"prompt": self.prompt, "rule": self.rule, "cfg": 1 + w, "pictures": len(self.read), **self.cost}
        row |= distances_of(self.read, self.prompt, {"target": w, "conditional": 0.0})
        row["clipped"], row["off"] = 100 * self.read.clipped.mean(), 100 * self.read.off.mean()
        row["chroma"] = self.read.chroma.mean()
        row |= measures.neighbourhoods(self.read.features, reference.features)
        row["frechet"] = measures.frechet(self.read.features, reference.features)
        return row


def distances_of(seen: measures.Seen, prompt: str, weights: dict[str, float]) -> dict:
    """Of pictures to the target of each named weight, and their accuracy, with replicates."""
    row, stated, n = {}, parse_prompt(prompt), len(seen)
    for name, weight in weights.items():
        exact = measures.references(weight, tuple(stated.items()))
        by_attribute = measures.distances(seen, measures.draws(n), exact)
        row[name], *row[f"{name} replicates"] = by_attribute.mean(0)
        row |= {f"{name} {a}": d for a, d in zip(measures.ATTRIBUTES, by_attribute[:, 0], strict=True)}
        row[f"{name} floor"] = measures.floor(n, weight, tuple(stated.items()))
    row["accuracy"], *row["accuracy replicates"] = measures.accuracy(seen, stated)[measures.draws(n)].mean(0)
    return row


def complete(cells: list[Cell]) -> dict[tuple, list[Cell]]:
    """Cells by (prompt, rule, cfg), the same number of seeds each: fewer pictures would seem farther from the target.

    Groups with fewer seeds than most have are left out, to be shown when they are there; CFG's, which others are
    compared with, never are.
    """
    groups = defaultdict(list)
    for cell in cells:
        groups[cell.prompt, cell.rule, cell.cfg].append(cell)
    sizes = [len(group) for group in groups.values()]
    most = min([int(np.median(sizes)), *(len(group) for (_, rule, _), group in groups.items() if rule == "cfg")])
    return {key: group[:most] for key, group in groups.items() if len(group) >= most}


def table(studio: Studio, cells: list[Cell], jobs: int = 1) -> pd.DataFrame:
    """A row for each prompt, rule and cfg; "none" has one for every cfg, since the target moves with it."""
    groups = complete(cells)
    cfgs = sorted({cfg for _, rule, cfg in groups if rule != "none"})
    wanted = [cfgs if rule == "none" else [cfg] for _, rule, cfg in groups]
    with ProcessPoolExecutor(jobs) as pool:
        made = pool.map(rows, repeat(studio), groups.values(), wanted)
        return pd.DataFrame(chain.from_iterable(tqdm(made, total=len(groups), desc="reading")))


def rows(studio: Studio, cells: list[Cell], cfgs: list[float]) -> list[dict]:
    """Of the cells of one prompt, rule and cfg: a row for each cfg whose target they are compared with."""
    torch.set_num_threads(1)
    made = Group(cells, [studio.get(cell) for cell in cells], decode.load_once())
    drawn = reference(made.prompt)
    return [made.row(drawn, cfg - 1) for cfg in cfgs]


@cache
def reference(prompt: str) -> measures.Read:
    """Pictures of a prompt as the world draws them."""
    return measures.drawn(measures.REFERENCE, parse_prompt(prompt), decode.load_once())


def over_prompts(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over the prompts, where all are there, with intervals of the distances."""
    prompts = frame[frame.rule == "cfg"].prompt.unique()
    rows = []
    for (rule, cfg), group in frame.groupby(["rule", "cfg"], sort=False):
        if len(group) < len(prompts):
            continue
        row = {"rule": rule, "cfg": cfg} | group.select_dtypes("number").drop(columns="cfg").mean().to_dict()
        for name in (name for name in REPLICATED if name in row):
            row[f"{name} replicates"] = np.mean(np.stack(group[f"{name} replicates"].to_list()), axis=0)
            row[f"{name} low"], row[f"{name} high"] = interval(row[name], row[f"{name} replicates"])
        rows.append(row)
    return pd.DataFrame(rows)


def interval(value: float, replicates: np.ndarray) -> np.ndarray:
    """Its two ends. Resampling repeats pictures, which alone adds to a distance: only the spread counts."""
    return value + np.percentile(replicates - replicates.mean(), INTERVAL)


def over_cfg(means: pd.DataFrame) -> str:
    """Distance to the target less CFG's at the same cfg, in pairs: the same noises, the same bootstrap draws."""
    base = means[means.rule == "cfg"].set_index("cfg")
    others = means[(means.rule != "cfg") & means.cfg.isin(base.index)]

    return by_rule_and_cfg(others, lambda row: signed(distance(row) - distance(base.loc[row.cfg])))


def distance(row: pd.Series) -> np.ndarray:
    """Of a row of means to the target, and its replicates: [1 + draws]."""
    return np.array([row.target, *row["target replicates"]])


def signed(less: np.ndarray) -> str:
    """A difference [1 + draws] with its interval."""
    low, high = interval(less[0], less[1:])
    return f"{less[0]:+.3f} ({low:+.3f} to {high:+.3f})"


def rules_by_cfg(means: pd.DataFrame, name: str) -> str:
    """One quantity, rules by cfg."""
    digits = {"clipped": 2, "off": 2, "frechet": 2}.get(name, 3)

    def entry(row: pd.Series) -> str:
        text = f"{row[name]:.{digits}f}"
        return f"{text} ({row[f'{name} low']:.3f}–{row[f'{name} high']:.3f})" if name in EXTREMES else text

    return by_rule_and_cfg(means, entry)


def by_rule_and_cfg(means: pd.DataFrame, entry: Callable[[pd.Series], str]) -> str:
    """Rules down, in their order; cfgs across, ascending; in each cell the entry of its row."""
    shown = means.assign(entry=means.apply(entry, axis=1)).pivot(index="rule", columns="cfg", values="entry")
    return markdown.of(shown.reindex(means.rule.unique()).rename(columns="cfg {:g}".format).reset_index())


def cost_table(means: pd.DataFrame) -> str:
    """What a picture costs, at the cfg where most rules are."""
    at = means[means.cfg == means.cfg.mode()[0]]
    base = at[at.rule == "cfg"].seconds.iloc[0]
    columns = ("rule", "forward passes", "reverse passes", "processor time / CFG's")
    rows = ([r.rule, f"{r.forward:g}", f"{r.reverse:g}", f"{r.seconds / base:.2f}"] for r in at.itertuples())
    return markdown.table(rows, columns)


def interval_table(frame: pd.DataFrame) -> str:
    """Every interval that was tried, means over the prompts."""
    means = frame.groupby("rule", sort=False)[["target", "conditional", "accuracy", "off"]].mean()
    rows = (
        [r.Index, *(f"{value:.3f}" for value in (r.target, r.conditional, r.accuracy)), f"{r.off:.2f}"]
        for r in means.itertuples()
    )
    columns = ["rule", "target", "conditional", "accuracy", "distance to the world, %"]
    seeds = " and ".join(map(str, SEARCH_SEEDS))
    return f"Cfg {frame.cfg[0]:g}, seeds {seeds}, which nothing else uses.\n\n{markdown.table(rows, columns)}"
