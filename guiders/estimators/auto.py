"""The gradient where it can be had and fits into memory, and differences everywhere else."""

from ..autograd.calls import GraphOptions
from ..autograd.checkpointing import graph_fits
from .backward import CHECKPOINTED, Backward


class Auto(Backward):
    """Chooses before it tries: some drivers do not fail when memory runs out, they crawl."""

    name = "auto"

    @property
    def in_use(self):
        return Backward.name if self.works else self.difference.name

    @staticmethod
    def memory(model, options):
        return CHECKPOINTED if options.rule.needs in Backward.serves else 1.0  # a graph that does not fit is not tried

    def _choose(self, evaluator) -> GraphOptions:
        asked = self.setting.options.checkpoint
        here = evaluator.evaluated
        return GraphOptions(checkpoints=asked == "always" or (asked == "auto" and not graph_fits(here.model, here.x)))
