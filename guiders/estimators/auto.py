"""The gradient where it can be had and fits into memory, and differences everywhere else."""

from ..autograd.calls import GraphOptions
from ..autograd.checkpointing import CHECKPOINTED, room_for_graph
from ..report.live import log
from .backward import Backward

CRAWLING = 10  # times what a step takes without a graph: a graph makes it two to four times as long
LEAST = 5.0  # seconds of a step below which nothing is called crawling


class Auto(Backward):
    """Chooses before it tries: some drivers do not fail when memory runs out, they crawl."""

    name = "auto"

    @property
    def in_use(self):
        return Backward.name if self.works else self.difference.name

    @staticmethod
    def memory(model, options):  # a graph that does not fit is not tried
        return CHECKPOINTED / 2 if options.rule.needs in Backward.serves else 1.0

    def took(self, seconds, without_graph):
        if self.works and seconds > max(LEAST, CRAWLING * without_graph):
            self.give_up(f"a step with it took {seconds:.0f} s, and one without {without_graph:.1f} s")

    def _choose(self, evaluator) -> GraphOptions:
        """A whole graph if it fits, one with checkpoints if that fits. Raises RuntimeError if neither does."""
        asked, here = self.setting.options.checkpoint, evaluator.evaluated
        for checkpoints in {"off": [False], "always": [True], "auto": [False, True]}[asked]:
            room = room_for_graph(here.model, here.x, checkpoints)
            if room.fits:
                how = "a gradient with checkpoints" if checkpoints else "a gradient"
                log.info("REG: auto takes %s: its graph needs %s", how, room)
                return GraphOptions(checkpoints=checkpoints)
        raise RuntimeError(f"{'even with checkpoints ' * checkpoints}its graph would need {room}")
