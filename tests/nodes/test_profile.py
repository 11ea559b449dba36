"""Profiles stay in their folders, whatever a prompt says."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import dataclasses

import folder_paths
import torch

from pack.demo import models as models_of_the_demo
from pack.guiders.attach import on_model
from pack.guiders.options import Options
from pack.nodes import profile as nodes
from pack.nodes.demo import weights
from pack.reg import profile as profiles

CURVE = torch.tensor([0.5, 0.4])
PROFILE = profiles.Profile(torch.tensor([1.0, 2.0]), CURVE[:, None], CURVE, CURVE, CURVE)


@pytest.fixture
def models(tmp_path, monkeypatch):
    """ComfyUI's models folder, empty, with a profile beside it that is none of its business."""
    folder = tmp_path / "models" / nodes.FOLDER
    folder.mkdir(parents=True)
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, nodes.FOLDER, ([str(folder)], {".safetensors"}))
    profiles.save(PROFILE, tmp_path / "secret.safetensors")
    return tmp_path


NO_NAMES = [
    *["", " ", "..", "../up", "a/b", "a\\b", "/root", ".hidden", "a\0b", "a\nb", "\ud800", ".safetensors", "a.", "a "],
    *["CON", "nul", "nul.txt", "Com1.safetensors", "lpt9 ", "COM²", "conin$", "a:b", "a*", "a?", 'a"b', "<a>", "a|b"],
]


@pytest.mark.parametrize("name", NO_NAMES)
def test_nothing_is_saved_elsewhere(models, name):
    before = sorted(models.rglob("*"))
    with pytest.raises(ValueError, match=r"REG: .* is not a file name"):
        nodes.REGSaveProfile.execute(PROFILE, name)
    assert sorted(models.rglob("*")) == before


@pytest.mark.parametrize("name", ["x" * 300, "ü" * 101, "日" * 80])
def test_a_name_that_no_file_can_have_is_refused(models, name):
    with pytest.raises(ValueError, match="REG: the name of the profile is too long: use at most 200 letters"):
        nodes.REGSaveProfile.execute(PROFILE, name)


@pytest.mark.parametrize("name", ["concert", "company 1", "aux-model", "com10", "ü" * 100, "v1.0"])
def test_names_like_reserved_ones_are_fine(models, name):
    nodes.REGSaveProfile.execute(PROFILE, name)
    assert torch.equal(nodes.REGLoadProfile.execute(f"{name}.safetensors").args[0].rho, CURVE)


@pytest.mark.parametrize("up", ["../../", "sub/../../../", "/../../"])
def test_nothing_is_loaded_from_elsewhere(models, up):
    with pytest.raises(FileNotFoundError):
        nodes.REGLoadProfile.execute(f"{up}secret.safetensors")
    with pytest.raises(FileNotFoundError):
        nodes.REGLoadProfile.execute(str(models / "secret.safetensors"))


def test_another_profile_of_the_name_is_kept_unless_it_may_go(models):
    other = dataclasses.replace(PROFILE, rho=CURVE / 2)
    nodes.REGSaveProfile.execute(PROFILE, "mine")
    nodes.REGSaveProfile.execute(PROFILE, "mine")  # the same again: a workflow that runs twice
    with pytest.raises(ValueError, match=r"REG: models/reg_profiles/mine.safetensors exists and holds another profile"):
        nodes.REGSaveProfile.execute(other, "mine")
    assert torch.equal(nodes.REGLoadProfile.execute("mine.safetensors").args[0].rho, CURVE)
    nodes.REGSaveProfile.execute(other, "mine", overwrite=True)
    assert torch.equal(nodes.REGLoadProfile.execute("mine.safetensors").args[0].rho, CURVE / 2)


def test_what_is_saved_can_be_loaded(models):
    nodes.REGSaveProfile.execute(PROFILE, "übung 1")
    assert torch.equal(nodes.REGLoadProfile.execute("übung 1.safetensors").args[0].rho, CURVE)


@pytest.mark.parametrize(
    ("profile", "version", "sigmas"),
    [
        ("reg-demo", "full", (15.0, 1.0, 0.1)),
        ("reg-demo-eps", "eps", (12.0, 1.0, 0.1)),
        ("reg-demo-flow", "flow", (0.9, 0.6, 0.1)),
    ],
)
def test_a_shipped_profile_is_of_its_model(profile, version, sigmas):
    found = profiles.load(nodes.SHIPPED / f"{profile}.safetensors")
    model, _ = models_of_the_demo.load(weights(version))
    on_model(model, Options("ratio", "profile", profile=found))  # refuses one of another model
    rho = found.at("rho", torch.tensor(sigmas))
    assert 0.3 < rho[0] < rho[1] < rho[2] <= 1  # as docs/quality/*/facts.md have it
