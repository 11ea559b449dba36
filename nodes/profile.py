"""Profiles: measure one, save it, load it."""

import re
from pathlib import Path

import comfy.sample
import comfy.utils
import folder_paths
from comfy_api.latest import io

from ..guiders.attach import check_model
from ..guiders.calibrate import calibrate
from ..guiders.report.live import show
from ..reg import profile as profiles
from .checks import require_latent
from .options import PROFILE

FOLDER = "reg_profiles"
SHIPPED = Path(__file__).parents[1] / "demo" / "profiles"
CATEGORY = "model/sampling"
RATIOS = ("downscale_ratio_spacial", "downscale_ratio_temporal")  # what ComfyUI's empty latents tell of themselves
LONGEST_NAME = 200  # bytes, within what every file system takes
NOT_IN_NAMES = re.compile(  # characters that Windows does not take, and names that are devices there
    r"""[<>:"/\\|?*]|^\.|[. ]$|^(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\.|$)""", re.IGNORECASE
)

folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER), is_default=True)
folder_paths.add_model_folder_path(FOLDER, str(SHIPPED))


def safe_path(name: str) -> Path:
    """Where a profile of this name is saved. Raises ValueError if the name would leave the folder, or fits no file."""
    stem = name.removesuffix(".safetensors")
    if not stem.strip() or not name.isprintable() or NOT_IN_NAMES.search(stem):
        raise ValueError(f"REG: {name!r} is not a file name: use letters, digits, spaces and dashes.")
    if len(stem.encode()) > LONGEST_NAME:
        raise ValueError(f"REG: the name of the profile is too long: use at most {LONGEST_NAME} letters.")
    return Path(folder_paths.models_dir) / FOLDER / f"{stem}.safetensors"


class REGCalibrate(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="REGCalibrate",
            display_name="REG Calibrate",
            category=CATEGORY,
            search_aliases=["measure profile", "guidance profile", "calibration", "faster", "REG"],
            description="Measures a profile of a model: what REG would measure at every step, so that later runs need no extra "
            "pass. Connect it to the profile input of a REG node. Takes about as long as two pictures per sample in the "
            "latent.",
            inputs=[
                io.Model.Input("model", tooltip="The model to measure, as it will be used."),
                io.Conditioning.Input("positive", tooltip="A prompt typical of yours."),
                io.Conditioning.Input("negative", tooltip="The negative prompt you use; often empty."),
                io.Latent.Input(
                    "latent_image", tooltip="An empty latent. Its batch size is the number of samples; 4 is good."
                ),
                io.Float.Input(
                    "cfg",
                    optional=True,
                    default=4.0,
                    min=1.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Guidance of the sample pictures.",
                ),
                io.Int.Input(
                    "steps", optional=True, default=12, min=2, max=100, tooltip="Steps of the sample pictures."
                ),
                io.Int.Input(
                    "points",
                    optional=True,
                    default=8,
                    min=2,
                    max=64,
                    tooltip="Noise levels to measure at.",
                    advanced=True,
                ),
                io.Int.Input(
                    "seed",
                    optional=True,
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=False,  # a new one would measure anew at every run
                    tooltip="Noise of the sample pictures.",
                ),
            ],
            outputs=[PROFILE.Output(display_name="profile", tooltip="Connect to a REG node, or save it.")],
        )

    @classmethod
    def execute(cls, model, positive, negative, latent_image, cfg=4.0, steps=12, points=8, seed=0) -> io.NodeOutput:
        check_model(model)
        require_latent("latent_image", latent_image)
        ratios = {name: latent_image[name] for name in RATIOS if name in latent_image}
        latent = comfy.sample.fix_empty_latent_channels(model, latent_image["samples"], **ratios)
        bar = comfy.utils.ProgressBar(steps + points)
        return io.NodeOutput(
            calibrate(model, positive, negative, latent, cfg, steps, points, seed, bar.update_absolute)
        )


def make_folder(folder: Path) -> None:
    """Raises ValueError: the folder of profiles cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"REG: the folder models/{FOLDER} cannot be made: {error.strerror}.") from error


class REGSaveProfile(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="REGSaveProfile",
            display_name="REG Save Profile",
            category=CATEGORY,
            search_aliases=["guidance profile", "save calibration", "REG"],
            description=f"Saves a profile to ComfyUI's models/{FOLDER} folder and says so. Another profile of that name is "
            "kept unless overwrite is on.",
            inputs=[
                PROFILE.Input("profile", tooltip="From REG Calibrate."),
                io.String.Input("name", optional=True, default="my model", tooltip="File name, without a folder."),
                io.Boolean.Input(
                    "overwrite", optional=True, default=False, tooltip="Replace another profile of the same name."
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, name="my model") -> bool:
        """Raises ValueError: the name would leave the folder."""
        return bool(name is None or safe_path(name))

    @classmethod
    def execute(cls, profile, name="my model", overwrite=False) -> io.NodeOutput:
        if not isinstance(profile, profiles.Profile):
            raise ValueError("REG: what is connected as profile is none: connect REG Calibrate.")
        path = safe_path(name)
        here = f"models/{FOLDER}/{path.name}"
        is_new = not path.exists()
        if is_new or overwrite:
            make_folder(path.parent)
            profiles.save(profile, path)
        elif not profiles.same(profiles.load(path), profile):
            raise ValueError(
                f"REG: {here} exists and holds another profile: choose another name, or turn overwrite on."
            )
        made = "saved as" if is_new else "saved over" if overwrite else "there already,"
        show(f"{made} {here}. Press R to see it in REG Load Profile.")
        return io.NodeOutput()


class REGLoadProfile(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="REGLoadProfile",
            display_name="REG Load Profile",
            category=CATEGORY,
            search_aliases=["guidance profile", "load calibration", "REG"],
            description="A profile measured before: connect it to the profile input of a REG node.",
            inputs=[
                io.Combo.Input(
                    "name", options=folder_paths.get_filename_list(FOLDER), tooltip=f"A file in models/{FOLDER}."
                )
            ],
            outputs=[PROFILE.Output(display_name="profile", tooltip="Connect to a REG node.")],
        )

    @classmethod
    def fingerprint_inputs(cls, name):
        path = name and folder_paths.get_full_path(FOLDER, name)  # None: another node gives it
        return path and Path(path).stat().st_mtime_ns

    @classmethod
    def execute(cls, name) -> io.NodeOutput:
        path = folder_paths.get_full_path(FOLDER, name)
        if path is None:
            raise FileNotFoundError(f"REG: there is no profile {name!r} in models/{FOLDER}: choose one of the list.")
        return io.NodeOutput(profiles.load(Path(path)))
