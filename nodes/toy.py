"""The exact world: what REG does, in a picture, without a checkpoint; and as a MODEL for the real nodes."""

from comfy_api.latest import io, ui
from torch import Tensor

from ..reg.rectification import RECTIFICATIONS, named
from . import draw
from .checks import require_latent, require_numbers
from .options import DEFAULTS

SEED = 22  # the default mixture: of 32, the nearest to the median distances of no guidance, CFG and REG
EXPERIMENTS = ("samples", "arrows", "curves", "error map", "what is left")
CATEGORY = "advanced/guidance"


def _mixture(tooltip: str) -> io.Int.Input:
    """A seed that the browser does not change after a run: the toy nodes of a graph must agree on it."""
    return io.Int.Input(
        "seed", optional=True, default=SEED, min=0, max=2**31, control_after_generate=False, tooltip=tooltip
    )


def _shown(cls, figure: Tensor) -> io.NodeOutput:
    """A figure as output and on the node."""
    return io.NodeOutput(figure, ui=ui.PreviewImage(figure, cls=cls))


class REGToy(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="REGToy",
            display_name="REG Toy",
            category=CATEGORY,
            search_aliases=["guidance explained", "what guidance does", "exact answer", "mixture", "REG"],
            description="Shows what guidance should do, what CFG does instead, and what REG makes of it, in a world of one "
            "or two dimensions where the right answer is known exactly. Takes a few seconds and no model.",
            inputs=[
                io.Combo.Input(
                    "experiment",
                    optional=True,
                    options=list(EXPERIMENTS),
                    default="samples",
                    tooltip="samples: where whole chains end, on the contours of what guidance should sample. arrows: the "
                    "guidance term in the plane. curves: the guidance on a line at nine noise levels. error map: how "
                    "far each rule is from the exact prediction. what is left: how much of the guidance each "
                    "rectification leaves, by noise level.",
                ),
                io.Combo.Input(
                    "rectification",
                    optional=True,
                    options=[rule.label for rule in RECTIFICATIONS.values()],
                    default=DEFAULTS.rule.label,
                    tooltip="The rule to compare with CFG and with the exact answer.",
                ),
                io.Float.Input(
                    "cfg",
                    optional=True,
                    default=4.0,
                    min=1.0,
                    max=10.0,
                    step=0.1,
                    tooltip="Guidance scale, as in KSampler.",
                ),
                io.Float.Input(
                    "sigma",
                    display_name="noise level",
                    optional=True,
                    default=0.7,
                    min=0.05,
                    max=20.0,
                    step=0.05,
                    tooltip="Noise level of the arrows; the other experiments show all of them.",
                ),
                _mixture("Which mixture is drawn in the plane."),
            ],
            outputs=[io.Image.Output(tooltip="The figure.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, rectification=None) -> bool:
        """Raises ValueError: there is no such rule. Saved workflows may name one as they did ("elementwise")."""
        return bool(rectification is None or named(rectification))

    @classmethod
    def execute(
        cls, experiment="samples", rectification=DEFAULTS.rectification, cfg=4.0, sigma=0.7, seed=SEED
    ) -> io.NodeOutput:
        require_numbers(cfg=cfg, sigma=sigma)
        return _shown(cls, draw.image(_figure(experiment, named(rectification).name, cfg - 1, sigma, seed)))


def _figures():
    """The module that draws, which imports matplotlib."""
    draw.require_matplotlib()
    from ..lab import figures

    return figures


def _figure(experiment: str, rectification: str, w: float, sigma: float, seed: int):
    figures = _figures()
    if experiment == "samples":
        return figures.samples(w, rectification, seed)
    if experiment == "arrows":
        return figures.arrows(w, sigma, ("cfg", rectification), seed)
    if experiment == "curves":
        return figures.curves(w, rectification)
    if experiment == "error map":
        return figures.error_map(w, ("none", "cfg", rectification))
    return figures.narrowing(w, seed)


class REGToyModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="REGToyModel",
            display_name="REG Toy Model",
            category=CATEGORY,
            search_aliases=["exact model", "mixture", "points", "REG"],
            description="The exact world as a model: each point of the latent is a sample in the plane. Connect it to "
            "KSampler and REG nodes like any model, and look at the result with REG Toy Plot.",
            inputs=[
                _mixture("Which mixture: the same number as in REG Toy."),
                io.Int.Input(
                    "points", optional=True, default=256, min=1, max=4096, tooltip="How many points to sample."
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The mixtures as a plain model."),
                io.Conditioning.Output(display_name="positive", tooltip="The class that is asked for."),
                io.Conditioning.Output(display_name="negative", tooltip="All classes."),
                io.Latent.Output(tooltip="An empty latent of that many points."),
            ],
        )

    @classmethod
    def execute(cls, seed=SEED, points=256) -> io.NodeOutput:
        from ..demo import toy

        return io.NodeOutput(toy.model(seed), toy.conditioning(True), toy.conditioning(False), toy.latent(points))


class REGToyPlot(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="REGToyPlot",
            display_name="REG Toy Plot",
            category=CATEGORY,
            search_aliases=["distance to the target", "scatter plot", "points", "REG"],
            description="Draws points sampled from the REG Toy Model over the contours of what guidance should sample, "
            "with their distance to it.",
            inputs=[
                io.Latent.Input("samples", tooltip="Points sampled from the REG Toy Model."),
                io.Float.Input(
                    "cfg",
                    optional=True,
                    default=4.0,
                    min=1.0,
                    max=10.0,
                    step=0.1,
                    tooltip="The cfg they were sampled at.",
                ),
                _mixture("The mixture they were sampled from."),
            ],
            outputs=[io.Image.Output(tooltip="The figure.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, samples, cfg=4.0, seed=SEED) -> io.NodeOutput:
        require_latent("samples", samples)
        require_numbers(cfg=cfg)
        points = samples["samples"]
        if points.ndim != 4 or points.shape[1:] != (2, 1, 1):
            raise ValueError("REG: these are not points of the plane: connect what was sampled from the REG Toy Model.")
        return _shown(cls, draw.image(_figures().points(points[..., 0, 0].cpu().double(), cfg - 1, seed)))
