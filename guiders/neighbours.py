"""Other patches on the same run: what must be known of them so that an extra evaluation is compared with its like."""

from collections.abc import Callable
from contextlib import contextmanager

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, copy_nested_dicts, get_wrappers_with_key

CACHE = "easycache"  # ComfyUI's key of EasyCache's holder and of its wrappers
NAG, TOKEN_MERGING = "NAGuidance.", "TomePatchModel."  # how the qualified names of their patches begin


class Chance:
    """The random numbers to come, so that they can be drawn again.

    Token merging and HyperTile draw in every evaluation. Drawn anew, they would make noise of a difference; and what an
    extra evaluation draws must not be missing later.
    """

    def __init__(self, device: torch.device):
        device_module = getattr(torch, device.type, None)
        devices = [device_module] if hasattr(device_module, "get_rng_state") else []
        self.generators = [torch, *devices]
        self.state = self._now()

    def again(self) -> None:
        """From here on the same numbers come again."""
        self._set(self.state)

    @contextmanager
    def beside(self):
        """Within, the same numbers come again; afterwards those that would have come anyway."""
        now = self._now()
        self.again()
        try:
            yield
        finally:
            self._set(now)

    def _now(self) -> list[torch.Tensor]:
        return [generator.get_rng_state() for generator in self.generators]

    def _set(self, states: list[torch.Tensor]) -> None:
        for generator, state in zip(self.generators, states, strict=True):
            generator.set_rng_state(state)


def cache_of(model_options: dict):
    """EasyCache's holder of this run, or None. On steps that it marks, the network is not asked: its last difference
    between output and input is added to the input, which says nothing about the Jacobian."""
    if not get_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, CACHE, model_options, is_model_options=True):
        return None
    return model_options["transformer_options"].get(CACHE)


def without_cache(model_options: dict) -> dict:
    """The same model options where every evaluation asks the network, and none is remembered."""
    if cache_of(model_options) is None:
        return model_options
    options = copy_nested_dicts(model_options)
    for wrappers in options["transformer_options"]["wrappers"].values():
        wrappers.pop(CACHE, None)
    return options


def without_work_units(model_options: dict) -> dict:
    """The same model options on one device and in this thread: what other threads evaluate keeps no graph."""
    return {key: value for key, value in model_options.items() if key != "multigpu_clones"}


def couples_conds(model_options: dict) -> bool:
    """Does a patch mix what is evaluated in one batch, so that D_c depends on which conds it is evaluated with?"""
    return _has_attention_patch(model_options, NAG)


def evaluation(guider, model_options: dict) -> Callable:
    """(model, conds, x, sigma, model_options) -> predictions, as this guider has them: by ComfyUI, or by a patch in its
    place (SLG simple), which other guiders than core's pass by."""
    patch = model_options.get("sampler_calc_cond_batch_function")
    if patch is None or getattr(type(guider), "predict_noise", None) is not comfy.samplers.CFGGuider.predict_noise:
        return comfy.samplers.calc_cond_batch

    def by_patch(model, conds, x, sigma, model_options):
        return patch({"conds": conds, "input": x, "sigma": sigma, "model": model, "model_options": model_options})

    return by_patch


def merges_tokens(model_options: dict) -> bool:
    """Does a patch decide anew at each latent which tokens are one, so that the network jumps?"""
    return _has_attention_patch(model_options, TOKEN_MERGING)


def _has_attention_patch(model_options: dict, name: str) -> bool:
    patches = model_options.get("transformer_options", {}).get("patches", {}).get("attn1_output_patch", [])
    return any(getattr(patch, "__qualname__", "").startswith(name) for patch in patches)


def hooks_of(cond: list[dict] | None) -> set:
    """The groups of hooks (LoRAs of a prompt) that the parts of a cond are evaluated with."""
    return {part.get("hooks") for part in cond or []}
