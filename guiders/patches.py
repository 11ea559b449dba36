"""What must be known of other patches on the same run. As far as it goes, it is seen by what they do, not by their name."""

from collections.abc import Callable
from contextlib import ExitStack, contextmanager

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, copy_nested_dicts
from torch import Tensor

from .autograd.checkpointing import blocks

TOKEN_MERGING = "TomePatchModel."  # how the qualified name of its patch begins
WRAPPER = "model_function_wrapper"  # one more wrapper of the network, in a slot of its own
OURS = "reg"


def wraps_network(model_options: dict) -> bool:
    """Has another patch put a wrapper around the network: a cache, or a change of what it computes?"""
    wrappers = model_options.get("transformer_options", {}).get("wrappers", {}).get(WrappersMP.DIFFUSION_MODEL, {})
    return WRAPPER in model_options or any(wrappers.values())


def may_mix(model_options: dict) -> bool:
    """May another patch let the conds of a batch see each other, at some steps perhaps? (NAG does, in its attention.)"""
    inside = model_options.get("transformer_options", {}).get("patches", {})
    return wraps_network(model_options) or any(
        inside.get(kind) for kind in ("attn1_output_patch", "attn2_output_patch")
    )


def unwrapped(model_options: dict) -> dict:
    """The same model options without such wrappers."""
    options = copy_nested_dicts(model_options)
    options.pop(WRAPPER, None)
    options["transformer_options"].get("wrappers", {}).pop(WrappersMP.DIFFUSION_MODEL, None)
    return options


def without_work_units(model_options: dict) -> dict:
    """The same model options on one device and in this thread: what other threads evaluate keeps no graph."""
    return {key: value for key, value in model_options.items() if key != "multigpu_clones"}


@contextmanager
def blocks_run(network: torch.nn.Module | None):
    """A set that fills with the blocks of the network that run within.

    A cache answers in the place of all blocks or of most of them, whatever its name and wherever it sits. Blocks that
    are compiled are never in it: their hooks would be compiled with them, and run in the first call only.
    """
    ran: set[torch.nn.Module] = set()

    def note(block, args):
        if not torch.compiler.is_compiling():
            ran.add(block)

    with ExitStack() as stack:
        for block in blocks(network) if network is not None else ():
            stack.callback(block.register_forward_pre_hook(note).remove)
        yield ran


def after_pre_cfg_hooks(model, conds: list, out: list, x, sigma, cfg: float, model_options: dict) -> list:
    """The predictions that guidance is made of: what pre-CFG hooks make of those of the model."""
    shared = {"conds": conds, "cond_scale": cfg, "timestep": sigma, "input": x, "sigma": sigma, "model": model}
    for hook in model_options.get("sampler_pre_cfg_function", []):
        out = hook({"conds_out": out, "model_options": model_options, **shared})
    return out


def has_own_rule(guider) -> bool:
    """Does it make guidance in another way than ComfyUI's CFG?"""
    return getattr(type(guider), "predict_noise", None) is not comfy.samplers.CFGGuider.predict_noise


def stand_in(guider, model_options: dict) -> Callable | None:
    """The patch that evaluates the conds in ComfyUI's place (SLG simple, presets of other packs), as a function
    (model, conds, x, sigma, model_options) -> predictions. Guiders that have their own rule pass it by."""
    patch = model_options.get("sampler_calc_cond_batch_function")
    if patch is None or has_own_rule(guider):
        return None

    def calc(model, conds, x, sigma, model_options):
        return patch({"conds": conds, "input": x, "sigma": sigma, "model": model, "model_options": model_options})

    return calc


def mask_by_sigma(
    mask: Tensor | None, guider, model_options: dict, sigmas: Tensor
) -> Callable[[Tensor], Tensor | None]:
    """sigma [batch] -> the mask that ComfyUI applies there (`KSamplerX0Inpaint`), 1 where the latent is free to change.

    Differential Diffusion frees more of the latent from step to step.
    """
    changed = model_options.get("denoise_mask_function")
    if mask is None or changed is None:
        return lambda sigma: mask
    return lambda sigma: changed(sigma, mask, extra_options={"model": guider, "sigmas": sigmas})


def merges_tokens(model_options: dict) -> bool:
    """Does a patch decide anew at each latent which tokens are one, so that the network jumps?"""
    patches = model_options.get("transformer_options", {}).get("patches", {}).get("attn1_output_patch", [])
    return any(getattr(patch, "__qualname__", "").startswith(TOKEN_MERGING) for patch in patches)


def hooks_of(cond: list[dict] | None) -> set:
    """The groups of hooks (LoRAs of a prompt) that the parts of a cond are evaluated with."""
    return {part.get("hooks") for part in cond or []}
