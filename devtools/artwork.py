"""Draws the icon and the banner of the registry's page out of the lab's 1-D world: `python -m devtools.artwork`.

Time goes from left to right, from noise to data. Behind is the density that guidance should sample at every noise level;
over it run chains with CFG and with REG, from the same noise.
"""

import io
import sys
import types
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
pack = sys.modules.setdefault("pack", types.ModuleType("pack"))
pack.__path__ = [str(ROOT)]

from pack.lab import chains, figures, optimal, worlds  # noqa: E402

FOLDER = ROOT / "docs" / "images"
GLOW = LinearSegmentedColormap.from_list("glow", ["#0d1020", "#16224a", "#2c5fa8", "#8fd3ff"])
CFG, REG, SOFT = "#ff8a5c", "#f4fbff", "#9fb4d8"
W, STEPS = 3.0, 90
SIGMAS = chains.karras(STEPS)[:-1]


def scaled(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Noise and data on one scale: x over √(1 + sigma²)."""
    return x / (1 + sigma**2) ** 0.5


def density(target: optimal.GridTarget, low: float, high: float, rows: int = 300) -> np.ndarray:
    """What guidance should sample at each noise level, each column by its own highest, [rows, STEPS]."""
    y = torch.linspace(low, high, rows, dtype=torch.float64)[:, None]
    columns = []
    for sigma in SIGMAS:
        squares = (y * (1 + sigma**2) ** 0.5 - target.axes[0]).square()
        column = torch.exp(-squares / (2 * sigma**2)) @ target.mass
        columns.append(column / column.max())
    return torch.stack(columns, 1).numpy()


def paths(rule: str, pair: worlds.Pair, starts: torch.Tensor) -> torch.Tensor:
    """Where the chains of a rule are at each noise level, [STEPS, starts]."""
    denoise, seen = figures.guided(rule, pair, W), []

    def watched(x: torch.Tensor, sigma: float) -> torch.Tensor:
        seen.append(scaled(x, sigma)[:, 0])
        return denoise(x, sigma)

    chains.euler(watched, chains.SIGMA_MAX * starts[:, None], [*SIGMAS, 0.0])
    return torch.stack(seen)


def draw(
    size: tuple[int, int], count: int, line: float, low: float, high: float, first: int = 0, glow: Colormap = GLOW
) -> Figure:
    """The world from `low` to `high` without words, `size` in pixels; `first` leaves out the first noise levels."""
    pair = worlds.paper_line()
    target = optimal.GridTarget(pair, W)
    figure = Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100, facecolor=glow(0))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    extent = (0, STEPS - 1, low, high)
    axes.imshow(
        density(target, low, high), cmap=glow, extent=extent, origin="lower", aspect="auto", interpolation="bicubic"
    )
    starts = torch.linspace(-1.4, 1.4, count, dtype=torch.float64)
    for rule, colour in (("cfg", CFG), ("elementwise", REG)):
        axes.plot(paths(rule, pair, starts), color=colour, linewidth=line, alpha=0.9)
    axes.set(xlim=(first, STEPS - 1), ylim=(low, high))
    return figure


def icon() -> Figure:
    return draw((256, 256), count=5, line=4, low=-1.3, high=2.9, first=35)


def banner() -> Figure:
    figure = draw((1260, 540), count=17, line=1.3, low=-2.0, high=3.6)
    figure.text(0.04, 0.85, "ComfyUI-REG", color="white", fontsize=46, fontweight="bold", va="center")
    figure.text(0.04, 0.72, "Rectified Gradient Guidance", color="white", fontsize=22, va="center")
    for x, word, colour in ((0.64, "CFG", CFG), (0.698, "and", SOFT), (0.752, "REG", REG)):
        figure.text(x, 0.17, word, color=colour, fontsize=18, fontweight="bold")
    figure.text(0.64, 0.10, "over what guidance should sample", color=SOFT, fontsize=18)
    return figure


def save(figure: Figure, path: Path) -> None:
    """In 256 colours, which a gradient of few hues survives."""
    buffer = io.BytesIO()
    figure.savefig(buffer)
    Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    save(icon(), FOLDER / "icon.png")
    save(banner(), FOLDER / "banner.png")


if __name__ == "__main__":
    main()
