"""How products of the model's Jacobian are estimated. A new estimator is a file here and an entry in ESTIMATORS."""

from .auto import Auto
from .backward import Backward
from .base import Estimator
from .difference import Difference

ESTIMATORS: dict[str, type[Estimator]] = {kind.name: kind for kind in (Auto, Backward, Difference)}

__all__ = ["ESTIMATORS", "Auto", "Backward", "Difference", "Estimator"]
