"""Sweeps over trials, and the tables they make: `python3 dev.py lab`.

Every table says which command made it. Results are kept in a cache by content, so that a sweep that was stopped goes on
where it was, and only what the code changed is computed again.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from ...lab import guides
from ...reg.rectification import RECTIFICATIONS
from .. import intervals, markdown
from . import anisotropy, steps
from .candidates import CANDIDATES
from .trials import SCHEDULES, WORLDS, Trial, cached

OUTPUT = Path(__file__).parents[2] / "docs" / "lab"
CACHE = Path.home() / ".cache" / "comfyui-reg" / "lab"
OTHERS = ("steps", "anisotropy", "figures")
ENDS = ("floor", "exact", "none")
BASIC = tuple(name for name in guides.all_rules() if name != "none")
FIELD_WORLDS = tuple(name for name in WORLDS if name.startswith("field"))
MIXED_WORLDS = tuple(name for name in WORLDS if name.startswith("mixed"))


@dataclass(frozen=True)
class Sweep:
    """Trials: every rule in every world, at every w, for every seed."""

    rules: tuple[str, ...]
    worlds: tuple[str, ...] = ("plane",)
    ws: tuple[float, ...] = (1.0, 3.0, 7.0)
    samplers: tuple[str, ...] = ("euler",)
    world_seeds: tuple[int, ...] = (11, 12, 13, 14)
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    samples: int = 500
    steps: tuple[int, ...] = (40,)

    def trials(self, quick: bool) -> Iterator[Trial]:
        """All trials; quick ones leave out worlds, seeds and samples, enough to see that everything runs."""
        world_seeds, seeds, samples = self.world_seeds, self.seeds, self.samples
        if quick:
            world_seeds, seeds, samples = world_seeds[:1], seeds[:2], samples // 4
        for world, world_seed, w, step_count, sampler, rule, seed in product(
            self.worlds, world_seeds, self.ws, self.steps, self.samplers, self.rules, seeds
        ):
            yield Trial(world, world_seed, rule, w, sampler, seed, step_count, samples)


@dataclass(frozen=True)
class Table:
    """Sweeps that make one table, and the rule that others are given relative to, if any."""

    title: str
    sweeps: tuple[Sweep, ...]
    baseline: str = ""

    def trials(self, quick: bool) -> list[Trial]:
        """The trials of all sweeps."""
        return [trial for sweep in self.sweeps for trial in sweep.trials(quick)]


def with_rectifications(schedule: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """A schedule alone and with each rectification."""
    return (schedule, *(f"{schedule}+{name}" for name in names))


def refreshed(*names: str, every: tuple[int, ...] = (1, 2, 4, 8)) -> tuple[str, ...]:
    """CFG with each rectification, measured anew every so many steps (0: with doubling gaps)."""
    return tuple(f"cfg+{name}/{n}" for name in names for n in every)


FIELDS = Sweep((), FIELD_WORLDS, (1.0, 3.0, 6.0), world_seeds=(11, 12, 13), seeds=(0, 1), samples=48)
MIXED = Sweep((), MIXED_WORLDS, (2.0, 6.0), world_seeds=(11, 12, 13), seeds=(0, 1), samples=100)
CHAINS = sum((with_rectifications(schedule, BASIC) for schedule in SCHEDULES), ())
SPECTRAL = with_rectifications("cfg", (*BASIC, "spectral"))
HOLDS = ("elementwise", "elementwise-one", "elementwise-variance", "jacobian", "jacobian-variance")
RHYTHMS = {"rules": ("cfg", *refreshed(*RECTIFICATIONS, every=(1, 0, 4))), "steps": (8, 20, 40)}

TABLES = {
    "plane": Table(
        "Mixtures in the plane, Euler: sliced Wasserstein distance to the exact target", (Sweep(ENDS + CHAINS),)
    ),
    "samplers": Table(
        "Mixtures in the plane, other samplers: sliced Wasserstein",
        (Sweep(ENDS + with_rectifications("cfg", BASIC), samplers=("ancestral", "heun"), seeds=(0, 1)),),
    ),
    "other": Table(
        "AutoGuidance with a weak model (weak) and a broad unconditional (broad): sliced Wasserstein",
        (Sweep(ENDS + with_rectifications("cfg", BASIC), worlds=("weak", "broad"), seeds=(0, 1)),),
    ),
    "every": Table(
        "Measured anew every n-th step, or read off a curve measured once",
        (
            Sweep(
                ("cfg", *refreshed(*HOLDS, "natural", "ratio"), "cfg+profile:elementwise", "cfg+profile:ratio"),
                worlds=("plane", "broad"),
                ws=(3.0,),
                seeds=(0, 1),
            ),
            replace(
                FIELDS,
                rules=("cfg", *refreshed(*HOLDS, "jacobian-bands", "ratio")),
                worlds=("field 0.6",),
                ws=(6.0,),
                world_seeds=(11, 12),
            ),
            replace(
                MIXED,
                rules=("cfg", *refreshed(*HOLDS, "jacobian-bands", "ratio")),
                worlds=("mixed 0.1",),
                ws=(6.0,),
                world_seeds=(11, 12),
                seeds=(0, 1),
            ),
        ),
    ),
    "rhythms": Table(
        "Runs of 8, 20 and 40 steps, measured at each step (1), with doubling gaps (0) and at every fourth step (4)",
        (
            Sweep(**RHYTHMS, ws=(3.0, 7.0), world_seeds=(11, 12, 13)),
            replace(FIELDS, **RHYTHMS, worlds=("field 0.6",), ws=(6.0,)),
            replace(MIXED, **RHYTHMS, worlds=("mixed 0.1",), ws=(6.0,)),
        ),
    ),
    "fields": Table(
        "Gaussian fields 32², by the share of low-frequency variance between classes: W2 a pixel",
        (replace(FIELDS, rules=("exact", "none", *SPECTRAL)),),
    ),
    "mixed": Table(
        "Mixtures of fields 32², by the share of low-frequency variance between components: sliced Wasserstein",
        (replace(MIXED, rules=("floor", "none", *SPECTRAL)),),
    ),
}

SCHEDULED = ("cosine", "cosine+jacobian", "cosine+ratio", "interval", "interval+jacobian", "interval+ratio")
RESEARCH = SPECTRAL + tuple(f"cfg+{name}" for name in CANDIDATES) + SCHEDULED
FLAT = tuple(rule for rule in RESEARCH if not any(word in rule for word in ("spectral", "local")))
for phase, world_seeds in {"tuning": (101, 102, 103), "report": (21, 22, 23)}.items():
    size = {"world_seeds": world_seeds, "seeds": (0, 1)}
    TABLES[f"research-{phase}"] = Table(
        f"Candidates on the {phase} worlds: distance over that of the ratio",
        (
            Sweep(("none", *FLAT), **size),
            replace(FIELDS, rules=("none", *RESEARCH), ws=(1.0, 6.0), world_seeds=world_seeds, seeds=(0,)),
            replace(MIXED, rules=("none", *RESEARCH), ws=(6.0,), world_seeds=world_seeds, seeds=(0,)),
        ),
        baseline="cfg+ratio",
    )


def results(trials: list[Trial], cache: Path, jobs: int) -> pd.DataFrame:
    """One row a trial: what it was and what came out."""
    start, rows, compute = time.time(), [], partial(cached, cache=cache)
    with ExitStack() as stack:
        found = map(compute, trials)
        if jobs > 1:
            pool = stack.enter_context(ProcessPoolExecutor(jobs))
            found = pool.map(compute, trials, chunksize=4)
        for done, (trial, result) in enumerate(zip(trials, found, strict=True), 1):
            rows.append(asdict(trial) | result)
            if done % 100 == 0 or done == len(trials):
                print(f"\r  {done} of {len(trials)} trials, {time.time() - start:.0f} s", end="", file=sys.stderr)
    print(file=sys.stderr)
    return pd.DataFrame(rows)


def summary(rows: pd.DataFrame, metric: str = "distance") -> pd.DataFrame:
    """Mean over worlds of a kind and its 95 % bootstrap interval over seeds, a line for each rule and its setting."""
    lines = []
    keys = ["world", "sampler", "steps", "w", "rule"]
    for key, group in rows.groupby(keys, sort=False):
        by_seed = group.groupby("seed")[metric].mean().to_numpy()
        lines.append(dict(zip(keys, key, strict=True)) | asdict(intervals.bootstrap(by_seed)))
    return pd.DataFrame(lines)


def rules_by_world(table: pd.DataFrame) -> str:
    """Rules down, worlds, samplers and w across; each cell a mean and how far its interval goes."""
    several = table.steps.nunique() > 1
    rows = [
        {
            "rule": r.rule,
            "column": " ".join(
                filter(None, [r.world, r.sampler, f"w = {r.w:g}" if r.w else "", f"{r.steps} steps" if several else ""])
            ),
            "cell": f"{r.mean:.3f} ± {(r.high - r.low) / 2:.3f}",
        }
        for r in table.itertuples()
    ]
    wide = pd.DataFrame(rows).pivot_table("cell", "rule", "column", aggfunc="first", sort=False)
    return markdown.of(wide.reset_index())


def write(name: str, title: str, table: pd.DataFrame, text: str, command: str, folder: Path) -> None:
    """A CSV and a Markdown file that say how they were made."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.csv").write_text(f"# {command}\n" + table.to_csv(index=False, float_format="%.5g"))
    (folder / f"{name}.md").write_text(f"# {title}\n\nMade by `{command}`.\n\n{text}\n")
    print(f"{title}\n\n{text}\n")


def relative(rows: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Distance over the baseline's on the same chain: geometric mean and its 95 % bootstrap interval over chains.

    Chains differ in world, w and noise; below 1 a rule is nearer the target than the baseline.
    """
    chain = ["world", "world_seed", "w", "sampler", "seed"]
    base = rows[rows.rule == baseline].set_index(chain).distance
    ratio = np.log(rows.distance / base.reindex(pd.MultiIndex.from_frame(rows[chain])).to_numpy())
    lines = []
    for (world, rule), group in ratio.groupby([rows.world, rows.rule], sort=False):
        interval = asdict(intervals.bootstrap(group.to_numpy()))
        lines.append(
            {"world": world, "sampler": "", "steps": "", "w": "", "rule": rule}
            | {k: np.exp(v) for k, v in interval.items()}
        )
    return pd.DataFrame(lines)


def sweep_table(name: str, options: argparse.Namespace) -> None:
    """Run the sweeps of one table and write it."""
    table = TABLES[name]
    rows = results(table.trials(options.quick), options.cache, options.jobs)
    if table.baseline:
        text = rules_by_world(relative(rows, table.baseline))
        text += f"\n\nGeometric mean of distance over that of {table.baseline} on the same chains"
        text += ", and its 95 % bootstrap interval over chains: below 1 is nearer the target."
    else:
        text = rules_by_world(summary(rows)) + "\n\nMean over worlds ± half its 95 % bootstrap interval over seeds."
    write(name, table.title, summary(rows), text, command(name, options), options.output)


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
        table = summary(rows.assign(world="plane", sampler="one step", steps=1), metric)
        blocks.append(f"{what}:\n\n{rules_by_world(table)}")
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
    parser = argparse.ArgumentParser(
        prog="dev.py lab", description="Measure guidance rules in worlds whose answer is known."
    )
    parser.add_argument("tables", nargs="*", help=f"which of {', '.join([*TABLES, *OTHERS])}; all if none")
    parser.add_argument("--quick", action="store_true", help="few worlds, seeds and samples")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where results are kept")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where tables and figures go")
    options = parser.parse_args()
    unknown = set(options.tables) - {*TABLES, *OTHERS}
    if unknown:
        parser.error(f"no table is called {', '.join(sorted(unknown))}")
    return options


def main() -> None:
    """Make the tables and figures that were asked for."""
    options = parse()
    for name in options.tables or [*TABLES, *OTHERS]:
        if name == "steps":
            steps_table(options)
        elif name == "anisotropy":
            title = "Gaussians that are not isotropic: one step against the exact guidance"
            write(name, title, *anisotropy.text(), command(name, options), options.output)
        elif name == "figures":
            from .figures import write_all

            write_all(options.output)
        else:
            sweep_table(name, options)
