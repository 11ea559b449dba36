"""Cells are sampled by ComfyUI once, and their address is made of what their pictures depend on."""

from dataclasses import fields, replace

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from pack.research.quality import cells


def test_a_cell_is_sampled_once(studio, cell, monkeypatch):
    first = studio.get(cell())
    monkeypatch.setattr(studio, "sample", None)
    again = studio.get(cell())
    assert np.array_equal(first.pictures, again.pictures)
    assert first.pictures.shape == (2, 64, 64, 3) and first.forward == 4 and first.reverse == 0


def test_everything_a_cell_says_is_in_its_address(studio, cell):
    base = cell()
    others = [
        replace(base, **{field.name: value + ("x" if isinstance(value, str) else 1)})
        for field in fields(base)
        for value in [getattr(base, field.name)]
    ]
    studio.get(base)
    assert len(others) == len(fields(base))
    assert studio.has(base) and not any(map(studio.has, others))


def test_another_version_of_the_code_or_the_weak_model_is_another_address(studio, cell, monkeypatch):
    studio.get(cell())
    monkeypatch.setattr(cells, "VERSION", cells.VERSION + 1)
    assert not studio.has(cell())
    plain, auto = cell().made_with(), cell(rule="autoguidance").made_with()
    assert len(auto) == len(plain) + 1


def test_digests_see_the_tensors_and_not_the_header(studio, tmp_path):
    state = load_file(studio.weights)
    save_file(state, tmp_path / "same.safetensors", metadata={"licence": "Apache-2.0"})
    assert cells.digest(tmp_path / "same.safetensors") == studio.digest
    state["out.2.bias"] = state["out.2.bias"] + 1
    save_file(state, tmp_path / "other.safetensors")
    assert cells.digest(tmp_path / "other.safetensors") != studio.digest


def test_passes_of_the_network_are_counted(studio, cell):
    """Two steps: D_c and D_u at each, and one more evaluation or one reverse pass. The first step of a run checks that an
    evaluation of D_c alone, or of both for the ratio, is ComfyUI's, and takes its graph by itself."""
    counted = {
        rule: (sampled.forward, sampled.reverse)
        for rule in ("none", "cfg", "elementwise", "jacobian natural", "ratio")
        for sampled in [studio.sample(cell(rule=rule))]
    }
    assert counted == {
        "none": (2, 0),
        "cfg": (4, 0),
        "elementwise": (4 + 2, 2),
        "jacobian natural": (6 + 1, 0),
        "ratio": (8 + 2, 0),
    }


def test_cells_are_sampled_in_one_precision_on_every_machine(monkeypatch):
    """A card would take the half precision that the weights are kept in."""
    monkeypatch.setattr("comfy.model_management.unet_manual_cast", lambda *args, **kwargs: None)
    assert cells.weak_model.__wrapped__().model.get_dtype_inference() == torch.float32
