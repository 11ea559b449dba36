"""What a run with rectified guidance did, step by step, for a report.

A run records when a report stands downstream of its sampler in the prompt that is being executed. Its record is found
again by the content of the latents it made, so it follows them through the execution cache into later prompts, and only
who holds the latents can read it.
"""

import hashlib
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import comfy.model_management
import latent_preview
import torch
from comfy.nested_tensor import NestedTensor
from comfy.utils import pack_latents
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ...reg import per_sample, rectification
from ...reg.refresh import DOUBLING
from .downstream import report_follows
from .live import CfgMean, cfg_change, warn_user

if TYPE_CHECKING:
    from ..options import Options
    from ..step import GuidedStep

STEPS_KEPT = 1000  # of one run; of longer ones every second, fourth, … step
MAPS_KEPT = 6
MAP_SIZE = 64  # pixels
PREVIEWS_KEPT = 3
PREVIEW_SIZE = 128  # pixels
RECORDS_KEPT = 32  # at most 430 kB each
NOTHING_DONE = (
    "did nothing in this run: at cfg 1, or with one prompt only, there is no guidance to rectify "
    "(models distilled to run so, such as Flux dev and Turbo, have none)"
)


NO_GUIDANCE = (
    "no step was guided: cfg is 1 (models distilled to run so have no guidance), or start_percent and end_percent "
    "leave no step"
)


@dataclass(frozen=True)
class Record:
    """What one run did. Curves are [steps] over the guided steps; they and the maps are on the CPU.

    `kept` is f, the gain or ρ: its mean over the batch and all pixels, and `spread` its standard deviation. `cfg` is
    the one that moves the prediction as far along the guidance as was done, `plain_cfg` as would have been done
    without. `correction` is ‖R(g) − g‖ / ‖g‖, the estimated error of the guidance. `maps` are pairs (sigma, what is
    left of the guidance [h, w]) of the first sample, and `previews` are (sigma, prediction without REG, with REG), the
    last two as ComfyUI previews latents, [h, w, 3] bytes; empty where ComfyUI has no preview of this latent.
    """

    options: "Options"
    estimator: str  # in use when the run ended
    fallback: str  # why it is not the one asked for, or empty
    sigma: Tensor
    kept: Tensor
    spread: Tensor
    plain_cfg: Tensor
    cfg: Tensor
    correction: Tensor
    seconds: Tensor  # from the step before to the end of each
    maps: list[tuple[float, Tensor]]
    passes: dict[str, int]  # cond, uncond, extra, reverse: how often the model was evaluated, or a graph reversed
    total_seconds: float
    previews: list[tuple[float, Tensor, Tensor]] = field(default_factory=list)
    mean_cfg: tuple[float, float] = (1.0, 1.0)  # without and with REG, over all rectified steps

    @property
    def headline(self) -> str:
        """What REG made of the cfg, to the digit as the line on the sampler."""
        return cfg_change(self.mean_cfg)

    @property
    def kept_name(self) -> str:
        return self.options.rule.symbol

    @property
    def method(self) -> str:
        """How the rectification was had, in one line."""
        return method(self.options.rule.label, self.estimator, self.fallback)

    def summary(self) -> str:
        """The record as a few lines of text."""
        o = self.options
        guided = len(self.sigma) > 0
        lines = [
            f"REG: {self.headline}, {self.method}" if guided else f"REG: {self.method}",
            f"strength {o.strength:g}, percent {o.start_percent:g} to {o.end_percent:g}, measured {rhythm(o.refresh)}",
            f"passes: {self.passes_text()}",
        ]
        if not guided:
            return "\n".join([*lines, NO_GUIDANCE])
        return "\n".join([*lines, *self._curves_text()])

    def passes_text(self) -> str:
        return ", ".join(f"{n} {kind}" for kind, n in self.passes.items()) + f"; {self.total_seconds:.1f} s"

    def cost_text(self) -> str:
        """What REG asked of the model beyond plain guidance, in words."""
        plain, extra, reverse = (
            self.passes["cond"] + self.passes["uncond"],
            self.passes["extra"],
            self.passes["reverse"],
        )
        parts = [f"{n} {kind}" for n, kind in ((extra, "evaluations"), (reverse, "reverse passes")) if n > 0]
        more = (
            f"{' and '.join(parts)} more than"
            if parts
            else f"{-extra} evaluations fewer than"
            if extra
            else "no more than"
        )
        return f"cost: {more} the {plain} evaluations of CFG; {self.total_seconds:.1f} s in all"

    def _curves_text(self) -> list[str]:
        """Means over the run, and a table of at most twelve steps."""
        rows = range(0, len(self.sigma), -(-len(self.sigma) // 12))
        curves = zip(self.sigma, self.kept, self.spread, self.plain_cfg, self.cfg, self.correction, strict=True)
        lines = [f"{s:9.3f}  {k:6.3f} ± {d:.3f}  {p:5.2f} → {cfg:5.2f}  {c:10.3f}" for s, k, d, p, cfg, c in curves]
        table = [lines[i] for i in rows]
        means = f"mean {self.kept_name} {self.kept.mean():.3f}, mean correction {self.correction.mean():.3f}"
        return [means, f"{'sigma':>9}  {self.kept_name:>6} ± spread  {'cfg':>13}  correction", *table]


def method(rectification: str, estimator: str, fallback: str = "") -> str:
    """How a rectification is had, in one line."""
    return f"{rectification} by {estimator}" + (f" ({fallback})" if fallback else "")


def rhythm(refresh: int) -> str:
    """How often a run measures, in words."""
    return (
        "with doubling gaps" if refresh == DOUBLING else "at every step" if refresh == 1 else f"every {refresh} steps"
    )


class Thinned:
    """A bounded list over a run of unknown length: when it is full, every second item goes and every second comes."""

    def __init__(self, limit: int):
        self.limit = limit
        self.items: list = []
        self.seen = 0
        self.stride = 1

    def add(self, make: Callable[[], object]) -> None:
        """Append what `make` gives, if it is this one's turn."""
        if self.seen % self.stride == 0:
            self.items.append(make())
        self.seen += 1
        if len(self.items) > self.limit:
            self.items = self.items[::2]
            self.stride *= 2


class Recorder:
    """Records one run while it samples. What it keeps stays on the device, and is read when the run has ended."""

    def __init__(self, options: "Options", guider, on: bool):
        self.options = options
        self.guider = guider
        self.on = on
        self.passes: Counter = Counter()  # cond and uncond of plain guidance, reverse, and forward: all evaluations
        self.guided = self.unguided = 0  # evaluations that were rectified, and that had no guidance to rectify
        self.estimator = options.estimator
        self.fallback = ""
        self.started = time.monotonic()
        self.steps = Thinned(STEPS_KEPT)
        self.maps = Thinned(2 * MAPS_KEPT)
        self.previews = Thinned(2 * PREVIEWS_KEPT)
        self.cfg = CfgMean()
        self.told = on or get_executing_context() is not None  # will anybody see it?
        self.last_denoised: Tensor | None = None

    @property
    def method(self) -> str:
        return method(self.options.rule.label, self.estimator)

    def fall_back(self, reason: str) -> None:
        """The estimator asked for cannot be used; the user is told why."""
        self.fallback = reason
        warn_user(reason)

    def step(self, step: "GuidedStep", rectified: Tensor, kept: Tensor) -> None:
        """Take down a guided step: its rectified guidance [batch, ...] and what was kept of it."""
        self.guided += 1
        if self.told:
            self.cfg.add(_cfg(step, rectified))
        if self.on:
            kept = torch.where(kept.isfinite(), kept, 1.0)  # where it is not, the guidance is left as it was
            self.steps.add(lambda: (_measures(step, rectified, kept), time.monotonic()))
            self.maps.add(lambda: (step.sigma[0], _map(step.guidance[0], rectified[0], kept[0])))
            self.previews.add(lambda: (step.sigma[0], *_first_frames(step, rectified)))

    def watching(self, callback: Callable | None) -> Callable | None:
        """The sampler's callback, which also shows us the last prediction, for the `denoised_output` of a sampler."""
        if not self.on:
            return callback

        def watch(i, denoised, x, total_steps):
            self.last_denoised = denoised
            if callback is not None:
                callback(i, denoised, x, total_steps)

        return watch

    def finish(self, samples: Tensor) -> None:
        """File the record under the latents the run ended with: what the sampler returned, and its last prediction."""
        if self.unguided and not self.guided:
            warn_user(NOTHING_DONE)
        if not self.on:
            return
        record = self._record()
        out = self.guider.inner_model.process_latent_out
        file(record, out(samples.to(torch.float32)))  # as ComfyUI itself makes the LATENT
        if self.last_denoised is not None:
            file(record, out(self.last_denoised.cpu()))

    def _record(self) -> Record:
        ended = time.monotonic()
        curves = torch.stack([row for row, _ in self.steps.items]).cpu() if self.steps.items else torch.zeros(0, 6)
        times = [self.started, *(at for _, at in self.steps.items)]
        seconds = torch.tensor([(b - a) / self.steps.stride for a, b in pairwise(times)])
        plain = {kind: self.passes[kind] for kind in ("cond", "uncond")}
        extra = self.passes["forward"] - sum(plain.values())
        return Record(
            self.options,
            self.estimator,
            self.fallback,
            *curves.unbind(1),
            seconds,
            [(float(sigma), pixels.cpu()) for sigma, pixels in _spread_over(self.maps.items, MAPS_KEPT)],
            {**plain, "extra": extra, "reverse": self.passes["reverse"]},
            ended - self.started,
            self._previews(),
            self.cfg.read(),
        )

    def _previews(self) -> list[tuple[float, Tensor, Tensor]]:
        """Predictions without and with REG as pictures, at a few noise levels."""
        items = _spread_over(self.previews.items, PREVIEWS_KEPT)
        if not items:
            return []
        picture = previewer(self.guider.inner_model.latent_format, items[0][1])
        return [(float(sigma), picture(before), picture(after)) for sigma, before, after in items] if picture else []


def previewer(latent_format, x0: Tensor) -> Callable[[Tensor], Tensor] | None:
    """ComfyUI's preview of latents like x0 [1, ...]: a function to bytes [h, w, 3]; None if it has none."""
    factors = latent_format.latent_rgb_factors
    if factors is None and x0.ndim == 4 and x0.shape[1] == 3:  # a model of pixels
        factors = torch.eye(3).tolist()
    if factors is None or x0.ndim not in (4, 5):
        return None
    reshape = getattr(latent_format, "latent_rgb_factors_reshape", None)
    preview = latent_preview.Latent2RGBPreviewer(factors, latent_format.latent_rgb_factors_bias, reshape)

    def picture(x0: Tensor) -> Tensor:
        image = preview.decode_latent_to_preview(x0.float().cpu())
        image.thumbnail((PREVIEW_SIZE, PREVIEW_SIZE))
        return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)

    return picture


def _first_frames(step: "GuidedStep", rectified: Tensor) -> tuple[Tensor, Tensor]:
    """The guided prediction of the first sample (and frame) without and with REG, [1, ...] each."""
    first = (slice(1), slice(None), slice(1)) if step.guidance.ndim == 5 else slice(1)
    d_cond, guidance, rectified = (v[first] for v in (step.d_cond, step.guidance, rectified))
    return d_cond + guidance, rectification.blend(d_cond, guidance, rectified, step.strength)


def _cfg(step: "GuidedStep", rectified: Tensor) -> Tensor:
    """cfg without and with REG, [2] on the device."""
    g, rectified = (rectification.free(step, v) for v in (step.guidance, rectified))
    applied, norm = torch.lerp(g, rectified, step.strength), per_sample.dot(g, g)
    along = torch.where(norm > 0, per_sample.dot(applied, g) / torch.where(norm > 0, norm, 1.0), 1.0)
    w = rectification.weight_of(step)
    return torch.stack([1 + w.mean(), 1 + (along * w).mean()]).float()


def _measures(step: "GuidedStep", rectified: Tensor, kept: Tensor) -> Tensor:
    """sigma, mean and spread of what was kept, cfg before and after, size of the correction: [6] on the device."""
    cfg = _cfg(step, rectified)
    g, rectified = (rectification.free(step, v) for v in (step.guidance, rectified))
    length = per_sample.rms(g)
    correction = per_sample.rms(rectified - g) / torch.where(length > 0, length, 1.0)
    values = step.sigma[0], kept.mean(), kept.std(correction=0), *cfg, correction.mean()
    return torch.stack([value.float() for value in values])


def _map(guidance: Tensor, rectified: Tensor, kept: Tensor) -> Tensor:
    """What is left of the guidance of one sample, place by place, [h, w] of at most MAP_SIZE.

    The kept map's mean over channels; where one number is kept, ⟨R(g), g⟩ / ⟨g, g⟩ over channels and each cell.
    """
    if kept.shape == guidance.shape:
        return _small(kept)
    norm = _small(guidance * guidance)
    return torch.where(norm > 0, _small(rectified * guidance) / torch.where(norm > 0, norm, 1.0), 1.0)


def _small(values: Tensor) -> Tensor:
    """Mean over all dimensions but the last two, in cells: [..., h, w] -> at most [MAP_SIZE, MAP_SIZE]."""
    plane = values.float().reshape(-1, *values.shape[-2:]).mean(0)
    scale = min(1.0, MAP_SIZE / max(plane.shape))
    size = [max(1, round(n * scale)) for n in plane.shape]
    return torch.nn.functional.adaptive_avg_pool2d(plane[None], size)[0]


def _spread_over(items: list, count: int) -> list:
    """At most `count` of the items, first and last among them, evenly spaced."""
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


_records: OrderedDict[str, Record] = OrderedDict()  # by fingerprint of the latents, the last used last


def file(record: Record, samples: Tensor) -> None:
    """Keep a record for whoever comes with these latents; the ones least recently used go."""
    key = fingerprint(samples)
    _records[key] = record
    _records.move_to_end(key)
    while len(_records) > 2 * RECORDS_KEPT:  # each stands under its two latents
        _records.popitem(last=False)


def find(samples: Tensor | NestedTensor) -> Record | None:
    """The record of the run that made these latents, if one did and it was recorded."""
    key = fingerprint(samples)
    if key in _records:
        _records.move_to_end(key)
    return _records.get(key)


def fingerprint(samples: Tensor | NestedTensor) -> str:
    """A hash of the values, whatever their device and packing."""
    if samples.is_nested:
        samples, _ = pack_latents(samples.unbind())
    samples = samples.detach().to("cpu", comfy.model_management.intermediate_dtype()).contiguous()
    return hashlib.blake2b(samples.numpy(), digest_size=16).hexdigest()


def recorder(options: "Options", guider) -> Recorder:
    """A recorder of the run that is about to begin, switched on if a report follows."""
    return Recorder(options, guider, report_follows())
