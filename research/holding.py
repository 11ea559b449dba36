"""How far the rectified guidance is off between two measurements: `python3 dev.py holding`.

A run measures at every step; afterwards each rhythm is played on what it recorded. The error of a rhythm is that of the
held R(g) against the measured one, summed over the steps, over the error of CFG (g itself against R(g)): 0 is as if measured
at every step, 1 is CFG. A step counts by Δσ/σ, by which a sampler moves a picture wrongly there; or by Δσ alone, which is
nearly the first steps only, where shapes and colours are decided.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import comfy.samplers
import pandas as pd
import torch
from torch import Tensor

from ..demo import models
from ..guiders.attach import on_model
from ..guiders.options import Options
from ..reg import refresh
from ..reg.rectification import RECTIFICATIONS, Rectification
from . import markdown
from .quality.cells import conditioning

ROOT = Path(__file__).parents[1]
NETWORKS = {
    "demo": ROOT / "demo/weights/demo.safetensors",
    "eps": ROOT / "research/weights/eps.safetensors",
    "flow": ROOT / "research/weights/flow.safetensors",
}
FOLLOWS = "## What follows"  # from here on the page is written by hand
PROMPTS = ("colour=gold", "shape=star")
STEPS = (4, 8, 12, 20)
CFG, PICTURES, SEED = 5.0, 6, 11
RHYTHMS = {
    "every 4": lambda n: refresh.measured_steps(n, 4),
    "every 2": lambda n: refresh.measured_steps(n, 2),
    "doubling": lambda n: refresh.measured_steps(n, refresh.DOUBLING),
    "0, 1, 2, 3, 5, 8, 13": lambda n: [s for s in (0, 1, 2, 3, 5, 8, 13) if s < n],
    "0, 1, 3, 7, 15": lambda n: [s for s in (0, 1, 3, 7, 15) if s < n],
    "first 4, then 8, 16": lambda n: [s for s in (0, 1, 2, 3, 8, 16) if s < n],
    "0, 1, 2, 4, 7, 12": lambda n: [s for s in (0, 1, 2, 4, 7, 12) if s < n],
}


@dataclass(frozen=True)
class Recorded:
    """A measured step. Tensors are [batch, ...]."""

    sigma: float
    noise: float  # log(σ / α), of noise over signal
    step: object  # what `Rectification.reuse` looks at
    rectified: Tensor
    value: Tensor
    informative: bool


class Watched(Rectification):
    """A rule that notes what it measures."""

    def __init__(self, rule: Rectification, notes: list[Recorded]):
        self.rule, self.notes = rule, notes
        self.name, self.label, self.needs, self.symbol = rule.name, rule.label, rule.needs, rule.symbol

    def measure(self, step):
        rectified, value = self.rule.measure(step)
        sigma, alpha = float(step.sigma[0]), float(step.alpha.flatten()[0])
        seen = SimpleNamespace(guidance=step.guidance, d_cond=step.d_cond, d_uncond=step.d_uncond, mask=None)
        noise = float("inf") if alpha == 0 else float(torch.tensor(sigma / alpha).log())
        self.notes.append(Recorded(sigma, noise, seen, rectified, value, bool(self.rule.is_informative(value))))
        return rectified, value


Carry = Callable[[list[Recorded], Recorded], Tensor]  # what was measured so far, the step -> the value there


def constant(known: list[Recorded], now: Recorded) -> Tensor:
    """The last value, as it was measured."""
    return known[-1].value


def line(slope: float) -> Carry:
    """logit of the value on a line over log(σ/α): slope 2 is the law of Gaussians, v / (v + (σ/α)²)."""

    def carried(known: list[Recorded], now: Recorded) -> Tensor:
        last = known[-1]
        return moved(last.value, slope * (last.noise - now.noise)) if last.noise < float("inf") else last.value

    return carried


def slope_of_two(known: list[Recorded], now: Recorded) -> Tensor:
    """The line through the last two measurements, with a slope from 0 to 2."""
    if len(known) < 2 or known[-2].noise == float("inf"):
        return constant(known, now)
    before, last = known[-2:]
    rise = last.value.clamp(1e-3, 1 - 1e-3).logit() - before.value.clamp(1e-3, 1 - 1e-3).logit()
    slope = (rise / (before.noise - last.noise)).clamp(0, 2)
    return moved(last.value, slope * (last.noise - now.noise))


def moved(value: Tensor, by: Tensor | float) -> Tensor:
    """A value between 0 and 1 moved in its logit; others stay."""
    inside = (value > 0) & (value < 1)
    return torch.where(inside, (value.clamp(1e-6, 1 - 1e-6).logit() + by).sigmoid(), value)


CARRIES: dict[str, Carry] = {
    "constant": constant,
    "slope 1": line(1.0),
    "slope 2": line(2.0),
    "slope of two": slope_of_two,
}


@torch.inference_mode()
def recorded(model, rule: str, steps: int, prompt: str) -> list[Recorded]:
    """A run that measures at every step."""
    notes: list[Recorded] = []
    with mock.patch.dict(RECTIFICATIONS, {rule: Watched(RECTIFICATIONS[rule], notes)}):
        rectified = on_model(model, Options(rule, refresh=1))
        sampling = model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, models.scheduler(sampling), steps)
        guider = comfy.samplers.CFGGuider(rectified)
        guider.set_conds(conditioning([prompt]), conditioning([""]))
        guider.set_cfg(CFG)
        noise = torch.randn(PICTURES, 3, 64, 64, generator=torch.Generator().manual_seed(SEED))
        euler = comfy.samplers.sampler_object("euler")
        guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True, seed=SEED)
    return notes


def errors(rule: Rectification, notes: list[Recorded], measured: list[int], carry: Carry) -> list[tuple]:
    """Per step: sigma, the next one, the length of what a rhythm is off, and of what CFG is off.

    The steps of a rhythm count from the first measurement that says something.
    """
    start = next((i for i, note in enumerate(notes) if note.informative), 0)
    known: list[Recorded] = []
    found = []
    for i, note in enumerate(notes):
        after = notes[i + 1].sigma if i + 1 < len(notes) else 0.0
        fresh = i <= start or i - start in measured
        known = [*known, note] if fresh else known
        rectified = note.rectified if fresh else rule.reuse(carry(known, note), note.step)
        off, cfg = ((v - note.rectified).norm().item() for v in (rectified, note.step.guidance))
        found.append((note.sigma, after, off, cfg))
    return found


WEIGHTS = {  # of a step, by its sigma and the next
    "error": lambda sigma, after: (sigma - after) / sigma,
    "error by sigma": lambda sigma, after: sigma - after,
}


def error(steps: list[tuple], weight: Callable[[float, float], float]) -> float:
    """Of a rhythm over CFG's."""
    weighted = [(weight(sigma, after) * off, weight(sigma, after) * cfg) for sigma, after, off, cfg in steps]
    held, guided = map(sum, zip(*weighted, strict=True))
    return held / guided


def rows(name: str, steps: tuple[int, ...]) -> list[dict]:
    """Every rhythm and carry on one network."""
    model, _ = models.load(NETWORKS[name])
    found = []
    for rule_name, rule in list(RECTIFICATIONS.items()):
        for n in steps:
            runs = [recorded(model, rule_name, n, prompt) for prompt in PROMPTS]
            for rhythm, measured in RHYTHMS.items():
                for carry_name, carry in CARRIES.items():
                    off = [errors(rule, notes, measured(n), carry) for notes in runs]
                    mean = {name: sum(error(run, w) for run in off) / len(off) for name, w in WEIGHTS.items()}
                    row = {"network": name, "rule": rule_name, "steps": n, "rhythm": rhythm, "carry": carry_name}
                    found.append(row | {"measured": len(measured(n)), **mean})
            print(name, rule_name, n, flush=True)
    return found


def summary(frame: pd.DataFrame, index: list[str], column: str, weight: str) -> str:
    """The mean over networks and, in brackets, the worst of them."""
    over = frame.groupby([*index, column])[weight].agg(["mean", "max"])
    cells = over.apply(lambda row: f"{row['mean']:.2f} ({row['max']:.2f})", axis=1).unstack(column)
    return markdown.of(cells.reset_index().astype(str))


def table(frame: pd.DataFrame) -> str:
    """Rhythms against rules by both weights, and what is carried."""
    kept, doubling = frame[frame.carry == "constant"], frame[frame.rhythm == "doubling"]
    by = ["steps", "rhythm", "measured"]
    return "\n\n".join(
        [
            f"A step counts by Δσ/σ:\n\n{summary(kept, by, 'rule', 'error')}",
            f"A step counts by Δσ:\n\n{summary(kept, by, 'rule', 'error by sigma')}",
            f"What is carried, with doubling gaps, by Δσ/σ:\n\n{summary(doubling, ['rule', 'steps'], 'carry', 'error')}",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "quality")
    arguments = parser.parse_args()
    frame = pd.DataFrame([row for name in arguments.networks for row in rows(name, tuple(arguments.steps))])
    frame.round(4).to_csv(arguments.output / "holding.csv", index=False)
    note = "Mean over the networks and prompts, and in brackets the worst network. " + __doc__.split("\n\n")[1].strip()
    page = arguments.output / "holding.md"
    written = page.read_text(encoding="utf-8").partition(FOLLOWS)[1:] if page.exists() else ()
    text = (
        f"# Between two measurements\n\n`python3 dev.py holding`\n\n{note.replace(chr(10), ' ')}\n\n{table(frame)}\n\n"
    )
    page.write_text(text + "".join(written), encoding="utf-8")


if __name__ == "__main__":
    main()
