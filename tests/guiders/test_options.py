"""What can be asked for, what is refused, and what is said to do nothing."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

from pack.guiders.options import Options
from pack.tests.guiders import tiny


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"strength": float("nan")}, "strength"),
        ({"strength": 5.0}, "strength"),
        ({"start_percent": 0.6, "end_percent": 0.2}, "start_percent .0.6. comes after end_percent .0.2.: swap"),
        ({"end_percent": float("inf")}, "end_percent"),
        ({"refresh": -1}, "measure every"),
        ({"rectification": "none"}, "rectification"),
        ({"estimator": "profile"}, "connect"),
        ({"skip_below": 0.1}, "connect"),
    ],
)
def test_bad_options_are_named(bad, words):
    with pytest.raises(ValueError, match=f"REG: .*{words}"):
        Options(**bad)


GIVEN = {"profile": tiny.profile()}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rectification": "ratio", "estimator": "backward"}, "estimator = backward does nothing"),
        ({"rectification": "ratio", "checkpoint": "always"}, "checkpoint does nothing"),
        ({"rectification": "ratio", "verify": True}, "verify does nothing"),
        ({"estimator": "difference", "checkpoint": "always"}, "checkpoint does nothing"),
        ({"estimator": "difference", "verify": True}, "verify does nothing"),
        ({"estimator": "profile", "verify": True} | GIVEN, "verify does nothing"),
        ({"step": 0.1} | GIVEN, "the difference step does nothing"),
        ({"estimator": "backward"} | GIVEN, "estimator = backward does not use it: choose auto"),
    ],
    ids=str,
)
def test_an_option_that_does_nothing_is_said(options, words):
    (sentence,) = Options(**options).unused()
    assert words in sentence
    assert Options(**options, strength=0.0).unused() == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"verify": True, "checkpoint": "always"},
        {"rectification": "jacobian", "estimator": "backward", "verify": True},
        {"rectification": "ratio", "step": 0.1},
        {"estimator": "difference", "step": 0.1},
        {"estimator": "backward", "skip_below": 0.1} | GIVEN,
        GIVEN,
    ],
    ids=str,
)
def test_options_that_do_something_are_not_spoken_of(options):
    assert Options(**options).unused() == []


@pytest.mark.parametrize(
    ("estimator", "used"), [("auto", True), ("profile", True), ("backward", False), ("difference", False)]
)
def test_a_connected_profile_is_used_unless_another_estimator_is_asked_for(estimator, used):
    assert Options(estimator=estimator, **GIVEN).uses_profile is used
    assert not Options().uses_profile


def test_a_rule_may_be_asked_for_by_what_people_read():
    assert Options("REG (paper)").rectification == Options().rectification == "elementwise"
    assert Options("whole Jacobian").rectification == "jacobian"
