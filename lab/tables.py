"""Sweeps over trials, and the tables they make: `python3 dev.py lab`.

Every table says which command made it. Results are kept in a cache by content, so that a sweep that was stopped goes on
where it was, and only what the code changed is computed again.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from . import measure, steps
from .candidates import CANDIDATES
from .trials import SCHEDULES, WORLDS, Trial, cached

OUTPUT = Path(__file__).parents[1] / "docs" / "lab"
CACHE = Path.home() / ".cache" / "comfyui-reg" / "lab"
ENDS = ("floor", "exact", "none")
BASIC = ("elementwise", "jacobian", "natural", "ratio")
FIELDS = tuple(name for name in WORLDS if name.startswith("field"))
HELD = ("elementwise", "elementwise-variance", "jacobian", "jacobian-variance", "natural", "ratio")
MIXED = tuple(name for name in WORLDS if name.startswith("mixed"))


@dataclass(frozen=True)
class Sweep:
    """Trials for one table: every rule in every world, at every w, for every seed."""

    title: str
    rules: tuple[str, ...]
    worlds: tuple[str, ...] = ("plane",)
    ws: tuple[float, ...] = (1.0, 3.0, 7.0)
    samplers: tuple[str, ...] = ("euler",)
    world_seeds: tuple[int, ...] = (11, 12, 13, 14, 15)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    samples: int = 1000

    def trials(self, quick: bool) -> Iterator[Trial]:
        """All trials; quick ones leave out worlds, seeds and samples, enough to see that everything runs."""
        world_seeds, seeds, samples = self.world_seeds, self.seeds, self.samples
        if quick:
            world_seeds, seeds, samples = world_seeds[:1], seeds[:2], samples // 4
        for world, world_seed, w, sampler, rule, seed in product(
            self.worlds, world_seeds, self.ws, self.samplers, self.rules, seeds
        ):
            yield Trial(world, world_seed, rule, w, sampler, seed, samples=samples)


def with_rectifications(schedule: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """A schedule alone and with each rectification."""
    return (schedule, *(f"{schedule}+{name}" for name in names))


CHAINS = sum((with_rectifications(schedule, BASIC) for schedule in SCHEDULES), ())
SPECTRAL = (*BASIC, "spectral")
FIELD_SIZE = {"ws": (1.0, 3.0, 6.0), "world_seeds": (11, 12, 13), "seeds": (0, 1, 2), "samples": 64}
MIXED_SIZE = {"ws": (2.0, 6.0), "world_seeds": (11, 12, 13), "seeds": (0, 1, 2), "samples": 200}

SWEEPS = {
    "plane": Sweep("Mixtures in the plane, Euler: sliced Wasserstein distance to the exact target", ENDS + CHAINS),
    "samplers": Sweep(
        "Mixtures in the plane, other samplers",
        ENDS + with_rectifications("cfg", BASIC),
        samplers=("ancestral", "heun"),
        seeds=(0, 1, 2),
    ),
    "every": Sweep(
        "Measured anew every n-th step, or read off a curve measured once",
        (
            "cfg",
            *(f"cfg+{name}/{n}" for name in HELD for n in (1, 2, 4, 8)),
            "cfg+profile:elementwise",
            "cfg+profile:ratio",
        ),
        worlds=("plane", "broad"),
        ws=(3.0,),
        seeds=(0, 1, 2),
    ),
    "holds": Sweep(
        "What to keep between measurements",
        (
            "cfg",
            *(
                f"cfg+{name}/{n}"
                for name in ("elementwise", "elementwise-variance", "elementwise-one")
                for n in (1, 2, 4, 8)
            ),
            *(f"cfg+{name}/{n}" for name in ("jacobian", "jacobian-variance", "jacobian-bands") for n in (1, 2, 4, 8)),
        ),
        worlds=("field 0.6", "mixed 0.1"),
        ws=(6.0,),
        world_seeds=(11, 12),
        seeds=(0, 1),
        samples=100,
    ),
    "other": Sweep(
        "AutoGuidance (weak) and a broad unconditional (broad)",
        ENDS + with_rectifications("cfg", BASIC),
        worlds=("weak", "broad"),
        seeds=(0, 1, 2),
    ),
    "fields": Sweep(
        "Gaussian fields 32², by the share of low-frequency variance between classes: W2 a pixel",
        ENDS[1:] + with_rectifications("cfg", SPECTRAL),
        worlds=FIELDS,
        **FIELD_SIZE,
    ),
    "mixed": Sweep(
        "Mixtures of fields 32², by the share of low-frequency variance between components: sliced Wasserstein",
        (ENDS[0], ENDS[2], *with_rectifications("cfg", SPECTRAL)),
        worlds=MIXED,
        **MIXED_SIZE,
    ),
}

RESEARCH = ("cfg", "cfg+elementwise", "cfg+jacobian", "cfg+natural", "cfg+ratio", "cfg+spectral")
RESEARCH += tuple(f"cfg+{name}" for name in CANDIDATES)
FLAT = tuple(rule for rule in RESEARCH if not any(word in rule for word in ("spectral", "local")))


def research(world_seeds: tuple[int, ...]) -> dict[str, Sweep]:
    """All candidates in three kinds of world, for tuning or for the report."""
    size = {"seeds": (0, 1), "world_seeds": world_seeds}
    return {
        "plane": Sweep("plane", ("floor", "none", *FLAT), **size),
        "fields": Sweep("fields", ("exact", "none", *RESEARCH), worlds=FIELDS, **(FIELD_SIZE | size)),
        "mixed": Sweep("mixed", ("floor", "none", *RESEARCH), worlds=MIXED, **(MIXED_SIZE | size)),
    }


for phase, numbers in {"tune": (101, 102, 103), "report": (21, 22, 23)}.items():
    for kind, sweep in research(numbers).items():
        SWEEPS[f"research-{kind}-{phase}"] = sweep


def results(trials: list[Trial], cache: Path, jobs: int) -> pd.DataFrame:
    """One row a trial: what it was and what came out."""
    start, rows = time.time(), []
    with ProcessPoolExecutor(jobs) as pool:
        found = pool.map(partial(cached, cache=cache), trials, chunksize=4)
        for done, (trial, result) in enumerate(zip(trials, found, strict=True), 1):
            rows.append(asdict(trial) | result)
            if done % 100 == 0 or done == len(trials):
                print(f"\r  {done} of {len(trials)} trials, {time.time() - start:.0f} s", end="", file=sys.stderr)
    print(file=sys.stderr)
    return pd.DataFrame(rows)


def summary(rows: pd.DataFrame, metric: str = "distance") -> pd.DataFrame:
    """Mean over worlds of a kind and its 95 % bootstrap interval over seeds, a line for each rule and its setting."""
    lines = []
    keys = ["world", "sampler", "w", "rule"]
    for key, group in rows.groupby(keys, sort=False):
        by_seed = group.groupby("seed")[metric].mean().to_numpy()
        lines.append(dict(zip(keys, key, strict=True)) | asdict(measure.bootstrap(by_seed)))
    return pd.DataFrame(lines)


def markdown(table: pd.DataFrame) -> str:
    """Rules down, worlds, samplers and w across; each cell a mean and its interval."""
    columns = list(dict.fromkeys(zip(table.world, table.sampler, table.w, strict=True)))
    cells = {
        (r.rule, r.world, r.sampler, r.w): f"{r.mean:.3f} ± {(r.high - r.low) / 2:.3f}" for r in table.itertuples()
    }
    heads = [" ".join([world, sampler, f"w = {w:g}"]) for world, sampler, w in columns]
    lines = ["| rule | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for rule in dict.fromkeys(table.rule):
        lines.append(f"| {rule} | " + " | ".join(cells.get((rule, *column), "") for column in columns) + " |")
    return "\n".join(lines)


def write(name: str, title: str, table: pd.DataFrame, text: str, command: str, folder: Path) -> None:
    """A CSV and a Markdown file that say how they were made."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.csv").write_text(f"# {command}\n" + table.to_csv(index=False, float_format="%.5g"))
    (folder / f"{name}.md").write_text(f"# {title}\n\nMade by `{command}`.\n\n{text}\n")
    print(f"{title}\n\n{text}\n")


def sweep_table(name: str, options: argparse.Namespace) -> None:
    """Run one sweep and write its table."""
    sweep = SWEEPS[name]
    rows = results(list(sweep.trials(options.quick)), options.cache, options.jobs)
    table = summary(rows)
    count = (rows.world_seed.nunique(), rows.seed.nunique(), rows.samples.max())
    note = "\n\nMean over {} worlds, ± half the 95 % bootstrap interval over {} seeds; {} samples a chain.".format(
        *count
    )
    write(name, sweep.title, table, markdown(table) + note, command(name, options), options.output)


def steps_table(options: argparse.Namespace) -> None:
    """One-step win ratio over CFG and RMS error, over mixtures and noise levels."""
    seeds, sigmas = (range(11, 17), np.geomspace(0.05, 20, 11)) if not options.quick else (range(11, 13), [0.3, 3.0])
    lines = []
    for w, sigma, seed in product((0.5, 1.0, 2.0, 4.0), sigmas, seeds):
        errors = steps.step_errors("plane", seed, w, float(sigma))
        lines += [
            {"w": w, "sigma": sigma, "seed": seed, "rule": rule, "rms": errors.rms(rule), "wins": errors.wins(rule)}
            for rule in steps.RULES
        ]
    rows = pd.DataFrame(lines)
    blocks = []
    for metric, what in {"wins": "Share of points nearer than CFG", "rms": "RMS error of the prediction"}.items():
        table = summary(rows.assign(world="plane", sampler="one step"), metric)
        blocks.append(f"{what}:\n\n{markdown(table)}")
    note = "\n\nMean over noise levels, ± half the 95 % bootstrap interval over mixtures."
    text = "\n\n".join(blocks) + note
    write(
        "steps",
        "One step in the plane against the exact guidance",
        rows,
        text,
        command("steps", options),
        options.output,
    )


def command(name: str, options: argparse.Namespace) -> str:
    return f"python3 dev.py lab {name}" + " --quick" * options.quick


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lab", description="Measure guidance rules in worlds whose answer is known.")
    parser.add_argument("tables", nargs="*", help=f"which of {', '.join([*SWEEPS, 'steps', 'figures'])}; all if none")
    parser.add_argument("--quick", action="store_true", help="few worlds, seeds and samples")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where results are kept")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where tables and figures go")
    options = parser.parse_args()
    unknown = set(options.tables) - {*SWEEPS, "steps", "figures"}
    if unknown:
        parser.error(f"no table is called {', '.join(sorted(unknown))}")
    return options


def main() -> None:
    """Make the tables and figures that were asked for."""
    options = parse()
    for name in options.tables or [*SWEEPS, "steps", "figures"]:
        if name == "steps":
            steps_table(options)
        elif name == "figures":
            from .figures import write_all

            write_all(options.output)
        else:
            sweep_table(name, options)
