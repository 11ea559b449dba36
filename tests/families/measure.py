"""What REG's node makes of one guided step of a family, against differences of ComfyUI's own predictions."""

import logging
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from pack.nodes.guidance import REGModel
from pack.reg import per_sample

from .family import Family
from .sampling import alpha_of, euler, free_part, parts, predictions

CFG = 3.0
ELEMENTS = 4  # of the gradient, compared one by one
STEPS = 0.03, 0.06  # of the true differences, over the root mean square of the latent
STEP = 0.01  # of REG's difference


@dataclass
class Measured:
    """A family in numbers; errors are relative."""

    prediction: str  # ComfyUI's ModelType
    alpha: float
    backward: float  # error of α Jᵀ1 at some elements
    backward_jacobian: float  # error of α Jᵀg at some elements
    difference: float  # error of α J1 ⊙ g
    difference_jacobian: float  # error of α Jg
    ratio: tuple[float, float]  # the least and the largest factor of the guidance
    finite: bool  # is what a run of three steps gave?
    warnings: list[str]  # what REG had to tell
    changed: list[str]  # what was left behind in the model


def measure(family: Family) -> Measured:
    """Build a family and let REG guide one step of it in every way."""
    model = family.build()
    before = [state(model)]
    guided = Guided.of(family, model)
    before.append(state(model))
    only(family, model, CFG)
    before.append(state(model))
    with captured_warnings() as lines:
        backward = guided.rectified(family, model, estimator="backward")
        backward_jacobian = guided.rectified(family, model, estimator="backward", rectification="jacobian")
        difference = guided.rectified(family, model, estimator="difference", step=STEP)
        along = guided.rectified(family, model, estimator="difference", rectification="jacobian", step=STEP)
        ratio = guided.rectified(family, model, rectification="ratio")
        after = state(model)
        new = family.build()
        run = euler(family, REGModel.execute(new, estimator="backward").args[0], steps=3)
    return Measured(
        prediction=model.model.model_type.name,
        alpha=guided.alpha,
        backward=guided.error_of_elementwise_gradient(backward),
        backward_jacobian=guided.error_of_jacobian_gradient(backward_jacobian),
        difference=guided.error_of_elementwise_difference(difference),
        difference_jacobian=guided.error_of_jacobian_difference(along),
        ratio=guided.factors(ratio),
        warnings=lines,
        finite=all(part.isfinite().all() for part in parts(run)),
        changed=changes(after, *before) + graphs(state(new)),
    )


@dataclass
class Guided:
    """A guided step without REG, and the Jacobian J of its conditional prediction along some directions.

    `along` has differences at two steps, of which rounding may spoil the smaller and curvature the larger one.
    """

    x: Tensor  # [batch, ...]
    alpha: float
    d_cond: Tensor
    guidance: Tensor  # g = D_guided − D_c
    free: Tensor | float  # m, 1 where the latent is free to change
    elements: Tensor  # where the guidance is largest, in the flattened latent
    along: list[Tensor]  # at each step: J e_i of those elements, Jm and J(mg), [elements + 2, batch, ...]

    @classmethod
    def of(cls, family: Family, model) -> "Guided":
        seen = []
        guided = predictions(family, model, lambda x: seen.append(x.clone()) or [x], CFG)[0]
        x, d_cond = seen[0], only(family, model, cfg=1.0)
        guidance = guided - d_cond
        elements = guidance.abs().flatten().topk(ELEMENTS).indices
        axes = torch.zeros(ELEMENTS, x.numel()).scatter_(1, elements[:, None], 1.0).view(ELEMENTS, *x.shape)
        free = free_part(family, model)
        directions = [*axes, free * torch.ones_like(x), free * guidance]
        along = zip(*[differences(family, model, x, v) for v in directions], strict=True)
        return cls(x, alpha_of(model), d_cond, guidance, free, elements, [torch.stack(step) for step in along])

    def rectified(self, family: Family, model, **options) -> Tensor:
        """R(g), as the node makes it: [batch, ...]."""
        model = REGModel.execute(model, **options).args[0]
        return only(family, model, cfg=CFG) - self.d_cond

    def error_of_elementwise_gradient(self, rectified: Tensor) -> float:
        """Of R(g) = α Jᵀm ⊙ g, at the elements."""
        found = (rectified / self.guidance).flatten()[self.elements]
        return self._error(found, lambda along: (along[:-2] * self.free).flatten(1).sum(1))

    def error_of_jacobian_gradient(self, rectified: Tensor) -> float:
        """Of R(g) = α Jᵀ(mg), at the elements."""
        found = rectified.flatten()[self.elements]
        return self._error(found, lambda along: (along[:-2] * self.free * self.guidance).flatten(1).sum(1))

    def error_of_elementwise_difference(self, rectified: Tensor) -> float:
        """Of R(g) = α Jm ⊙ g."""
        return self._error(rectified, lambda along: along[-2] * self.guidance)

    def error_of_jacobian_difference(self, rectified: Tensor) -> float:
        """Of R(g) = α J(mg)."""
        return self._error(rectified, lambda along: along[-1])

    def factors(self, rectified: Tensor) -> tuple[float, float]:
        """The least and the largest f of the samples for which R(g) = f g; NaN if there is none."""
        f = per_sample.dot(rectified, self.guidance) / per_sample.dot(self.guidance, self.guidance)
        is_one = torch.allclose(rectified, f * self.guidance, rtol=0, atol=1e-3 * self.guidance.abs().max())
        return (f.min().item(), f.max().item()) if is_one else (float("nan"), float("nan"))

    def _error(self, found: Tensor, truth: Callable) -> float:
        """Relative, with the step that suits better."""
        truths = [self.alpha * truth(along) for along in self.along]
        return min(((found - true).norm() / true.norm()).item() for true in truths)


def only(family: Family, model, cfg: float) -> Tensor:
    """The prediction at the noisy latent itself."""
    return predictions(family, model, lambda x: [x], cfg)[0]


def differences(family: Family, model, x: Tensor, v: Tensor) -> list[Tensor]:
    """Jv of the conditional prediction at each of STEPS: central differences of the fourth order."""
    scale = x.square().mean().sqrt() / v.abs().max()
    return [difference(family, model, step * scale, v) for step in STEPS]


def difference(family: Family, model, h: Tensor, v: Tensor) -> Tensor:
    moved = predictions(family, model, lambda x: [x + k * h * v for k in (1, -1, 2, -2)], 1.0)
    near, behind, far, beyond = (d.double() for d in moved)
    return (8 * (near - behind) - (far - beyond)) / (12 * h)


@contextmanager
def captured_warnings():
    """The lines REG tells its user inside."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("pack.guiders")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def state(model) -> dict:
    """Every parameter, buffer, flag, hook and plain attribute of the modules."""
    return {
        f"{name}.{key}": fingerprint(value)
        for name, module in model.model.named_modules()
        for key, value in vars(module).items()
        if key != "current_patcher"
    }


def fingerprint(value):
    """Equal before and after if nothing was changed; "GRAPH" for a tensor that keeps a graph alive."""
    if isinstance(value, Tensor):
        if value.grad_fn is not None:
            return "GRAPH"
        flags = value.requires_grad, value.is_inference(), value.grad is None
        return value.data_ptr(), value.dtype, value.shape, flags, value.double().sum().item()
    if isinstance(value, dict):
        return {key: fingerprint(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [fingerprint(item) for item in value]
    return value if isinstance(value, bool | int | float | str | None) else id(value)


def changes(after: dict, *before: dict) -> list[str]:
    """What differs, but for caches that ComfyUI's models renew themselves."""
    last = before[-1]
    renewed = {key for one, next in pairwise(before) for key in next if one.get(key) != next[key]}
    caches = {key for key in renewed if not key.endswith(("._parameters", "._buffers"))}
    return sorted(key for key in (after | last).keys() - caches if after.get(key) != last.get(key))


def graphs(state: dict) -> list[str]:
    """What keeps a graph alive."""
    return [key for key, value in state.items() if "GRAPH" in str(value)]
