"""The small trained model and its prompts."""

from pathlib import Path

import torch
from comfy_api.latest import io

from ..demo import world

ROOT = Path(__file__).parents[1]
VERSIONS = {  # files of weights; those of research are in a clone of the repository only
    "full": ROOT / "demo" / "weights" / "demo.safetensors",
    "weak": ROOT / "demo" / "weights" / "demo-half.safetensors",
    "eps": ROOT / "research" / "weights" / "eps.safetensors",
    "flow": ROOT / "research" / "weights" / "flow.safetensors",
}
REPOSITORY = "https://github.com/comfyui-reg/ComfyUI-REG"
ANY = "any"
RIGHT_ANSWERS, RIGHT_SEED = 16, 23  # how many draws the output has, and which: shares as near as 16 can be


def present() -> list[str]:
    """The versions whose weights are here."""
    return [version for version, file in VERSIONS.items() if file.is_file()]


def weights(version: str) -> Path:
    """The file of a version. Raises ValueError if there is none here."""
    if version not in tuple(VERSIONS):  # whatever a prompt may say
        raise ValueError(f"REG: the demo model has no version {version!r}: choose {' or '.join(present())}.")
    file = VERSIONS[version]
    if not file.is_file():
        raise ValueError(
            f"REG: the demo model's version {version} does not come with the pack: copy {file.name} from "
            f"{REPOSITORY}/tree/main/research/weights to {file.parent}, or choose {' or '.join(present())}."
        )
    return file


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
                    options=present(),
                    default="full",
                    optional=True,
                    tooltip="full draws best. weak is full after a third of its training: the weak model of AutoGuidance. A "
                    "clone of the repository also has eps, which predicts the noise, and flow, which predicts the velocity.",
                )
            ],
            outputs=[
                io.Model.Output(tooltip="A plain model: works with every sampler and patch."),
                io.Vae.Output(tooltip="Its VAE. The model works on pixels, so nothing is lost in it."),
            ],
        )

    @classmethod
    def validate_inputs(cls, version: str | None = "full") -> bool | str:
        """Asked in place of ComfyUI's own check against the list, which would not say where a missing version is.

        A version that another node gives is not known yet.
        """
        try:
            if version is not None:
                weights(version)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, version: str = "full") -> io.NodeOutput:
        from ..demo import models

        return io.NodeOutput(*models.load(weights(version)))


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
                    optional=True,
                    default=ANY,
                    tooltip=f"The {name} to draw; {ANY} leaves it open.",
                )
                for name, values in world.ATTRIBUTES.items()
            ],
            outputs=[
                io.Conditioning.Output(tooltip="Positive or negative conditioning."),
                io.Image.Output(
                    display_name="right answer",
                    tooltip="Pictures of the prompt as they should be, drawn by the program that drew those the model was "
                    "trained on: 16, with the right shares of whatever the prompt leaves open.",
                ),
            ],
        )

    @classmethod
    def execute(cls, **attributes) -> io.NodeOutput:
        from ..demo import models

        stated = {name: value for name, value in attributes.items() if value != ANY}
        pictures, _ = world.draws(RIGHT_ANSWERS, RIGHT_SEED, **stated)
        right = torch.from_numpy(pictures).float() / 255
        return io.NodeOutput([[models.prompt_tokens(**stated), {}]], right)
