"""One guided step against the exact one: the paper's win ratio and RMS error.

A rule that wins here need not win a whole chain, and no guidance at all is hard to beat: both are in the tables.
"""

from dataclasses import dataclass

import torch

from ...lab import guides, optimal
from ...reg import schedules
from .trials import WORLDS, rule_of

RULES = ("none", "cfg", "elementwise", "jacobian", "natural", "ratio", "characteristic")


@dataclass(frozen=True)
class StepErrors:
    """How far each rule's prediction is from the exact one, [points] a rule, at noisy samples of the class."""

    errors: dict[str, torch.Tensor]

    def rms(self, rule: str) -> float:
        """Root mean square over points, in the units of x."""
        return self.errors[rule].square().mean().sqrt().item()

    def wins(self, rule: str) -> float:
        """The share of points where the rule is nearer than CFG."""
        return (self.errors[rule] < self.errors["cfg"]).double().mean().item()


def step_errors(world: str, seed: int, w: float, sigma: float, points: int = 300) -> StepErrors:
    """Compare all rules at `points` noisy samples x0 + sigma n of the class."""
    pair, random = WORLDS[world](seed), torch.Generator().manual_seed(seed)
    x = pair.cond.sample(points, random)
    x = x + sigma * torch.randn(x.shape, generator=random, dtype=x.dtype)
    exact = optimal.GridTarget(pair, w).denoise(x, sigma)
    found = {"none": pair.cond.denoise(x, sigma)}
    for rule in RULES[1:]:
        method = rule_of("none" if rule == "cfg" else rule, pair)
        found[rule] = guides.Guide(pair, schedules.constant(w), method)(x, sigma)
    return StepErrors({rule: (d - exact).norm(dim=-1) for rule, d in found.items()})
