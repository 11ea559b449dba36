"""Everything that is written of a sweep: CSV, Markdown by rule and cfg, plots, grids of pictures."""

from pathlib import Path

import pandas as pd

from . import rules
from .cells import PROMPTS, SEARCH_SEEDS, Cell, Studio
from .contest import contest
from .plots import GRID_CFG, grid, plots
from .tables import REPLICATED, cost_table, interval_table, over_cfg, over_prompts, rules_by_cfg, table

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


def heading(frame: pd.DataFrame, means: pd.DataFrame, command: str) -> str:
    """What was sampled, and what a perfect rule would score."""
    base = means[means.rule == "cfg"]
    floor = ", ".join(f"{f:.3f} at cfg {cfg:g}" for cfg, f in zip(base.cfg, base["target floor"], strict=True))
    prompts = ", ".join(frame[frame.rule == "cfg"].prompt.unique())
    return (
        f"# Quality of guidance rules\n\n`{command}`\n\nPrompts: {prompts}; {frame.pictures.max()} pictures of each at "
        f"every rule and cfg. Brackets: 95 % bootstrap intervals over pictures. Exact draws would score {floor}."
    )


def write(studio: Studio, cells: list[Cell], output: Path, command: str, jobs: int) -> None:
    """Everything, into a folder."""
    output.mkdir(parents=True, exist_ok=True)
    searched = [cell for cell in cells if cell.seed in SEARCH_SEEDS and cell.rule in rules.SEARCHED]
    cells = [cell for cell in cells if cell.seed not in SEARCH_SEEDS]
    every = table(studio, cells, jobs)
    frame = every[every.prompt.isin(PROMPTS)]
    means = over_prompts(frame)
    drop = [f"{name} replicates" for name in REPLICATED]
    frame.drop(columns=drop).round(5).to_csv(output / "quality.csv", index=False)
    means.drop(columns=drop).round(5).to_csv(output / "means.csv", index=False)
    text, contenders = contest(every[every.rule.isin(rules.CONTENDERS)])
    parts = [heading(frame, means, command), text]
    parts += [f"## {title}\n\n{rules_by_cfg(means, name)}" for name, title in TABLES.items()]
    parts += [f"## Distance to the target less CFG's, with paired intervals\n\n{over_cfg(means)}"]
    parts += [f"## Cost of a picture\n\n{cost_table(means)}"]
    if searched:
        parts += [f"## Search for the interval\n\n{interval_table(table(studio, searched, jobs))}"]
    parts += grids(studio, cells, output)
    contest_cells = [cell for cell in cells if cell.rule in ("none", *rules.CONTENDERS)]
    grid(studio, contest_cells, PROMPTS[-1], output / "grid-contenders.jpg")
    (output / "tables.md").write_text("\n\n".join(parts) + "\n")
    plots(means, contenders, output)


def grids(studio: Studio, cells: list[Cell], output: Path) -> list[str]:
    """A section for each prompt with its pictures."""
    parts = []
    for prompt in PROMPTS:
        name = prompt.replace("=", "-").replace(",", "-")
        rows = grid(studio, cells, prompt, output / f"grid-{name}.jpg")
        parts.append(
            f"## {prompt}, cfg {GRID_CFG:g}\n\nFrom the top: {', '.join(rows)}.\n\n![pictures](grid-{name}.jpg)"
        )
    return parts
