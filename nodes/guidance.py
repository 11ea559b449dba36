"""The three ways in: REG on a model, as a guider, on a sampler."""

import comfy.samplers
from comfy_api.latest import io

from ..guiders.attach import RectifiedSampler, on_model
from ..guiders.checks import check_prompt
from .checks import require_numbers
from .options import checked_before_anything_loads, option_inputs, options_of, sampled_anew_for_a_report

ALIASES = ["rectified gradient guidance", "cfg", "guidance", "REG"]


class REGModel(io.ComfyNode):
    fingerprint_inputs = classmethod(sampled_anew_for_a_report)
    validate_inputs = classmethod(checked_before_anything_loads)

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="REGModel",
            display_name="CFG guidance (REG Model)",
            category="advanced/guidance",
            search_aliases=["rectified gradient", *ALIASES],  # found first
            description="Rectifies the guidance (CFG) of a model, for KSampler and every guider. It is applied after all "
            "other guidance patches, wherever the node stands in the graph. (arXiv 2501.18865)",
            inputs=[
                io.Model.Input("model", tooltip="The model whose guidance is rectified."),
                *option_inputs(),
            ],
            outputs=[io.Model.Output(tooltip="The same model with rectified guidance.")],
        )

    @classmethod
    def execute(cls, model, **options) -> io.NodeOutput:
        return io.NodeOutput(on_model(model, options_of(**options)))


class REGGuider(io.ComfyNode):
    fingerprint_inputs = classmethod(sampled_anew_for_a_report)
    validate_inputs = classmethod(checked_before_anything_loads)

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="REGGuider",
            display_name="REG Guider",
            category="model/sampling/guiders",
            search_aliases=ALIASES,
            description="Classifier-free guidance, rectified, for SamplerCustomAdvanced. (arXiv 2501.18865)",
            inputs=[
                io.Model.Input("model", tooltip="The model to sample."),
                io.Conditioning.Input("positive", tooltip="What the picture should show."),
                io.Conditioning.Input("negative", tooltip="What it should move away from; often an empty prompt."),
                io.Float.Input(
                    "cfg",
                    optional=True,
                    default=5.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale. 1 is no guidance, and REG then costs and changes nothing.",
                ),
                *option_inputs(),
            ],
            outputs=[io.Guider.Output(tooltip="Connect to SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, model, positive, negative, cfg=5.0, **options) -> io.NodeOutput:
        check_prompt("positive", positive)
        check_prompt("negative", negative)
        require_numbers(cfg=cfg)
        guider = comfy.samplers.CFGGuider(on_model(model, options_of(**options)))
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        return io.NodeOutput(guider)


class REGSampler(io.ComfyNode):
    fingerprint_inputs = classmethod(sampled_anew_for_a_report)
    validate_inputs = classmethod(checked_before_anything_loads)

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="REGSampler",
            display_name="REG Sampler",
            category="model/sampling/samplers",
            search_aliases=ALIASES,
            description="Rectifies the guidance of every run of a sampler, whatever the guider. (arXiv 2501.18865)",
            inputs=[
                io.Sampler.Input("sampler", tooltip="Any sampler."),
                *option_inputs(),
            ],
            outputs=[io.Sampler.Output(tooltip="The same sampler, guided with rectification.")],
        )

    @classmethod
    def execute(cls, sampler, **options) -> io.NodeOutput:
        return io.NodeOutput(RectifiedSampler(sampler, options_of(**options)))
