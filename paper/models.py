"""DiT and EDM2 as plain ComfyUI MODELs, from the files that their authors published."""

import copy
from collections.abc import Callable

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sd
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.model_base import ModelType
from torch import Tensor

from . import dit, edm2, edm2_weights

NOT_A_CLASS = "REG: this model draws ImageNet's classes: connect REG ImageNet Class in place of a text prompt."
ENCODER = ("encoder.scale", "encoder.bias")  # of EDM2's latents, in the file that the converter writes
DTYPES = {"auto": None, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class ClassModel(comfy.model_base.BaseModel):
    """Conditioned by classes: the conditioning's tensor holds class + 1, or 0 for none, one a picture."""

    def extra_conds(self, **kwargs):
        """Raises ValueError: the conditioning is not that of classes, or of a class that the model does not know."""
        given, known = kwargs.get("cross_attn"), self.model_config.unet_config["classes"]
        if given is None or given.dtype != torch.long:
            raise ValueError(NOT_A_CLASS)
        if known and int(given.max()) > known:
            raise ValueError(
                f"REG: this model knows {known} classes, 0 to {known - 1}, and was asked for {int(given.max()) - 1}: "
                "choose another class."
            )
        return {"y": comfy.conds.CONDRegular(given)}


class Config(comfy.supported_models_base.BASE):
    """What the two have in common."""

    unet_extra_config = {}
    network: type[torch.nn.Module]
    prediction: ModelType

    def get_model(self, state_dict, prefix="", device=None):
        return ClassModel(self, self.prediction, device=device, unet_model=self.network)


class DiTConfig(Config):
    """Predicts ε, on the latents of Stable Diffusion's VAE; the variances of a step rise linearly (arXiv 2006.11239)."""

    network = dit.DiT
    prediction = ModelType.EPS
    latent_format = comfy.latent_formats.SD15
    sampling_settings = {"beta_schedule": "sqrt_linear", "linear_start": 1e-4, "linear_end": 0.02}


class EDM2Sampling(comfy.model_sampling.ModelSamplingContinuousEDM, comfy.model_sampling.EDM):
    """EDM's, and a run begins at sigma_max times the noise; ComfyUI's begins at √(1 + sigma_max²) times."""

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return super().noise_scaling(sigma, noise, latent_image)


class EDM2Model(ClassModel):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_sampling = EDM2Sampling(self.model_config)


class Pixels(comfy.latent_formats.ChromaRadiance):
    """RGB in −1 to 1."""


class StandardisedLatents(comfy.latent_formats.LatentFormat):
    """Latents of Stable Diffusion's VAE, each channel shifted and scaled to the same mean and deviation."""

    def __init__(self, scale: Tensor, bias: Tensor):
        self.scale, self.bias = (value.float().view(1, -1, 1, 1) for value in (scale, bias))

    def process_in(self, latent):
        return latent * self.scale.to(latent) + self.bias.to(latent)

    def process_out(self, latent):
        return (latent - self.bias.to(latent)) / self.scale.to(latent)


class EDM2Config(Config):
    """EDM's preconditioning (arXiv 2206.00364) with the noise levels of its sampler."""

    network = edm2.EDM2
    prediction = ModelType.EDM
    latent_format = Pixels
    sampling_settings = {"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0}

    def process_unet_state_dict(self, state_dict):
        return edm2_weights.prepare(state_dict, self.unet_config["dtype"])

    def get_model(self, state_dict, prefix="", device=None):
        return EDM2Model(self, self.prediction, device=device, unet_model=self.network)


def load_dit(
    path: str, guided_channels: int = 3, dtype: str = "auto", disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """A DiT checkpoint as a MODEL.

    Args:
        guided_channels: guidance moves the first of the latent's four channels only; the authors' programs move three.
        dtype: one of DTYPES; "auto" leaves it to ComfyUI.
        disable_dynamic: as ComfyUI asks its loaders when it loads a model once more.

    Raises:
        ValueError: the file cannot be read, or is no DiT.
    """
    state = read(path)
    state = state.get("ema", state)  # what DiT's training writes
    config = _config(DiTConfig, dit.sizes, state, path, "REG EDM2 Loader")
    _check_whole(config, state, path)
    model = _patcher(config, state, DTYPES[dtype], disable_dynamic)
    if guided_channels < config.unet_config["in_channels"]:
        model.set_model_sampler_pre_cfg_function(_guided_in_the_first(guided_channels))
    model.cached_patcher_init = load_dit, (path, guided_channels, dtype)
    return model


def load_edm2(path: str, dtype: str = "auto", disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """An EDM2 checkpoint, as the converter wrote it, as a MODEL on pixels or on latents.

    Raises:
        ValueError: the file cannot be read, or is no EDM2.
    """
    if str(path).endswith(".pkl"):
        raise ValueError(
            f"REG: {_name(path)} is a pickle, which can carry programs, and is not opened here: convert it once with "
            "`python3 dev.py imagenet convert`, and load the .safetensors file that this writes."
        )
    read_state = read(path)
    encoder = [read_state[name] for name in ENCODER if name in read_state]
    state = {name.removeprefix("unet."): value for name, value in read_state.items() if name.startswith("unet.")}
    state = state or read_state
    config = _config(EDM2Config, edm2_weights.sizes, state, path, "REG DiT Loader")
    if encoder:
        config.latent_format = StandardisedLatents(*encoder)
    elif config.unet_config["in_channels"] != 3:
        raise ValueError(
            f"REG: {_name(path)} works on latents and lacks {ENCODER[0]}: convert the authors' file anew with "
            "`python3 dev.py imagenet convert`."
        )
    try:
        prepared = edm2_weights.prepare(_shapes(state), torch.float32)
    except (KeyError, IndexError) as error:
        raise ValueError(
            f"REG: {_name(path)} is not a whole checkpoint of EDM2 ({error}): download it and convert it again."
        ) from error
    _check_whole(config, prepared, path)
    model = _patcher(config, state, DTYPES[dtype], disable_dynamic)
    model.cached_patcher_init = load_edm2, (path, dtype)
    return model


def read(path: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a file of PyTorch's that holds nothing but plain weights.

    Raises:
        ValueError: it does not.
    """
    try:
        state = comfy.utils.load_torch_file(str(path), safe_load=True)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise ValueError(
            f"REG: {_name(path)} cannot be read as plain weights ({reason}): download it again from where its authors "
            "published it."
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"REG: {_name(path)} holds no weights by name: choose another file.")
    return state


def _config(kind: type[Config], sizes: Callable, state: dict, path: str, other: str) -> Config:
    try:
        return kind(sizes(state))
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        family = kind.network.__name__
        raise ValueError(
            f"REG: {_name(path)} is no checkpoint of {family} ({error}): choose one, or load it with {other} or one of "
            "ComfyUI's loaders."
        ) from error


def _patcher(config: Config, state: dict, dtype: torch.dtype | None, disable_dynamic: bool):
    """The model with its weights, as ComfyUI's own loader of diffusion models makes it."""
    device = comfy.model_management.get_torch_device()
    supported = config.supported_inference_dtypes
    if dtype is None:
        dtype = comfy.model_management.unet_dtype(
            model_params=comfy.utils.calculate_parameters(state),
            supported_dtypes=supported,
            weight_dtype=comfy.utils.weight_dtype(state),
        )
    config.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, device, supported))
    model = config.get_model(state)
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = kind(model, device, comfy.model_management.unet_offload_device())
    model.load_model_weights(dict(state), assign=patcher.is_dynamic())
    return patcher


def _check_whole(config: Config, state: dict, path: str) -> None:
    """Refuse a file in which a weight is missing, too many or of another shape. Raises ValueError."""
    network = config.network(**config.unet_config, device="meta", operations=torch.nn)
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    if wrong := sorted(name for name, _ in expected.items() ^ found.items()):
        raise ValueError(
            f"REG: {_name(path)} is not a whole checkpoint of {type(network).__name__}: {len(set(wrong))} of its weights "
            f"are missing, unknown or of another shape, {wrong[0]} for one: download it again."
        )


def _shapes(state: dict) -> dict:
    """The same without the numbers, which are many; single numbers are kept."""
    return {name: value if value.ndim == 0 else value.to("meta") for name, value in state.items()}


def for_pixels_from_0(vae: comfy.sd.VAE) -> comfy.sd.VAE:
    """The VAE as EDM2 uses it: on pixels in 0 to 1, where Stable Diffusion uses the same weights on −1 to 1."""
    vae = copy.copy(vae)
    vae.process_input = lambda image: image
    vae.process_output = lambda image: image.clamp_(0.0, 1.0)
    return vae


def pixel_vae() -> comfy.sd.VAE:
    """The VAE of models that work on pixels; it changes nothing but the range."""
    return comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})


def _name(path: str) -> str:
    return str(path).replace("\\", "/").rsplit("/", 1)[-1]


def _guided_in_the_first(channels: int) -> Callable:
    """A pre-CFG hook after which the prediction that guidance moves away from differs in the first channels only."""

    def hook(args: dict) -> list[Tensor]:
        cond, uncond, *rest = args["conds_out"]
        if args["conds"][1] is None:
            return args["conds_out"]
        return [cond, torch.cat([uncond[:, :channels], cond[:, channels:]], dim=1), *rest]

    return hook
