"""Guidance that changes over a run."""

from comfy_api.latest import io, ui

from ..guiders.schedule import COUNTED_IN, GuidanceSchedule
from . import draw
from .options import SCHEDULE


class REGSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="REGSchedule",
            display_name="REG Schedule",
            category="model/sampling",
            search_aliases=["guidance schedule", "cfg schedule", "guidance interval", "dynamic cfg", "REG"],
            description="The guidance scale over the run, for the schedule input of the other REG nodes. There it "
            "takes the place of the sampler's or guider's own cfg, also at strength 0, without rectification. Steps "
            "with cfg 1 skip the negative prompt's pass. cfg means the same with REG and without; in the authors' "
            "programs the scale of a REG run is cfg minus 1.",
            inputs=[
                io.DynamicCombo.Input(
                    "shape",
                    options=[
                        io.DynamicCombo.Option("constant", [_cfg("Guidance scale of every step.")]),
                        io.DynamicCombo.Option(
                            "linear",
                            [
                                _cfg("Guidance scale at the start, the highest noise.", default=1.0),
                                _cfg("Guidance scale at the end, the clean picture.", name="cfg_end", default=9.0),
                            ],
                        ),
                        io.DynamicCombo.Option(
                            "cosine",
                            [
                                _cfg("Guidance scale at the end; it rises to this from 1, slowly first. (MDT)"),
                                io.Float.Input(
                                    "power",
                                    optional=True,
                                    default=4.0,
                                    min=0.1,
                                    max=100.0,
                                    step=0.1,
                                    tooltip="The higher, the later it rises. 1 is a plain cosine.",
                                ),
                            ],
                        ),
                        io.DynamicCombo.Option(
                            "interval",
                            [
                                _cfg("Guidance scale within the interval; outside of it there is no guidance."),
                                _percent("start_percent", 0.2, "begins"),
                                _percent("end_percent", 0.8, "ends"),
                            ],
                        ),
                    ],
                    tooltip="How the guidance scale changes over the run.",
                ),
                io.Combo.Input(
                    "counted_in",
                    options=list(COUNTED_IN),
                    default=COUNTED_IN[0],
                    optional=True,
                    advanced=True,
                    tooltip="What linear and cosine count: percent, the part of the run as ComfyUI's other nodes count it; or "
                    "sigma, how far the noise level has fallen, as REG's authors do for EDM2.",
                ),
            ],
            outputs=[
                SCHEDULE.Output(display_name="schedule", tooltip="Connect to a REG node."),
                io.Image.Output(display_name="curve", tooltip="The guidance scale over the run, drawn."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, shape: dict | None = None, counted_in: str = COUNTED_IN[0]) -> io.NodeOutput:
        options = {option.key: option for option in cls.define_schema().inputs[0].options}
        chosen = options.get(shape.get("shape")) if isinstance(shape, dict) else None
        if chosen is None:  # ComfyUI leaves out a shape that it does not know
            raise ValueError(f"REG: a schedule is one of {', '.join(options)}: choose one of these shapes.")
        left_out = {entry.id: entry.default for entry in chosen.inputs}
        given = {name: value for name, value in shape.items() if value is not None}
        schedule = GuidanceSchedule(**left_out | given, counted_in=counted_in)
        image = draw.schedule(schedule)
        return io.NodeOutput(schedule, image, ui=ui.PreviewImage(image, cls=cls))


def _cfg(tooltip: str, name: str = "cfg", default: float = 5.0) -> io.Float.Input:
    return io.Float.Input(
        name, optional=True, default=default, min=0.0, max=100.0, step=0.1, round=0.01, tooltip=tooltip
    )


def _percent(name: str, default: float, verb: str) -> io.Float.Input:
    tooltip = f"Where in sampling guidance {verb}, as in ComfyUI's other nodes."
    return io.Float.Input(name, optional=True, default=default, min=0.0, max=1.0, step=0.001, tooltip=tooltip)
