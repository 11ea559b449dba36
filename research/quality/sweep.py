"""The sweep: which cells, in which order, and the command line."""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import torch
from comfy.model_base import ModelType
from tqdm import tqdm

from ...demo import models
from .. import decode
from . import rules
from .cells import MORE_PROMPTS, PROMPTS, SEARCH_SEEDS, WEAK, Cell, Studio
from .readings import Readings

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
STACKED = (  # whether REG on other guidance is nearer than that guidance alone: 64 pictures of each at a time
    *(
        Part(ALL, cfgs, names, (seed,))
        for seeds in ((0, 1), (2, 3), (4, 5), (6, 7))
        for cfgs in ((5.0,), (8.0, 3.0))
        for seed in seeds
        for names in (LAID, NEW_PEERS + LAID_ON_AUTO)
    ),
    Part(ALL, (5.0,), ("characteristic",), tuple(range(8))),
)
STACKED_SAMPLER = {"sampler": "dpmpp_2m", "steps": 10}


def cells(model: str, parts: tuple[Part, ...] = PARTS, **options) -> list[Cell]:
    """All cells, each once."""
    return list(dict.fromkeys(cell for part in parts for cell in part.cells(model, **options)))


def fit(cells: list[Cell], weights: Path) -> list[Cell]:
    """The cells whose rules are for such a network, those of the weak model only where it is one of the same kind."""
    prediction, weak = (models.config_of(path).prediction for path in (weights, WEAK))
    flow = ("rectified-cfg++",) if prediction != ModelType.FLOW else ()
    unfit = {*flow, *(rules.AUTO if prediction != weak else ())}
    return [cell for cell in cells if cell.rule not in unfit]


def fill(missing: list[Cell], make: Callable[[Cell], object], minutes: float, jobs: int) -> Iterator[tuple]:
    """(cell, what was made of it) as soon as it is there, for so long; in several processes, which may share a card."""
    torch.set_num_threads(1)
    timed = partial(until, time.monotonic() + 60 * minutes, make)
    spawn = get_context("spawn")  # CUDA cannot fork
    workers = ProcessPoolExecutor(jobs, spawn, torch.set_num_threads, (1,)) if jobs > 1 else nullcontext()
    with workers as pool:
        made = tqdm((pool.map if pool else map)(timed, missing), total=len(missing))
        yield from ((cell, result) for cell, result in zip(missing, made, strict=True) if result is not None)


def until(end: float, make: Callable[[Cell], object], cell: Cell) -> object | None:
    """What is made of a cell; nothing when time is up."""
    return make(cell) if time.monotonic() < end else None


studio_of = lru_cache(Studio)  # one in each process


def keep(weights: Path, cache: Path, cell: Cell) -> bool:
    """Sample a cell into the cache."""
    studio_of(weights, cache).get(cell)
    return True


def see(weights: Path, cache: Path, cell: Cell) -> decode.Decoded:
    """Sample a cell, and read it."""
    return decode.decode(decode.load_once(), studio_of(weights, cache).sample(cell).pictures)[0]


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
    parser.add_argument("--seeds", type=int, default=8, help="cells of each with --stacked")
    parser.add_argument("--facts", action="store_true", help="Jacobian facts by noise level, in place of the sweep")
    return parser.parse_args()


def pictures(studio: Studio, arguments: argparse.Namespace) -> list[Cell]:
    """Sample the sweep's pictures for as long as was said; the cells that are there."""
    wanted = fit(cells(studio.digest, batch=arguments.batch, steps=arguments.steps), studio.weights)
    missing = [cell for cell in wanted if not studio.has(cell)]
    for _ in fill(missing, partial(keep, studio.weights, studio.cache), arguments.minutes, arguments.jobs):
        pass
    return [cell for cell in wanted if studio.has(cell)]


def read(studio: Studio, readings: Readings, arguments: argparse.Namespace) -> list[Cell]:
    """Sample and read the pictures of REG on other guidance for as long as was said; the cells that are there."""
    wanted = fit(cells(studio.digest, STACKED, batch=arguments.batch, **STACKED_SAMPLER), studio.weights)
    wanted = [cell for cell in wanted if cell.rule != "none" and cell.seed < arguments.seeds]
    missing = [cell for cell in wanted if cell not in readings]
    for cell, seen in fill(missing, partial(see, studio.weights, studio.cache), arguments.minutes, arguments.jobs):
        readings.add(cell, seen)
    return [cell for cell in wanted if cell in readings]


def main() -> None:
    arguments = parse_arguments()
    output = arguments.output or OUTPUT / arguments.weights.stem
    studio = Studio(arguments.weights, arguments.cache)
    command = shlex.join(["python3", "dev.py", "quality", *sys.argv[1:]])
    if arguments.facts:
        from .. import facts

        return facts.write(studio.model, output, command)
    readings = Readings(output / "readings")
    there = read(studio, readings, arguments) if arguments.stacked else pictures(studio, arguments)
    if not any(cell.rule == "cfg" for cell in there):
        sys.exit("CFG, which the others are compared with, was not sampled yet: run it for longer.")
    from . import report, stacked

    if arguments.stacked:
        return stacked.write(readings, there, output, command)
    return report.write(studio, there, output, command, arguments.jobs)
