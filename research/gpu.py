"""`python3 dev.py gpu`: correctness, cost and synchronisation on a CUDA machine; a Markdown page.

It needs PyTorch and NumPy, and no network: `--wheels FOLDER` makes a folder with the rest beforehand, `--from FOLDER`,
as the first argument, runs with it. Without CUDA it does the same, small, on the CPU. Weights are random.
"""

import argparse
import gc
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import comfy.model_management
import comfy.ops
import comfy.samplers
import torch
from comfy.model_patcher import CoreModelPatcher
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..guiders.attach import on_model
from ..guiders.autograd import attention
from ..guiders.autograd.calls import DifferentiableCalls, GraphOptions, evaluate_with_graph
from ..guiders.autograd.checkpointing import blocks
from ..guiders.checks import describe
from ..guiders.estimators import Difference
from ..guiders.options import Options
from ..reg import estimators, refresh
from . import markdown
from .benchmarks import cost, models
from .start import STANDING_IN

GPU = torch.cuda.is_available()
DEVICE = comfy.model_management.get_torch_device()
STEPS = 3  # of a run
STEP = 0.03  # of the differences that a gradient is compared with
LIMITS = {"fp32": 0.01, "tf32": 0.02, "fp16": 0.05, "bf16": 0.1, "fp8 weights": 0.1}  # by precision, of D and of Jᵀ1
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DTYPES["fp8 weights"] = torch.bfloat16  # what they are computed in
READING = (  # from the device, in words
    "A run reads whether its evaluations agree with ComfyUI's, with differences also whether a probe may be in their batch, "
    "and where the next measurement depends on it, whether the ones before said something; with random weights some never "
    "do, and then each third step reads. A range reads each sigma, since it decides which passes are made."
)
SECONDS = {"cost": 300}  # what is left out when they are over is named
# What waits for the device: dispatched ops (in inference mode PyTorch shows the outermost), and methods that show none.
WAITS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero")
READS = ("tolist", "cpu", "numpy")


@dataclass
class Check:
    """One line of the first table."""

    what: str
    number: str
    good: bool | None  # None: this machine cannot do it

    @property
    def verdict(self) -> str:
        return {True: "yes", False: "**NO**", None: "not here"}[self.good]


class Within(comfy.samplers.Sampler):
    """Not a sampler: calls a function within a run, where the model is loaded and the prompts are ready."""

    def __init__(self, function: Callable):
        self.function = function

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, *args, **kwargs):
        self.found = self.function(model_wrap, noise, extra_args["model_options"])
        return noise


class Point:
    """A model at one noisy latent: its prediction of the positive prompt, and gradients of it."""

    def __init__(self, guider, noise: Tensor, model_options: dict):
        self.model = guider.inner_model
        self.conds, self.options = [guider.conds["positive"]], model_options
        sampling = self.model.model_sampling
        self.sigma = torch.full([len(noise)], float(sampling.percent_to_sigma(0.5)), device=noise.device)
        self.x = sampling.noise_scaling(self.sigma, noise, torch.zeros_like(noise))

    def denoise(self, x: Tensor, options: dict | None = None) -> Tensor:
        return comfy.samplers.calc_cond_batch(self.model, self.conds, x, self.sigma, options or self.options)[0]

    def gradient(self, checkpoints: bool = False) -> tuple[Tensor, Tensor]:
        """D and Jᵀ1."""
        options = attention.differentiable(self.options, DifferentiableCalls)
        for copies in (False, True):
            try:
                how = GraphOptions(copies, checkpoints)
                found = evaluate_with_graph(lambda x: self.denoise(x, options), self.x, self.model.diffusion_model, how)
                return found.denoised.detach(), found.pull_back(torch.ones_like(self.x))
            except RuntimeError as error:
                if copies or "inplace" not in str(error):
                    raise
        raise AssertionError

    def gap(self, product: Tensor) -> float:
        """How far Jᵀ1 is from differences of predictions."""
        return estimators.disagreement(self.denoise, self.x, torch.ones_like(self.x), product, STEP)


def at_point(model: CoreModelPatcher, architecture: models.Architecture, function: Callable[[Point], list]) -> list:
    """What a function makes of a point of a model."""
    within = Within(lambda *where: function(Point(*where)))
    architecture.sample(model, within, torch.tensor([1.0, 0.0]))
    return within.found


def off(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@contextmanager
def precision(name: str) -> Iterator[None]:
    """TF32 is a switch of the device's, and off elsewhere."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def built(architecture: models.Architecture, name: str) -> CoreModelPatcher:
    """The model in a precision."""
    model = architecture.build(DTYPES[name])
    if name == "fp8 weights":
        for layer in matrices(model):
            layer.comfy_cast_weights = True
            layer.weight = torch.nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    return model


def matrices(model: CoreModelPatcher) -> list[torch.nn.Module]:
    """Layers of ComfyUI's that cast their weights, and have a matrix."""
    layers = [m for m in model.model.diffusion_model.modules() if isinstance(m, comfy.ops.CastWeightBiasOp)]
    return [layer for layer in layers if getattr(layer, "weight", None) is not None and layer.weight.ndim > 1]


def gradient(architecture: models.Architecture, name: str) -> Iterator[Check]:
    """A family in a precision: D of the graph is D, and the gradient is that of differences; with checkpoints, too."""
    limit = LIMITS[name]
    with precision(name):
        plain, graph, gap, checkpointed = at_point(built(architecture, name), architecture, _gradient)
    numbers = f"D {graph:.1e}, differences {gap:.1e}, checkpointed {checkpointed:.1e}; limit {limit:g}"
    yield Check(f"{architecture.name}, {name}: gradient", numbers, plain and max(graph, gap, checkpointed) <= limit)


def _gradient(point: Point) -> list:
    plain = point.denoise(point.x)
    denoised, product = point.gradient()
    _, blockwise = point.gradient(checkpoints=True)
    return [bool(plain.isfinite().all()), off(denoised, plain), point.gap(product), off(blockwise, product)]


def streamed(architecture: models.Architecture) -> Iterator[Check]:
    """Weights that lie in the CPU's memory and come to the device for each call, as with little VRAM."""
    model = architecture.build(torch.float32)
    expected = at_point(model, architecture, lambda point: [point.gradient()[1]])[0]

    def with_streaming(point: Point) -> list:
        for layer in matrices(model):
            layer.comfy_cast_weights = True
            layer.weight = torch.nn.Parameter(layer.weight.cpu(), requires_grad=False)
        return [point.gradient()[1], point.gradient(checkpoints=True)[1]]

    found = [off(product, expected) for product in at_point(model, architecture, with_streaming)]
    numbers = f"{found[0]:.1e}, checkpointed {found[1]:.1e}"
    yield Check(f"{architecture.name}: streamed weights, the same gradient", numbers, max(found) < LIMITS["tf32"])


@contextmanager
def only(kernel: SDPBackend) -> Iterator[None]:
    """Attention by one of PyTorch's kernels; ComfyUI would choose among them at each call."""
    choosing = comfy.ops.scaled_dot_product_attention
    comfy.ops.scaled_dot_product_attention = torch.nn.functional.scaled_dot_product_attention
    try:
        with sdpa_kernel(kernel):
            yield
    finally:
        comfy.ops.scaled_dot_product_attention = choosing


def kernels(architecture: models.Architecture) -> Iterator[Check]:
    """Every attention kernel of PyTorch's that this device has."""
    dtype = "fp16" if GPU else "fp32"
    model = built(architecture, dtype)
    with only(SDPBackend.MATH):
        expected = at_point(model, architecture, lambda point: [point.gradient()[1]])[0]
    for kernel in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"):
        what = f"{architecture.name}, {dtype}: gradient through {kernel}"
        try:
            with only(getattr(SDPBackend, kernel)):
                found = at_point(model, architecture, lambda point: [point.gradient()[1]])[0]
            yield Check(what, f"{off(found, expected):.1e} from MATH", off(found, expected) < LIMITS["fp16"])
        except RuntimeError as error:
            yield Check(what, first_line(error), None)


def compiled(architecture: models.Architecture) -> Iterator[Check]:
    """A compiled network: the gradient is the plain network's."""
    model = architecture.build(torch.float32)
    plain = architecture.euler(on_model(model, Options("jacobian", "backward")), STEPS)
    patched, backend = model.clone(), "inductor" if GPU else "eager"
    name = "diffusion_model" if GPU else f"diffusion_model.{first_block(model.model.diffusion_model)}"
    patched.add_object_patch(name, torch.compile(model.get_model_object(name), backend=backend))
    what = f"{architecture.name}: torch.compile ({backend})"
    try:
        architecture.euler(patched, STEPS)
    except Exception as error:  # no compiler on this machine
        yield Check(what, first_line(error), None)
    else:
        found = architecture.euler(on_model(patched, Options("jacobian", "backward")), STEPS)
        yield Check(what, f"{off(found, plain):.1e} from plain", off(found, plain) < LIMITS["tf32"])
    finally:
        torch.compiler.reset()


def first_block(network: torch.nn.Module) -> str:
    block = next(blocks(network))
    return next(name for name, module in network.named_modules() if module is block)


def estimated(architecture: models.Architecture) -> Iterator[Check]:
    """The probe of a difference in the batch of the conds, beside one in a batch of its own."""
    model = architecture.build(torch.float32)
    rectified = on_model(model, Options("elementwise", "difference", refresh=1))
    can = Difference._can_batch
    with precision("fp32"):
        together = architecture.euler(rectified, STEPS)
        Difference._can_batch = lambda *args: False
        try:
            alone = architecture.euler(rectified, STEPS)
        finally:
            Difference._can_batch = can
        plain = architecture.euler(model, STEPS)
    changed = float((together - alone).norm() / (alone - plain).norm())
    yield Check(f"{architecture.name}: batched probe", f"{changed:.1e} of what REG changes", changed < 0.05)


def ends(architecture: models.Architecture) -> Iterator[Check]:
    """Interrupts in the middle of a run."""
    model = architecture.build(torch.float32)
    rectified = on_model(model, Options("jacobian", "backward", refresh=1, checkpoint="always"))
    expected = architecture.euler(rectified, STEPS)
    before = allocated()

    def stop(step, *args):
        if step == 1:
            raise comfy.model_management.InterruptProcessingException

    for _ in range(3):
        with suppress(comfy.model_management.InterruptProcessingException):
            architecture.euler(rectified, STEPS, stop)
    gc.collect()
    kept = allocated() - before
    again = off(architecture.euler(rectified, STEPS), expected)  # reverse passes of a card add in any order
    numbers = f"{kept / 1e6:.1f} MB kept, the next run {again:.1e} from the one before"
    yield Check(f"{architecture.name}: three interrupts", numbers, kept <= 2**20 and again < LIMITS["tf32"] / 100)


def out_of_memory(architecture: models.Architecture) -> Iterator[Check]:
    """The device's memory is taken until a graph does not fit; on a CPU the network says so."""
    model = architecture.build(torch.float32)
    difference = architecture.euler(on_model(model, Options("jacobian", "difference", refresh=1)), STEPS)
    graph = Options("jacobian", "backward", refresh=1, checkpoint="off")
    what = f"{architecture.name}: out of memory on purpose, goes on with difference"
    if GPU:
        peaks = [peak_of(lambda m=m: architecture.euler(m, STEPS)) for m in (model, on_model(model, graph))]
        if peaks[1] < 1.05 * peaks[0]:
            yield Check(what, "a graph takes no more memory here", None)
            return
        torch.cuda.empty_cache()
        fraction = (sum(peaks) / 2) / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(fraction)
        undo = lambda: torch.cuda.set_per_process_memory_fraction(1.0)  # noqa: E731
    else:
        hook = model.model.diffusion_model.register_forward_pre_hook(_runs_out)
        undo = hook.remove
    try:
        found = architecture.euler(on_model(model, graph), STEPS)
    finally:
        undo()
    gap = off(found, difference)
    yield Check(what, f"{gap:.1e} from a run by differences", gap < LIMITS["tf32"])


def _runs_out(module, arguments):
    if arguments[0].requires_grad:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")


def peak_of(job: Callable) -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    job()
    return torch.cuda.max_memory_reserved()


def allocated() -> int:
    return torch.cuda.memory_allocated() if GPU else 0


def release() -> None:
    gc.collect()
    comfy.model_management.soft_empty_cache()


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:80]


class Waits(TorchDispatchMode):
    """Counts what waits for the device: a value that is read, on any device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in WAITS
        return func(*args, **(kwargs or {}))


class Reads(TorchFunctionMode):
    """Counts reads of a whole tensor."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func.__name__ in READS
        return func(*args, **(kwargs or {}))


def waits(model, architecture: models.Architecture, steps: int) -> int:
    with Waits() as values, Reads() as tensors:
        architecture.euler(model, steps)
    return values.count + tensors.count


def synchronisation(architecture: models.Architecture, few: int = 4, many: int = 8) -> Iterator[list[str]]:
    """Rows: what a run reads from the device beyond CFG's, and what each further step does."""
    model = architecture.build(torch.float32)
    plain = {steps: waits(model, architecture, steps) for steps in (few, many)}
    profile = cost.flat_profile(describe(model.model, architecture.latent[0]), 0.5)
    for name, options in {
        "elementwise, backward": Options("elementwise", "backward"),
        "elementwise, difference": Options("elementwise", "difference"),
        "jacobian, backward": Options("jacobian", "backward"),
        "ratio": Options("ratio"),
        "profile": Options("ratio", "profile", profile=profile),
        "elementwise, backward, every step": Options("elementwise", "backward", refresh=1),
        "elementwise, backward, a range": Options("elementwise", "backward", end_percent=0.99),
    }.items():
        more = {steps: waits(on_model(model, options), architecture, steps) - plain[steps] for steps in plain}
        yield [name, str(more[few]), f"{(more[many] - more[few]) / (many - few):.2f}"]
    release()


def costs(known: dict[str, models.Architecture], dtype: torch.dtype, seconds: float) -> Iterator[str]:
    """A section for each model: time and peak memory over CFG's."""
    started = time.monotonic()
    for architecture in known.values():
        title = f"### {architecture.name}: {architecture.size}, latent {'×'.join(map(str, architecture.latent))}"
        if time.monotonic() - started > seconds:
            yield f"{title}\n\nLeft out: the time for all of them was over."
            continue
        try:
            yield f"{title}\n\n{cost.table(cost.measure(architecture, dtype, rounds=1))}"
        except torch.cuda.OutOfMemoryError:
            yield f"{title}\n\nLeft out: this device has too little memory for it."
        release()


def correctness(known: dict[str, models.Architecture]) -> Iterator[Check]:
    """All checks. One that fails with an error is said to, and the others go on."""
    names = list(LIMITS) if GPU else ["fp32", "bf16", "fp8 weights"]
    first, last = next(iter(known.values())), list(known.values())[-1]
    parts = {f"{a.name}, {name}: gradient": gradient(a, name) for a in known.values() for name in names}
    parts |= {f"{a.name}: streamed weights": streamed(a) for a in list(known.values())[:2]}
    parts |= {f"{last.name}: attention": kernels(last), f"{last.name}: torch.compile": compiled(last)}
    parts |= {f"{first.name}: batched probe": estimated(first), f"{first.name}: interrupts": ends(first)}
    parts[f"{first.name}: out of memory"] = out_of_memory(of_size(first, 32 if GPU else 8))
    for what, checks in parts.items():
        try:
            yield from checks
        except Exception as error:
            yield Check(what, first_line(error), False)
        release()


def page(checks: list[Check], reads: list[list[str]], sections: list[str], dtype: torch.dtype) -> str:
    """The Markdown page of what is known by now."""
    table = markdown.table([[c.what, c.number, c.verdict] for c in checks], ["check", "measured", "good"])
    columns = ["", "reads of a short run beyond CFG's", "of each further step"]
    costs_ = "\n\n".join(sections)
    where = torch.cuda.get_device_name() if GPU else f"no CUDA device: all of it small, on a {platform.machine()} CPU"
    lacks = f" Not installed, and stood in for: {', '.join(STANDING_IN)}." if STANDING_IN else ""
    gaps = ", ".join(map(str, refresh.measured_steps(30, refresh.DOUBLING)))
    return (
        f"# On a GPU\n\nMade by `{shlex.join(['python3', 'dev.py', 'gpu', *sys.argv[1:]])}`. **{where}**, torch "
        f"{torch.__version__}, Python {platform.python_version()}. Random weights.{lacks}\n\n## Is it right?\n\n"
        f"Numbers are relative: |found − expected| / |expected|.\n\n{table}\n\n## Does it wait for the device?\n\n"
        f"{READING}\n\n{markdown.table(reads, columns)}\n\n"
        f"## What does it cost?\n\nBatch 1, Euler, cfg 5, {str(dtype).removeprefix('torch.')}, one round. Runs with "
        f"doubling gaps measure at steps {gaps} of 30.\n\n{costs_}\n"
    )


def of_size(architecture: models.Architecture, side: int) -> models.Architecture:
    """The same with a latent of that many by that many."""
    return replace(architecture, latent=(*architecture.latent[:-2], side, side))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="dev.py gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = {name: of_size(architecture, 8) for name, architecture in models.architectures(False).items()}
    real = models.architectures(True) if GPU else known
    parser.add_argument("--models", nargs="+", choices=known, default=list(known), metavar="MODEL")
    parser.add_argument("--seconds", type=float, default=SECONDS["cost"], help="for the costs")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "benchmarks" / "gpu.md")
    arguments = parser.parse_args()
    if not GPU:
        torch.set_num_threads(1)
    known, real = ({name: among[name] for name in arguments.models} for among in (known, real))
    dtype = torch.bfloat16 if GPU else torch.float32
    checks, reads, sections = [], [], []

    def keep(found: Iterator, into: list) -> None:
        """Write the page with each of these: a run that is stopped leaves what it found."""
        for one in found:
            into.append(one)
            arguments.output.write_text(page(checks, reads, sections, dtype), encoding="utf-8")

    keep(correctness(known), checks)
    keep(synchronisation(next(iter(known.values()))), reads)
    keep(costs(real, dtype, arguments.seconds), sections)
    print(page(checks, reads, sections, dtype))
    return int(any(check.good is False for check in checks))
