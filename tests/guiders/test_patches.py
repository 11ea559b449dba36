"""What is seen of other patches, by what they do; and what is left of the options they are in."""

import copy

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import Guider_DualCFG
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion

from pack.guiders import patches
from pack.tests.guiders import tiny


class Blocks(tiny.Network):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))
        self.pairs = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh())])


def test_the_blocks_that_run_are_seen_and_no_hook_is_left():
    network, x = Blocks(), torch.ones(1, 4)
    with patches.blocks_run(network) as ran:
        network.blocks[0](x)
        network.blocks[2](x)
        network.blocks[2](x)
        network.pairs[0](x)
    assert ran == {network.blocks[0], network.blocks[2], *network.pairs[0]}
    network.blocks[1](x)
    assert network.blocks[1] not in ran
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_no_hook_is_left_after_a_failure():
    network = Blocks()
    with pytest.raises(RuntimeError), patches.blocks_run(network):
        network.blocks[0](torch.ones(1, 5))
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_a_network_that_is_not_there_has_no_blocks():
    with patches.blocks_run(None) as ran:
        pass
    assert ran == set()


def wrapped(kind):
    model = tiny.as_model(tiny.Network())
    if kind == "function":
        model.set_model_unet_function_wrapper(lambda apply, args: apply(args["input"], args["timestep"], **args["c"]))
    if kind == "wrapper":
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "theirs", lambda executor, *args: executor(*args))
    if kind == "elsewhere":
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "theirs", lambda executor, *args: executor(*args))
    options = copy.copy(model.model_options)
    options.setdefault("transformer_options", {})["wrappers"] = copy.deepcopy(
        model.wrappers
    )  # as ComfyUI prepares a run
    return options


@pytest.mark.parametrize(
    ("kind", "around"), [("function", True), ("wrapper", True), ("elsewhere", False), ("none", False)]
)
def test_wrappers_around_the_network(kind, around):
    options = wrapped(kind)
    assert patches.wraps_network(options) is around
    bare = patches.unwrapped(options)
    assert not patches.wraps_network(bare)
    assert patches.wraps_network(options) is around  # the run's own options are as they were
    assert bool(bare["transformer_options"]["wrappers"].get(WrappersMP.APPLY_MODEL)) is (kind == "elsewhere")


def test_the_patch_in_comfyuis_place_is_called_as_comfyui_calls_it():
    told = {}

    def theirs(args):
        told.update(args)
        return ["cond", "uncond"]

    model = tiny.as_model(tiny.Network())
    model.set_model_sampler_calc_cond_batch_function(theirs)
    guider = tiny.guider(model)
    calc = patches.stand_in(guider, model.model_options)
    assert calc("model", ["a", "b"], "x", "sigma", {"of": "the run"}) == ["cond", "uncond"]
    assert told == {
        "conds": ["a", "b"],
        "input": "x",
        "sigma": "sigma",
        "model": "model",
        "model_options": {"of": "the run"},
    }
    assert patches.stand_in(guider, {}) is None
    assert patches.stand_in(Guider_DualCFG(model), model.model_options) is None  # it passes the patch by


def test_the_mask_in_force_is_comfyuis():
    """Without a patch the mask itself; with Differential Diffusion what it frees at that noise level."""
    model = tiny.as_model(tiny.Network())
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", 6)
    mask, guider = torch.tensor([0.0, 0.3, 0.6, 1.0]), tiny.guider(model)
    guider.inner_model = model.model
    assert patches.mask_by_sigma(mask, guider, {}, sigmas)(sigmas[:1]) is mask
    assert patches.mask_by_sigma(None, guider, {}, sigmas)(sigmas[:1]) is None

    patched = DifferentialDiffusion.execute(model).args[0].model_options
    at = patches.mask_by_sigma(mask, guider, patched, sigmas)
    percents = [(sampling.timestep(s) - sampling.timestep(sigmas[-1])) / sampling.timestep(sigmas[0]) for s in sigmas]
    for sigma, left in zip(sigmas[:-1], percents, strict=False):
        assert at(sigma[None]).tolist() == [float(m >= left) for m in mask]
    assert patches.mask_by_sigma(None, guider, patched, sigmas)(sigmas[:1]) is None


def test_hooks_of_a_cond_are_those_of_its_parts():
    one, other = object(), object()
    assert patches.hooks_of([{"hooks": one}, {"hooks": other}, {}]) == {one, other, None}
    assert patches.hooks_of(None) == set()
