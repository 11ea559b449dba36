"""`python3 dev.py faults`: what an exception at any call of ours leaves behind; a Markdown table.

A small model is sampled in every mode. Each time, one exception is raised where a function of the pack is entered, or
left, or where one of its context managers is left. Afterwards nothing of the run may be alive, the model must be as it
was, and the next run must give the same bits. Interrupts must end the run.
"""

import argparse
import gc
import inspect
import logging
import shlex
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.ops
import comfy.samplers
import comfy.supported_models_base
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import CoreModelPatcher
from torch import Tensor

from ..guiders import evaluator, rng, run, state, step
from ..guiders.attach import RectifiedSampler, on_model
from ..guiders.autoguidance import AutoGuider
from ..guiders.options import Options
from ..guiders.schedule import GuidanceSchedule
from ..reg import estimators
from ..reg.profile import Profile

PACK = Path(__file__).parents[1]
OURS = tuple(str(PACK / room) for room in ("guiders", "reg"))
EXCEPTIONS = (
    RuntimeError,
    torch.cuda.OutOfMemoryError,
    comfy.model_management.InterruptProcessingException,
    KeyboardInterrupt,
)
INTERRUPTS = EXCEPTIONS[2:]
STEPS = 3
KINDS = (run.Run, state.StepState, state.Evaluated, step.GuidedStep, evaluator.Evaluator, estimators.Evaluation)


class Block(torch.nn.Module):
    """Attention and a layer whose weights are cast for each call."""

    def __init__(self):
        super().__init__()
        self.layer = comfy.ops.manual_cast.Linear(4, 4, dtype=torch.float16)

    def forward(self, h: Tensor, transformer_options: dict) -> Tensor:
        h = h + 0.1 * optimized_attention(h, h, h, 2, transformer_options=transformer_options)
        return h + 0.1 * torch.tanh(self.layer(h))


class Network(torch.nn.Module):
    """Two blocks over the pixels of a latent [batch, 4, 4, 4]; draws random numbers if it is told to."""

    dtype = torch.float32

    def __init__(self, draws: bool = False):
        super().__init__()
        self.blocks = torch.nn.ModuleList([Block(), Block()])
        self.draws = draws
        generator = torch.Generator().manual_seed(0)
        for weight in self.parameters():
            weight.data.normal_(0, 0.5, generator=generator)

    def forward(self, x: Tensor, t: Tensor, context: Tensor, transformer_options: dict, **kwargs) -> Tensor:
        h = x.flatten(2).transpose(1, 2) + 0.3 * context.mean(1, keepdim=True)
        for block in self.blocks:
            h = block(h, transformer_options)
        out = h.transpose(1, 2).reshape(x.shape)
        return out + 0.001 * torch.randn_like(out[:1]) if self.draws else out


class Latent(comfy.latent_formats.LatentFormat):
    latent_channels = 4


class Config(comfy.supported_models_base.BASE):
    unet_config = {}
    unet_extra_config = {}
    latent_format = Latent


def build(**kwargs) -> CoreModelPatcher:
    """The network as a MODEL."""
    config, device = Config({}), torch.device("cpu")
    config.set_inference_dtype(torch.float32, None)
    network = Network(**kwargs)
    base = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS, unet_model=lambda **_: network)
    return CoreModelPatcher(base, device, device)


def prompt(seed: int) -> list:
    return [[torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(seed)), {}]]


def forward_only(func: Callable, q: Tensor, k: Tensor, v: Tensor, *args, **kwargs) -> Tensor:
    """An attention override of another pack, whose kernel has no gradient."""
    with torch.no_grad():
        return func(q, k, v, *args, **kwargs)


def with_override(model: CoreModelPatcher) -> CoreModelPatcher:
    model = model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = forward_only
    return model


def a_profile() -> Profile:
    curve = torch.tensor([0.9, 0.5])
    about = {"prediction": "EPS", "channels": "4"}
    return Profile(torch.tensor([0.1, 10.0]), curve[:, None].expand(-1, 4), curve, curve, curve, about)


def modes() -> dict[str, Callable[[], Tensor]]:
    """Name -> a run in that mode, which gives its latents."""
    plain, drawing = build(), build(draws=True)

    def by_model(options: Options, model=plain):
        return lambda: sample(cfg_guider(on_model(model, options)))

    def by_sampler(options: Options):
        return lambda: sample(cfg_guider(plain), lambda sampler: RectifiedSampler(sampler, options))

    def autoguided():
        guider = AutoGuider(on_model(plain, Options("jacobian", "backward", refresh=1)), build())
        guider.set_conds(prompt(1), prompt(2), 0.5)
        guider.set_cfg(2.0)
        return sample(guider)

    made = {
        "elementwise, backward": Options("elementwise", "backward", refresh=1),
        "elementwise, backward, checkpointed": Options("elementwise", "backward", checkpoint="always"),
        "elementwise, auto, doubling gaps": Options("elementwise"),
        "elementwise, backward, verified": Options("elementwise", "backward", verify=True),
        "elementwise, difference": Options("elementwise", "difference", refresh=1),
        "jacobian, backward": Options("jacobian", "backward", refresh=1),
        "jacobian, backward, checkpointed": Options("jacobian", "backward", refresh=1, checkpoint="always"),
        "jacobian, difference": Options("jacobian", "difference", refresh=1),
        "ratio": Options("ratio", refresh=1),
        "profile": Options("ratio", "profile", profile=a_profile(), skip_below=0.1),
        "a range and a schedule": Options(
            "jacobian", start_percent=0.2, end_percent=0.9, schedule=GuidanceSchedule("linear", 3.0, 5.0)
        ),
    }
    checkpointed = made["jacobian, backward, checkpointed"]
    return {
        **{name: by_model(options) for name, options in made.items()},
        "jacobian, backward, checkpointed, on the sampler": by_sampler(checkpointed),
        "jacobian, backward, a kernel without gradient": by_model(checkpointed, with_override(plain)),
        "jacobian, backward, checkpointed, random numbers": by_model(checkpointed, drawing),
        "ratio, random numbers": by_model(made["ratio"], drawing),
        "AutoGuidance with CFG, jacobian, backward": autoguided,
    }


def cfg_guider(model: CoreModelPatcher) -> comfy.samplers.CFGGuider:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(prompt(1), prompt(2))
    guider.set_cfg(4.0)
    return guider


@torch.inference_mode()
def sample(guider: comfy.samplers.CFGGuider, wrap: Callable = lambda sampler: sampler) -> Tensor:
    """A run as a prompt makes it."""
    sampling = guider.model_patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", STEPS)
    noise = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(5)
    sampler = wrap(comfy.samplers.sampler_object("euler"))
    return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=5)


Site = tuple[str, str, int]  # event; function and line; the line it is called from, if that is ours, too


@dataclass
class Trace:
    """Watches the calls of our functions, and raises at one of them: within it, where it is entered or gone on with, so
    that its own handlers run; or where it has returned."""

    error: type[BaseException] | None = None
    at: int = -1  # the number of the event
    count: int = 0  # of events so far
    seen: list[Site] = field(default_factory=list)  # all of them, where nothing is raised
    raised: bool = False

    def __enter__(self):
        sys.settrace(self._on_call)
        return self

    def __exit__(self, *exception):
        sys.settrace(None)

    def _on_call(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(OURS):
            return None
        frame.f_trace_lines = False
        if self._is_here("enter", frame):
            frame.f_trace_opcodes = True
            return self._raise
        return self._within

    def _within(self, frame, event, argument):
        if event == "return" and not frame.f_code.co_flags & inspect.CO_GENERATOR and self._is_here("leave", frame):
            self._raise()
        return self._within

    def _raise(self, frame=None, event="", argument=None):
        if not self.raised:
            self.raised = True
            raise self.error("injected")

    def _is_here(self, event: str, frame) -> bool:
        self.count += 1
        if self.error is None:
            self.seen.append(_site(event, frame))
        return self.count - 1 == self.at


def _site(event: str, frame) -> Site:
    caller = frame.f_back
    where = f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_qualname}:{frame.f_lineno}"
    from_ours = caller is not None and caller.f_code.co_filename.startswith(OURS)
    return event, where, caller.f_lineno if from_ours else 0


def places(seen: list[Site], every: bool) -> list[int]:
    """Which events to raise at: all of them, or the first and the last of each place in the code."""
    if every:
        return list(range(len(seen)))
    numbers: dict[Site, list[int]] = {}
    for number, site in enumerate(seen):
        numbers.setdefault(site, []).append(number)
    return sorted({found[i] for found in numbers.values() for i in (0, -1)})


@contextmanager
def watched() -> Iterator[weakref.WeakSet]:
    """A set that fills with what a run makes: its objects, and the leaves of its graphs."""
    made: weakref.WeakSet = weakref.WeakSet()
    plain = {kind: kind.__init__ for kind in KINDS}

    def wrapped(init: Callable) -> Callable:
        def __init__(self, *args, **kwargs):
            init(self, *args, **kwargs)
            made.add(_Identity.of(self))
            if isinstance(self, estimators.Evaluation):
                made.add(_Identity.of(self.x))

        return __init__

    for kind, init in plain.items():
        kind.__init__ = wrapped(init)
    try:
        yield made
    finally:
        for kind, init in plain.items():
            kind.__init__ = init


class _Identity:
    """Lives as long as what it stands for, which a set could not hold: tensors compare by value, dataclasses too."""

    _all: dict[int, "_Identity"] = {}

    @classmethod
    def of(cls, thing) -> "_Identity":
        identity = cls()
        identity.kind = type(thing).__name__
        cls._all[id(identity)] = identity
        weakref.finalize(thing, cls._all.pop, id(identity), None)
        return identity


def fingerprint(models: list) -> tuple:
    """All that a run could leave on a model, or in this thread."""
    left = []
    for model in models:
        modules = list(model.model.modules())
        left += [
            sum("forward" in module.__dict__ for module in modules),
            sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules),
            repr(sorted(model.model_options)),
            repr(model.model_options["transformer_options"]),
            repr(model.wrappers),
            len(model.additional_models),
        ]
    modes = torch._C._len_torch_function_stack()
    return (
        *left,
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        modes,
        vars(rng._replaying).get("generators"),
    )


@dataclass
class Outcome:
    """Of all injections into one mode."""

    events: int = 0
    injected: int = 0
    went_on: int = 0  # without what failed
    ended: int = 0  # with the exception that was raised
    other: int = 0  # with another
    swallowed: int = 0  # interrupts
    leaked: int = 0  # something of the run was still alive
    changed: int = 0  # the model, or the next run
    examples: list[str] = field(default_factory=list)

    @property
    def bad(self) -> int:
        return self.other + self.swallowed + self.leaked + self.changed


def models_of(job: Callable) -> list:
    """The models in a mode's closure."""
    cells = [cell.cell_contents for cell in job.__closure__ or ()]
    options = [cell for cell in cells if isinstance(cell, CoreModelPatcher)]
    return options


def inject(job: Callable[[], Tensor], at: int, error: type[BaseException]) -> tuple[str, BaseException | None]:
    """Run with one exception; what became of it: "missed", "went on", "ended" or "other"."""
    trace, unheard = Trace(error, at), []
    hook, sys.unraisablehook = sys.unraisablehook, lambda what: unheard.append(type(what.exc_value))
    try:
        with trace:
            job()
    except error as raised:
        return ("ended" if str(raised) == "injected" or error in INTERRUPTS else "other"), None
    except BaseException as raised:
        return "other", raised.with_traceback(None)
    finally:
        sys.unraisablehook = hook
    reached = trace.raised and not unheard  # where Python drops a generator half way, nobody hears of an exception
    return ("went on" if reached else "missed"), None


def campaign(mode: str, every: bool = False, share: float = 1.0, errors=EXCEPTIONS) -> Outcome:
    """Raise each exception at each place of a mode, or at an even share of them."""
    outcome, job = Outcome(), modes()[mode]
    expected = job().clone()
    with Trace() as trace:
        job()
    outcome.events = len(trace.seen)
    before = fingerprint(models_of(job))
    gc.collect()
    gc.freeze()  # what is there now is not looked through each time
    with watched() as made:
        for at in places(trace.seen, every)[:: max(1, round(1 / share))]:
            for error in errors:
                became, other = inject(job, at, error)
                _judge(outcome, became, other, error, trace.seen[at])
                if left := _left(job, made, before, expected):
                    outcome.examples.append(f"{error.__name__} at {trace.seen[at]} leaves {left}")
                    outcome.leaked += "alive" in left
                    outcome.changed += "alive" not in left
                    job = modes()[mode]  # the next one starts on models that nothing was left on
    gc.unfreeze()
    return outcome


def _left(job: Callable, made: weakref.WeakSet, before: tuple, expected: Tensor) -> str:
    """What is left of a run, in words; empty if nothing is."""
    gc.collect()
    if alive := Counter(identity.kind for identity in made):
        made.clear()
        return f"alive {dict(alive)}"
    if (now := fingerprint(models_of(job))) != before:
        return f"changed {[(a, b) for a, b in zip(before, now, strict=True) if a != b]}"
    try:
        return "" if torch.equal(job(), expected) else "another next run"
    except BaseException as error:
        return f"a next run that fails: {error!r}"


def _judge(outcome: Outcome, became: str, other: BaseException | None, error: type, site: Site) -> None:
    if became == "missed":
        return
    outcome.injected += 1
    outcome.went_on += became == "went on"
    outcome.ended += became == "ended"
    if became == "other":
        outcome.other += 1
        outcome.examples.append(f"{error.__name__} at {site} became {other!r}")
    if became == "went on" and error in INTERRUPTS:
        outcome.swallowed += 1
        outcome.examples.append(f"{error.__name__} at {site} was swallowed")


HEADER = (
    "| mode | calls | injected | went on | ended | became another | interrupts swallowed | leaked | model or next run "
    "changed |\n|---|---|---|---|---|---|---|---|---|"
)


def row(name: str, o: Outcome) -> str:
    return (
        f"| {name} | {o.events} | {o.injected} | {o.went_on} | {o.ended} | {o.other} | {o.swallowed} "
        f"| {o.leaked} | {o.changed} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py faults", description=__doc__)
    parser.add_argument(
        "--every", action="store_true", help="at every call, not at the first and the last of each place"
    )
    parser.add_argument("--share", type=float, default=1.0, help="of the places, evenly chosen")
    parser.add_argument("--modes", nargs="+", choices=modes(), default=list(modes()), metavar="MODE")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    outcomes, started = {}, time.monotonic()
    print(HEADER)
    for name in arguments.modes:
        outcomes[name] = campaign(name, arguments.every, arguments.share)
        print(row(name, outcomes[name]), flush=True)
        for example in outcomes[name].examples[:5]:
            print("  ", example, file=sys.stderr)
        if arguments.output:  # after each mode: who stops it keeps those that are done, and can ask for the others
            arguments.output.write_text(page(outcomes, (time.monotonic() - started) / 60), encoding="utf-8")
    print(row("all", total(outcomes)))
    return int(total(outcomes).bad > 0)


def total(outcomes: dict[str, Outcome]) -> Outcome:
    counts = [field.name for field in fields(Outcome) if field.name != "examples"]
    return Outcome(*(sum(getattr(outcome, count) for outcome in outcomes.values()) for count in counts))


def page(outcomes: dict[str, Outcome], minutes: float) -> str:
    command = shlex.join(["python3", "dev.py", "faults", *sys.argv[1:]])
    rows = "\n".join([HEADER, *(row(name, outcome) for name, outcome in outcomes.items()), row("all", total(outcomes))])
    return f"Made by `{command}` in {minutes:.0f} minutes, torch {torch.__version__}.\n\n{rows}\n"
