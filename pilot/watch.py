"""After a change, a new checkpoint or a new ComfyUI: the same noises again, and what moved beyond the intervals."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np

from . import arms, collect, outside, preset
from .arms import UNGUIDED, Arm, Cell
from .intervals import Estimate
from .measures import Measure, Table, measures
from .outside import Places, Setup
from .store import Store
from .verdict import LEVEL
from .workflow import Prompt

BEFORE, AFTER = "before", "after"
FOLDER = "watch"
PICTURES = 4  # of each prompt
NOT_COMPARED = ("seconds", "evaluations")  # another machine may have made them


@dataclass(frozen=True)
class Movement:
    """How one measure of one setting moved."""

    setting: str
    measure: Measure
    change: Estimate

    @property
    def text(self) -> str:
        c, digits = self.change, self.measure.digits
        return (
            f"{self.setting}: {self.measure.title} {c.value:+.{digits}f} ({c.low:+.{digits}f} to {c.high:+.{digits}f})"
        )


@dataclass(frozen=True)
class Watched:
    """What a watch found."""

    pictures: int
    same: int  # to the last bit
    distance: float  # of the pictures from those before: mean over them of the root mean square, 0 to 1
    movements: list[Movement]
    level: float
    folder: Path

    @property
    def moved(self) -> list[Movement]:
        return [movement for movement in self.movements if movement.change.is_apart_from_zero]

    @property
    def paragraph(self) -> str:
        found = [f"{self.pictures} pictures were made again; {self.same} are the same to the last bit."]
        if self.same == self.pictures:
            return " ".join([*found, "Nothing moved."])
        found.append(
            f"On average a picture differs from the one before by {self.distance:.1%} of the range (root mean square)."
        )
        if not self.movements:
            found.append("There are too few of them to measure more.")
        elif not self.moved:
            found.append(
                f"Nothing moved beyond its interval ({100 * self.level:.3g} %, for {LEVEL:.0%} over all measures); "
                "less than that cannot be seen with so few."
            )
        else:
            found.append("Moved beyond the intervals: " + "; ".join(movement.text for movement in self.moved) + ".")
        return " ".join(found)


async def watch(folder: Path, places: Places, workflow: Prompt | None, pictures: int, name: str) -> Watched:
    """Run a small part of a saved pilot again: the recommended setting, or else the one that was in use, and no guidance.

    workflow: another one to use, for a new checkpoint; None takes the saved one. name: of this watch, whose finished pictures
    are kept.

    Raises:
        ValueError: there is no pilot in the folder, or too little of it was finished.
        RuntimeError: servers or pictures fail.
    """
    setup = Setup.read(folder)
    setup = replace(setup, pictures=min(pictures or PICTURES, setup.pictures))
    old = setup.opened()
    new = replace(setup, workflow=workflow).opened() if workflow else old
    out = folder / FOLDER / (name or datetime.now().strftime("%Y-%m-%d %H.%M.%S"))
    with Store(folder) as before, Store(out) as after:
        settings = [UNGUIDED, _watched(folder, setup, old)]
        cells = arms.cells(settings, setup.prompts, setup.pictures, setup.seed)
        name_before = lambda cell: arms.address(old.of(cell))  # noqa: E731
        name_after = lambda cell: arms.address(new.of(cell))  # noqa: E731
        cells = [cell for cell in cells if before.has(name_before(cell))]
        if not cells:
            raise ValueError(
                f"REG: nothing to compare with was finished in {folder}: let the pilot run to its end first."
            )
        async with places.opened(out / "comfyui.log") as workers:
            failures = await outside._make(after, cells, workers, new, name_after, places.lanes)
        cells = [cell for cell in cells if cell not in failures]
        watched = compare(before, after, settings, cells, name_before, name_after, _scorer(setup))
        after.keep_text(
            out / "watch.txt", watched.paragraph + "\n\n" + "\n".join(m.text for m in watched.movements) + "\n"
        )
    return watched


def _watched(folder: Path, setup: Setup, workflow) -> Arm:
    """The recommended setting of the saved pilot, or its baseline."""
    if (folder / "preset.json").exists():
        found = preset.load(folder / "preset.json")
        rest = {k: v for k, v in found.options.items() if k != "rectification" and (k, v) != ("strength", 1.0)}
        if found.options.get("strength") != 0:
            return Arm(found.options["rectification"], found.cfg, tuple(sorted(rest.items())))
        return Arm(arms.CFG, found.cfg)
    return Arm(arms.CFG, float(setup.cfg or workflow.cfg))


def _scorer(setup: Setup):
    from .scorer import Scorer

    return Scorer(Path(setup.scorer)) if setup.scorer else None


def compare(
    before: Store,
    after: Store,
    settings: list[Arm],
    cells: list[Cell],
    name_before: Callable[[Cell], str],
    name_after: Callable[[Cell], str],
    scorer=None,
) -> Watched:
    """Every measure of every setting, after less before, on the same noises."""
    tables = [
        collect.table(store, settings, cells, name, scorer)
        for store, name in ((before, name_before), (after, name_after))
    ]
    both = [_joined(tables, arm) for arm in settings]
    found = [(arm, measure) for arm, table in zip(settings, both, strict=True) for measure in measures(table)]
    found = [(arm, measure) for arm, measure in found if measure.name not in NOT_COMPARED]
    level = 1 - (1 - LEVEL) / max(1, len(found))
    apart = [_distance(before.picture(name_before(cell)), after.picture(name_after(cell))) for cell in cells]
    movements = [Movement(arm.label, measure, measure.difference(1, 0, level)) for arm, measure in found]
    return Watched(len(cells), sum(d == 0 for d in apart), float(np.mean(apart)), movements, level, after.folder)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square of [h, w, 3] uint8, 0 to 1; pictures of different sizes have nothing in common."""
    return float(np.sqrt(((a.astype(float) - b) ** 2).mean()) / 255) if a.shape == b.shape else 1.0


def _joined(tables: list[Table], arm: Arm) -> Table:
    """One setting before and after, as two arms of one table."""
    place = tables[0].index(arm)
    pick = lambda key, kind: np.stack([getattr(table, kind)[key][place] for table in tables])  # noqa: E731
    values = {key: pick(key, "values") for key in tables[0].values if key in tables[1].values}
    features = {key: pick(key, "features") for key in tables[0].features if key in tables[1].features}
    return Table([Arm(BEFORE, 1.0), Arm(AFTER, 1.0)], tables[0].units, values, features)
