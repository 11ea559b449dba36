"""Facts about a trained model's Jacobian J = ∂D_c/∂x, by noise level: `python3 dev.py quality --facts`.

Measured on drawn pictures with noise, prompted by their colour and shape, away from the empty prompt.
"""

from collections.abc import Callable
from pathlib import Path

import comfy.model_base
import pandas as pd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cosine_similarity

from ..demo import models
from ..reg import estimators, per_sample, rectification
from . import decode, spectral

RATIOS = (40.0, 15.0, 6.0, 2.5, 1.0, 0.4, 0.15, 0.05)  # of noise to picture: sigma, where it is not a flow model's
STEPS = (0.003, 0.01, 0.03, 0.1, 0.3)  # of the difference, over the root mean square of x
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BANDS = ((0, "mean"), (3, "coarse"), (5, "middle"), (7, "fine"))
PICTURES = 6
SEED = 4242

Denoise = Callable[[Tensor], Tensor]


def denoiser(model: comfy.model_base.BaseModel, tokens: Tensor, sigma: float) -> Denoise:
    """x [batch, 3, h, w] -> D(x; sigma) under tokens [batch or 1, attributes, dim]."""

    def denoise(x: Tensor) -> Tensor:
        context = tokens.expand(len(x), -1, -1)
        return model.apply_model(x, torch.full([len(x)], sigma), c_crossattn=context, transformer_options={})

    return denoise


def exact_product(denoise: Denoise, x: Tensor, v: Tensor) -> Tensor:
    """Jv by forward-mode differentiation."""
    with estimators.differentiable(), sdpa_kernel(SDPBackend.MATH):
        return torch.func.jvp(denoise, (x,), (v,))[1].detach()


def noisy_pictures(model: comfy.model_base.BaseModel, sigma: float) -> tuple[Tensor, Tensor]:
    """x = alpha picture + sigma noise, [batch, 3, 64, 64], and the tokens of their prompts."""
    pictures, attributes = decode.draw(PICTURES, SEED)
    index = torch.from_numpy(attributes.discrete())
    index[:, 2:] = -1  # background and count are not stated
    noise = torch.randn(PICTURES, 3, *pictures.shape[1:3], generator=torch.Generator().manual_seed(SEED))
    x = model.model_sampling.noise_scaling(torch.tensor([sigma]), noise, decode.to_input(pictures))
    return x, models.encode_prompts(index)


def cosine(a: Tensor, b: Tensor) -> float:
    """Mean over samples."""
    return cosine_similarity(a.flatten(1), b.flatten(1)).mean().item()


def spread(name: str, values: Tensor) -> dict[str, float]:
    """Mean and standard deviation over samples."""
    return {name: values.mean().item(), f"{name} sd": values.std().item()}


def levels(model: comfy.model_base.BaseModel, ratios: tuple[float, ...]) -> list[float]:
    """The model's sigmas at these ratios of noise to picture, those beyond its range at its ends, each once."""
    return list(dict.fromkeys(models.sigma_at(model.model_sampling, torch.tensor(ratios)).tolist()))


def at(model: comfy.model_base.BaseModel, sigma: float) -> dict[str, float]:
    """The facts at one noise level."""
    x, tokens = noisy_pictures(model, sigma)
    alpha = model.model_sampling.noise_scaling(torch.tensor([sigma]), torch.zeros(1), torch.ones(1)).item()
    cond = denoiser(model, tokens, sigma)
    uncond = denoiser(model, torch.zeros_like(tokens[:1]), sigma)
    ones = torch.ones_like(x)
    evaluation = estimators.evaluate(cond, x)
    d_cond = evaluation.denoised.detach()
    jt_ones = evaluation.pull_back(ones)
    with torch.no_grad():
        guidance = d_cond - uncond(x)
    jt_g = estimators.evaluate(cond, x).pull_back(guidance)
    j_g, ju_g = exact_product(cond, x, guidance), exact_product(uncond, x, guidance)
    rho = rectification.jacobian_ratio(guidance, j_g, ju_g)
    by_band = spectral.jacobian_ratio(guidance, j_g, ju_g, spectral.bands(*x.shape[2:]))
    row = {
        "sigma": sigma,
        "alpha": alpha,
        "cos Jᵀ1 J1": cosine(jt_ones, exact_product(cond, x, ones)),
        "cos Jᵀg Jg": cosine(jt_g, j_g),
    }
    row |= spread("f", alpha * jt_ones.mean((1, 2, 3))) | {"f sd pixels": alpha * jt_ones.std((1, 2, 3)).mean().item()}
    row |= spread("gain", alpha * per_sample.dot(guidance, jt_g) / per_sample.dot(guidance, guidance))
    row |= spread("rho", rho) | {f"rho {name}": by_band[:, band].mean().item() for band, name in BANDS}
    return row | {"effect": (per_sample.rms(guidance) / per_sample.rms(d_cond)).mean().item()}


def difference_error(
    model: comfy.model_base.BaseModel, along: Callable, exact: Tensor, sigma: float, step: float
) -> float:
    """Of Jv by a difference, relative to the exact product."""
    x, tokens = noisy_pictures(model, sigma)
    cond = denoiser(model, tokens, sigma)
    probe = estimators.probe(x, along(x), step)
    with torch.no_grad():
        found = probe.product(cond(x), cond(probe.x))
    return ((found - exact).norm() / exact.norm()).item()


def in_dtype(model: comfy.model_base.BaseModel, dtype: torch.dtype) -> comfy.model_base.BaseModel:
    """The same weights, computed in another precision."""
    other = models.build(type(model.model_config), dtype)
    other.diffusion_model.load_state_dict(model.diffusion_model.state_dict())
    return other


def step_errors(model: comfy.model_base.BaseModel) -> pd.DataFrame:
    """Error of a difference along 1 by noise level, precision and step."""
    rows = []
    for sigma in levels(model, RATIOS[::2]):
        x, tokens = noisy_pictures(model, sigma)
        exact = exact_product(denoiser(model, tokens, sigma), x, torch.ones_like(x))
        for dtype in DTYPES:
            other = in_dtype(model, dtype)
            errors = {f"h = {h:g}": difference_error(other, torch.ones_like, exact, sigma, h) for h in STEPS}
            rows.append({"sigma": sigma, "dtype": str(dtype).removeprefix("torch."), **errors})
    return pd.DataFrame(rows)


def write(patcher: ModelPatcher, output: Path, command: str) -> None:
    """Both tables, as CSV and as Markdown."""
    model = in_dtype(patcher.model, torch.float32)
    facts, errors = pd.DataFrame([at(model, sigma) for sigma in levels(model, RATIOS)]), step_errors(model)
    output.mkdir(parents=True, exist_ok=True)
    facts.round(5).to_csv(output / "facts.csv", index=False)
    errors.round(5).to_csv(output / "step-errors.csv", index=False)
    parts = [
        f"# Jacobian facts\n\n`{command}`\n\n{PICTURES} noisy pictures at every noise level; sd is over pictures.",
        facts.to_markdown(index=False, floatfmt=".3g"),
        "## Relative error of a difference along 1, by its step over the latent's root mean square",
        errors.to_markdown(index=False, floatfmt=".3g"),
    ]
    (output / "facts.md").write_text("\n\n".join(parts) + "\n")
