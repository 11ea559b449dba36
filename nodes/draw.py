"""Pictures for a node: colours, a sheet of its size, and a few words. Matplotlib is imported when something is drawn."""

import textwrap
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..guiders.schedule import GuidanceSchedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEIGHT, DPI = 640, 640, 100  # pixels, of the shape that a new node has room for; and pixels an inch
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
