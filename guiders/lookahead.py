"""What is had for less when the conds are evaluated than after: the graph of D_c, and a probe in the same batch."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key, copy_nested_dicts
from torch import Tensor

from ..reg import estimators
from ..reg.estimators import Evaluation
from .gradients import Care, evaluate_with_graph, with_differentiable_attention

Conds = list[list[dict] | None]


@dataclass
class Ahead:
    """What a look ahead left for the guidance of the same step."""

    cond: list[dict]
    x: Tensor
    sigma: Tensor
    jt_ones: Tensor | None = None  # Jᵀ1, or J1 from a probe
    evaluation: Evaluation | None = None  # D_c with its graph

    def serves(self, cond: list[dict], x: Tensor, sigma: Tensor) -> bool:
        """Was it made for this cond at this latent?"""
        return self.cond is cond and self.x is x and torch.equal(self.sigma, sigma)


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
    passes: Counter = field(default_factory=Counter)  # every evaluation of a cond is counted as "forward"

    @classmethod
    def of_guided_step(cls, args: dict, position: int) -> "CondsPass":
        """The pass behind a post-CFG hook's arguments, to be made again: the guided cond where it stood, the other last."""
        conds = [None] * position + [args["cond"], args["uncond"]]
        calc = comfy.samplers.calc_cond_batch
        return cls(calc, args["model"], conds, args["input"], args["sigma"], args["model_options"], position)

    def plain(self) -> list[Tensor]:
        """The predictions as ComfyUI makes them."""
        return self._evaluate(self.conds, self.x)

    def only(self, x: Tensor, model_options: dict | None = None) -> Tensor:
        """The guided cond's prediction at another latent."""
        conds = [cond if i == self.position else None for i, cond in enumerate(self.conds)]
        return self._evaluate(conds, x, model_options)[self.position]

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The predictions of the guided cond and of the last one at another latent, in one batch if memory allows."""
        out = self._evaluate(self.conds, x)
        return out[self.position], out[-1]

    def graph(self, care: Care) -> Evaluation:
        """The guided cond's prediction, with its graph."""
        options = with_differentiable_attention(self.model_options)
        return evaluate_with_graph(lambda x: self.only(x, options), self.x, self.model.diffusion_model, care)

    def with_graph(self, evaluation: Evaluation) -> list[Tensor]:
        """The predictions, the guided one taken from `evaluation`: the others keep no graph."""
        others = [None if i == self.position else cond for i, cond in enumerate(self.conds)]
        out = self._evaluate(others, self.x)
        out[self.position] = evaluation.denoised.detach()
        return out

    def can_batch_a_probe(self) -> bool:
        """Is the latent of one cond ours to move? ControlNets and function wrappers would see the one not moved."""
        controlled = any("control" in cond for cond in self.conds[self.position])
        return not controlled and "model_function_wrapper" not in self.model_options

    def with_probe(self, relative_step: float) -> tuple[list[Tensor], Tensor]:
        """The predictions, and J1, from the guided cond once more at x + h in the same batch as far as memory allows."""
        probe = estimators.probe(self.x, torch.ones_like(self.x), relative_step)
        h = 1 / probe.scale
        options = self._moving(len(self.conds), h)
        conds = [*self.conds, self.conds[self.position]]
        *out, moved = self._evaluate(conds, self.x, options)
        return out, probe.product(out[self.position], moved)

    def _evaluate(self, conds: Conds, x: Tensor, model_options: dict | None = None) -> list[Tensor]:
        self.passes["forward"] += sum(cond is not None for cond in conds)
        return self.calc(self.model, conds, x, self.sigma, model_options or self.model_options)

    def _moving(self, index: int, h: Tensor) -> dict:
        """Model options under which the cond at `index` is evaluated at x + h, and passes for the guided one."""

        def move(executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
            chunks = transformer_options["cond_or_uncond"]
            x = torch.cat(
                [part + h if i == index else part for i, part in zip(chunks, x.chunk(len(chunks)), strict=True)]
            )
            seen = [self.position if i == index else i for i in chunks]
            options = {**transformer_options, "cond_or_uncond": seen}
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

        options = copy_nested_dicts(self.model_options)
        add_wrapper_with_key(WrappersMP.APPLY_MODEL, "reg", move, options, is_model_options=True)
        return options
