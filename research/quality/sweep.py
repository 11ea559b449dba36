"""The sweep: which cells, in which order, and the command line."""

import argparse
import shlex
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from pathlib import Path

import torch
from comfy.model_base import ModelType
from tqdm import tqdm

from ...demo import models
from . import rules
from .cells import MORE_PROMPTS, PROMPTS, SEARCH_SEEDS, WEAK, Cell, Studio

WEIGHTS = Path(models.__file__).parent / "weights" / "demo.safetensors"
CACHE = Path.home() / ".cache" / "comfyui-reg" / "quality"
OUTPUT = Path(__file__).parents[2] / "docs" / "quality"

CORE = ("cfg", "ratio", *rules.BEST, "elementwise", "jacobian natural", "jacobian")
CHEAP = (*rules.PROFILED, "jacobian every 4", "ratio every 4", "elementwise every 4")
PEERS = ("rescale", "apg", "zero", "fresca", "c2fg", "adaptive")
VARIANTS = ("elementwise difference", "jacobian small step", "spectral ratio")
BROKEN = tuple(name for name in rules.NAMES if name.startswith("broken"))


@dataclass(frozen=True)
class Part:
    """Every prompt with every cfg, rule and seed; without guidance once for all cfg."""

    prompts: tuple[str, ...]
    cfgs: tuple[float, ...]
    rules: tuple[str, ...]
    seeds: tuple[int, ...]

    def cells(self, model: str, **options) -> Iterator[Cell]:
        for seed, prompt in product(self.seeds, self.prompts):
            yield Cell(model, prompt, "none", 1.0, seed, **options)
        for seed, cfg, prompt, rule in product(self.seeds, self.cfgs, self.prompts, self.rules):
            yield Cell(model, prompt, rule, cfg, seed, **options)


OTHERS = BROKEN + CHEAP + PEERS + VARIANTS
ALL = PROMPTS + MORE_PROMPTS
PARTS = (  # the most informative first
    Part(PROMPTS, (3.0, 8.0, 5.0), rules.CONTENDERS, (0, 1)),
    Part(PROMPTS, (2.0,), ("cfg", "c2fg", "ratio"), (0, 1)),
    Part(PROMPTS, (5.0, 8.0, 3.0), ("elementwise", "jacobian"), (0, 1)),
    Part(PROMPTS, (5.0,), BROKEN, (0, 1)),
    Part(PROMPTS, (5.0,), rules.SEARCHED, SEARCH_SEEDS),
    Part(ALL, (3.0, 8.0, 5.0), rules.CONTENDERS, (0, 1)),
    Part(PROMPTS, (3.0, 5.0, 8.0, 2.0), CORE, (0, 1)),
    Part(PROMPTS, (5.0,), OTHERS, (0, 1)),
    Part(PROMPTS, (8.0, 3.0), CHEAP + PEERS, (0, 1)),
    Part(PROMPTS, (2.0, 3.0, 5.0), tuple(rules.AUTO), (0, 1)),
    Part(PROMPTS, (1.5,), CORE, (0, 1)),
    Part(PROMPTS, (3.0, 8.0, 2.0), OTHERS, (0, 1)),
)

NEW_PEERS = ("gibbs-like", "rectified-cfg++")
LAID = (*rules.BASES, *rules.STACKED)
LAID_ON_AUTO = tuple(name for name in rules.AUTO if name == "autoguidance" or "+" in name)
AT_FIRST = tuple(name for name in LAID if name.split(" + ")[0] in ("cfg", rules.BEST[0], "c2fg", "apg"))
STACKED = (  # whether REG on other guidance is nearer than that guidance alone
    Part(ALL, (5.0, 8.0, 3.0), AT_FIRST, (0,)),
    *(Part(ALL, (5.0, 8.0, 3.0), names, (seed,)) for seed in range(8) for names in (LAID, NEW_PEERS + LAID_ON_AUTO)),
    Part(ALL, (5.0,), ("characteristic",), tuple(range(8))),
)
STACKED_SAMPLER = {"sampler": "dpmpp_2m", "steps": 10}


def cells(model: str, parts: tuple[Part, ...] = PARTS, **options) -> list[Cell]:
    """All cells, each once."""
    return list(dict.fromkeys(cell for part in parts for cell in part.cells(model, **options)))


def has_weak(weights: Path) -> bool:
    """Whether the weak model is one of the same kind."""
    return models.config_of(weights).prediction == models.config_of(WEAK).prediction


def fill(studio: Studio, wanted: list[Cell], minutes: float, jobs: int) -> list[Cell]:
    """Sample what is missing for so long; gives the cells that are there."""
    end = time.monotonic() + 60 * minutes
    missing = [cell for cell in wanted if not studio.has(cell)] if minutes else []
    with ProcessPoolExecutor(jobs) as pool:
        progress = tqdm(pool.map(partial(make, studio.weights, studio.cache, end), missing), total=len(missing))
        for _ in progress:
            pass
    return [cell for cell in wanted if studio.has(cell)]


def make(weights: Path, cache: Path, end: float, cell: Cell) -> None:
    """Sample one cell, in a process of its own, unless time is up."""
    if time.monotonic() < end:
        torch.set_num_threads(1)
        studio_of(weights, cache).get(cell)


studio_of = lru_cache(Studio)  # one in each process


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py quality", description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="a demo model")
    parser.add_argument("--cache", type=Path, default=CACHE, help="what was sampled; a run does only what is missing")
    parser.add_argument("--output", type=Path, help="tables and plots; by default docs/quality/<name of the weights>")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="sample no longer; 0 only makes the tables")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--batch", type=int, default=32, help="pictures of a cell")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--stacked", action="store_true", help="REG on other guidance against that guidance alone")
    parser.add_argument("--facts", action="store_true", help="Jacobian facts by noise level, in place of the sweep")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    output = arguments.output or OUTPUT / arguments.weights.stem
    studio = Studio(arguments.weights, arguments.cache)
    command = shlex.join(["python3", "dev.py", "quality", *sys.argv[1:]])
    if arguments.facts:
        from .. import facts

        return facts.write(studio.model, output, command)
    sampler = STACKED_SAMPLER if arguments.stacked else {"steps": arguments.steps}
    parts = STACKED if arguments.stacked else PARTS
    wanted = cells(studio.digest, parts, batch=arguments.batch, **sampler)
    if models.config_of(arguments.weights).prediction != ModelType.FLOW:
        wanted = [cell for cell in wanted if cell.rule != "rectified-cfg++"]
    if not has_weak(arguments.weights):
        wanted = [cell for cell in wanted if cell.rule not in rules.AUTO]
    there = fill(studio, wanted, arguments.minutes, arguments.jobs)
    print(f"{len(there)} of {len(wanted)} cells")
    if not any(cell.rule == "cfg" for cell in there):
        sys.exit("CFG, which the others are compared with, was not sampled yet: run it for longer.")
    from . import report, stacked

    return (stacked if arguments.stacked else report).write(studio, there, output, command, arguments.jobs)
