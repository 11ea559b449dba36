"""The toy nodes draw figures, and refuse what is no toy."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

from pathlib import Path

import comfy.samplers
import folder_paths
import torch
from PIL import Image

from pack.nodes.toy import EXPERIMENTS, REGToy, REGToyModel, REGToyPlot

RULE = {"rectification": "REG (paper)"}


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_draws_an_image_that_depends_on_cfg(experiment):
    low, high = (REGToy.execute(experiment, "whole Jacobian", cfg, 0.7, 22).args[0] for cfg in (2.0, 6.0))
    assert low.ndim == 4 and low.shape[-1] == 3
    assert ((low >= 0) & (low <= 1)).all()
    assert low.std() > 0.02
    assert (low - high).abs().max() > 0.1


def test_a_figure_is_shown_on_its_node():
    made = REGToy.execute("curves", "ratio", 4.0, 0.7, 22)
    (shown,) = made.ui.as_dict()["images"]
    with Image.open(Path(folder_paths.get_temp_directory(), shown["filename"])) as image:
        assert image.size == (made.args[0].shape[2], made.args[0].shape[1])


@torch.inference_mode()
def test_points_sampled_by_comfyui_are_drawn():
    model, positive, negative, latent = REGToyModel.execute(22, 32).args
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(4.0)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", 8)
    empty = latent["samples"]
    samples = guider.sample(torch.randn_like(empty), empty, comfy.samplers.sampler_object("euler"), sigmas)
    image = REGToyPlot.execute({"samples": samples}, 4.0, 22).args[0]
    assert image.shape[-1] == 3 and image.std() > 0.02


def test_it_opens_on_the_rule_of_the_other_nodes_and_what_is_left_out_has_its_default():
    assert REGToy.define_schema().inputs[1].default == "REG (paper)"
    shown, named, saved = (REGToy.execute(**inputs).args[0] for inputs in ({}, RULE, {"rectification": "elementwise"}))
    assert torch.equal(shown, named) and torch.equal(shown, saved)
    assert REGToy.validate_inputs("elementwise") and REGToy.validate_inputs()
    with pytest.raises(ValueError, match="REG: rectification must be one of"):
        REGToy.validate_inputs("no such")


def test_other_latents_are_refused():
    with pytest.raises(ValueError, match="REG: these are not points of the plane"):
        REGToyPlot.execute({"samples": torch.zeros(1, 4, 8, 8)}, 4.0, 22)
