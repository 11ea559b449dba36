"""The tables and curves of a grid: what was measured, and what was published of the same checkpoint."""

import csv
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from . import published
from .metrics import COLUMNS

Row = dict  # rule, scale, pictures and COLUMNS


def write(folder: Path, model: Path, about: str, rows: list[Row]) -> Path:
    """Write `<model>.md`, .csv and .png into the folder; gives the first."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / f"{model.stem}.md"
    page.write_text(text(model.stem, about, rows), encoding="utf-8")
    with page.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["rule", "scale", "pictures", *COLUMNS])
        writer.writeheader()
        writer.writerows(rows)
    curves(rows).savefig(page.with_suffix(".png"), dpi=150)
    return page


def text(name: str, about: str, rows: list[Row]) -> str:
    """The page: our table, best FID and IS of each rule in bold, and the published number."""
    best = {rule: _best(rows, rule) for rule in {row["rule"] for row in rows}}
    table = [["rule", "scale", "pictures", "FID ↓", "IS ↑", "precision ↑", "recall ↑"]]
    for row in rows:
        fid, score = f"{row['FID']:.3f}", f"{row['IS']:.2f}"
        fid = f"**{fid}**" if row is best[row["rule"]][0] else fid
        score = f"**{score}**" if row is best[row["rule"]][1] else score
        others = (f"{row[name]:.4f}" if np.isfinite(row[name]) else "–" for name in COLUMNS[2:])
        table.append([row["rule"], f"{row['scale']:g}", f"{row['pictures']:,}", fid, score, *others])
    lines = [f"# {name}", "", about, "", *markdown(table), ""]
    lines += [
        "Scales are those of the authors' programs: w where a rule begins with reg_, else as they read them. Bold: the"
    ]
    lines += ["best of a rule. Fewer pictures make a higher FID: compare rows of the same number only.", ""]
    if name in published.FIDS:
        guided, fid, source = published.FIDS[name]
        lines += [f"Published for this checkpoint: FID {fid} (guidance: {guided}), by {source}."]
    else:
        lines += ["No published number of this checkpoint is known here."]
    return "\n".join(lines) + "\n"


def markdown(table: list[list[str]]) -> list[str]:
    head, *rows = ("| " + " | ".join(row) + " |" for row in table)
    return [head, "| --- " * len(table[0]) + "|", *rows]


def curves(rows: list[Row]) -> Figure:
    """FID over Inception Score, a curve a rule, as the paper draws them; plain rules dashed."""
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    shapes = list(dict.fromkeys(rule.removeprefix("reg_") for rule in rules))
    for rule in rules:
        own = sorted((row for row in rows if row["rule"] == rule), key=lambda row: row["scale"])
        axes.plot(
            [row["IS"] for row in own],
            [row["FID"] for row in own],
            marker="o",
            markersize=4,
            color=f"C{shapes.index(rule.removeprefix('reg_'))}",
            linestyle="-" if rule.startswith("reg_") else "--",
            label=rule,
        )
    axes.set(xlabel="Inception Score", ylabel="FID")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def sheet(pictures: np.ndarray, file: Path) -> None:
    """A row of pictures, [n, h, w, 3], as PNG."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(list(pictures), axis=1)).save(file)


def _best(rows: list[Row], rule: str) -> tuple[Row, Row]:
    own = [row for row in rows if row["rule"] == rule]
    return min(own, key=lambda row: row["FID"]), max(own, key=lambda row: row["IS"])
