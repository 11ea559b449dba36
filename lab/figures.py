"""Pictures of what guidance does where the exact answer is known. Each function returns a matplotlib Figure.

No pyplot: a Figure belongs to whoever asked for it, and may be drawn in any thread. A rule keeps its colour in every
figure.
"""

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from ..reg import schedules
from ..reg.rectification import RECTIFICATIONS, gain
from . import chains, guides, measure, optimal, worlds

COLOURS = {  # distinguishable without red-green vision (Okabe and Ito)
    "exact": "#000000",
    "none": "#999999",
    "cfg": "#D55E00",
    "natural": "#56B4E9",
    "characteristic": "#E69F00",
    **{rule.name: rule.colour for rule in RECTIFICATIONS.values()},
}
NAMES = {
    "exact": "the right answer",
    "none": "no guidance",
    "cfg": "CFG",
    "natural": "whole Jacobian, natural step",
    "characteristic": "characteristic",
    **{rule.name: rule.label for rule in RECTIFICATIONS.values()},
}
SMALL, LARGE = 13, 15  # points: a figure of 6 inches is legible on a node of 380 pixels
LEAST = 1e-6  # of a scale: without guidance there is nothing but rounding to show


def _figure(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=LARGE)
    return figure


def _sized(figure: Figure) -> Figure:
    """The same figure with ticks and labels of the small size."""
    for axes in figure.axes:
        axes.tick_params(labelsize=SMALL)
        for text in (axes.xaxis.label, axes.yaxis.label):
            text.set_fontsize(SMALL)
    return figure


def predictions(pair: worlds.Pair, x: torch.Tensor, sigma: float, w: float, rules: tuple[str, ...]) -> dict:
    """The guided prediction of each rule and the exact one, [points, d]."""
    found = {"exact": optimal.GridTarget(pair, w).denoise(x, sigma)}
    for rule in rules:
        found[rule] = guided(rule, pair, w)(x, sigma)
    return found


def guided(rule: str, pair: worlds.Pair, w: float) -> chains.Denoise:
    """The denoiser of a constant weight with a rectification; also of no guidance and of plain CFG."""
    if rule == "none":
        return pair.cond.denoise
    return guides.Guide(pair, schedules.constant(w), guides.all_rules()["none" if rule == "cfg" else rule])


def curves(w: float = 1.0, rectification: str = "elementwise", count: int = 9) -> Figure:
    """The paper's 1-D figure: the guidance ∇log R_t of CFG, rectified, and the exact ∇log E_t at every noise level.

    Shaded is where samples are, the density of the noisy conditional. The scale is linear up to the grey lines, and
    logarithmic beyond, where CFG often is.
    """
    pair = worlds.paper_line()
    figure = _figure(6.4, 6.4, f"Guidance at cfg {1 + w:g}, from little noise to much")
    for axes, sigma in zip(figure.subplots(3, -(-count // 3)).flat, np.geomspace(0.08, 6, count), strict=False):
        mean, half = 1.0, 3 * (0.6**2 + sigma**2) ** 0.5
        x = torch.linspace(mean - half, mean + half, 400, dtype=torch.float64)[:, None]
        density = pair.cond.log_density(x, sigma).exp()
        found = predictions(pair, x, sigma, w, ("cfg", rectification))
        guidance = {rule: (d - pair.cond.denoise(x, sigma)) / sigma**2 for rule, d in found.items()}
        _density(axes, x[:, 0], density)
        for rule in ("cfg", rectification, "exact"):
            axes.plot(
                x, guidance[rule], color=COLOURS[rule], label=NAMES[rule], lw=2, ls="--" if rule == "exact" else "-"
            )
        shown = density > 0.02 * density.max()
        linear = max(guidance["exact"][shown].abs().max().item(), LEAST)
        axes.set_yscale("symlog", linthresh=linear)
        axes.set(ylim=(-100 * linear, 100 * linear), yticks=[-linear, 0, linear], xticks=[])
        axes.set_title(f"noise {sigma:.2g}", fontsize=SMALL)
        axes.set_yticklabels([f"{-linear:.1g}", "0", f"{linear:.1g}"])
        axes.grid(axis="y", color="0.8", lw=0.8)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=SMALL)
    return _sized(figure)


def _density(axes: Axes, x: torch.Tensor, density: torch.Tensor) -> None:
    shade = axes.twinx()
    shade.fill_between(x, density, color="0.9")
    shade.set(yticks=[], ylim=(0, 2.5 * density.max().item()))
    axes.set_zorder(shade.get_zorder() + 1)
    axes.patch.set_visible(False)


def error_map(w: float = 1.0, rules: tuple[str, ...] = ("none", "cfg", "elementwise", "jacobian", "ratio")) -> Figure:
    """The paper's heat map: how far each rule's prediction is from the exact one, over x and noise level, in 1-D.

    x is in standard deviations of the noisy conditional, so that a row shows where samples are.
    """
    pair = worlds.paper_line()
    sigmas, z = np.geomspace(0.05, 10, 60), torch.linspace(-3, 3, 121, dtype=torch.float64)
    errors = {rule: [] for rule in rules}
    for sigma in sigmas:
        found = predictions(pair, 1 + z[:, None] * (0.3125 + sigma**2) ** 0.5, float(sigma), w, rules)
        for rule in rules:
            errors[rule].append((found[rule] - found["exact"])[:, 0].abs())
    figure = _figure(max(6.4, 1.9 * len(rules)), 4.4, f"How far the prediction is off, at cfg {1 + w:g}")
    scale = LogNorm(1e-3, 1)
    for axes, rule in zip(np.atleast_1d(figure.subplots(1, len(rules), sharey=True)), rules, strict=True):
        image = axes.pcolormesh(z, sigmas, torch.stack(errors[rule]), norm=scale, cmap="magma", rasterized=True)
        axes.set(yscale="log", xticks=[])
        axes.set_title(NAMES[rule], fontsize=SMALL)
    figure.axes[0].set_ylabel("noise level")
    figure.supxlabel("x, three standard deviations to each side", fontsize=SMALL)
    figure.colorbar(image, ax=figure.axes, extend="both")
    return _sized(figure)


def arrows(
    w: float = 3.0, sigma: float = 0.7, rules: tuple[str, ...] = ("cfg", "elementwise", "ratio"), seed: int = 13
) -> Figure:
    """The paper's 2-D figure: the guidance term of each rule as arrows, and the exact one, over the noisy conditional.

    Arrows have a common scale, are cut where they would hide each other, and stand where samples are.
    """
    pair = worlds.classes(seed)
    low, high = _frame(pair, sigma)
    x = _lattice(low, high, 19)
    log_density = pair.cond.log_density(x, sigma)
    x = x[log_density > log_density.max() - 4]
    found = predictions(pair, x, sigma, w, rules)
    d_cond = pair.cond.denoise(x, sigma)
    columns = 2 if len(rules) < 4 else 3
    figure = _figure(6.4, 6.8, f"Guidance at cfg {1 + w:g}, noise {sigma:g}; long arrows cut")
    cell = (high[0] - low[0]) / 18
    scale = max((found["exact"] - d_cond).norm(dim=-1).max().item(), LEAST) / (1.5 * cell)
    rows = -(-(len(rules) + 1) // columns)
    every = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for axes, rule in zip(every, (*rules, "exact"), strict=False):
        _contours(axes, pair, sigma, low, high)
        term = (found[rule] - d_cond) / scale
        term = term * (4 * cell / term.norm(dim=-1, keepdim=True)).clamp(max=1)
        axes.quiver(*x.T, *term.T, color=COLOURS[rule], angles="xy", scale_units="xy", scale=1, width=0.006)
        axes.set(aspect="equal", xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[])
        axes.set_title(NAMES[rule], fontsize=LARGE)
    for axes in every[len(rules) + 1 :]:
        axes.set_axis_off()
    return figure


def _frame(pair: worlds.Pair, sigma: float) -> tuple[list[float], list[float]]:
    """A square that holds the noisy conditional."""
    points = pair.cond.sample(2000, torch.Generator().manual_seed(0))
    middle, half = points.mean(0), 2.5 * (points.var(0).max() + sigma**2).sqrt()
    return (middle - half).tolist(), (middle + half).tolist()


def _lattice(low: list[float], high: list[float], count: int) -> torch.Tensor:
    """Points of a square lattice, [count², 2]."""
    return torch.cartesian_prod(
        *[torch.linspace(a, b, count, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
    )


def _contours(axes: Axes, pair: worlds.Pair, sigma: float, low: list[float], high: list[float]) -> None:
    """The noisy conditional filled, the noisy unconditional as lines."""
    points = _lattice(low, high, 80)
    x, y = points.view(80, 80, 2).unbind(-1)
    fill, lines = (m.log_density(points, sigma).exp().view(80, 80) for m in (pair.cond, pair.uncond))
    axes.contourf(x, y, fill, levels=8, cmap="Greys", alpha=0.5)
    axes.contour(x, y, lines, levels=6, colors="0.6", linewidths=0.6)


def samples(
    w: float = 3.0,
    rectification: str = "elementwise",
    seed: int = 13,
    sampler: str = "euler",
    count: int = 1500,
    steps: int = 40,
) -> Figure:
    """Where whole chains end: no guidance, CFG and the rectified guidance on the exact target, with their distances.

    The same noise in every panel. Contours are the exact target p(x0|y) R_0(x0), and the last panel has draws from it.
    """
    pair = worlds.classes(seed)
    target = optimal.GridTarget(pair, w)
    exact = target.sample(4 * count, torch.Generator().manual_seed(seed + 1))
    figure = _figure(
        6.4, 7, f"{count} samples at cfg {1 + w:g}, {steps} steps of {sampler}.\nContours: where they should be"
    )
    every = list(figure.subplots(2, 2, sharex=True, sharey=True).flat)
    for axes, name in zip(every, ("none", "cfg", rectification), strict=False):
        random = torch.Generator().manual_seed(seed)
        start = chains.noise((count, 2), random)
        x = chains.SAMPLERS[sampler](guided(name, pair, w), start, chains.karras(steps), random)
        axes.scatter(*x.T, s=4, alpha=0.4, color=COLOURS[name], lw=0)
        _target_contours(axes, target)
        distance = measure.sliced_wasserstein(x, exact)
        axes.set_title(f"{NAMES[name]}\ndistance {distance:.3f}", fontsize=LARGE)
    every[-1].scatter(*exact[:count].T, s=4, alpha=0.4, color=COLOURS["exact"], lw=0)
    every[-1].set_title(f"{NAMES['exact']}\n", fontsize=LARGE)
    for axes in every:
        axes.set(aspect="equal", xticks=[], yticks=[])
        _fit(axes, exact)
    return figure


def points(x: torch.Tensor, w: float = 3.0, seed: int = 13) -> Figure:
    """Samples [n, 2] that something else made, on the exact target, with their distance to it."""
    target = optimal.GridTarget(worlds.classes(seed), w)
    exact = target.sample(4000, torch.Generator().manual_seed(seed + 1))
    figure = _figure(6, 6.2, f"{len(x)} samples at cfg {1 + w:g}")
    axes = figure.subplots()
    axes.scatter(*x.T, s=8, alpha=0.6, color=COLOURS["elementwise"], lw=0)
    _target_contours(axes, target)
    distance = measure.sliced_wasserstein(x, exact)
    axes.set(aspect="equal", xticks=[], yticks=[])
    axes.set_title(f"distance {distance:.3f}", fontsize=LARGE)
    _fit(axes, exact)
    return figure


def _target_contours(axes: Axes, target: optimal.GridTarget) -> None:
    x, y = target.axes
    mass = target.mass.view(len(x), len(y)).T
    axes.contour(
        x, y, mass, levels=mass.max().item() * np.array([0.02, 0.1, 0.3, 0.6, 0.9]), colors="k", linewidths=0.8
    )


def _fit(axes: Axes, points: torch.Tensor) -> None:
    """Show the points with room around them."""
    low, high = points.quantile(0.005, 0), points.quantile(0.995, 0)
    middle, half = (low + high) / 2, 0.7 * (high - low).max()
    (left, bottom), (right, top) = (middle - half).tolist(), (middle + half).tolist()
    axes.set(xlim=(left, right), ylim=(bottom, top))


def narrowing(w: float = 3.0, seed: int = 13) -> Figure:
    """What the rectifications multiply by at each noise level: the mean over samples and its middle 90 %."""
    pair, random = worlds.classes(seed), torch.Generator().manual_seed(seed)
    x0 = pair.cond.sample(600, random)
    sigmas = np.geomspace(0.03, 60, 50)
    found = {rule: [] for rule in RECTIFICATIONS}
    for sigma in sigmas:
        x = x0 + sigma * torch.randn(x0.shape, generator=random, dtype=x0.dtype)
        d_cond, d_uncond = pair.cond.denoise(x, float(sigma)), pair.uncond.denoise(x, float(sigma))
        step = guides.Step(pair, x, float(sigma), w, d_cond, d_uncond, w * (d_cond - d_uncond))
        for rule, values in found.items():
            values.append(gain(step.guidance, RECTIFICATIONS[rule].measure(step)[0])[:, 0])
    figure = _figure(6.4, 5, f"What is left of the guidance at cfg {1 + w:g}")
    axes = figure.subplots()
    for rule, values in found.items():
        gains = torch.stack(values)
        axes.plot(sigmas, gains.mean(1), color=COLOURS[rule], lw=2, label=NAMES[rule])
        axes.fill_between(
            sigmas, gains.quantile(0.05, 1), gains.quantile(0.95, 1), color=COLOURS[rule], alpha=0.15, lw=0
        )
    axes.set(xscale="log", xlabel="noise level: sampling goes from right to left", ylim=(-0.02, 1.02))
    axes.legend(fontsize=SMALL)
    return _sized(figure)
