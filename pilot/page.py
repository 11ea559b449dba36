"""The page that people show: one HTML file with everything in it, and tables of numbers beside it."""

import base64
import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import plots
from .arms import UNGUIDED, Cell
from .intervals import Estimate
from .measures import LEVEL_OF_VALUES, Measure, Table, shares
from .preset import Preset
from .store import Store
from .verdict import Verdict

TEMPLATE = Path(__file__).with_name("page.html.jinja")
ROWS, SIDE = 8, 144  # of the grid: noises, and pixels of a picture
TITLE_LENGTH = 60
METHOD = "Intervals: bootstrap of the {}, drawn in pairs over the settings, with Student's quantiles"
PICTURES_DRAWN = METHOD.format("pictures") + "."
PROMPTS_DRAWN = METHOD.format("prompts") + ": they tell of prompts like these."


@dataclass(frozen=True)
class Shown:
    """One number of the page's table."""

    value: str
    reach: str
    kind: str  # gain, loss or nothing
    title: str  # how it differs from the baseline


def write(
    store: Store,
    verdict: Verdict,
    name: Callable[[Cell], str],
    title: str,
    facts: list[tuple[str, str]],
    preset: Preset | None,
) -> np.ndarray:
    """Write pilot.html, settings.csv, pictures.csv, report.png and, if there is one, preset.json; gives the grid's picture.

    Raises:
        FolderError: the disk is full.
    """
    rows, sheet = _grid(store, verdict, name)
    html = render(verdict, title, facts, preset, sheet, rows)
    store.keep_text(store.folder / "pilot.html", html)
    store.keep_text(store.folder / "settings.csv", _settings_csv(verdict))
    store.keep_text(store.folder / "pictures.csv", _pictures_csv(verdict.table, name))
    if preset:
        store.keep_text(store.folder / "preset.json", preset.text())
    else:
        (store.folder / "preset.json").unlink(missing_ok=True)  # one of an earlier run
    return np.asarray(sheet)


def render(verdict: Verdict, title: str, facts, preset: Preset | None, sheet, rows: list[str]) -> str:
    """The page."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    figure = plots.pareto(verdict)
    best = verdict.recommended
    headline = f"Recommended: {best.label}" if best else f"Keep {verdict.baseline.label}"
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title[:TITLE_LENGTH],
        made=dict(facts).get("made", ""),
        headline=headline,
        paragraph=verdict.paragraph,
        recommended=best,
        baseline=verdict.baseline.label,
        level_of_values=f"{LEVEL_OF_VALUES:.0%}",
        level=f"{100 * verdict.level:.3g} %",
        plot=figure and _data("image/svg+xml", plots.svg(figure)),
        plot_text=f"Agreement against the other measures. {headline}.",
        grid=_data("image/jpeg", _jpeg(sheet)),
        rows=rows,
        measures=verdict.measures,
        table=_table(verdict, verdict.measures),
        questions=[
            {"text": text, "answers": [m.title for m in found], "rows": _table(verdict, found)}
            for text, found in shares(verdict.table)
        ],
        preset=preset and preset.text(),
        method=PROMPTS_DRAWN if verdict.table.over_prompts else PICTURES_DRAWN,
        facts=facts,
    )


def _table(verdict: Verdict, measures: list[Measure]) -> list[dict]:
    kinds = {verdict.baseline: "baseline", verdict.recommended: "recommended"}
    arms = [verdict.table.arms[i] for i in plots.order(verdict)]
    return [
        {"label": arm.label, "kind": kinds.get(arm, ""), "cells": [_shown(verdict, m, arm) for m in measures]}
        for arm in arms
    ]


def _shown(verdict: Verdict, measure: Measure, arm) -> Shown:
    index, base = verdict.table.index(arm), verdict.table.index(verdict.baseline)
    value = measure.estimate(index, LEVEL_OF_VALUES)
    number, reach = (f"{x:.{measure.digits}f}" for x in (value.value, value.high - value.value))
    if arm == verdict.baseline:
        return Shown(number, reach, "", "the setting in use")
    change = measure.difference(index, base, verdict.level)
    kind = ""
    if change.is_apart_from_zero and arm != UNGUIDED:
        kind = "gain" if (change.value > 0) == (measure.better > 0) else "loss"
        kind = kind if measure.better else ""
    return Shown(number, reach, kind, _difference(change, measure.digits, verdict.baseline.label))


def _difference(change: Estimate, digits: int, base: str) -> str:
    low, high = (f"{x:+.{digits}f}" for x in (change.low, change.high))
    return f"{change.value:+.{digits}f} ({low} to {high}) beside {base}"


def _grid(store: Store, verdict: Verdict, name):
    """What the rows are, and the sheet: the first pictures of each prompt in turn, all settings."""
    table = verdict.table
    arms = [table.arms[i] for i in plots.order(verdict)]
    units = [table.units[i] for i in first_of_each(table.prompt, ROWS)]
    pictures = [[store.picture(name(Cell(arm, *unit))) for arm in arms] for unit in units]
    return [f"{prompt[:80]} (seed {seed})" for prompt, seed in units], plots.grid(
        [a.label for a in arms], pictures, SIDE
    )


def first_of_each(groups: np.ndarray, count: int) -> list[int]:
    """Indices of `count` members, as evenly over the groups as can be: [n] group of each."""
    place = np.array([np.sum(groups[:i] == group) for i, group in enumerate(groups)])
    return sorted(np.lexsort((groups, place))[:count].tolist(), key=lambda i: (groups[i], i))


def _settings_csv(verdict: Verdict) -> str:
    """One line for each setting and measure."""
    file = io.StringIO()
    out = csv.writer(file)
    ends = ("value", "low", "high", "less the baseline", "low", "high", "pictures")
    out.writerow(["setting", "rule", "cfg", "measure", *ends])
    base = verdict.table.index(verdict.baseline)
    for measure in [*verdict.measures, *(m for _, found in shares(verdict.table) for m in found)]:
        for i, arm in enumerate(verdict.table.arms):
            value, change = measure.estimate(i, LEVEL_OF_VALUES), measure.difference(i, base, verdict.level)
            numbers = (value.value, value.low, value.high, change.value, change.low, change.high)
            out.writerow([arm.label, arm.rule, arm.cfg, measure.name, *(f"{x:.6g}" for x in numbers), verdict.table.n])
    return file.getvalue()


def _pictures_csv(table: Table, name: Callable[[Cell], str]) -> str:
    """One line for each picture, with the numbers that it has alone."""
    file = io.StringIO()
    out = csv.writer(file)
    out.writerow(["setting", "prompt", "seed", "file", *table.values])
    for i, arm in enumerate(table.arms):
        for j, (prompt, seed) in enumerate(table.units):
            numbers = [f"{values[i, j]:.6g}" for values in table.values.values()]
            out.writerow([arm.label, prompt, seed, f"cells/{name(Cell(arm, prompt, seed))}.png", *numbers])
    return file.getvalue()


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _jpeg(image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    return file.getvalue()
