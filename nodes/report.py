"""The report: what a run with rectified guidance did, as a picture and as text."""

from comfy_api.latest import io, ui

from ..guiders.report import record
from ..guiders.report.downstream import REPORT, rectification_precedes
from ..pilot.preset import RECTIFIERS
from . import draw, picture
from .checks import require_latent

WITHOUT_REG = (
    "REG: there is nothing to report, this run was not rectified. Its strength is 0, or its REG node is bypassed, or there "
    "is none before the sampler. The latent passes through as it is."
)
NO_RECORD = (
    "REG: no rectified run is known to have made this latent. Connect the sampler's own LATENT output, with no node "
    "between that changes it; if it is that, change the seed and run again."
)


class REGReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id=REPORT,
            display_name="REG Report",
            category="advanced/guidance",
            search_aliases=["guidance plot", "effective cfg", "diagnostics", "inspect", "REG"],
            description="Shows what REG did in a run: the prediction without and with it, the cfg that is left of yours, "
            "and what that cost. Connect the latent that comes out of the sampler. A run is recorded only while a report is "
            "connected; connecting one samples anew.",
            inputs=[
                io.Latent.Input(
                    "latent", lazy=True, tooltip="The output of a sampler that used REG; it passes unchanged."
                ),
                io.Combo.Input(
                    "theme", options=["dark", "light"], default="dark", optional=True, tooltip="Colours of the picture."
                ),
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
        """Asked before anything upstream is sampled. Raises ImportError if the report could not be drawn."""
        draw.require_matplotlib()
        return ["latent"]

    @classmethod
    def execute(cls, latent, theme="dark") -> io.NodeOutput:
        require_latent("latent", latent)
        found = record.find(latent["samples"])
        text = found.summary() if found else NO_RECORD if rectification_precedes(RECTIFIERS) else WITHOUT_REG
        image = picture.record(found, theme) if found else draw.sentence(text, theme)
        shown = ui.PreviewImage(image, cls=cls).as_dict() | ui.PreviewText(text).as_dict()
        return io.NodeOutput(latent, image, text, ui=shown)
