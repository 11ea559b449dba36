"""One cell of the sweep: a batch of pictures of one prompt, rule, cfg and seed, sampled by ComfyUI and kept.

A cell is kept by everything that its pictures depend on but the code: raise VERSION when that changes them.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import comfy.sample
import comfy.samplers
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher
from joblib import Memory
from torch import Tensor

from ...demo import models, world
from ...guiders.calibrate import calibrate
from ...reg.profile import Profile
from . import rules

VERSION = 2
PRECISION = torch.float32  # on every machine: cells of several are compared with each other
WEAK = Path(models.__file__).parent / "weights" / "demo-half.safetensors"
PROMPTS = ("colour=gold", "shape=star")
MORE_PROMPTS = ("colour=red", "shape=star,colour=violet")  # of the contenders
SEARCH_SEEDS = (100, 101)  # of what is chosen by its results
CALIBRATION = {"cfg": 3.0, "steps": 20, "points": 16, "seed": 77}
CALIBRATION_PROMPTS = ("shape=circle", "colour=green", "colour=gold", "shape=star,colour=blue")  # two pictures each


@dataclass(frozen=True)
class Cell:
    """What a batch of pictures depends on."""

    model: str  # digest of the weights
    prompt: str  # as in "shape=star,colour=gold"; empty is the empty prompt
    rule: str
    cfg: float
    seed: int
    batch: int = 32
    steps: int = 20
    sampler: str = "euler"

    def made_with(self) -> tuple:
        """What its pictures depend on besides."""
        weak = [digest(WEAK)] if self.rule in rules.AUTO else []
        return (VERSION, world.VERSION, *weak)


@dataclass
class Sampled:
    """A cell's pictures and what they cost."""

    pictures: np.ndarray  # [batch, 64, 64, 3] uint8, as they are saved
    clipped: np.ndarray  # [batch] share of the values that were beyond the range
    forward: float  # passes of the network over a picture
    reverse: float
    seconds: float  # of processor time, the batch


def parse_prompt(text: str) -> dict:
    """ "shape=star,count=2" -> {"shape": "star", "count": 2}."""
    pairs = dict(part.split("=") for part in text.split(",") if part)
    return {name: int(value) if name == "count" else value for name, value in pairs.items()}


@cache
def digest(weights: Path) -> str:
    """Of a safetensors file's tensors, whatever its header says."""
    content = weights.read_bytes()
    return hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()[:16]


class Studio:
    """Samples cells of one model, and keeps them."""

    def __init__(self, weights: Path, cache: Path):
        self.weights = weights
        self.cache = cache
        self.digest = digest(weights)
        memory = Memory(cache, verbose=0, compress=True)
        self._kept, self._profile = (memory.cache(f, ignore=["studio"]) for f in (sampled, calibrated))

    def __reduce__(self):
        return Studio, (self.weights, self.cache)  # to another process, without the model

    @cached_property
    def model(self) -> ModelPatcher:
        return models.load(self.weights, PRECISION)[0]

    def get(self, cell: Cell) -> Sampled:
        """The cell, sampled unless the cache has it."""
        return self._kept(self, cell, cell.made_with())

    def has(self, cell: Cell) -> bool:
        """Whether the cache has the cell."""
        return self._kept.check_call_in_cache(self, cell, cell.made_with())

    @torch.inference_mode()
    def latents(self, cell: Cell) -> Tensor:
        """What KSampler makes of a cell, pixels in about −1 to 1: [batch, 3, h, w]."""
        model = rules.patch(cell.rule, self.model, cell.cfg, self.profile)
        guider = rules.guider(cell.rule, model, weak_model, conditioning([cell.prompt]), conditioning([""]))
        guider.set_cfg(1.0 if cell.rule == "none" else cell.cfg)
        latent = torch.zeros(cell.batch, 3, world.SIZE, world.SIZE)
        sampling = self.model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, models.scheduler(sampling), cell.steps)
        sampler = comfy.samplers.sampler_object(cell.sampler)
        noise = comfy.sample.prepare_noise(latent, cell.seed)
        return guider.sample(noise, latent, sampler, sigmas, disable_pbar=True, seed=cell.seed).float().cpu()

    def sample(self, cell: Cell) -> Sampled:
        """The pictures of a cell, and what they cost."""
        start = time.process_time()
        with counted(self.model.model.diffusion_model) as passes:
            x = self.latents(cell)
        return Sampled(
            pictures=to_pictures(x),
            clipped=(x.abs() > 1).float().mean((1, 2, 3)).numpy(),
            forward=passes["forward"] / cell.batch,
            reverse=passes["reverse"] / cell.batch,
            seconds=time.process_time() - start,
        )

    def profile(self) -> Profile:
        """The model's profile, measured once."""
        return self._profile(self, self.digest, VERSION)


def sampled(studio: Studio, cell: Cell, made_with: tuple) -> Sampled:
    """What a studio keeps; the cell and `made_with` are its address."""
    return studio.sample(cell)


def calibrated(studio: Studio, model: str, version: int) -> Profile:
    """A profile of the studio's model, by its digest."""
    prompts = [prompt for prompt in CALIBRATION_PROMPTS for _ in range(2)]
    latent = torch.zeros(len(prompts), 3, world.SIZE, world.SIZE)
    return calibrate(studio.model, conditioning(prompts), conditioning([""]), latent, **CALIBRATION)


@cache
def weak_model() -> ModelPatcher:
    """The weak model that a model can be guided away from."""
    return models.load(WEAK, PRECISION)[0]


def conditioning(prompts: list[str]) -> list:
    """Prompts of a batch as a CONDITIONING; one prompt serves a batch of any size."""
    return [[torch.cat([models.prompt_tokens(**parse_prompt(prompt)) for prompt in prompts]), {}]]


def to_pictures(x: Tensor) -> np.ndarray:
    """Pixels in −1 to 1, [batch, 3, h, w] -> what is saved, [batch, h, w, 3] uint8."""
    return ((x + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


@contextmanager
def counted(network: torch.nn.Module) -> Iterator[Counter]:
    """Counts pictures that pass through the network, forward and in reverse."""
    passes = Counter()

    def count(module, arguments, output):
        passes["forward"] += len(output)
        if output.requires_grad:
            output.register_hook(lambda gradient: passes.update(reverse=len(gradient)))

    handle = network.register_forward_hook(count)
    try:
        yield passes
    finally:
        handle.remove()
