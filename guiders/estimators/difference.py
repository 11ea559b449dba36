"""Jv from the difference of two predictions: one more forward pass, no gradient; every kernel, quantised or compiled."""

import comfy.model_management
from torch import Tensor

from ...reg import estimators
from ...reg.rectification import Needs
from ..report.live import log
from .base import Estimator

BATCH_TOLERANCE = 0.25  # between a product from a common batch and one from two: above the rounding of half precision


class Difference(Estimator):
    """A perfect denoiser's Jacobian is symmetric, so Jv stands for Jᵀv."""

    name = "difference"

    @staticmethod
    def memory(model, options):
        return 1.5 if options.rule.needs is Needs.JT_ONES else 1.0  # a probe may be a third evaluation in the batch

    def ahead(self, evaluator, state):
        if self.setting.needs is not Needs.JT_ONES or not self.setting.learned.batches_probe:
            return None
        if not evaluator.can_batch_a_probe():
            return None
        try:
            out, state.jt_ones = evaluator.with_probe(self.setting.relative_step)
        except Exception as error:
            if not comfy.model_management.is_oom(error):
                raise
            self.setting.learned.batches_probe = False  # there is no room for one more in the batch
            return None
        return out

    def vjp(self, evaluator, state, v):
        probe = estimators.probe(evaluator.evaluated.x, v, self.setting.relative_step)
        product = probe.product(evaluator.base(), evaluator.cond(probe.x))
        if self.setting.needs is Needs.JT_ONES and self.setting.learned.batches_probe is None:
            self.setting.learned.batches_probe = self._can_batch(evaluator, product)
        return product

    def chain_rule(self, evaluator, state, alpha, v):
        """At the step that the guidance itself makes, unless another is asked for: D_c(x + α s g) is a prediction too."""
        if self.setting.options.step:
            return alpha * self.vjp(evaluator, state, v)
        strength = self.setting.options.strength
        moved = evaluator.cond(evaluator.evaluated.x + alpha * strength * v)
        return (moved - evaluator.base()) / strength

    def products(self, evaluator, state, v):
        probe = estimators.probe(evaluator.evaluated.x, v, self.setting.relative_step)
        base = evaluator.base_of_both()
        jc, ju = (probe.product(*pair) for pair in zip(base, evaluator.both(probe.x), strict=True))
        return jc, ju

    def _can_batch(self, evaluator, alone: Tensor) -> bool:
        """May a probe be in the batch of the conds? Some models take no batch of three, or let its samples see each other."""
        if not evaluator.can_batch_a_probe():
            return False
        try:
            _, batched = evaluator.with_probe(self.setting.relative_step)
        except Exception as error:
            if is_interrupt(error):
                raise
            log.info("REG: this model takes no probe in the batch of the conds (%s)", error)
            return False
        return bool((batched - alone).norm() <= BATCH_TOLERANCE * alone.norm())


def is_interrupt(error: BaseException) -> bool:
    """Did the user stop the run?"""
    return isinstance(error, comfy.model_management.InterruptProcessingException)
