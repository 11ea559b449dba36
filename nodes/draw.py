"""Pictures for a node: colours, a sheet of its size, and a few words. Matplotlib is imported when something is drawn."""

import textwrap
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEIGHT, DPI = 640, 640, 100  # pixels, of the shape that a new node has room for; and pixels an inch


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


def _figure() -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, layout="constrained")


def image(figure: "Figure") -> Tensor:
    """A matplotlib figure as ComfyUI's IMAGE, [1, height, width, 3], 0 to 1."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    pixels = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8)
    return pixels.view(1, height, width, 4)[..., :3].float() / 255


def _wrapped(text: str, width: int) -> str:
    return "\n".join(line for part in text.splitlines() for line in textwrap.wrap(part, width))
