"""What follows from the numbers: which arm is better, which is worse, what cannot be told yet, and the recommended setting.

Every arm is compared with the setting in use, the baseline. Guidance buys agreement with variety and burn; how much it moves
each of them, from no guidance to the baseline, is the unit here. An arm is recommended if it is shown to be better in one
deciding measure and shown to lose less than MARGIN of that unit in every other (a test of non-inferiority). The intervals hold
for all arms together (Bonferroni).
"""

import math
from dataclasses import dataclass
from functools import cached_property

from .arms import UNGUIDED, Arm
from .intervals import Estimate
from .measures import Measure, Table, measures

MARGIN = 0.25  # of what guidance changes: a loss of less is put up with
LEVEL = 0.95
MOST_NAMED = 4  # arms of a kind in the paragraph
FEWEST, ENOUGH_TO_BEGIN = 8, 32  # pictures of a setting


@dataclass(frozen=True)
class Change:
    """How an arm differs from the baseline in one deciding measure; gains are positive, in units of what guidance changes."""

    measure: Measure
    raw: Estimate  # arm less baseline, as measured
    unit: float  # of a gain, in the measure's own numbers

    @cached_property
    def gain(self) -> Estimate:
        values = sorted(self.measure.better * v / self.unit for v in (self.raw.low, self.raw.high))
        value = self.measure.better * self.raw.value / self.unit
        return Estimate(value, self.raw.error / self.unit, *values, self.raw.n)

    @property
    def is_gain(self) -> bool:
        return self.gain.low > 0

    @property
    def is_loss(self) -> bool:
        return self.gain.high < 0

    def keeps(self, margin: float) -> bool:
        return self.gain.low > -margin


@dataclass(frozen=True)
class Comparison:
    """One arm beside the baseline."""

    arm: Arm
    changes: list[Change]
    margin: float

    @property
    def is_better(self) -> bool:
        return any(c.is_gain for c in self.changes) and all(c.keeps(self.margin) for c in self.changes)

    @property
    def is_worse(self) -> bool:
        return any(c.is_loss for c in self.changes) and not any(c.is_gain for c in self.changes)

    @property
    def is_trade(self) -> bool:
        return any(c.is_loss for c in self.changes) and any(c.is_gain for c in self.changes) and not self.is_better

    @property
    def merit(self) -> float:
        """Mean gain over the deciding measures: what orders the arms."""
        return sum(c.gain.value for c in self.changes) / len(self.changes)

    def factor_needed(self) -> float:
        """How many times as many pictures would settle that it is better, if it is as it seems; infinite if it seems not."""
        losing = [c for c in self.changes if not c.keeps(self.margin)]
        if any(c.gain.value <= -self.margin for c in losing) or not any(c.gain.value > 0 for c in self.changes):
            return math.inf
        shrink = [((c.gain.value - c.gain.low) / (c.gain.value + self.margin)) ** 2 for c in losing]
        gains = [((c.gain.value - c.gain.low) / c.gain.value) ** 2 for c in self.changes if c.gain.value > 0]
        return max(1.0, *shrink, min(gains))


@dataclass(frozen=True)
class Verdict:
    """The answer of a pilot."""

    table: Table
    baseline: Arm
    measures: list[Measure]
    comparisons: list[Comparison]  # the best first
    level: float  # of each comparison's intervals, for LEVEL over all
    recommended: Arm | None  # None: nothing is shown to be better than the baseline

    @property
    def paragraph(self) -> str:
        return " ".join(_sentences(self))


def judge(table: Table, baseline: Arm, margin: float = MARGIN) -> Verdict:
    """Compare every arm with the baseline."""
    all_measures = measures(table)
    deciding = [measure for measure in all_measures if measure.deciding]
    others = [arm for arm in table.arms if arm not in (baseline, UNGUIDED)]
    level = 1 - (1 - LEVEL) / max(1, len(others))
    base = table.index(baseline)
    units = {measure.name: _unit(measure, table, base) for measure in deciding}
    comparisons = [
        Comparison(
            arm,
            [Change(m, m.difference(table.index(arm), base, level), units[m.name]) for m in deciding],
            margin,
        )
        for arm in others
    ]
    may = _can_recommend(deciding) and table.n >= FEWEST
    if may:
        comparisons.sort(key=lambda comparison: -comparison.merit)
    best = next((c.arm for c in comparisons if c.is_better), None) if may else None
    return Verdict(table, baseline, all_measures, comparisons, level, best)


def _can_recommend(deciding: list[Measure]) -> bool:
    """Without agreement or references, no guidance at all would win."""
    return any(measure.name in ("score", "own", "kid") for measure in deciding)


def _unit(measure: Measure, table: Table, base: int) -> float:
    """How much guidance changes a measure; where that cannot be told from nothing, as much as it may be."""
    effect = measure.difference(base, table.index(UNGUIDED), LEVEL)
    size = abs(effect.value) if effect.is_apart_from_zero else max(abs(effect.low), abs(effect.high))
    return size if 0 < size < math.inf else 1.0


def _sentences(verdict: Verdict) -> list[str]:
    table, base = verdict.table, verdict.baseline.label
    prompts = "prompt" if len(table.prompts) == 1 else "prompts"
    found = [
        f"{table.n} pictures of {len(table.prompts)} {prompts} were made with every setting, from the same noises."
    ]
    if not verdict.comparisons:
        return [*found, "There is nothing to compare with yet: add arms."]
    if table.n < FEWEST:
        return [*found, f"So few show nothing that can be relied on: make {ENOUGH_TO_BEGIN} or more."]
    if not _can_recommend([measure for measure in verdict.measures if measure.deciding]):
        found.append(
            "Nothing here says whether the pictures still show what the prompt asks for, so that no setting can be "
            "recommended: give a scorer (a CLIP-like model in a local folder) or a folder of reference pictures."
        )
        return found + _kinds(verdict)
    return found + _recommendation(verdict, base) + _kinds(verdict)


def _recommendation(verdict: Verdict, base: str) -> list[str]:
    if verdict.recommended:
        (comparison,) = (c for c in verdict.comparisons if c.arm == verdict.recommended)
        gains = "; ".join(_told(c) for c in comparison.changes if c.is_gain)
        rest = "; ".join(_told(c) for c in comparison.changes if not c.is_gain)
        kept = (
            f" What is not gained is kept within {comparison.margin:.0%} of what guidance changes: {rest}."
            if rest
            else ""
        )
        return [f"{comparison.arm.label} is recommended: it is better than {base} in {gains}.{kept}"]
    found = [f"No setting was shown to be better than {base} without a loss elsewhere: keep {base}."]
    hopeful = [c for c in verdict.comparisons if math.isfinite(c.factor_needed())]
    if hopeful:
        best = max(hopeful, key=lambda c: c.merit)
        needed = _rounded(verdict.table.n * best.factor_needed())
        found.append(
            f"{best.arm.label} looks most promising; about {needed} pictures would settle it if it is as it seems."
        )
    return found


def _kinds(verdict: Verdict) -> list[str]:
    """One sentence for each kind of arm there is."""
    comparisons, base = verdict.comparisons, verdict.baseline.label
    found = []
    better = [c.arm.label for c in comparisons if c.is_better and c.arm != verdict.recommended]
    if better:
        start = f"Also better than {base}" if verdict.recommended else f"In what was measured, better than {base}"
        found.append(f"{start}: {_listed(better)}.")
    worse = [
        f"{c.arm.label} ({', '.join(_told(change) for change in c.changes if change.is_loss)})"
        for c in comparisons
        if c.is_worse
    ]
    if worse:
        found.append(f"Worse than {base}, and better in nothing: {_listed(worse)}.")
    trades = [
        f"{c.arm.label} (gains {_names(c, 'is_gain')}, loses {_names(c, 'is_loss')})" for c in comparisons if c.is_trade
    ]
    if trades:
        found.append(f"These trade one for another: {_listed(trades)}.")
    same = [c for c in comparisons if not any(change.raw.is_apart_from_zero for change in c.changes)]
    if same:
        found.append(
            f"No difference from {base} was found with this many pictures for {_listed(map(_needs(verdict), same))}."
        )
    return found


def _needs(verdict: Verdict):
    """An arm without a difference, and how many pictures one of the size seen would need."""

    def told(comparison: Comparison) -> str:
        change = min(comparison.changes, key=lambda c: c.raw.factor_needed(verdict.level))
        factor = change.raw.factor_needed(verdict.level)
        if not math.isfinite(factor):
            return f"{comparison.arm.label} (the pictures are the same)"
        size = f"{change.raw.value:+.{change.measure.digits}f} in {change.measure.title}"
        return f"{comparison.arm.label} ({size}: about {_rounded(verdict.table.n * factor)} pictures would be needed to see it)"

    return told


def _told(change: Change) -> str:
    """A gain or loss in words: how much of what guidance changes, with its interval."""
    g = change.gain
    return f"{change.measure.title} ({100 * g.value:+.0f} %, {100 * g.low:+.0f} to {100 * g.high:+.0f})"


def _names(comparison: Comparison, kind: str) -> str:
    return ", ".join(c.measure.title for c in comparison.changes if getattr(c, kind))


def _listed(items) -> str:
    items = list(items)
    rest = len(items) - MOST_NAMED
    return "; ".join(items[:MOST_NAMED]) + (f"; and {rest} more in the table" if rest > 0 else "")


def _rounded(n: float) -> str:
    """A number of pictures to two digits, upwards."""
    if n > 1e6:
        return "more than a million"
    unit = 10 ** max(0, math.floor(math.log10(max(n, 1))) - 1)
    return f"{math.ceil(n / unit) * unit:,.0f}"
