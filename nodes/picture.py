"""Draws the record of a run: what its predictions were without and with REG, the cfg that was left, and the cost.

Everything is legible where a node shows it, at 400 pixels of width and at less.
"""

import textwrap
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..guiders.report.record import NO_GUIDANCE, Record
from ..reg.rectification import Needs
from . import draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

NARROWEST, WIDEST = 0.05, 1.0  # how far from 1 the maps' colours reach
CHARACTERS = 62  # of small print in one line


def record(record: Record, theme: str) -> Tensor:
    """The picture of a record, as ComfyUI's IMAGE [1, HEIGHT, WIDTH, 3], 0 to 1; `theme` is a key of draw.THEMES."""
    if not len(record.sigma):
        return draw.sentence(f"REG: {NO_GUIDANCE}.", theme)
    with draw._style(theme):
        figure = draw._figure()
        figure.suptitle(f"{record.headline}, {record.options.rule.label}", fontsize=19, fontweight="bold")
        is_map = record.options.rule.needs is Needs.JT_ONES and len(record.maps) > 0
        rows = 2 * bool(record.previews) + is_map
        if rows:
            top, bottom = figure.subfigures(2, 1, height_ratios=[1.3 * rows, 2.2])
            _draw_pictures(top, record, theme, is_map)
        else:  # no picture of these latents
            bottom = figure
        _draw_curves(bottom, record)
        figure.supxlabel(_small_print(record), fontsize=13)
        return draw.image(figure)


def _small_print(record: Record) -> str:
    """What was spent, and why the method is not the one asked for."""
    lines = [record.cost_text(), textwrap.shorten(record.fallback, 2 * CHARACTERS - 8)]
    return draw._wrapped("\n".join(lines), CHARACTERS)


def _draw_pictures(figure: "SubFigure", record: Record, theme: str, is_map: bool) -> None:
    """The first sample's prediction without REG, with it, and a map of what is left; from noise to the clean picture."""
    sigmas = [sigma for sigma, *_ in record.previews] or [
        sigma for sigma, _ in record.maps[:: len(record.maps) // 3 or 1]
    ]
    rows = [("without", 1), ("with REG", 2)] if record.previews else []
    axes = figure.subplots(len(rows) + is_map, len(sigmas), squeeze=False)
    for row, (name, part) in enumerate(rows):
        for axis, preview in zip(axes[row], record.previews, strict=True):
            axis.imshow(preview[part].numpy(), interpolation="nearest")
        axes[row, 0].set_ylabel(name, fontsize=14)
    if is_map:
        _draw_maps(figure, axes, record, sigmas, theme)
    for axis, sigma in zip(axes[0], sigmas, strict=True):
        axis.set_title(f"noise {sigma:.2g}", fontsize=14)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])


def _draw_maps(figure: "SubFigure", axes, record: Record, sigmas: list[float], theme: str) -> None:
    """What is left of the guidance, place by place, at the noise levels nearest to those given, in the last row."""
    from matplotlib.colors import LinearSegmentedColormap

    maps = [min(record.maps, key=lambda item, at=sigma: abs(item[0] - at))[1] for sigma in sigmas]
    distance = torch.cat([pixels.flatten() for pixels in maps]).sub(1).abs()
    reach = min(max(float(distance.quantile(0.98)), NARROWEST), WIDEST)
    colours = LinearSegmentedColormap.from_list(theme, draw.THEMES[theme].map)
    for axis, pixels in zip(axes[-1], maps, strict=True):
        drawn = axis.imshow(pixels.numpy(), cmap=colours, vmin=1 - reach, vmax=1 + reach, interpolation="nearest")
    axes[-1, 0].set_ylabel("what is left", fontsize=14)
    figure.colorbar(drawn, ax=list(axes.flat), shrink=0.6, anchor=(0, 0), pad=0.02, extend="both")


def _draw_curves(figure: "Figure | SubFigure", record: Record) -> None:
    """The effective cfg, and what it was multiplied by, as sampling goes: noise falls from left to right."""
    cfg, kept = figure.subplots(1, 2)
    cfg.plot(record.sigma, record.plain_cfg, linestyle="--", color="grey", linewidth=2)
    _curve(cfg, record, record.cfg, "cfg (- - without)", within=(1, 1.5))
    low, high = record.kept - record.spread, record.kept + record.spread
    kept.fill_between(record.sigma, low, high, alpha=0.25, linewidth=0)
    _curve(kept, record, record.kept, f"{record.kept_name}, mean ± spread", within=(0, 1.05))


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
    axis.set_xlabel("noise level", fontsize=13, labelpad=0)
    axis.yaxis.set_major_locator(MaxNLocator(3))
    axis.grid(True)
