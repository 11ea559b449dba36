"""Versions of the demo model that do not ship are offered where they are, and asked for elsewhere, named."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

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


@pytest.mark.parametrize("version", ["eps", "flow"])
def test_a_missing_version_is_said_to_be_in_the_repository(installed, version):
    sentence = demo.REGDemoModel.validate_inputs(version)
    assert sentence.startswith(f"REG: the demo model's version {version} does not come with the pack")
    assert f"{demo.REPOSITORY}/tree/main/research/weights" in sentence and "full or weak" in sentence
    with pytest.raises(ValueError) as error:
        demo.REGDemoModel.execute(version)
    assert str(error.value) == sentence


@pytest.mark.parametrize("version", ["no such", "", 3, None, [1]])
def test_what_is_no_version_is_refused(version):
    assert "has no version" in demo.REGDemoModel.validate_inputs(version)
