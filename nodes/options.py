"""The inputs that every way in shares."""

import torch
from comfy_api.latest import io
from comfy_execution.validation import validate_node_input

from ..guiders.options import CHECKPOINT_CHOICES, Options, estimator_names
from ..guiders.report.downstream import report_follows
from ..pilot.preset import Preset
from ..reg.profile import Profile
from ..reg.rectification import RECTIFICATIONS

PROFILE = io.Custom("REG_PROFILE")
SCHEDULE = io.Custom("REG_SCHEDULE")
PRESET = io.Custom("REG_PRESET")
DEFAULTS = Options()
SOME_PROFILE = Profile(
    torch.tensor([0.1, 1.0]), torch.ones(2, 1), *torch.ones(3, 2)
)  # stands for one that is not made yet


def sampled_anew_for_a_report(cls, **inputs) -> bool:
    """`fingerprint_inputs` of a way in: connecting a report makes another run of it, one that is recorded."""
    return report_follows()


def options_of(preset: Preset | None = None, **inputs) -> Options:
    """The options that a node's inputs ask for; what a prompt leaves out has its default, and a preset goes before both."""
    if preset is not None:
        if not isinstance(preset, Preset):
            raise ValueError("REG: what is connected as preset is none: connect REG Load Preset.")
        inputs |= preset.options
    return Options(refresh=inputs.pop("every", DEFAULTS.refresh), **inputs)


def checked_before_anything_loads(
    cls,
    input_types,
    rectification=None,
    strength=None,
    estimator=None,
    start_percent=None,
    end_percent=None,
    every=None,
    step=None,
    checkpoint=None,
    skip_below=None,
    verify=None,
) -> bool:
    """`validate_inputs` of a way in: what the options themselves say, as one sentence and before a model is loaded.

    ComfyUI leaves the check of what is named here to us, so that saved workflows may name a rule as they did
    ("elementwise"). It would show a returned message once for each of these inputs; an exception it shows once. A
    linked input is None here.

    Args:
        input_types: the type that is connected to each linked input, by name.

    Raises:
        ValueError: an input is out of range, or of another type; the message names it and the remedy.
    """
    given = {
        name: value for name, value in locals().items() if name not in ("cls", "input_types") and value is not None
    }
    wanted = {entry.id: entry.io_type for entry in cls.define_schema().inputs}
    for name, kind in input_types.items():
        if not validate_node_input(kind, wanted[name]):
            raise ValueError(
                f"REG: {name} takes {wanted[name]}, and {kind} is connected to it: connect another output."
            )
    preset = "preset" in input_types  # which may name any of the options: then each is looked at by itself
    connected = {"profile": SOME_PROFILE} if preset or "profile" in input_types else {}
    for some in [{name: value} for name, value in given.items()] if preset else [given]:
        options_of(**some, **connected)
    return True


def option_inputs() -> list:
    """Inputs of the shared options, in the order in which saved workflows have their values."""
    return [
        io.Combo.Input(
            "rectification",
            optional=True,
            options=[rule.label for rule in RECTIFICATIONS.values()],
            default=DEFAULTS.rule.label,
            tooltip="How the guidance is corrected. "
            + " ".join(f"{rule.label}: {rule.text}." for rule in RECTIFICATIONS.values()),
        ),
        io.Float.Input(
            "strength",
            optional=True,
            default=1.0,
            min=0.0,
            max=4.0,
            step=0.05,
            tooltip="0 leaves the guidance as it is, 1 rectifies it, values between blend, above 1 extrapolate.",
        ),
        io.Combo.Input(
            "estimator",
            display_name="measured by",
            optional=True,
            options=estimator_names(),
            default="auto",
            advanced=True,
            tooltip="How the model's response is measured; auto suits most. backward: exact, needs memory. difference: "
            "rougher, little memory, works with quantised and compiled models. auto: the connected profile; "
            "without one backward, and difference where a gradient cannot be had. profile: no extra pass. The rule ratio has "
            "differences only.",
        ),
        io.Float.Input(
            "start_percent",
            optional=True,
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.001,
            advanced=True,
            tooltip="Where in sampling rectification begins, as in ComfyUI's other nodes.",
        ),
        io.Float.Input(
            "end_percent",
            optional=True,
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.001,
            advanced=True,
            tooltip="Where in sampling rectification ends, as in ComfyUI's other nodes.",
        ),
        io.Int.Input(
            "every",
            optional=True,
            display_name="measure every (0: doubling gaps)",
            default=DEFAULTS.refresh,
            min=0,
            max=100,
            advanced=True,
            tooltip="At which steps the model is measured; the measurement is used until the next one. 0: at steps 0, 1, 2, "
            "4, 8, 16, …, where most changes. A number n: at every n-th step. 1: at each step.",
        ),
        io.Float.Input(
            "step",
            display_name="difference step (0: automatic)",
            optional=True,
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.001,
            round=0.00001,
            advanced=True,
            tooltip="With difference: how far the latent is moved, over its own scale. 0 chooses by the model's precision, "
            "and for the whole Jacobian the step that the guidance itself makes.",
        ),
        io.Combo.Input(
            "checkpoint",
            display_name="save memory in backward",
            optional=True,
            options=list(CHECKPOINT_CHOICES),
            default="auto",
            advanced=True,
            tooltip="With backward: keep less memory by evaluating the model's blocks again in the reverse pass. auto: where "
            "free memory asks for it. always: slower, little memory. off: go on with difference when memory runs out.",
        ),
        io.Float.Input(
            "skip_below",
            display_name="skip negative below",
            optional=True,
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.005,
            advanced=True,
            tooltip="With a profile: leave out the unconditional pass where guidance would change the prediction by less "
            "than this part of it, so that a guided run costs less than CFG. 0 never leaves it out.",
        ),
        PROFILE.Input(
            "profile",
            optional=True,
            tooltip="What REG would measure, measured before: no extra pass then. From REG Calibrate or REG Load Profile.",
        ),
        SCHEDULE.Input(
            "schedule",
            optional=True,
            tooltip="A guidance scale that changes over the run, in place of the cfg set elsewhere; from REG Schedule.",
        ),
        PRESET.Input(
            "preset",
            optional=True,
            tooltip="A setting that REG Pilot recommended, in place of the options above that it names; from REG Load Preset.",
        ),
        io.Boolean.Input(
            "verify",
            display_name="verify gradient",
            default=False,
            optional=True,
            advanced=True,
            tooltip="With backward: compare the first gradient of a run with differences of the model's predictions, and go on "
            "with difference if they disagree. Six more evaluations. For models, kernels and patches that are new to you.",
        ),
    ]
