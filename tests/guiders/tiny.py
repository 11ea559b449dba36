"""A tiny smooth network as a plain ComfyUI MODEL of any prediction type, and single guided predictions of it."""

import comfy.latent_formats
import comfy.model_base
import comfy.model_patcher
import comfy.samplers
import comfy.supported_models_base
import torch

from pack.reg.profile import Profile

CHANNELS = 3
CPU = torch.device("cpu")


class Network(torch.nn.Module):
    """Two convolutions around a tanh; sees time and context. Counts the samples it was asked for."""

    dtype = torch.float32

    def __init__(self, seed=0, kernel=3, groups=1):
        super().__init__()
        torch.manual_seed(seed)
        self.first = torch.nn.Conv2d(CHANNELS, 2 * CHANNELS, kernel, padding=kernel // 2, groups=groups)
        self.last = torch.nn.Conv2d(2 * CHANNELS, CHANNELS, kernel, padding=kernel // 2, groups=groups)
        self.text = torch.nn.Linear(4, 2 * CHANNELS)
        self.evaluated = 0

    def forward(self, x, t, context=None, **kwargs):
        self.evaluated += len(x)
        h = self.first(x) + self.text(context).mean(1)[..., None, None] + torch.sin(t / 100).view(-1, 1, 1, 1)
        return self.last(torch.tanh(h))


class Config(comfy.supported_models_base.BASE):
    unet_config = {}
    unet_extra_config = {}

    class latent_format(comfy.latent_formats.LatentFormat):
        latent_channels = CHANNELS


def as_model(network, prediction="EPS", dtype=torch.float32):
    """The network as a MODEL; `prediction` is a name in comfy.model_base.ModelType."""
    config = Config({})
    config.set_inference_dtype(dtype, None)
    kind = comfy.model_base.ModelType[prediction]
    model = comfy.model_base.BaseModel(config, kind, unet_model=lambda **kwargs: network.to(dtype))
    return comfy.model_patcher.CoreModelPatcher(model, CPU, CPU)


def prompt(seed):
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, 2, 4, generator=generator), {}]]


POSITIVE, NEGATIVE, MIDDLE = prompt(1), prompt(2), prompt(3)


def latent(batch=2, size=4, seed=0):
    return torch.randn(batch, CHANNELS, size, size, generator=torch.Generator().manual_seed(seed))


def guider(model, cfg=4.0):
    out = comfy.samplers.CFGGuider(model)
    out.set_conds(POSITIVE, NEGATIVE)
    out.set_cfg(cfg)
    return out


def node_inputs(options):
    """The inputs of a node that ask for these options."""
    inputs = dict(vars(options))
    return {"every": inputs.pop("refresh"), **inputs}


def profile(**about):
    """Curves over three noise levels of a model like these; `about` says of another model that they are its own."""
    return Profile(
        sigmas=torch.tensor([0.1, 1.0, 10.0]),
        factor=torch.tensor([[1.0, 0.9, 0.8], [0.6, 0.5, 0.4], [0.1, 0.1, 0.1]]),
        gain=torch.tensor([1.0, 0.6, 0.1]),
        rho=torch.tensor([0.9, 0.5, 0.3]),
        effect=torch.tensor([0.5, 0.3, 0.0]),
        about={"prediction": "EPS", "channels": "3"} | about,
    )


class Once(comfy.samplers.Sampler):
    """Not a sampler: it asks for the guided prediction at given latents, and keeps the answers."""

    def __init__(self, *points):
        self.points = points  # (x, sigma) each
        self.denoised = []

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, *args, **kwargs):
        for x, sigma in self.points:
            self.denoised.append(model_wrap(x, torch.full([len(x)], float(sigma)), **extra_args))
        return noise


@torch.inference_mode()
def predict(guided, *points, wrap=lambda sampler: sampler):
    """Guided predictions of a guider at points (x, sigma), within one run as a prompt makes it."""
    once = Once(*points)
    zeros = torch.zeros_like(points[0][0])
    guided.sample(zeros, zeros, wrap(once), torch.tensor([1.0, 0.0]), disable_pbar=True)
    return [denoised.clone() for denoised in once.denoised]


@torch.inference_mode()
def sample(guided, steps=5, sampler="euler", seed=3, wrap=lambda sampler: sampler):
    """A whole run from noise."""
    sampling = guided.model_patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", steps)
    noise = latent(seed=seed)
    sampler = wrap(comfy.samplers.sampler_object(sampler))
    return guided.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=seed)
