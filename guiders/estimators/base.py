"""What an estimator is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ...reg.rectification import Needs

if TYPE_CHECKING:
    from ..evaluator import Evaluator
    from ..options import Options
    from ..state import Learned, StepState


@dataclass
class Setting:
    """What an estimator knows of its run."""

    options: "Options"
    needs: Needs  # of the rectification
    learned: "Learned"
    relative_step: float  # of a difference, over the root mean square of x
    passes: dict  # counts reverse passes
    fall_back: Callable[[str], None]  # to be told why the estimator asked for cannot be used


class Estimator:
    """Products of the Jacobians at a step's latent, by some kind of pass of the model.

    One is made for each run. Tensors are [batch, ...].
    """

    name: str  # in options and files
    serves: frozenset[Needs] = frozenset(Needs)  # what it can measure by itself

    def __init__(self, setting: Setting):
        self.setting = setting

    @property
    def in_use(self) -> str:
        """The name of the estimator that does the work, for the report."""
        return self.name

    @staticmethod
    def memory(model, options: "Options") -> float:
        """How much memory a step needs, over that of guidance without REG, which evaluates two conds in a batch."""
        return 1.0

    def ahead(self, evaluator: "Evaluator", state: "StepState") -> list[Tensor] | None:
        """Measure while ComfyUI evaluates the conds, where that is cheapest: what is found is put into `state`.

        Gives the predictions of all conds if the evaluation made them on its way; None: ComfyUI makes them.
        """
        return None

    def took(self, seconds: float, without_graph: float) -> None:
        """A step with a reverse pass took `seconds`; one without takes `without_graph`, as far as it is known."""

    def vjp(self, evaluator: "Evaluator", state: "StepState", v: Tensor) -> Tensor:
        """Jᵀv of the guided cond's prediction."""
        raise NotImplementedError

    def chain_rule(self, evaluator: "Evaluator", state: "StepState", alpha: Tensor, v: Tensor) -> Tensor:
        """α Jᵀv for a guidance v."""
        return alpha * self.vjp(evaluator, state, v)

    def products(self, evaluator: "Evaluator", state: "StepState", v: Tensor) -> tuple[Tensor, Tensor]:
        """J_c v and J_u v."""
        raise NotImplementedError
