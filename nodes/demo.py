"""The small trained model and its prompts."""

from pathlib import Path

from comfy_api.latest import io

from ..demo import world

WEIGHTS = Path(__file__).parents[1] / "demo" / "weights"
VERSIONS = {"full": "demo", "weak": "demo-half", "eps": "eps", "flow": "flow"}  # files of weights
ANY = "any"


class REGDemoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="REGDemoModel",
            display_name="REG Demo Model",
            category="model/loaders",
            search_aliases=["small model", "coloured shapes", "colored shapes", "example model", "REG"],
            description="A small model that draws coloured shapes, 64x64, on any machine in seconds. It comes with the pack.",
            inputs=[
                io.Combo.Input(
                    "version",
                    options=list(VERSIONS),
                    default="full",
                    optional=True,
                    tooltip="full predicts the clean picture, eps the noise, flow the velocity, as the models people use do. "
                    "weak is full after half of its training: the weak model of AutoGuidance.",
                )
            ],
            outputs=[
                io.Model.Output(tooltip="A plain model: works with every sampler and patch."),
                io.Vae.Output(tooltip="Its VAE. The model works on pixels, so nothing is lost in it."),
            ],
        )

    @classmethod
    def execute(cls, version: str = "full") -> io.NodeOutput:
        from ..demo import models

        return io.NodeOutput(*models.load(WEIGHTS / f"{VERSIONS[version]}.safetensors"))


class REGDemoPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="REGDemoPrompt",
            display_name="REG Demo Prompt",
            category="model/conditioning",
            search_aliases=["shapes prompt", "coloured shapes", "colored shapes", "REG"],
            description='A prompt for the REG Demo Model. With everything left at "any" it is the empty prompt.',
            inputs=[
                io.Combo.Input(
                    name,
                    options=[ANY, *map(str, values)],
                    default=ANY,
                    tooltip=f"The {name} to draw; {ANY} leaves it open.",
                )
                for name, values in world.ATTRIBUTES.items()
            ],
            outputs=[io.Conditioning.Output(tooltip="Positive or negative conditioning.")],
        )

    @classmethod
    def execute(cls, **attributes) -> io.NodeOutput:
        from ..demo import models

        stated = {name: value for name, value in attributes.items() if value != ANY}
        return io.NodeOutput([[models.prompt_tokens(**stated), {}]])
