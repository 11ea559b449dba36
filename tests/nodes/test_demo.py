"""Versions of the demo model that do not ship are offered where they are, and asked for elsewhere, named."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import numpy as np
import torch

from pack.demo import world
from pack.nodes import demo


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """The pack as a user has it: without the research folder."""
    files = {version: demo.VERSIONS[version] for version in ("full", "weak")}
    missing = {version: tmp_path / f"{version}.safetensors" for version in ("eps", "flow")}
    monkeypatch.setattr(demo, "VERSIONS", files | missing)


def offered() -> list[str]:
    return demo.REGDemoModel.define_schema().inputs[0].options


def test_a_clone_has_all_versions():
    assert offered() == ["full", "weak", "eps", "flow"]
    assert all(demo.REGDemoModel.validate_inputs(version) is True for version in offered())


def test_an_installed_pack_offers_what_it_has(installed):
    assert offered() == ["full", "weak"]
    assert demo.REGDemoModel.validate_inputs() is True
    assert demo.REGDemoModel.validate_inputs(None) is True  # another node gives it: not known yet


@pytest.mark.parametrize("version", ["eps", "flow"])
def test_a_missing_version_is_said_to_be_in_the_repository(installed, version):
    sentence = demo.REGDemoModel.validate_inputs(version)
    assert sentence.startswith(f"REG: the demo model's version {version} does not come with the pack")
    assert f"{demo.REPOSITORY}/tree/main/research/weights" in sentence and "full or weak" in sentence
    with pytest.raises(ValueError) as error:
        demo.REGDemoModel.execute(version)
    assert str(error.value) == sentence


def test_the_right_answer_has_the_worlds_shares():
    """Against the table of the world, by Bayes' rule: P(colour | star, light) ∝ P(colour | star) P(light | colour)."""
    star, light = world.SHAPES.index("star"), world.BACKGROUNDS.index("light")
    joint = world.P_COLOUR_GIVEN_SHAPE[star] * world.P_BACKGROUND_GIVEN_COLOUR[:, light]
    pictures, shown = world.draws(4000, 0, shape="star", background="light")
    assert pictures.shape == (4000, world.SIZE, world.SIZE, 3)
    assert set(shown.shape) == {star} and set(shown.background) == {light}
    assert np.bincount(shown.colour, minlength=5) / 4000 == pytest.approx(joint / joint.sum(), abs=0.025)
    few = demo.REGDemoPrompt.execute(shape="star", background="light").args[1]
    assert torch.equal(
        few, torch.from_numpy(world.draws(16, demo.RIGHT_SEED, shape="star", background="light")[0]) / 255
    )


@pytest.mark.parametrize("version", ["no such", "", 3, [1]])
def test_what_is_no_version_is_refused(version):
    assert "has no version" in demo.REGDemoModel.validate_inputs(version)
