"""Figures of a verdict. Matplotlib is imported when something is drawn."""

import io
import textwrap
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .arms import CFG, NONE, UNGUIDED
from .measures import LEVEL_OF_VALUES, Measure, Table
from .verdict import Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = (
    "#4269d0",
    "#efb118",
    "#ff725c",
    "#6cc5b0",
    "#3ca951",
    "#ff8ab7",
    "#a463f2",
    "#97bbf5",
    "#9c6b4e",
)  # Observable 10
GREY = "#8a8a8a"
MARGIN = 6  # pixels between the pictures of a grid
HEADER = 22
FAR = 3  # times what guidance changes: further from the baseline nothing is drawn


def pareto(verdict: Verdict) -> "Figure | None":
    """What is bought with what: agreement against variety, against burn and against nearness, an interval for each arm."""
    by_name = {measure.name: measure for measure in verdict.measures}
    deciding = [measure for measure in verdict.measures if measure.deciding]
    wanted = [m for m in deciding if m.name in ("score", "own")] or deciding[:1]
    if not wanted or len(deciding) < 2:
        return None
    against = [m for m in deciding if m is not wanted[0]]
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(against), 4.6), dpi=100, layout="constrained")
    for axis, measure in zip(figure.subplots(1, len(against), squeeze=False)[0], against, strict=True):
        _front(axis, verdict, wanted[0], by_name[measure.name])
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False, fontsize=9)
    return figure


def _front(axis, verdict: Verdict, up: Measure, across: Measure) -> None:
    """One plot: each rule a line over its cfg values; better is up and to the right."""
    table = verdict.table
    for colour, (rule, options) in zip(_colours(table), _curves(table), strict=True):
        arms = sorted(
            (arm for arm in table.arms if (arm.rule, arm.options) == (rule, options)), key=lambda arm: arm.cfg
        )
        points = [[m.estimate(table.index(arm), LEVEL_OF_VALUES) for arm in arms] for m in (across, up)]
        x, y = ([p.value for p in row] for row in points)
        reach = [[min(p.high - p.value, 10 * abs(p.value) + 1) for p in row] for row in points]
        name = arms[0].label if rule == NONE else arms[0].label.replace(f" {arms[0].cfg:g}", "", 1)
        axis.errorbar(
            x, y, xerr=reach[0], yerr=reach[1], color=colour, marker="o", markersize=5, elinewidth=0.6, label=name
        )
        for arm, a, b in zip(arms, x, y, strict=True):
            if rule != NONE:
                axis.annotate(
                    f"{arm.cfg:g}", (a, b), textcoords="offset points", xytext=(5, 4), fontsize=8, color=colour
                )
            if arm == verdict.recommended:
                axis.plot(
                    a, b, "o", markersize=15, markerfacecolor="none", markeredgecolor="black", markeredgewidth=1.5
                )
    _frame(axis, verdict, up, across)
    if across.better < 0:
        axis.invert_xaxis()
    axis.set_xlabel(f"{across.title}  (better to the right)")
    axis.set_ylabel(f"{up.title}  (better above)")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _frame(axis, verdict: Verdict, up: Measure, across: Measure) -> None:
    """Show what is near the baseline; far settings are counted, not drawn: beside them nothing could be told apart."""
    table = verdict.table
    base, none = table.index(verdict.baseline), table.index(UNGUIDED)
    outside = set()
    for measure, set_limits in ((across, axis.set_xlim), (up, axis.set_ylim)):
        found = [measure.estimate(i, LEVEL_OF_VALUES) for i in range(len(table.arms))]
        unit = max(abs(found[base].value - found[none].value), found[base].high - found[base].value)
        far = {i for i, e in enumerate(found) if abs(e.value - found[base].value) > FAR * unit}
        near = [e for i, e in enumerate(found) if i not in far]
        low, high = min(e.value for e in near), max(e.value for e in near)
        space = max(0.12 * (high - low), 0.3 * unit, 1e-9)
        set_limits(low - space, high + space)
        outside |= far
    if outside:
        note = f"{len(outside)} far outside: {', '.join(table.arms[i].label for i in sorted(outside))}"
        axis.set_title(textwrap.shorten(note, 70), fontsize=8, color=GREY)


def _curves(table: Table) -> list[tuple]:
    """Rule and options of each line."""
    return list(dict.fromkeys((arm.rule, arm.options) for arm in table.arms))


def _colours(table: Table) -> list[str]:
    coloured = iter(COLOURS * len(table.arms))
    return [{NONE: GREY, CFG: "#333333"}.get(rule) or next(coloured) for rule, _ in _curves(table)]


def svg(figure: "Figure") -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def pixels(figure: "Figure") -> np.ndarray:
    """[height, width, 3] uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def report(verdict: Verdict) -> np.ndarray:
    """The paragraph and the fronts as one picture, [height, width, 3] uint8."""
    from matplotlib.figure import Figure

    front = pareto(verdict)
    width = 10.4 if front is None else max(10.4, front.get_figwidth())
    lines = textwrap.wrap(verdict.paragraph, int(11 * width))
    text = Figure(figsize=(width, 0.4 + 0.21 * len(lines)), dpi=100)
    text.text(0.02, 0.5, "\n".join(lines), va="center", fontsize=11, linespacing=1.35)
    rows = [pixels(text)] + ([pixels(front)] if front is not None else [])
    wide = max(row.shape[1] for row in rows)
    return np.concatenate(
        [np.pad(row, ((0, 0), (0, wide - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    )


def grid(labels: list[str], rows: list[list[np.ndarray]], side: int) -> Image.Image:
    """Pictures of the same noises side by side, a column for each label; none wider or higher than `side`."""
    small = [[_small(picture, side) for picture in row] for row in rows]
    width = max(picture.width for row in small for picture in row)
    heights = [max(picture.height for picture in row) for row in small]
    size = (MARGIN + len(labels) * (width + MARGIN), HEADER + sum(heights) + MARGIN * len(heights))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    for i, label in enumerate(labels):
        left = MARGIN + i * (width + MARGIN)
        draw.text((left, 4), _fitting(label, font, width), "black", font)
        top = HEADER
        for row, height in zip(small, heights, strict=True):
            sheet.paste(row[i], (left, top))
            top += height + MARGIN
    return sheet


def _fitting(label: str, font, width: int) -> str:
    while font.getlength(label) > width and len(label) > 1:
        label = label[:-2] + "…"
    return label


def _small(picture: np.ndarray, side: int) -> Image.Image:
    image = Image.fromarray(picture)
    scale = side / max(image.size)
    size = tuple(max(1, round(n * scale)) for n in image.size)
    return image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)


def order(verdict: Verdict) -> list[int]:
    """Arms as they are shown: no guidance, the baseline, the recommended one, and the others, the best first."""
    first = [UNGUIDED, verdict.baseline] + ([verdict.recommended] if verdict.recommended else [])
    arms = [*first, *(c.arm for c in verdict.comparisons)]
    return [verdict.table.index(arm) for arm in dict.fromkeys(arms)]
