"""Figures are drawn from the options a node offers, without pyplot."""

import pytest
from matplotlib.figure import Figure

from pack.lab import figures


@pytest.mark.parametrize("rectification", ["elementwise", "jacobian", "ratio"])
def test_figures_that_the_node_offers(rectification):
    made = [
        figures.curves(w=2.0, rectification=rectification, count=2),
        figures.samples(w=2.0, rectification=rectification, count=60, steps=5),
        figures.arrows(w=2.0, rules=("cfg", rectification)),
    ]
    assert all(isinstance(figure, Figure) and figure.axes for figure in made)
    assert all(figure.canvas.manager is None for figure in made)
