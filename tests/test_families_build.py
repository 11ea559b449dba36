"""Every tiny family samples as ComfyUI samples, and its prediction depends on what it should."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch
from comfy import supported_models

from pack.tests.families import FAMILIES, LEFT_OUT
from pack.tests.families.sampling import euler, parts

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # ComfyUI's own


def distance(a, b):
    """Relative to b, over all parts of a nested latent."""
    differences = [(x - y).norm() for x, y in zip(parts(a), parts(b), strict=True)]
    return torch.stack(differences).norm() / torch.stack([y.norm() for y in parts(b)]).norm()


def test_every_config_of_comfyui_is_in_the_table_or_left_out():
    built = {family.config.__name__ for family in FAMILIES.values()}
    left_out = {config.__name__ for config in LEFT_OUT}
    assert built | left_out == {config.__name__ for config in supported_models.models}
    assert not built & left_out


@pytest.mark.parametrize("name", FAMILIES)
def test_family_samples(name):
    family = FAMILIES[name]
    model = family.build()
    guided = euler(family, model, 2)

    out = model.model.process_latent_out
    assert [part.shape for part in parts(guided)] == [out(torch.zeros(shape)).shape for shape in family.latents]
    assert all(part.isfinite().all() for part in parts(guided))

    again = euler(family, family.build(), 2)
    assert all(torch.equal(a, b) for a, b in zip(parts(guided), parts(again), strict=True))

    positive, negative = (euler(family, model, 2, positive=prompt, cfg=1.0) for prompt in (1, 2))
    assert distance(positive, negative) > 1e-3
    if not family.starts_from_latent:
        assert distance(positive, euler(family, model, 2, cfg=1.0, seed=1)) > 1e-2
