"""One guided step of a tiny family, as ComfyUI makes it: in inference mode, or where autograd records."""

from functools import cache

import comfy.samplers
import torch

from pack.tests.families import FAMILIES

CFG, PERCENT, DRAW = 4.0, 0.5, 7


@cache
def built(family):
    """A tiny model whose weights autograd accepts, so that Jacobians can be had without REG."""
    model = FAMILIES[family].build()
    ordinary(model.model)
    return model


def ordinary(network):
    """The network with ordinary tensors in the place of those made in inference mode."""
    for module in network.modules():
        for name, weight in module._parameters.items():
            module._parameters[name] = (
                weight if weight is None else torch.nn.Parameter(weight.clone(), requires_grad=False)
            )
        for name, buffer in module._buffers.items():
            module._buffers[name] = buffer if buffer is None else buffer.clone()
    return network


def copying():
    """Where autograd saves copies, for networks that write into what was saved.

    (PyTorch's `allow_mutation_on_saved_tensors` tells tensors apart by their addresses, and now and then errs.)
    """
    return torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda tensor: tensor)


class At(comfy.samplers.Sampler):
    """Not a sampler: it asks for the guided prediction at x, as often as told. Chance is the same each time."""

    def __init__(self, x, sigma, times=1):
        self.x, self.sigma, self.times = x, sigma, times

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, *args, **kwargs):
        self.denoised = []
        for _ in range(self.times):
            torch.manual_seed(DRAW)
            self.denoised.append(model_wrap(self.x, torch.full([len(self.x)], self.sigma), **extra_args))
        return noise


def guider(family, model, cfg=CFG, positive=None, negative=None):
    out = comfy.samplers.CFGGuider(model)
    out.set_conds(positive or FAMILIES[family].conditioning(1), negative or FAMILIES[family].conditioning(2))
    out.set_cfg(cfg)
    return out


def sigma_of(model):
    return float(model.get_model_object("model_sampling").percent_to_sigma(PERCENT))


def alpha_of(model):
    scaling = model.get_model_object("model_sampling").noise_scaling
    return scaling(torch.tensor([sigma_of(model)]), torch.zeros(1), torch.ones(1)).item()


def answer(guided, x, sigma=None, recorded=False):
    """The guided prediction at x. Where autograd records if told or x asks for it, else as in a prompt."""
    return answers(guided, x, sigma, 1, recorded)[0]


def answers(guided, x, sigma=None, times=2, recorded=False):
    """The same, asked several times in one run."""
    at = At(x, sigma or sigma_of(guided.model_patcher), times)
    blank = torch.zeros_like(x.detach())
    with torch.inference_mode(not (recorded or x.requires_grad)):
        guided.sample(blank, blank, at, torch.tensor([1.0, 0.0]), disable_pbar=True, seed=0)
    return at.denoised
