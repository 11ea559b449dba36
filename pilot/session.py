"""One pilot from its plan to its page, wherever the pictures are made."""

import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np

from . import collect, page, plots
from .arms import Arm, Cell, cells, with_references
from .preset import Preset, PresetError
from .scorer import Scorer
from .store import Store
from .verdict import MARGIN, Verdict, judge


@dataclass
class Plan:
    """What is to be compared, and by what."""

    arms: list[Arm]  # with no guidance and the baseline before the others: `plan` makes it so
    baseline: Arm
    prompts: list[str]
    pictures: int  # of each prompt and arm
    seed: int
    scorer: Scorer | None = None
    references: list[np.ndarray] = field(default_factory=list)
    questions: list[list[str]] = field(default_factory=list)
    margin: float = MARGIN

    @property
    def cells(self) -> list[Cell]:
        return cells(self.arms, self.prompts, self.pictures, self.seed)


def plan(
    arms: list[Arm], baseline_cfg: float, scorer: str, references: str, questions: list[list[str]], **rest
) -> Plan:
    """A plan whose folders have been read: what is missing is told before anything is sampled.

    Raises:
        ValueError: there is no scorer where one is needed, or too few references.
    """
    arms, baseline = with_references(arms, baseline_cfg)
    if questions and not scorer:
        raise ValueError(
            "REG: the question prompts need a scorer that compares texts with pictures: give the folder of a CLIP-like model."
        )
    return Plan(
        arms,
        baseline,
        scorer=Scorer(Path(scorer)) if scorer else None,
        references=collect.read_references(Path(references)) if references else [],
        questions=questions,
        **rest,
    )


@dataclass
class Answer:
    """What a pilot found."""

    verdict: Verdict
    grid: np.ndarray  # [h, w, 3] uint8
    report: np.ndarray
    preset: Preset | None


def answer(
    store: Store,
    plan: Plan,
    name: Callable[[Cell], str],
    title: str,
    model: str,
    facts: list[tuple[str, str]],
    options: dict | None = None,
) -> Answer:
    """Measure what is finished, judge it, and write the page, the tables and the preset into the folder.

    Args:
        options: what the REG nodes had besides the options of their arms.
    """
    table = collect.table(store, plan.arms, plan.cells, name, plan.scorer, plan.references, plan.questions)
    verdict = judge(table, plan.baseline, plan.margin)
    made = {"date": datetime.now().strftime("%Y-%m-%d %H:%M"), "pictures": table.n, "prompts": len(table.prompts)}
    preset = None
    if verdict.recommended:
        try:
            preset = Preset.of(verdict.recommended, options or {}, model=model, evidence=verdict.paragraph, made=made)
        except PresetError as error:  # a profile is another file
            facts = [("preset", f"none: {error}"), *facts]
    facts = [
        ("made", made["date"]),
        ("model", model or "not known"),
        *facts,
        *_facts(plan),
        ("python", platform.python_version()),
    ]
    grid = page.write(store, verdict, name, title, facts, preset)
    return Answer(verdict, grid, plots.report(verdict), preset)


def _facts(plan: Plan) -> list[tuple[str, str]]:
    return [
        ("settings", "; ".join(arm.label for arm in plan.arms)),
        ("pictures of each prompt", str(plan.pictures)),
        ("seed", str(plan.seed)),
        ("scorer", plan.scorer.name if plan.scorer else "none"),
        ("reference pictures", str(len(plan.references)) if plan.references else "none"),
        ("a loss is put up with", f"below {plan.margin:.0%} of what guidance changes"),
    ]
