"""Pictures of short runs under CFG and REG's rhythms: `python3 dev.py few-steps`."""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from .quality.cells import Cell, Studio
from .quality.sweep import CACHE, OUTPUT, WEIGHTS

STEPS = (4, 8, 12)
RULES = {  # of research.quality.rules: what the rows are called
    "cfg": "CFG",
    "elementwise every 4": "REG, every 4th step",
    "elementwise doubling": "REG, doubling gaps",
    "elementwise": "REG, every step",
}
PICTURES, SEED = 10, 4


def draw(studio: Studio, prompt: str, cfg: float) -> Figure:
    """A block for each number of steps, a row for each rule, the same noises in each column."""
    figure = Figure(figsize=(PICTURES, 1.05 * len(STEPS) * len(RULES)), layout="constrained")
    blocks = figure.subfigures(len(STEPS), 1)
    for block, steps in zip(blocks, STEPS, strict=True):
        block.suptitle(f"{steps} steps, cfg {cfg:g}, {prompt}", fontsize=11)
        for axes, (rule, name) in zip(block.subplots(len(RULES), 1), RULES.items(), strict=True):
            cell = Cell(studio.digest, prompt, rule, cfg, SEED, batch=PICTURES, steps=steps)
            axes.imshow(np.concatenate(list(studio.get(cell).pictures), axis=1))
            axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
            axes.set(xticks=[], yticks=[])
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(prog="dev.py few-steps", description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="a demo model")
    parser.add_argument("--prompt", default="shape=star")
    parser.add_argument("--cfg", type=float, default=7.0)
    parser.add_argument("--output", type=Path, default=OUTPUT / "few-steps.jpg")
    arguments = parser.parse_args()
    figure = draw(Studio(arguments.weights, CACHE), arguments.prompt, arguments.cfg)
    figure.savefig(arguments.output, dpi=80, pil_kwargs={"quality": 88})
