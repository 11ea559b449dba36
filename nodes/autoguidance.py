"""AutoGuidance, rectified."""

import torch
from comfy_api.latest import io

from ..guiders.attach import on_model
from ..guiders.autoguidance import AutoGuider
from ..guiders.checks import check_prompt
from .checks import require_numbers
from .options import checked_before_anything_loads, option_inputs, options_of, sampled_anew_for_a_report

WEAKER = "connect a smaller or less trained model of the same family, or this one without its LoRA, to weak_model."
SAVED_BEFORE_SHARE = 9  # shared widgets whose values saved workflows have before that of negative_share


class REGAutoGuider(io.ComfyNode):
    fingerprint_inputs = classmethod(sampled_anew_for_a_report)
    validate_inputs = classmethod(checked_before_anything_loads)

    @classmethod
    def define_schema(cls):
        shared = option_inputs()
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
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="For CFG together with AutoGuidance: what the picture should move away from.",
                ),
                io.Float.Input(
                    "cfg",
                    optional=True,
                    default=2.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale. 1 is no guidance: the weak model is then not evaluated. AutoGuidance is "
                    "used at lower scales than CFG, 1.5 to 3.",
                ),
                *shared[:SAVED_BEFORE_SHARE],
                io.Float.Input(
                    "negative_share",
                    display_name="share of the negative",
                    optional=True,
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="With a negative: how much of the guidance moves away from it instead of from the weak "
                    "model. 0 is AutoGuidance alone, 1 CFG alone. Without one it does nothing.",
                ),
                *shared[SAVED_BEFORE_SHARE:],
            ],
            outputs=[io.Guider.Output(tooltip="Connect to SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls, model, weak_model, positive, cfg=2.0, negative=None, negative_share=0.5, **options
    ) -> io.NodeOutput:
        check_prompt("positive", positive)
        if negative is not None:
            check_prompt("negative", negative)
        require_numbers(cfg=cfg, negative_share=negative_share)
        if weak_model is model:
            raise ValueError(
                "REG: model and weak_model are the same model, and their difference is the guidance: " + WEAKER
            )
        if negative is not None and _same(positive, negative):
            raise ValueError(
                "REG: negative is the same prompt as positive, and there is nothing between them to guide by: connect "
                "another prompt, often an empty one, or none."
            )
        guider = AutoGuider(on_model(model, options_of(**options)), weak_model)
        guider.set_conds(positive, negative, negative_share)
        guider.set_cfg(cfg)
        return io.NodeOutput(guider)


def _same(a: list, b: list) -> bool:
    """Do two conditionings say the same?"""
    plain = {"pooled_output"}  # whatever else there is may tell them apart
    return a is b or (
        len(a) == len(b)
        and all(
            torch.equal(x, y) and not (left.keys() | right.keys()) - plain
            for (x, left), (y, right) in zip(a, b, strict=True)
        )
    )
