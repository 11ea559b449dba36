"""Jᵀv exactly, from one reverse pass through the evaluation of the guided cond."""

from collections.abc import Callable
from dataclasses import replace

import comfy.model_management
from torch import Tensor

from ...reg import estimators
from ...reg.rectification import Needs
from ..autograd import attention
from ..autograd.calls import GraphOptions
from ..autograd.checkpointing import CHECKPOINTED, graph_memory, room_for_graph
from ..evaluator import Unmeasurable
from .base import Estimator, Setting
from .difference import Difference, is_interrupt

TRUSTED = 0.05  # how far a gradient may be from differences of the predictions: above their own error
VERIFYING_STEP = 0.03  # the largest of these: products with a vector average the noise of coarse numbers out


class Backward(Estimator):
    """Where a gradient cannot be had, differences are taken for the rest of the run, and the user is told."""

    name = "backward"
    serves = frozenset({Needs.JT_ONES, Needs.VJP})

    def __init__(self, setting: Setting):
        super().__init__(setting)
        self.difference = Difference(setting)
        self.works = setting.needs in self.serves
        self.verifies = setting.options.verify or attention.kernel_is_unknown()  # the first gradient

    @property
    def in_use(self):
        return self.name if self.works else self.difference.name

    @staticmethod
    def memory(model, options):
        """A graph is of one evaluation, and guidance without REG makes two."""
        if options.rule.needs not in Backward.serves:
            return 1.0
        most = CHECKPOINTED if options.checkpoint == "always" else max(CHECKPOINTED, graph_memory(model))
        return most / 2

    def ahead(self, evaluator, state):
        if not self.works:
            return self.difference.ahead(evaluator, state)
        held = self.setting.needs is Needs.VJP  # while the other conds are evaluated
        if held and evaluator.any_hooks:  # which change the weights in it
            return None
        graph = self._try(lambda: self._graph_ahead(evaluator, state))
        return None if graph is None else evaluator.predictions_with(graph)

    def vjp(self, evaluator, state, v):
        product = self._product(evaluator, state, v)
        return self.difference.vjp(evaluator, state, v) if product is None else product

    def chain_rule(self, evaluator, state, alpha, v):
        product = self._product(evaluator, state, v)
        return self.difference.chain_rule(evaluator, state, alpha, v) if product is None else alpha * product

    def products(self, evaluator, state, v):
        return self.difference.products(evaluator, state, v)

    def _product(self, evaluator, state, v: Tensor) -> Tensor | None:
        """Jᵀv, or None where it cannot be had."""

        def pull_back() -> Tensor:
            graph, state.graph = state.graph or self._graph(evaluator), None
            return self._pull_back(evaluator, graph, v)

        return self._try(pull_back) if self.works else None

    def _graph_ahead(self, evaluator, state) -> estimators.Evaluation:
        graph = self._graph(evaluator)
        if self.setting.needs is Needs.VJP:
            state.graph = graph
        else:
            state.jt_ones = self._pull_back(evaluator, graph, state.ones())
        return graph

    def _graph(self, evaluator) -> estimators.Evaluation:
        if len(evaluator.cond_hooks) > 1:
            raise RuntimeError("the prompt is evaluated with several sets of LoRA weights")
        learned = self.setting.learned
        if learned.graph is None:
            learned.graph = self._choose(evaluator)
        return evaluator.graph(learned.graph)

    def _choose(self, evaluator) -> GraphOptions:
        """How the first graph is recorded. Raises RuntimeError where it is not tried."""
        asked, here = self.setting.options.checkpoint, evaluator.evaluated
        return GraphOptions(
            checkpoints=asked == "always" or (asked == "auto" and not room_for_graph(here.model, here.x).fits)
        )

    def _pull_back(self, evaluator, graph: estimators.Evaluation, v: Tensor) -> Tensor:
        product = graph.pull_back(v)
        self.setting.passes["reverse"] += 1
        if self.verifies:
            self.verifies = False
            step = min(self.setting.relative_step, VERIFYING_STEP)
            gap = estimators.disagreement(evaluator.cond, evaluator.evaluated.x, v, product, step)
            if not gap <= TRUSTED:  # NaN is not
                raise RuntimeError(f"what autograd gives is {gap:.0%} off from differences of its predictions")
        return product

    def _try(self, attempt: Callable):
        """The outcome of an attempt that differentiates; None, now and for the rest of the run, if it cannot be had."""
        while self.works:
            try:
                return attempt()
            except Unmeasurable:
                raise
            except Exception as error:
                if is_interrupt(error):
                    raise
                out_of_memory = comfy.model_management.is_oom(error)
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._learn("out of memory" if out_of_memory else reason, out_of_memory)  # the graph that failed is gone
        return None

    def _learn(self, reason: str, out_of_memory: bool) -> None:
        """Record the next graph with more care, or go on without graphs."""
        learned = self.setting.learned
        options = learned.graph or GraphOptions()
        if out_of_memory:
            comfy.model_management.soft_empty_cache()
        if out_of_memory and not options.checkpoints and self.setting.options.checkpoint != "off":
            learned.graph = replace(options, checkpoints=True)
        elif "modified by an inplace operation" in reason and not options.copies:
            learned.graph = replace(options, copies=True)
        else:
            self.give_up(reason)

    def give_up(self, reason: str) -> None:
        """Take differences for the rest of the run."""
        if self.works:
            self.works = False
            self.setting.fall_back(
                f"this model gives no gradient here ({reason}); REG goes on with estimator = difference"
            )
