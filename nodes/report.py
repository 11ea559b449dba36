"""The report: what a run with rectified guidance did, as a picture and as text."""

from comfy_api.latest import io, ui

from ..guiders.report import record
from ..guiders.report.downstream import REPORT, rectification_precedes
from . import draw

WITHOUT_REG = (
    "REG: there is nothing to report on: no REG node with a strength above 0 stands before this report. "
    "Connect the latent of a sampler whose model, guider or sampler has REG."
)
NO_RECORD = (
    "REG: no rectified run is known to have made this latent. Connect the sampler's own LATENT output, with no node "
    "between that changes it, from a run with REG at a strength above 0; if it is that, change the seed and run again."
)


class REGReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=REPORT,
            display_name="REG Report",
            category="advanced/guidance",
            search_aliases=["guidance report", "effective cfg", "guidance map", "diagnostics", "REG"],
            description="Shows what REG did in a run: what it left of the guidance, place by place and by noise level; "
            "the cfg that comes to; how large the correction was, which estimates how wrong plain guidance is at each "
            "step; and what it cost. A run is recorded only while a report is connected; connecting one samples anew.",
            inputs=[
                io.Latent.Input("latent", lazy=True, tooltip="The output of a sampler that samples with REG."),
                io.Combo.Input("theme", options=["dark", "light"], default="dark", tooltip="Colours of the picture."),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The same latent."),
                io.Image.Output(display_name="report", tooltip="The picture."),
                io.String.Output(display_name="text", tooltip="The numbers."),
            ],
            is_output_node=True,
        )

    @classmethod
    def check_lazy_status(cls, latent=None, **inputs) -> list[str]:
        """Asked before anything upstream is sampled. Raises ValueError if no run upstream could have REG, and ImportError
        if the report could not be drawn."""
        draw.require_matplotlib()
        if not rectification_precedes():
            raise ValueError(WITHOUT_REG)
        return ["latent"]

    @classmethod
    def execute(cls, latent, theme) -> io.NodeOutput:
        found = record.find(latent["samples"])
        text = found.summary() if found else NO_RECORD
        image = draw.record(found, theme) if found else draw.sentence(text, theme)
        shown = ui.PreviewImage(image, cls=cls).as_dict() | ui.PreviewText(text).as_dict()
        return io.NodeOutput(latent, image, text, ui=shown)
