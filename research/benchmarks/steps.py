"""`python3 dev.py steps`: the error of the difference estimator by its step, model and precision; a Markdown table.

Jv is compared with central differences of the fourth order in float32. Along 1 the whole vector is compared, which is
the map of `elementwise`; along the guidance g the product ⟨g, Jg⟩, which is all that `ratio` uses.
"""

import argparse
import platform
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...demo import models as demo
from ...demo import toy
from ...guiders.checks import relative_step
from ...nodes.toy import SEED
from ...reg import estimators, per_sample
from ...tests.families import FAMILIES
from .. import markdown

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PERCENTS = (0.1, 0.5, 0.9)  # of the schedule: much, some and little noise
SHIFTS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # step along the whole direction: h √N, over the root mean square of x
TRUE_SHIFT = 0.1
NAMES = ("SD15", "SD3", "Flux", "WAN21_T2V", "StableAudio")  # tiny families
HEAD = """# The step of a difference

`(D(x + h v̂) − D(x)) / h` has two errors: the curvature of D, which grows with h, and the rounding of D over h. A move
along 1 moves all N values of a latent together, by h√N over its root mean square along that direction, and it is there
that curvature is met. Columns are h√N; each cell has the relative error of J1 (the map of `elementwise`) and of
⟨g, Jg⟩ (what `ratio` uses), in which rounding averages out.

- Rounding makes an error of about 6e-4/h in float16 and 5e-3/h in bfloat16, whatever the model. In float32 there is
  none to speak of down to the smallest step here.
- Curvature of random networks makes 1 to 5 % at h√N = 1. The trained network's is as small with little noise and several
  times larger with much, where in low precision no difference along 1 is right; a gradient (`backward`) is.
- So the step follows 1/√N, with a constant and a floor by precision: where the two errors of these models balance. A
  fixed 0.03, say, is h√N = 3.3 for the trained network, and far too long in float32."""
DEMO = Path(demo.__file__).parent / "weights" / "demo.safetensors"


@dataclass
class Subject:
    """A model to measure on, in any precision."""

    name: str
    build: Callable[[torch.dtype], ModelPatcher]
    positive: list
    negative: list
    noise: Tensor  # [batch, ...]
    dtypes: tuple[torch.dtype, ...] = DTYPES


def subjects() -> Iterator[Subject]:
    """The exact world, the trained model, and architectures with random weights."""
    points = torch.randn(64, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    yield Subject("toy", lambda _: toy.model(SEED), toy.conditioning(True), toy.conditioning(False), points, DTYPES[:1])
    noise = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    prompt, empty = ([[demo.prompt_tokens(**words), {}]] for words in ({"shape": "star", "colour": "gold"}, {}))
    yield Subject("demo (trained)", demo_model, prompt, empty, noise)
    for name in NAMES:
        family = FAMILIES[name]
        build = lambda dtype, family=family: family.build(dtype=dtype)  # noqa: E731
        yield Subject(f"{name} (tiny)", build, family.conditioning(1), family.conditioning(2), family.latent())


def demo_model(dtype: torch.dtype) -> ModelPatcher:
    patcher, _ = demo.load(DEMO)
    patcher.model.diffusion_model.to(dtype).dtype = dtype
    patcher.model.manual_cast_dtype = None
    return patcher


class At(comfy.samplers.Sampler):
    """Not a sampler: it asks for predictions at latents."""

    def __init__(self, ask: Callable):
        self.ask = ask

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, *args, **kwargs):
        sigma = sigmas[0]

        def denoise(x: Tensor, cfg: float = 1.0) -> Tensor:
            model_wrap.cfg = cfg
            return model_wrap(x, sigma * x.new_ones(len(x)), **extra_args)

        self.answer = self.ask(denoise, noise, sigma)
        return noise


@torch.inference_mode()
def asked(subject: Subject, model: ModelPatcher, percent: float, ask: Callable):
    """ask(denoise, noise, sigma) within a run as a prompt makes it."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(subject.positive, subject.negative)
    guider.set_cfg(2.0)
    sigma = float(model.get_model_object("model_sampling").percent_to_sigma(percent))
    sampler = At(ask)
    zeros = torch.zeros_like(subject.noise)
    guider.sample(subject.noise, zeros, sampler, torch.tensor([sigma, 0.0]), disable_pbar=True)
    return sampler.answer


@dataclass
class Truth:
    """A noisy latent and what is exact there."""

    x: Tensor
    guidance: Tensor
    j_ones: Tensor
    g_j_g: Tensor  # [batch, 1, ...]


def truth(subject: Subject, percent: float) -> Truth:
    """In float32, at a noisy version of what the model itself makes of noise."""

    def ask(denoise, noise, sigma):
        sampling = model.get_model_object("model_sampling")
        clean = denoise(sampling.noise_scaling(sigma, noise, torch.zeros_like(noise)))
        x = sampling.noise_scaling(sigma, noise, clean)
        guidance = denoise(x, 2.0) - denoise(x)
        along = [fourth_order(denoise, x, v) for v in (torch.ones_like(x), guidance)]
        return Truth(x, guidance, along[0], per_sample.dot(guidance, along[1]))

    model = subject.build(torch.float32)
    return asked(subject, model, percent, ask)


def fourth_order(denoise: Callable, x: Tensor, v: Tensor) -> Tensor:
    """Jv by central differences."""
    probes = [estimators.probe(x, sign * v, k * TRUE_SHIFT / x[0].numel() ** 0.5) for k in (1, 2) for sign in (1, -1)]
    near, behind, far, beyond = (denoise(probe.x).double() for probe in probes)
    return ((8 * (near - behind) - (far - beyond)) / 12).float() * probes[0].scale


def errors(subject: Subject, dtype: torch.dtype, exact: Truth, percent: float) -> list[tuple[float, float]]:
    """At each step, the default last: of J1, and of ⟨g, Jg⟩; relative, over the batch."""

    model = subject.build(dtype)
    size = exact.x[0].numel()
    steps = [*(shift / size**0.5 for shift in SHIFTS), relative_step(model.model, exact.x)]

    def ask(denoise, noise, sigma):
        d = denoise(exact.x)
        return [one(denoise, d, step) for step in steps]

    def one(denoise, d, step):
        found = []
        for v in (torch.ones_like(exact.x), exact.guidance):
            probe = estimators.probe(exact.x, v, step)
            found.append(probe.product(d, denoise(probe.x)))
        g_j_g = per_sample.dot(exact.guidance, found[1])
        return relative(found[0], exact.j_ones), relative(g_j_g, exact.g_j_g)

    return asked(subject, model, percent, ask)


def relative(found: Tensor, true: Tensor) -> float:
    return ((found.float() - true).norm() / true.norm()).item()


def rows() -> Iterator[list[str]]:
    """model, N, dtype, percent, and the errors at each step."""
    for subject in subjects():
        for percent in PERCENTS:
            exact = truth(subject, percent)
            for dtype in subject.dtypes:
                found = errors(subject, dtype, exact, percent)
                name = str(dtype).removeprefix("torch.")
                yield [subject.name, str(subject.noise[0].numel()), name, f"{percent:.0%}", *map(shown, found)]


def shown(errors: tuple[float, float]) -> str:
    return " / ".join(f"{error:.1%}" if error < 0.1 else f"{error:.0%}" for error in errors)


def document(table: list[list[str]], command: str) -> str:
    """The table and what to know of it, as Markdown."""
    columns = ["model", "N", "precision", "schedule", *(f"{shift:g}" for shift in SHIFTS), "default"]
    defaults = ", ".join(
        f"{str(dtype).removeprefix('torch.')} {shift:g}/√N and at least {least:g}"
        for dtype, (shift, least) in estimators.SHIFTS.items()
    )
    return f"{HEAD}\n\nMade by `{command}`, torch {torch.__version__}, {platform.machine()} CPU.\n\n" + (
        f"The default steps: {defaults}; never above {estimators.LARGEST_STEP:g}, which is also the step of networks that "
        f"compute on 8 bits.\n\n" + markdown.table(table, columns) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="dev.py steps", description=__doc__)
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    table = []
    for row in rows():
        print(*row, sep=" | ", flush=True)
        table.append(row)
    if arguments.output:
        command = shlex.join(["python3", "dev.py", "steps", *sys.argv[1:]])
        arguments.output.write_text(document(table, command), encoding="utf-8")
