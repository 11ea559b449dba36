"""Small patches of the kinds that people use beside REG, one of each row of KINDS in `compatibility.py`.

Each takes a model of the tiny SD1.5-like family and gives a patched clone of it.
"""

import copy

import comfy.samplers
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import set_model_options_patch_replace
from comfy.patcher_extension import WrappersMP


def own_calc(model):
    """Evaluates the prompts itself, one by one, with an attention of its own and without ComfyUI's wrappers."""

    def louder(q, k, v, extra):
        return 1.5 * optimized_attention(q, k, v, extra["n_heads"])

    model = model.clone()
    own = model.model_options

    def calc(args):
        options = set_model_options_patch_replace(own, louder, "attn1", "middle", 0)
        one = lambda cond: comfy.samplers.calc_cond_batch(args["model"], [cond], args["input"], args["sigma"], options)  # noqa: E731
        return [one(cond)[0] for cond in args["conds"]]

    model.set_model_sampler_calc_cond_batch_function(calc)
    return model


def half_of_the_batch(model):
    """Tells the positive prompt by the first half of the batch, and takes a batch of one for it."""

    def attend(q, k, v, extra):
        out = optimized_attention(q, k, v, extra["n_heads"])
        first, rest = out.chunk(2) if len(out) > 1 else (out, out[:0])
        return torch.cat([2 * first - first.mean(1, keepdim=True), rest])

    model = model.clone()
    model.set_model_attn2_replace(attend, "middle", 0)
    model.set_model_attn2_replace(attend, "output", 1)
    return model


def copies_of_conds(model, noise=False):
    """Hands the network copies of the prompts, changed by fixed numbers or by noise."""

    def calc(args):
        conds = copy.deepcopy(args["conds"])
        for part in (part for cond in conds for part in cond or []):
            text = part["model_conds"]["c_crossattn"]
            fixed = torch.linspace(-1, 1, text.cond.numel()).view(text.cond.shape)
            change = torch.randn(text.cond.shape) if noise else fixed
            part["model_conds"]["c_crossattn"] = text._copy_with(text.cond + 0.5 * change)
        return comfy.samplers.calc_cond_batch(args["model"], conds, args["input"], args["sigma"], args["model_options"])

    model = model.clone()
    model.set_model_sampler_calc_cond_batch_function(calc)
    return model


def noisy_copies_of_conds(model):
    return copies_of_conds(model, noise=True)


def in_place_pre_cfg(model):
    """Writes into the predictions that it is handed."""

    def louder(args):
        args["conds_out"][0].mul_(1.2)
        return args["conds_out"]

    model = model.clone()
    model.set_model_sampler_pre_cfg_function(louder)
    return model


def conds_not_evaluated(model):
    """Has ComfyUI evaluate nothing, and evaluates the prompts within its own rule."""
    seen = []

    def nothing(args):
        seen[:] = args["conds"]
        return [torch.zeros_like(args["input"]) for _ in args["conds"]]

    def rule(args):
        options = {"transformer_options": dict(args["model_options"]["transformer_options"])}
        c, u = comfy.samplers.calc_cond_batch(args["model"], seen, args["input"], args["sigma"], options)
        return args["input"] - 0.9 * (u + args["cond_scale"] * (c - u))

    model = model.clone()
    model.set_model_sampler_calc_cond_batch_function(nothing)
    model.set_model_sampler_cfg_function(rule, disable_cfg1_optimization=True)
    return model


def counts_its_calls(model):
    """Changes predictions by how often it was called: an evaluation is not like the one before."""
    calls = []

    def wrap(apply, args):
        calls.append(1)
        return apply(args["input"], args["timestep"], **args["c"]) * (1 + 0.2 * (len(calls) % 3))

    model = model.clone()
    model.set_model_unet_function_wrapper(wrap)
    return model


class Cache:
    """On every other noise level the network is not asked: the last residual is added to the input.

    Kept by prompt, or one for all.
    """

    def __init__(self, by_prompt):
        self.by_prompt = by_prompt
        self.residuals, self.sigmas = {}, []

    def __call__(self, evaluate, x, options):
        sigma, prompts = float(options["sigmas"][0]), options["cond_or_uncond"]
        if sigma not in self.sigmas:
            self.sigmas.append(sigma)
        keys = [prompt if self.by_prompt else "all" for prompt in prompts]
        if self.sigmas.index(sigma) % 2 and all(key in self.residuals for key in keys):
            return torch.cat([part + self.residuals[key] for part, key in zip(x.chunk(len(keys)), keys, strict=True)])
        out = evaluate()
        self.residuals |= dict(zip(keys, (out - x).detach().chunk(len(keys)), strict=True))
        return out


def cache_around_the_network(model, by_prompt=True):
    """A DIFFUSION_MODEL wrapper, as newer packs have."""
    cache = Cache(by_prompt)

    def wrap(executor, x, *args, **kwargs):
        options = kwargs.get("transformer_options") or next(a for a in args if isinstance(a, dict) and "sigmas" in a)
        return cache(lambda: executor(x, *args, **kwargs), x, options)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "somebody's", wrap)
    return model


def cache_of_one_residual(model):
    return cache_around_the_network(model, by_prompt=False)


def cache_around_the_model(model):
    """A model_function_wrapper, as older packs have. What it keeps is of predictions."""
    cache = Cache(by_prompt=True)

    def wrap(apply, args):
        x = args["input"]
        return cache(lambda: apply(x, args["timestep"], **args["c"]), x, args["c"]["transformer_options"])

    model = model.clone()
    model.set_model_unet_function_wrapper(wrap)
    return model


def deep_copies(model, kept=None):
    """Copies the options of the step deeply for a pass of its own, and keeps the copies."""
    kept = [] if kept is None else kept

    def extra_pass(args):
        options = copy.deepcopy(args["model_options"])
        kept.append(options)
        (other,) = comfy.samplers.calc_cond_batch(
            args["model"], [args["conds"][0]], args["input"], args["sigma"], options
        )
        return [args["conds_out"][0] + 0.1 * other, args["conds_out"][1]]

    model = model.clone()
    model.set_model_sampler_pre_cfg_function(extra_pass)
    return model


class ThinRule(comfy.samplers.CFGGuider):
    """CFG whose post-CFG hooks are not told the scale, and whose other hooks are not run."""

    def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006 (ComfyUI's signature)
        conds = [self.conds["positive"], self.conds["negative"]]
        c, u = comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options)
        out = u + self.cfg * (c - u)
        told = {"cond": conds[0], "uncond": conds[1], "model": self.inner_model, "model_options": model_options}
        told |= {"cond_denoised": c, "uncond_denoised": u, "sigma": timestep, "input": x}
        for hook in model_options.get("sampler_post_cfg_function", []):
            out = hook({"denoised": out, **told})
        return out


def fails_in_the_third_step(model):
    """A rule that fails, as one does that meets a prediction of a shape it does not know."""
    asked = []

    def rule(args):
        asked.append(1)
        if len(asked) == 3:
            raise IndexError("tuple index out of range")
        return args["uncond"] + args["cond_scale"] * (args["cond"] - args["uncond"])

    model = model.clone()
    model.set_model_sampler_cfg_function(rule)
    return model


class Tagged(torch.Tensor):
    """A Tensor subclass that adds nothing."""


def tensor_subclass_weights(model):
    """Its convolutions have weights of a Tensor subclass, as GGUF files' unquantised weights are."""
    for layer in model.model.diffusion_model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer._parameters["weight"] = torch.nn.Parameter(layer.weight.as_subclass(Tagged), requires_grad=False)
    return model
