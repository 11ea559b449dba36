"""Presets are read with suspicion: people share them."""

import json

import pytest

from pack.pilot.arms import Arm
from pack.pilot.preset import Preset, PresetError, load, options, parse

PRESET = Preset.of(
    Arm("ratio", 5.0, (("every", 2),)),
    {"every": 8, "start_percent": 0.2},
    model="m.safetensors",
    evidence="It is better.",
    made={"pictures": 96},
)


def altered(**changes) -> str:
    return json.dumps(json.loads(PRESET.text()) | changes)


def test_what_is_saved_is_loaded(tmp_path):
    (file := tmp_path / "a.json").write_text(PRESET.text(), encoding="utf-8")
    assert load(file) == PRESET
    assert (
        options(PRESET) == {"rectification": "ratio", "strength": 1.0, "every": 2, "start_percent": 0.2}
        and PRESET.cfg == 5.0
    )


def test_a_share_for_a_roll_out():
    half = Preset(5.0, {"rectification": "ratio", "strength": 0.8}).scaled(0.5)
    assert options(half) == {"rectification": "ratio", "strength": 0.4}
    assert options(Preset(5.0, {"rectification": "ratio"}).scaled(0.0))["strength"] == 0.0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not JSON"),
        ("[]", "no preset"),
        ("[" * 100_000, "not JSON"),
        (altered(format="other"), '"format": "reg-preset"'),
        (altered(version=2), "version 2"),
        (altered(cfg="5"), "cfg must be a number"),
        (altered(cfg=float("nan")), "cfg must be a number"),
        (altered(cfg=True), "cfg must be a number"),
        (altered(options=[]), "options in the preset must be a dict"),
        (altered(options={"model": "x"}), "'model'"),
        (altered(options={"strength": 9}), "strength must be a number from 0 to 4"),
        (altered(options={"every": 1.5}), "every must be a whole number"),
        (altered(options={"estimator": "profile"}), "estimator must be one of"),
        (altered(options={"rectification": 3}), "rectification must be a word"),
        (altered(options={"verify": 1}), "verify must be true or false"),
    ],
)
def test_what_is_none_is_refused(text, told):
    with pytest.raises(PresetError, match=r"^REG: ") as error:
        parse(text)
    assert told in str(error.value)


def test_files_that_are_none(tmp_path):
    (big := tmp_path / "big.json").write_text(" " * 200_000)
    with pytest.raises(PresetError, match="too large"):
        load(big)
    with pytest.raises(PresetError, match="cannot be read"):
        load(tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes(b"\xe9")
    with pytest.raises(PresetError, match="UTF-8"):
        load(tmp_path / "latin.json")
