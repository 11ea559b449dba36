"""What is had for less when the conds are evaluated than after: the graph of D_c, and a probe in the same batch."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key, copy_nested_dicts
from torch import Tensor

from ..reg import estimators
from ..reg.estimators import Evaluation
from . import attention
from .gradients import Care, DifferentiableCalls, evaluate_with_graph
from .neighbours import Chance, couples_conds, without_cache, without_work_units

Conds = list[list[dict] | None]


@dataclass
class Ahead:
    """What the evaluation of conds left for the guidance of the same step."""

    x: Tensor
    sigma: Tensor
    chance: Chance  # as it was before
    predictions: list[tuple] = field(default_factory=list)  # (cond, prediction, model) before any patch
    cond: list[dict] | None = None  # the one looked at
    jt_ones: Tensor | None = None  # its Jᵀ1, or J1 from a probe
    evaluation: Evaluation | None = None  # its D_c with its graph

    def is_of(self, x: Tensor, sigma: Tensor) -> bool:
        """Was it left at this latent?"""
        return self.x is x and (self.sigma is sigma or torch.equal(self.sigma, sigma))

    def prediction(self, cond: list[dict], otherwise: Tensor) -> Tensor:
        """What the model predicted for a cond, if that was seen: a patch may have changed what came of it."""
        return next((d for known, d, _ in self.predictions if known is cond), otherwise)

    def model_of(self, cond: list[dict], otherwise: object) -> object:
        """Which model predicted for a cond: a guider may have two."""
        return next((model for known, _, model in self.predictions if known is cond), otherwise)


@dataclass
class CondsPass:
    """One evaluation of conds by ComfyUI, and its variations."""

    calc: Callable  # the rest of ComfyUI's evaluation: (model, conds, x, sigma, model_options) -> predictions
    model: object
    conds: Conds
    x: Tensor
    sigma: Tensor
    model_options: dict
    position: int  # of the guided cond
    chance: Chance  # as it was when the step's conds were first evaluated
    passes: Counter = field(default_factory=Counter)  # every evaluation of a cond is counted as "forward"
    other: int = -1  # position of the cond that guidance moves away from
    other_model: object = None  # which evaluates that one

    @classmethod
    def of_guided_step(cls, args: dict, uncond: list[dict], stood: Conds, ahead: Ahead) -> "CondsPass":
        """What a post-CFG hook was called for, to be evaluated again, each cond where it `stood` if both did."""
        conds = [args["cond"], uncond]
        if all(_index(cond, stood) is not None for cond in conds):
            conds = [cond if _index(cond, conds) is not None else None for cond in stood]
        calc, options = comfy.samplers.calc_cond_batch, without_cache(args["model_options"])
        return cls(
            calc,
            args["model"],
            conds,
            args["input"],
            args["sigma"],
            options,
            _index(args["cond"], conds),
            ahead.chance,
            other=_index(uncond, conds),
            other_model=ahead.model_of(uncond, args["model"]),
        )

    def plain(self) -> list[Tensor]:
        """The predictions as ComfyUI makes them."""
        return self._evaluate(self.conds, self.x)

    def only(self, x: Tensor) -> Tensor:
        """The guided cond's prediction at another latent."""
        with self.chance.beside():
            return self._guided(x, self.model_options)[self.position]

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The predictions of the guided cond and of the other one at another latent, in one batch if memory allows and
        one model makes both."""
        if self.other_model is not self.model:
            alone = replace(self, model=self.other_model, conds=[self.conds[self.other]], position=0)
            return self.only(x), alone.only(x)
        with self.chance.beside():
            out = self._evaluate(self.conds, x)
        return out[self.position], out[self.other]

    def graph(self, care: Care) -> Evaluation:
        """The guided cond's prediction, with its graph."""
        options = without_work_units(attention.differentiable(self.model_options, DifferentiableCalls))

        def denoise(x: Tensor) -> Tensor:
            self.beside = self._guided(x, options)
            return self.beside[self.position]

        with self.chance.beside():
            return evaluate_with_graph(denoise, self.x, self.model.diffusion_model, care)

    def with_graph(self, evaluation: Evaluation) -> list[Tensor]:
        """The predictions, the guided one taken from `evaluation`: the others keep no graph."""
        if couples_conds(self.model_options):
            return [d.detach() for d in self.beside]
        others = [None if i == self.position else cond for i, cond in enumerate(self.conds)]
        self.chance.again()
        out = self._evaluate(others, self.x)
        out[self.position] = evaluation.denoised.detach()
        return out

    def _guided(self, x: Tensor, model_options: dict) -> list[Tensor]:
        """The guided cond evaluated at x, alone unless a patch couples it to the others."""
        together = couples_conds(self.model_options)
        conds = [cond if together or i == self.position else None for i, cond in enumerate(self.conds)]
        return self._evaluate(conds, x, model_options)

    def can_batch_a_probe(self) -> bool:
        """Is the latent of one cond ours to move? ControlNets and function wrappers would see the one not moved, and
        patches that couple conds would take the moved one for the guided one."""
        controlled = any("control" in cond for cond in self.conds[self.position])
        coupled = couples_conds(self.model_options)
        return not controlled and not coupled and "model_function_wrapper" not in self.model_options

    def with_probe(self, relative_step: float) -> tuple[list[Tensor], Tensor]:
        """The predictions, and J1 from the guided cond once more at x + h, in the same batch if memory allows."""
        probe = estimators.probe(self.x, torch.ones_like(self.x), relative_step)
        h = 1 / probe.scale
        options = self._moving(len(self.conds), h)
        conds = [*self.conds, self.conds[self.position]]
        *out, moved = self._evaluate(conds, self.x, options)
        return out, probe.product(out[self.position], moved)

    def probe_alone(self, relative_step: float) -> tuple[estimators.Probe, Tensor]:
        """The probe of `with_probe`, and the guided cond's prediction there in a batch of its own."""
        probe = estimators.probe(self.x, torch.ones_like(self.x), relative_step)
        return probe, self.only(probe.x)

    def _evaluate(self, conds: Conds, x: Tensor, model_options: dict | None = None) -> list[Tensor]:
        self.passes["forward"] += sum(cond is not None for cond in conds)
        return self.calc(self.model, conds, x, self.sigma, model_options or self.model_options)

    def _moving(self, index: int, h: Tensor) -> dict:
        """Model options under which the cond at `index` is evaluated at x + h, and passes for the guided one."""

        def move(executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
            chunks = transformer_options["cond_or_uncond"]
            x = torch.cat(
                [
                    part + h.to(part.device) if i == index else part
                    for i, part in zip(chunks, x.chunk(len(chunks)), strict=True)
                ]
            )
            seen = [self.position if i == index else i for i in chunks]
            options = {**transformer_options, "cond_or_uncond": seen}
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

        options = copy_nested_dicts(self.model_options)
        add_wrapper_with_key(WrappersMP.APPLY_MODEL, "reg", move, options, is_model_options=True)
        wrappers = options["transformer_options"]["wrappers"]
        theirs = wrappers[WrappersMP.APPLY_MODEL]
        wrappers[WrappersMP.APPLY_MODEL] = {"reg": theirs.pop("reg"), **theirs}  # ours first: theirs see the guided one
        return options


def moved_away_from(args: dict) -> tuple[list[dict] | None, Tensor]:
    """The cond that guidance moves away from, and its prediction, of what a post-CFG hook is called with.

    Perp-Neg moves away from an empty prompt, and straightens its negative against it.
    """
    name = "uncond" if args.get("empty_cond") is None else "empty_cond"
    return args[name], args[f"{name}_denoised"]


def _index(cond: list[dict] | None, conds: Conds) -> int | None:
    """Where a cond stands; conds are told apart by identity, for those of two prompts may be equal."""
    return next((i for i, one in enumerate(conds) if one is cond), None)
