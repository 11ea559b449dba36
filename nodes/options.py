"""The inputs that every way in shares."""

from comfy_api.latest import io

from ..guiders.options import CHECKPOINT_CHOICES, Options, estimator_names
from ..guiders.report.downstream import report_follows
from ..reg.rectification import RECTIFICATIONS

PROFILE = io.Custom("REG_PROFILE")
SCHEDULE = io.Custom("REG_SCHEDULE")
DEFAULTS = Options()


def sampled_anew_for_a_report(cls, **inputs) -> bool:
    """`fingerprint_inputs` of a way in: connecting a report makes another run of it, one that is recorded."""
    return report_follows()


def options_of(every: int = DEFAULTS.refresh, **inputs) -> Options:
    """The options that a node's inputs ask for; what a prompt leaves out has its default."""
    return Options(refresh=every, **inputs)


def option_inputs() -> list:
    """Inputs of the shared options, in the order in which saved workflows have their values."""
    return [
        io.Combo.Input(
            "rectification",
            options=[rule.label for rule in RECTIFICATIONS.values()],
            default=DEFAULTS.rule.label,
            tooltip="How the guidance is corrected. "
            + " ".join(f"{rule.label}: {rule.text}." for rule in RECTIFICATIONS.values()),
        ),
        io.Float.Input(
            "strength",
            default=1.0,
            min=0.0,
            max=4.0,
            step=0.05,
            tooltip="0 leaves the guidance as it is, 1 rectifies it, values between blend, above 1 extrapolate.",
        ),
        io.Combo.Input(
            "estimator",
            options=estimator_names(),
            default="auto",
            advanced=True,
            tooltip="How the model's Jacobian is measured. backward: exact, one reverse pass, more memory. difference: "
            "one more forward pass, no gradients, works with every kernel and quantised weights. auto: backward, and "
            "difference where it cannot be had. profile: no extra pass, from a profile measured before.",
        ),
        io.Float.Input(
            "start_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.001,
            advanced=True,
            tooltip="Where in sampling rectification begins, as in ComfyUI's other nodes.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.001,
            advanced=True,
            tooltip="Where in sampling rectification ends, as in ComfyUI's other nodes.",
        ),
        io.Int.Input(
            "every",
            display_name="measure every",
            default=DEFAULTS.refresh,
            min=0,
            max=100,
            advanced=True,
            tooltip="At which steps the model is measured; the measurement is used until the next one. 0: at steps 0, 1, 2, "
            "4, 8, 16, …, where most changes; a few percent more time than CFG. A number n: at every n-th step. 1: at each "
            "step.",
        ),
        io.Float.Input(
            "step",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.001,
            round=0.00001,
            advanced=True,
            tooltip="Step of the difference estimator, over the latent's own scale. 0 chooses: by the model's precision, "
            "and for jacobian the step that the guidance itself makes.",
        ),
        io.Combo.Input(
            "checkpoint",
            options=list(CHECKPOINT_CHOICES),
            default="auto",
            advanced=True,
            tooltip="With backward: keep less memory by evaluating the model's blocks again in the reverse pass. auto: where "
            "free memory asks for it. always: slower, little memory. off: go on with difference when memory runs out.",
        ),
        io.Float.Input(
            "skip_below",
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
            tooltip="Needed by estimator = profile and by skip_below; from REG Calibrate or REG Load Profile.",
        ),
        SCHEDULE.Input(
            "schedule",
            optional=True,
            tooltip="A guidance scale that changes over the run, in place of the cfg set elsewhere; from REG Schedule.",
        ),
        io.Boolean.Input(
            "verify",
            default=False,
            optional=True,
            advanced=True,
            tooltip="With backward: compare the first gradient of a run with differences of the model's predictions, and go on "
            "with difference if they disagree. Six more evaluations. For models, kernels and patches that are new to you.",
        ),
    ]
