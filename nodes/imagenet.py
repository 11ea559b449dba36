"""The paper's own systems: DiT and EDM2 on ImageNet."""

import folder_paths
from comfy_api.latest import io

from ..guiders.attach import check_model

FOLDERS = ("diffusion_models", "checkpoints")
DIT_FILES = (".safetensors", ".sft", ".pt", ".pth", ".ckpt")
EDM2_FILES = (".safetensors", ".sft", ".pkl")  # a pickle is refused, with the way to convert it
DTYPES = ["auto", "float32", "float16", "bfloat16"]
NEEDS_VAE = (
    "REG: this EDM2 works on latents and has no VAE yet: connect Load VAE with Stable Diffusion's VAE (ft-MSE) to the vae "
    "input of REG EDM2 Loader, and decode with the VAE that comes out of it."
)


def checkpoints(endings: tuple[str, ...]) -> list[str]:
    """The files of both folders that end so."""
    found = {name for folder in FOLDERS for name in folder_paths.get_filename_list(folder)}
    return sorted(name for name in found if name.lower().endswith(endings))


def path_of(name: str) -> str:
    """Raises ValueError: there is no such file."""
    for folder in FOLDERS:
        if path := folder_paths.get_full_path(folder, name):
            return path
    raise ValueError(f"REG: {name} is in neither models/diffusion_models nor models/checkpoints: put it there.")


def dtype_input() -> io.Combo.Input:
    return io.Combo.Input(
        "dtype",
        options=DTYPES,
        default="auto",
        optional=True,
        advanced=True,
        tooltip="The precision to compute in. auto: what ComfyUI finds best on this device. float32 is slower and exact.",
    )


class NoVAE:
    """In the place of a VAE that was not connected: it has nothing, and says so to whoever decodes with it."""

    def __getattr__(self, name):
        raise AttributeError(NEEDS_VAE)  # which ComfyUI's own look at what it keeps can live with


class REGDiTLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="REGDiTLoader",
            display_name="REG DiT Loader",
            category="model/loaders",
            search_aliases=["DiT", "diffusion transformer", "ImageNet", "class conditional", "REG"],
            description="Loads DiT, a model of ImageNet's classes that the REG paper was judged on. Use it with REG ImageNet "
            "Class, REG DDPM and a VAE of Stable Diffusion 1. (arXiv 2212.09748)",
            inputs=[
                io.Combo.Input(
                    "ckpt_name",
                    options=checkpoints(DIT_FILES),
                    tooltip="A DiT of any size, from models/diffusion_models or models/checkpoints.",
                ),
                io.Int.Input(
                    "guided_channels",
                    default=3,
                    min=1,
                    max=4,
                    optional=True,
                    advanced=True,
                    tooltip="Guidance moves only the first of the latent's four channels. The published results were made "
                    "with 3; 4 guides them all.",
                ),
                dtype_input(),
            ],
            outputs=[io.Model.Output(tooltip="A plain model: works with every sampler and patch.")],
        )

    @classmethod
    def execute(cls, ckpt_name: str, guided_channels: int = 3, dtype: str = "auto") -> io.NodeOutput:
        from ..paper import models

        return io.NodeOutput(models.load_dit(path_of(ckpt_name), guided_channels, dtype))


class REGEDM2Loader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="REGEDM2Loader",
            display_name="REG EDM2 Loader",
            category="model/loaders",
            search_aliases=["EDM2", "Karras", "ImageNet", "class conditional", "autoguidance", "REG"],
            description="Loads EDM2, a model of ImageNet's classes that the REG paper was judged on. Use it with REG ImageNet "
            "Class, the sampler heun and the scheduler karras. (arXiv 2312.02696)",
            inputs=[
                io.Combo.Input(
                    "ckpt_name",
                    options=checkpoints(EDM2_FILES),
                    tooltip="An EDM2 of any size, from models/diffusion_models or models/checkpoints, converted once from its "
                    "authors' pickle by python3 dev.py imagenet convert.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="For the models of 512x512: Stable Diffusion's VAE (ft-MSE). The models of 64x64 work on pixels "
                    "and need none, nor does the weak model of AutoGuidance.",
                ),
                dtype_input(),
            ],
            outputs=[
                io.Model.Output(tooltip="A plain model: works with every sampler and patch."),
                io.Vae.Output(
                    tooltip="The VAE to decode with: EDM2 uses it on another range of pixels than Stable Diffusion."
                ),
            ],
        )

    @classmethod
    def execute(cls, ckpt_name: str, vae=None, dtype: str = "auto") -> io.NodeOutput:
        from ..paper import models

        model = models.load_edm2(path_of(ckpt_name), dtype)
        if isinstance(model.model.latent_format, models.Pixels):
            return io.NodeOutput(model, models.pixel_vae())
        return io.NodeOutput(model, NoVAE() if vae is None else models.for_pixels_from_0(vae))


class REGImageNetClass(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        from ..paper import classes

        return io.Schema(
            node_id="REGImageNetClass",
            display_name="REG ImageNet Class",
            category="model/conditioning",
            search_aliases=["ImageNet", "class label", "class conditional", "DiT", "EDM2", "REG"],
            description="What a DiT or EDM2 model should draw: one of ImageNet's thousand classes, or several, one a picture.",
            inputs=[
                io.Combo.Input(
                    "name",
                    options=list(classes.labels()),
                    default="golden retriever (207)",
                    tooltip="The class to draw, with its number. Type a part of the name to search.",
                ),
                io.String.Input(
                    "more",
                    optional=True,
                    tooltip="Further classes, by name or number, separated by commas: the pictures of a batch take them in "
                    "turn. A part of a name will do where no other name has it.",
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="The classes, one a picture of the batch."),
                io.Conditioning.Output("negative", tooltip="No class: what guidance moves away from."),
            ],
        )

    @classmethod
    def validate_inputs(cls, more: str | None = None):
        from ..paper import classes

        try:
            classes.parse(more or "")
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, name: str, more: str | None = None) -> io.NodeOutput:
        from ..paper import classes

        chosen = [classes.find(name), *classes.parse(more or "")]
        return io.NodeOutput(classes.conditioning(chosen), classes.conditioning([]))


class REGDDPM(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="REGDDPM",
            display_name="REG DDPM",
            category="model/sampling/samplers",
            search_aliases=["DDPM", "learned variance", "DiT sampler", "ancestral", "REG"],
            description="The sampler of DiT: DDPM on evenly spaced timesteps, with the variance that the network learned for "
            "each step. For SamplerCustomAdvanced. (arXiv 2102.09672)",
            inputs=[
                io.Model.Input("model", tooltip="A DiT from REG DiT Loader: no other model tells a variance."),
                io.Int.Input(
                    "steps",
                    default=250,
                    min=2,
                    max=1000,
                    tooltip="Timesteps to take of the model's 1000. The published results were made with 250.",
                ),
            ],
            outputs=[
                io.Sampler.Output(tooltip="DDPM with learned variance."),
                io.Sigmas.Output(tooltip="The noise levels of these timesteps."),
            ],
        )

    @classmethod
    def execute(cls, model, steps: int) -> io.NodeOutput:
        from ..paper import sampling

        check_model(model)
        return io.NodeOutput(sampling.ddpm(), sampling.spaced_sigmas(model, steps))
