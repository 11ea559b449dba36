"""REG on every tiny family: what it computes, against differences of ComfyUI's own predictions; nothing left behind.

`REG_FAMILIES_TABLE=docs/families.md python3 dev.py test tests/test_families.py` writes what was measured as a table.
"""

import os
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

from pack.nodes.guidance import REGModel
from pack.tests.families import FAMILIES
from pack.tests.families.measure import measure
from pack.tests.families.sampling import euler, parts
from pack.tests.families.table import page

KNOWN: dict[str, str] = {}  # families that fail, and what it is in them; each is to be mended

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # ComfyUI's own


@pytest.fixture(scope="module")
def rows():
    rows = {}
    yield rows
    if path := os.environ.get("REG_FAMILIES_TABLE"):
        Path(path).write_text(page(rows, KNOWN))


def families():
    for name in FAMILIES:
        marks = [pytest.mark.xfail(strict=True, reason=KNOWN[name])] if name in KNOWN else []
        yield pytest.param(name, marks=marks)


@pytest.mark.parametrize("name", list(families()))
def test_estimators_agree_with_differences_of_the_prediction(name, rows):
    measured = rows[name] = measure(FAMILIES[name])

    assert measured.warnings == []
    assert measured.backward < 1e-3
    assert measured.backward_jacobian < 1e-3
    assert measured.difference < 0.1
    assert measured.difference_jacobian < 0.1
    assert all(-1e-5 < factor < 1 + 1e-5 for factor in measured.ratio)
    assert measured.finite
    assert measured.changed == []


def test_difference_where_a_batch_must_be_a_pair():
    family = replace(FAMILIES["SeedVR2"], apart=False)
    model = REGModel.execute(family.build(), estimator="difference").args[0]
    assert all(part.isfinite().all() for part in parts(euler(family, model, 2)))
