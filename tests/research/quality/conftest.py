"""A studio whose model has random weights."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file


def weight(like):
    """Random, and large enough for the output to depend on the prompt."""
    return torch.randn_like(like) / like[0].numel() ** 0.5 if like.ndim > 1 else torch.ones_like(like)


@pytest.fixture(scope="session")
def studio(tmp_path_factory):
    pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")
    from pack.demo import models
    from pack.research.quality.cells import Studio

    torch.manual_seed(0)
    network = models.build().diffusion_model
    folder = tmp_path_factory.mktemp("quality")
    state = {name: weight(w) for name, w in network.state_dict().items()}
    save_file(state, folder / "random.safetensors")
    return Studio(folder / "random.safetensors", folder / "cache")


@pytest.fixture(scope="session")
def cell(studio):
    """A small cell, with changes."""
    from pack.research.quality.cells import Cell

    plain = Cell(studio.digest, "colour=gold", "cfg", 3.0, seed=0, batch=2, steps=2)
    return lambda **changes: replace(plain, **changes)
