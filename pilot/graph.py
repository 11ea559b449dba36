"""The pilot inside ComfyUI: pictures from a MODEL, one at a time, and what the model itself thinks of them."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from PIL import Image
from torch import Tensor

from .arms import UNGUIDED, Arm, Cell, address

NOISE_LEVELS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)  # over the signal: where a prompt decides what a picture becomes
PROBED_WEIGHTS, PROBED_VALUES = 64, 16
KEY = "reg_pilot"
VERSION = 1  # of what a cell holds


@dataclass
class Studio:
    """What every picture has in common. `rectified` gives the model of an arm, whatever REG was on the one it gets."""

    model: ModelPatcher
    positives: dict[str, list]  # conditioning by prompt
    negative: list
    vae: object
    latent: dict  # an empty LATENT; the first of its batch is used
    sampler: str
    scheduler: str
    steps: int
    rectified: Callable[[ModelPatcher, Arm], ModelPatcher]
    graph: object = None  # what the model and the VAE are made of, as the prompt has it
    judges_itself: bool = True  # ask the model whether a picture shows its prompt

    def __post_init__(self):
        self.base = self.rectified(self.model, UNGUIDED)
        samples = self.latent["samples"]
        if getattr(samples, "is_nested", False):
            raise ValueError("REG: the pilot compares pictures, and this latent holds more than one kind of thing.")
        ratios = (self.latent.get(f"downscale_ratio_{kind}") for kind in ("spacial", "temporal"))
        self.empty = comfy.sample.fix_empty_latent_channels(self.base, samples[:1], *ratios)
        self.subject = address(
            VERSION,
            self.graph,
            fingerprint(self.base),
            [self.sampler, self.scheduler, self.steps, self.judges_itself],
            content(self.empty),
            content(self.negative),
        )

    def name(self, cell: Cell, options: dict) -> str:
        """The address of a cell; `options` are all those of its REG node."""
        return address(self.subject, cell.arm.as_json(), options, content(self.positives[cell.prompt]), cell.seed)

    def make(self, cell: Cell, on_step: Callable) -> tuple[np.ndarray, dict, np.ndarray]:
        """Picture [h, w, 3] uint8, record, latent: `on_step` hears of each step and its preview."""
        count, model = _counted(self.rectified(self.model, cell.arm))
        started = time.monotonic()
        noise = comfy.sample.prepare_noise(self.empty, cell.seed)
        latent = comfy.sample.sample(
            model,
            noise,
            self.steps,
            cell.arm.cfg,
            self.sampler,
            self.scheduler,
            self.positives[cell.prompt],
            self.negative,
            self.empty,
            callback=_previewing(model, on_step),
            disable_pbar=True,
            seed=cell.seed,
        )
        picture = decoded(self.vae, latent)
        record = {"seconds": time.monotonic() - started, "evaluations": count[0]}
        if self.judges_itself:
            record["own"] = own_agreement(self.base, self.positives[cell.prompt], self.negative, latent, cell.seed)
        return picture, record, latent[0].to("cpu", torch.float16).numpy()


def decoded(vae, latent: Tensor) -> np.ndarray:
    """The picture of a latent, [h, w, 3] uint8; of a video its middle frame.

    Raises:
        ValueError: it has numbers that are none (NaN).
    """
    frames = vae.decode(latent)
    frames = frames.reshape(-1, *frames.shape[-3:])
    picture = frames[len(frames) // 2][..., :3].float()
    if not picture.isfinite().all():
        raise ValueError("REG: the VAE gives no picture but NaN: use a VAE or a precision that works for this model.")
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def own_agreement(model: ModelPatcher, positive: list, negative: list, latent: Tensor, seed: int) -> float:
    """The share of noise levels at which the model explains a picture better with its prompt than with the negative.

    The same noise is added to the finished latent, and it is seen which of the two predicts it better, as in the diffusion
    classifier (Li et al., arXiv 2303.16203). It is the model's own judgement: blind to what the model does not know.
    """
    with_prompt, without = (_errors(model, cond, latent, seed) for cond in (positive, negative))
    return float((with_prompt < without).float().mean() + (with_prompt == without).float().mean() / 2)


def _errors(model: ModelPatcher, cond: list, latent: Tensor, seed: int) -> Tensor:
    """Mean square error of the prediction at each noise level, [levels]."""
    noise = comfy.sample.prepare_noise(latent, seed + 1)
    probe = _Probe([sigma_at(model.get_model_object("model_sampling"), ratio) for ratio in NOISE_LEVELS])
    sigmas = torch.tensor([*probe.sigmas, 0.0])
    comfy.sample.sample_custom(model, noise, 1.0, probe, sigmas, cond, cond, latent, disable_pbar=True, seed=seed)
    return probe.errors


class _Probe(comfy.samplers.Sampler):
    """A sampler that takes no step: it only compares what the model predicts with what is there."""

    def __init__(self, sigmas: list[float]):
        self.sigmas = sigmas

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        sampling, errors = model_wrap.inner_model.model_sampling, []
        for sigma in sigmas[:-1]:
            x = sampling.noise_scaling(sigma, noise, latent_image)
            denoised = model_wrap(x, sigma.expand(len(x)), **extra_args)
            errors.append((denoised - latent_image).float().square().mean())
        self.errors = torch.stack(errors).cpu()
        return latent_image


def sigma_at(sampling, ratio: float) -> float:
    """The sigma at which noise is `ratio` times as strong as the signal is scaled, by bisection within the model's range."""
    one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)

    def noise_over_signal(sigma: float) -> float:
        s = torch.tensor([sigma], dtype=torch.float32)
        return float(sampling.noise_scaling(s, one, zero)) / max(float(sampling.noise_scaling(s, zero, one)), 1e-9)

    low, high = float(sampling.sigma_min), float(sampling.sigma_max)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if noise_over_signal(middle) < ratio else (low, middle)
    return (low + high) / 2


def _counted(model: ModelPatcher) -> tuple[list[int], ModelPatcher]:
    """A clone that counts how often it is evaluated, a picture at a time."""
    count, model = [0], model.clone()

    def counting(executor, x, *args, **kwargs):
        count[0] += len(x)
        return executor(x, *args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, counting)
    return count, model


def _previewing(model: ModelPatcher, on_step: Callable) -> Callable:
    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def callback(step, x0, x, total):
        on_step(step, total, previewer and previewer.decode_latent_to_preview_image("JPEG", x0))

    return callback


class Progress:
    """One bar over all pictures, with what is being made as its preview."""

    def __init__(self, pictures: int, steps: int):
        self.steps, self.done = steps, 0
        self.bar = comfy.utils.ProgressBar(max(1, pictures * steps))

    def on_step(self, step: int, total: int, preview) -> None:
        """Also where an interrupt is heard; what is finished is on the disk by then."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update_absolute(
            self.done * self.steps + min(self.steps, (step + 1) * self.steps // total), None, preview
        )

    def finished(self, picture: np.ndarray) -> None:
        self.done += 1
        self.show(picture, latent_preview.MAX_PREVIEW_RESOLUTION)

    def show(self, picture: np.ndarray, side: int) -> None:
        """As the preview, no larger than `side`: the page leaves the last one on the node."""
        self.bar.update_absolute(self.done * self.steps, None, ("JPEG", Image.fromarray(picture), side))


def fingerprint(model: ModelPatcher) -> str:
    """Tells models apart: some values of some weights, and the patches that are to be added to them."""
    weights = sorted(model.model.state_dict().items())
    some = weights[:: max(1, len(weights) // PROBED_WEIGHTS)]
    patches = sorted((str(key), content(list(value))) for key, value in model.patches.items())
    return address([(name, list(w.shape), str(w.dtype), _probe(w)) for name, w in some], patches)


def _probe(values: Tensor) -> list[float]:
    """A few values of a tensor; none of those that cannot be read plainly, such as quantised ones."""
    if type(values) not in (Tensor, torch.nn.Parameter) or not values.numel():
        return []
    flat = values.detach().reshape(-1)
    return flat[:: max(1, len(flat) // PROBED_VALUES)].float().cpu().nan_to_num().tolist()


def is_plain(value) -> bool:
    """Does `content` tell all of a value? Of a ControlNet, say, it tells only that it is one."""
    if isinstance(value, dict | list | tuple):
        return all(map(is_plain, value.values() if isinstance(value, dict) else value))
    return isinstance(value, Tensor | str | int | float | bool | None)


def content(value) -> str:
    """A name for what conditionings, latents and patches are made of; of other objects only their class counts."""
    if isinstance(value, Tensor):
        if type(value) is not Tensor or value.numel() > 2**22:
            return address(str(value.dtype), list(value.shape), _probe(value))
        numbers = value.detach().to("cpu", torch.float32).contiguous()
        return address(list(value.shape), str(value.dtype), numbers.numpy().tobytes().hex())
    if isinstance(value, dict):
        return address(sorted((str(key), content(item)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return address([content(item) for item in value])
    return address(value if isinstance(value, str | int | float | bool | None) else type(value).__name__)
