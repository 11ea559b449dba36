"""Tiny, randomly initialised instances of the model families in ComfyUI's own list, for tests of what must work on all.

@pytest.mark.parametrize("name", FAMILIES)
def test_something(name):
    family = FAMILIES[name]
    model, x, positive = family.build(), family.latent(), family.conditioning(1)
"""

from comfy import supported_models as models

from . import pictures, shapes, sounds, unets, videos
from .family import Family

FAMILIES: dict[str, Family] = unets.FAMILIES | pictures.FAMILIES | videos.FAMILIES | sounds.FAMILIES | shapes.FAMILIES

LEFT_OUT = {
    models.RT_DETR_v4: "finds objects, does not denoise",
    models.SAM3: "segments pictures, does not denoise",
    models.SAM31: "segments pictures, does not denoise",
    models.DepthAnything3: "measures depth, does not denoise",
}
