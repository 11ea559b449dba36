"""Pictures for the nodes, legible at 250 pixels. Matplotlib is imported when something is drawn."""

import textwrap
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..guiders.report.record import Record
from ..guiders.schedule import GuidanceSchedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT, DPI = 640, 560, 100  # pixels, of the shape that a new node has room for; and pixels an inch
NARROWEST, WIDEST = 0.05, 1.0  # how far from 1 the maps' colours reach
CHARACTERS = 66  # of small print in one line
NO_MATPLOTLIB = (
    "REG: this node draws with matplotlib, which is not installed: run `python -m pip install matplotlib` with ComfyUI's "
    "Python, and start ComfyUI again."
)


class Theme(NamedTuple):
    """Colours of a picture."""

    paper: str
    ink: str
    faint: str
    curve: str
    map: tuple[str, str, str]  # where guidance is damped, left, amplified


THEMES = {
    "dark": Theme("#1e1e1e", "#e6e6e6", "#4a4a4a", "#6cb6ff", ("#6cb6ff", "#303030", "#ff8a70")),
    "light": Theme("#ffffff", "#1a1a1a", "#cfcfcf", "#1f5fbf", ("#1f5fbf", "#eeeeee", "#c0392b")),
}


def record(record: Record, theme: str) -> Tensor:
    """The picture of a record, as ComfyUI's IMAGE [1, HEIGHT, WIDTH, 3], 0 to 1; `theme` is a key of THEMES."""
    if not len(record.sigma):
        return sentence(record.summary(), theme)
    with _style(theme):
        figure = _figure()
        figure.suptitle(f"REG {record.options.rectification} by {record.estimator}", fontsize=16, fontweight="bold")
        maps, panels = figure.subfigures(2, 1, height_ratios=[1, 2.6])
        _draw_maps(maps, record, theme)
        _draw_curves(panels.subplots(2, 2), record)
        figure.supxlabel(_small_print(record), fontsize=13)
        return image(figure)


def schedule(schedule: GuidanceSchedule, theme: str = "dark") -> Tensor:
    """The cfg over a run, [1, 290, 480, 3]."""
    require_matplotlib()
    percent, cfg = schedule.curve()
    with _style(theme):
        figure = _figure(480, 290)
        axes = figure.subplots()
        axes.plot(100 * percent, cfg, linewidth=3)
        axes.fill_between(100 * percent, 1, cfg, alpha=0.25)
        axes.axhline(1, color=THEMES[theme].ink, linewidth=1, linestyle=":")
        axes.set(xlim=(0, 100), ylim=(min(0.0, float(cfg.min())), 1.1 * max(2.0, float(cfg.max()))))
        axes.set_xlabel(
            {"percent": "percent of the run", "sigma": "percent that sigma has fallen"}[schedule.counted_in],
            fontsize=15,
        )
        axes.set_ylabel("cfg", fontsize=15)
        axes.set_title(schedule.shape, fontsize=16)
        return image(figure)


def sentence(text: str, theme: str) -> Tensor:
    """A picture of a few words, [1, HEIGHT, WIDTH, 3]."""
    with _style(theme):
        figure = _figure()
        figure.text(0.5, 0.5, _wrapped(text, 46), ha="center", va="center", fontsize=20, linespacing=1.5)
        return image(figure)


def _small_print(record: Record) -> str:
    """What was spent, and why the estimator is not the one asked for."""
    spent = f"strength {record.options.strength:g} · {record.passes_text()}"
    return _wrapped(f"{spent}\n{textwrap.shorten(record.fallback, 2 * CHARACTERS - 8)}", CHARACTERS)


def _draw_maps(figure: "Figure", record: Record, theme: str) -> None:
    """What is left of the guidance, place by place, over the steps."""
    from matplotlib.colors import LinearSegmentedColormap

    figure.suptitle("what is left of the guidance, by sigma", fontsize=14)
    axes = figure.subplots(1, len(record.maps), squeeze=False)[0]
    distance = torch.cat([pixels.flatten() for _, pixels in record.maps]).sub(1).abs()
    reach = min(max(float(distance.quantile(0.98)), NARROWEST), WIDEST)
    colours = LinearSegmentedColormap.from_list(theme, THEMES[theme].map)
    for axis, (sigma, pixels) in zip(axes, record.maps, strict=True):
        drawn = axis.imshow(pixels.numpy(), cmap=colours, vmin=1 - reach, vmax=1 + reach, interpolation="nearest")
        axis.set_title(f"{sigma:.3g}", fontsize=14)
        axis.set(xticks=[], yticks=[])
    figure.colorbar(drawn, ax=axes, aspect=8, pad=0.02, extend="both")


def _draw_curves(axes, record: Record) -> None:
    """The four curves over sigma, which falls from left to right as sampling goes. Their scales do not magnify."""
    kept, cfg, correction, seconds = axes.flat
    low, high = record.kept - record.spread, record.kept + record.spread
    kept.fill_between(record.sigma, low, high, alpha=0.25, linewidth=0)
    _curve(kept, record, record.kept, f"{record.kept_name}: mean ± spread", within=(0, 1.05))
    cfg.plot(record.sigma, record.plain_cfg, linestyle="--", color="grey")
    _curve(cfg, record, record.cfg, "effective cfg (- - without)", within=(1, 1.5))
    _curve(correction, record, record.correction, "correction / guidance", within=(0, 0.1))
    _curve(seconds, record, record.seconds, "seconds a step", within=(0, 0.01))
    for axis in (correction, seconds):
        axis.set_xlabel("sigma", labelpad=0)


def _curve(axis: "Axes", record: Record, values: Tensor, title: str, within: tuple[float, float]) -> None:
    """A curve over sigma, on a scale that shows at least the range `within`."""
    from matplotlib.ticker import FormatStrFormatter, MaxNLocator

    axis.plot(record.sigma, values, marker="o", markersize=4, linewidth=2)
    axis.set_title(title, fontsize=15)
    bottom, top = axis.get_ylim()
    axis.set_ylim(min(bottom, within[0]) if values.min() < within[0] else within[0], max(top, within[1]))
    if record.sigma.max() > 1:  # noise levels of a flow model go from 1 to 0; others over decades
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.invert_xaxis()
    axis.yaxis.set_major_locator(MaxNLocator(3))
    axis.grid(True)


def _style(name: str):
    """A context in which matplotlib draws in the theme's colours."""
    import matplotlib

    theme = THEMES[name]
    inked = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color", "axes.edgecolor")
    return matplotlib.rc_context(
        {
            **dict.fromkeys(inked, theme.ink),
            "figure.facecolor": theme.paper,
            "axes.facecolor": theme.paper,
            "grid.color": theme.faint,
            "axes.prop_cycle": matplotlib.cycler(color=[theme.curve]),
            "font.size": 13,
            "font.family": "DejaVu Sans",  # comes with matplotlib
        }
    )


def _figure(width: int = WIDTH, height: int = HEIGHT) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width / DPI, height / DPI), dpi=DPI, layout="constrained")


def image(figure: "Figure") -> Tensor:
    """A matplotlib figure as ComfyUI's IMAGE, [1, height, width, 3], 0 to 1."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    pixels = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8)
    return pixels.view(1, height, width, 4)[..., :3].float() / 255


def require_matplotlib() -> None:
    """Raises ImportError, which says what to install: ask before anything is sampled for the picture."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(NO_MATPLOTLIB) from error


def _wrapped(text: str, width: int) -> str:
    return "\n".join(line for part in text.splitlines() for line in textwrap.wrap(part, width))
