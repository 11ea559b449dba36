"""Tables and plots of what was sampled: CSV, Markdown by rule and cfg, Pareto plots, grids of pictures."""

from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from .. import decode
from . import measures, rules
from .cells import SEARCH_SEEDS, Cell, Sampled, Studio, parse_prompt

matplotlib.use("Agg")
from matplotlib import pyplot as plt

INTERVAL = (2.5, 97.5)
GRID_CFG, GRID_COLUMNS = 5.0, 12
EXTREMES = ("target", "conditional")

COLOURS = {
    "none": "#888888",
    "cfg": "#222222",
    rules.BEST[0]: "#c0883a",
    rules.BEST[1]: "#7a4fc0",
    "elementwise": "#3a7fc0",
    "jacobian": "#2e9e5b",
    "jacobian natural": "#8fce3c",
    "ratio": "#c03a6b",
}
TABLES = {  # column: title
    "target": "Distance to the exact target of guidance (mean over attributes; smaller is better)",
    "conditional": "Distance to the plain conditional",
    "accuracy": "Condition accuracy, p(prompt | picture)",
    "clipped": "Clipped values, %",
    "off": "Distance to the world: root mean square to the decoded attributes drawn anew, %",
    "chroma": "Chroma of the strongest colour (0.72 in the world)",
    "coverage": "Coverage of drawn pictures",
    "precision": "Precision against drawn pictures",
    "frechet": "Fréchet distance in the decoder's features",
}


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
        stated, n = parse_prompt(self.prompt), len(self.read)
        row = {"prompt": self.prompt, "rule": self.rule, "cfg": 1 + w, "pictures": n, **self.cost}
        for name, weight in (("target", w), ("conditional", 0.0)):
            exact = measures.references(weight, tuple(stated.items()))
            by_attribute = measures.distances(self.read, measures.draws(n), exact)
            row[name], *row[f"{name} replicates"] = by_attribute.mean(0)
            row |= {f"{name} {a}": d for a, d in zip(measures.ATTRIBUTES, by_attribute[:, 0], strict=True)}
            row[f"{name} floor"] = measures.floor(n, exact)
        row["accuracy"] = measures.accuracy(self.read, stated).mean()
        row["clipped"], row["off"] = 100 * self.read.clipped.mean(), 100 * self.read.off.mean()
        row["chroma"] = self.read.chroma.mean()
        row |= measures.neighbourhoods(self.read.features, reference.features)
        row["frechet"] = measures.frechet(self.read.features, reference.features)
        return row


def complete(cells: list[Cell]) -> dict[tuple, list[Cell]]:
    """Cells by (prompt, rule, cfg), the same number of seeds each: fewer pictures would seem farther from the target.

    Groups with fewer seeds than most have are left out, to be shown when they are there.
    """
    groups = defaultdict(list)
    for cell in cells:
        groups[cell.prompt, cell.rule, cell.cfg].append(cell)
    most = int(np.median([len(group) for group in groups.values()]))
    return {key: group[:most] for key, group in groups.items() if len(group) >= most}


def table(studio: Studio, cells: list[Cell]) -> pd.DataFrame:
    """A row for each prompt, rule and cfg; "none" has one for every cfg, since the target moves with it."""
    decoder = decode.load()
    groups = complete(cells)
    cfgs = sorted({cfg for _, rule, cfg in groups if rule != "none"})
    reference = {prompt: measures.drawn(measures.REFERENCE, parse_prompt(prompt), decoder) for prompt, _, _ in groups}
    rows = []
    for (prompt, rule, cfg), group in tqdm(groups.items(), desc="reading"):
        made = Group(group, [studio.get(cell) for cell in group], decoder)
        rows += [made.row(reference[prompt], at - 1) for at in (cfgs if rule == "none" else [cfg])]
    return pd.DataFrame(rows)


def over_prompts(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over the prompts, where all are there, with intervals of the distances."""
    prompts = frame[frame.rule == "cfg"].prompt.unique()
    rows = []
    for (rule, cfg), group in frame.groupby(["rule", "cfg"], sort=False):
        if len(group) < len(prompts):
            continue
        row = {"rule": rule, "cfg": cfg} | group.select_dtypes("number").drop(columns="cfg").mean().to_dict()
        for name in EXTREMES:
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
    rows = {}
    for r in means[(means.rule != "cfg") & means.cfg.isin(base.index)].to_dict("records"):
        other = base.loc[r["cfg"]]
        less = r["target"] - other["target"]
        low, high = interval(less, r["target replicates"] - other["target replicates"])
        rows.setdefault(r["rule"], {})[r["cfg"]] = f"{less:+.3f} ({low:+.3f} to {high:+.3f})"
    cfgs = sorted(base.index)
    lines = ["| rule | " + " | ".join(f"cfg {cfg:g}" for cfg in cfgs) + " |", "|---" * (1 + len(cfgs)) + "|"]
    lines += [f"| {rule} | " + " | ".join(row.get(cfg, "") for cfg in cfgs) + " |" for rule, row in rows.items()]
    return "\n".join(lines)


def markdown(means: pd.DataFrame, name: str) -> str:
    """One quantity, rules by cfg."""
    digits = {"clipped": 2, "off": 2, "frechet": 2}.get(name, 3)

    def entry(row: pd.Series) -> str:
        text = f"{row[name]:.{digits}f}"
        return f"{text} ({row[f'{name} low']:.3f}–{row[f'{name} high']:.3f})" if name in EXTREMES else text

    shown = means.assign(entry=means.apply(entry, axis=1)).pivot(index="rule", columns="cfg", values="entry")
    shown = shown.reindex(means.rule.unique()).fillna("")
    lines = [
        "| rule | " + " | ".join(f"cfg {cfg:g}" for cfg in shown.columns) + " |",
        "|---" * (1 + shown.shape[1]) + "|",
    ]
    return "\n".join(
        lines + [f"| {rule} | " + " | ".join(row) + " |" for rule, row in zip(shown.index, shown.values, strict=True)]
    )


def cost_table(means: pd.DataFrame) -> str:
    """What a picture costs, at the cfg where most rules are."""
    at = means[means.cfg == means.cfg.mode()[0]]
    base = at[at.rule == "cfg"].seconds.iloc[0]
    lines = ["| rule | forward passes | reverse passes | processor time / CFG's |", "|---|---|---|---|"]
    return "\n".join(
        lines + [f"| {r.rule} | {r.forward:g} | {r.reverse:g} | {r.seconds / base:.2f} |" for r in at.itertuples()]
    )


def interval_table(frame: pd.DataFrame) -> str:
    """Every interval that was tried, means over the prompts."""
    means = frame.groupby("rule", sort=False)[["target", "conditional", "accuracy", "off"]].mean()
    lines = ["| rule | target | conditional | accuracy | distance to the world, % |", "|---|---|---|---|---|"]
    lines += [
        f"| {r.Index} | {r.target:.3f} | {r.conditional:.3f} | {r.accuracy:.3f} | {r.off:.2f} |"
        for r in means.itertuples()
    ]
    seeds = " and ".join(map(str, SEARCH_SEEDS))
    return f"Cfg {frame.cfg[0]:g}, seeds {seeds}, which nothing else uses.\n\n" + "\n".join(lines)


def front(means: pd.DataFrame, x: str, y: str, labels: tuple[str, str], path: Path, title: str) -> None:
    """A line for each rule through its cfgs."""
    figure, axes = plt.subplots(figsize=(8, 5.5), layout="tight")
    for rule, group in means.groupby("rule", sort=False):
        if rule not in COLOURS:
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
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def cost_plot(means: pd.DataFrame, path: Path) -> None:
    """Distance to the target against cost, every rule, at the cfg where most rules are."""
    cfg = means.cfg.mode()[0]
    at = means[means.cfg == cfg]
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="tight")
    cost = at.seconds / at[at.rule == "cfg"].seconds.iloc[0]
    axes.plot(cost, at.target, "o", color="#3a7fc0")
    axes.vlines(cost, at["target low"], at["target high"], color="#3a7fc0", alpha=0.4)
    for c, row in zip(cost, at.itertuples(), strict=True):
        axes.annotate(row.rule, (c, row.target), fontsize=7, xytext=(4, 3), textcoords="offset points")
    axes.set_xlabel("processor time over CFG's")
    axes.set_ylabel("distance to the exact target")
    axes.set_title(f"cfg {cfg:g}", fontsize=10)
    axes.grid(alpha=0.25)
    figure.savefig(path, dpi=110)
    plt.close(figure)


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


def heading(frame: pd.DataFrame, means: pd.DataFrame, command: str) -> str:
    """What was sampled, and what a perfect rule would score."""
    base = means[means.rule == "cfg"]
    floor = ", ".join(f"{f:.3f} at cfg {cfg:g}" for cfg, f in zip(base.cfg, base["target floor"], strict=True))
    prompts = ", ".join(frame[frame.rule == "cfg"].prompt.unique())
    return (
        f"# Quality of guidance rules\n\n`{command}`\n\nPrompts: {prompts}; {frame.pictures.max()} pictures of each at "
        f"every rule and cfg. Brackets: 95 % bootstrap intervals over pictures. Exact draws would score {floor}."
    )


def write(studio: Studio, cells: list[Cell], output: Path, command: str) -> None:
    """Everything, into a folder."""
    output.mkdir(parents=True, exist_ok=True)
    searched = [cell for cell in cells if cell.seed in SEARCH_SEEDS and cell.rule in rules.SEARCHED]
    cells = [cell for cell in cells if cell.seed not in SEARCH_SEEDS]
    frame = table(studio, cells)
    means = over_prompts(frame)
    drop = [f"{name} replicates" for name in EXTREMES]
    frame.drop(columns=drop).round(5).to_csv(output / "quality.csv", index=False)
    means.drop(columns=drop).round(5).to_csv(output / "means.csv", index=False)
    parts = [heading(frame, means, command)]
    parts += [f"## {title}\n\n{markdown(means, name)}" for name, title in TABLES.items()]
    parts.insert(2, f"## Distance to the target less CFG's, with paired intervals\n\n{over_cfg(means)}")
    parts += [f"## Cost of a picture\n\n{cost_table(means)}"]
    if searched:
        parts += [f"## Search for the interval\n\n{interval_table(table(studio, searched))}"]
    for prompt in frame[frame.rule == "cfg"].prompt.unique():
        name = prompt.replace("=", "-").replace(",", "-")
        rows = grid(studio, cells, prompt, output / f"grid-{name}.jpg")
        parts.append(
            f"## {prompt}, cfg {GRID_CFG:g}\n\nFrom the top: {', '.join(rows)}.\n\n![pictures](grid-{name}.jpg)"
        )
    (output / "tables.md").write_text("\n\n".join(parts) + "\n")
    plots(means, output)


def plots(means: pd.DataFrame, output: Path) -> None:
    """The fronts."""
    names = {
        "accuracy": "condition accuracy",
        "conditional": "distance to the plain conditional",
        "coverage": "coverage of drawn pictures",
        "off": "distance to the world, %",
        "clipped": "clipped values, %",
        "cfg": "cfg",
        "target": "distance to the exact target",
    }
    for x, y, better, file in (
        ("accuracy", "target", "Lower right", "pareto-target"),
        ("accuracy", "conditional", "Lower right", "pareto-conditional"),
        ("accuracy", "coverage", "Upper right", "pareto-coverage"),
        ("off", "coverage", "Upper left", "pareto-world"),
        ("clipped", "conditional", "Lower left", "pareto-clipped"),
        ("cfg", "target", "Lower", "target"),
    ):
        front(means, x, y, (names[x], names[y]), output / f"{file}.png", f"{better} is better")
    cost_plot(means, output / "cost.png")
