"""AutoGuidance, rectified."""

from comfy_api.latest import io

from ..guiders.attach import on_model
from ..guiders.autoguidance import AutoGuider
from .options import option_inputs, options_of, sampled_anew_for_a_report


class REGAutoGuider(io.ComfyNode):
    fingerprint_inputs = classmethod(sampled_anew_for_a_report)

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="REGAutoGuider",
            display_name="REG AutoGuider",
            category="model/sampling/guiders",
            search_aliases=["autoguidance", "bad version of itself", "weak model guidance", "guidance", "REG"],
            description="AutoGuidance, rectified: guides a model away from a weaker one under the same prompt (a "
            "smaller or less trained one, or one without a LoRA). For SamplerCustomAdvanced. (arXiv 2406.02507)",
            inputs=[
                io.Model.Input("model", tooltip="The model to sample."),
                io.Model.Input(
                    "weak_model",
                    tooltip="A weaker model of the same family. Patches on it are its own; REG is not needed there.",
                ),
                io.Conditioning.Input("positive", tooltip="What the picture should show; for both models."),
                io.Float.Input(
                    "cfg",
                    default=2.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale. 1 is no guidance: the weak model is then not evaluated. AutoGuidance is "
                    "used at lower scales than CFG, 1.5 to 3.",
                ),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="For CFG together with AutoGuidance: what the picture should move away from.",
                ),
                io.Float.Input(
                    "negative_share",
                    optional=True,
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="With a negative: how much of the guidance moves away from it instead of from the weak "
                    "model. 0 is AutoGuidance alone, 1 CFG alone.",
                ),
                *option_inputs(),
            ],
            outputs=[io.Guider.Output(tooltip="Connect to SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, model, weak_model, positive, cfg, negative=None, negative_share=0.5, **options) -> io.NodeOutput:
        guider = AutoGuider(on_model(model, options_of(**options)), weak_model)
        guider.set_conds(positive, negative, negative_share)
        guider.set_cfg(cfg)
        return io.NodeOutput(guider)
