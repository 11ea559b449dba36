"""One trial: a world, a rule, a sampler and a seed, and how far the chain ends from the exact target.

A rule is a short text: `none`, `exact`, `floor` (fresh samples of the target itself), or a schedule with a
rectification and how often it is measured anew, as in `cfg`, `interval+ratio`, `cfg+jacobian/4`.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch
from joblib import Memory
from torch import Tensor

from ...lab import chains, fields, guides, measure, optimal, worlds
from ...reg import schedules
from ...reg.rectification import RECTIFICATIONS, Rectification
from ..spectral import SpectralRatio
from . import candidates

WORLDS: dict[str, Callable[[int], worlds.Pair]] = {
    "plane": worlds.classes,
    "broad": worlds.broad,
    "weak": worlds.weakened,
    **{f"field {share}": partial(fields.field, share=share) for share in (0.3, 0.6, 0.9)},
    **{f"mixed {share}": partial(fields.mixed_field, share=share) for share in (0.03, 0.1, 0.3)},
}

# Every schedule as a function of the nominal w; their numbers did best on the tuning worlds (docs/lab.md).
SCHEDULES: dict[str, Callable[[float], schedules.Schedule]] = {
    "cfg": schedules.constant,
    "linear": lambda w: schedules.linear(0.0, w),
    "cosine": lambda w: schedules.cosine(w, 2.0),
    "interval": lambda w: schedules.interval(w, 0.2, 1.0),
    "c2fg": lambda w: schedules.exponential(w, 1.5),
}


@dataclass(frozen=True)
class Trial:
    """Everything a result depends on, but the code."""

    world: str
    world_seed: int
    rule: str
    w: float
    sampler: str = "euler"
    seed: int = 0
    steps: int = 40
    samples: int = 1000

    def uses_candidate(self) -> bool:
        """Whether the rectification is one of candidates.py."""
        return self.rule.split("/")[0].partition("+")[2] in candidates.CANDIDATES | candidates.HOLDS


@lru_cache
def code_digest(with_candidates: bool) -> str:
    """A digest of the files a result depends on; the candidates' own file only where one is used."""
    here, root = Path(__file__).parent, Path(__file__).parents[2]
    files = [here / f"{name}.py" for name in ["trials"] + ["candidates"] * with_candidates]
    names = ("worlds", "fields", "optimal", "chains", "guides", "measure")
    files += [root / "lab" / f"{name}.py" for name in names]
    files += [root / "reg" / f"{name}.py" for name in ("rectification", "refresh", "rules", "schedules")]
    files += [root / "research" / "spectral.py"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def rule_of(name: str, pair: worlds.Pair) -> Rectification:
    """A rectification by name; `profile:` in front of a rule of the product reads a curve measured on the pair."""
    if name.startswith("profile:"):
        sigmas = torch.logspace(-1.7, 2, 24, dtype=torch.float64)
        profile = guides.measure_profile(pair, sigmas, torch.Generator().manual_seed(0))
        return guides.ByProfile(RECTIFICATIONS[name.removeprefix("profile:")], profile)
    rules = guides.all_rules() | {"spectral": SpectralRatio()}
    return rules[name] if name in rules else guides.ByFunction((candidates.CANDIDATES | candidates.HOLDS)[name])


def guided(rule: str, pair: worlds.Pair, w: float) -> chains.Denoise:
    """The denoiser of a rule's text that names a schedule, and how often is measured after a stroke (0: doubling gaps)."""
    text, _, refresh = rule.partition("/")
    schedule, _, name = text.partition("+")
    return guides.Guide(pair, SCHEDULES[schedule](w), rule_of(name or "none", pair), int(refresh or 1))


@dataclass(frozen=True)
class Judge:
    """A world with its target: what a trial is judged by."""

    pair: worlds.Pair
    target: object
    w: float

    def denoiser(self, rule: str) -> chains.Denoise:
        if rule == "none":
            return self.pair.cond.denoise
        return self.target.denoise if rule == "exact" else guided(rule, self.pair, self.w)

    def score(self, start: Tensor, samples: Tensor, seed: int) -> dict[str, float]:
        """Distance to the target, and the error of the components' masses where there are several."""
        if isinstance(self.target, fields.FieldMixture):
            return {"distance": measure.field_distance(start, samples, self.target)}
        random = torch.Generator().manual_seed(1000 + seed)
        exact = self.target.sample(max(3000, len(samples)), random)
        distance = measure.sliced_wasserstein(samples, exact, seed=seed)
        mass = self.target.component_mass(self.pair.cond)
        return {"distance": distance, "modes": measure.mode_error(samples, self.pair.cond, mass)}


@lru_cache(maxsize=8)
def judge(world: str, world_seed: int, w: float) -> Judge:
    """The world's pair and target, made once for all rules."""
    pair = WORLDS[world](world_seed)
    make = {"field": optimal.gaussian_target, "mixed": optimal.PoolTarget}.get(world.split()[0], optimal.GridTarget)
    return Judge(pair, make(pair, w), w)


def run(trial: Trial) -> dict[str, float]:
    """Run one chain and judge it."""
    torch.set_num_threads(1)
    case = judge(trial.world, trial.world_seed, trial.w)
    random = torch.Generator().manual_seed(trial.seed)
    shape = case.pair.cond.sample(1, torch.Generator()).shape[1:]
    start = chains.noise((trial.samples, *shape), random)
    if trial.rule == "floor":
        return case.score(start, case.target.sample(trial.samples, random), trial.seed)
    sample = chains.SAMPLERS[trial.sampler]
    x = sample(case.denoiser(trial.rule), start, chains.karras(trial.steps), random)
    return case.score(start, x, trial.seed)


def cached(trial: Trial, cache: Path) -> dict[str, float]:
    """The result of a trial, computed unless the cache holds it: a run that was stopped goes on where it was."""
    return Memory(cache, verbose=0).cache(result)(trial, code_digest(trial.uses_candidate()))


def result(trial: Trial, code: str) -> dict[str, float]:
    """What the cache holds; the trial and the digest of the code are its address."""
    return run(trial)
