"""EDM2's published pickles as safetensors, without running anything that they carry.

Such a file holds a network, an encoder and settings, as objects whose classes come along as Python source, which NVIDIA's
reader runs. Here every object becomes a `Shell`, an inert bag of its attributes; only the functions in ALLOWED are called,
which make tensors and arrays; whatever else a file asks for ends the reading.
"""

import io
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from numpy._core import multiarray
from safetensors.torch import save_file
from torch import Tensor


class Refused(ValueError):
    """The file cannot be, or must not be, read; one sentence says why."""


class Shell:
    """What stands for an object of a class that is not there: its class's name and its attributes."""

    def __init__(self, name: str = "", state: dict | None = None):
        self.name = name
        self.state = state or {}

    def __setstate__(self, state):
        self.state = state


class Settings(dict):
    """What stands for the authors' dictionary with attributes."""

    def __setstate__(self, state):
        pass


def _reconstruct(meta: dict) -> Shell:
    """In place of the function that runs the source in `meta` and fills the class that it makes."""
    return Shell(meta["class_name"], meta["state"])


def _storage(content: bytes):
    """A tensor's numbers; PyTorch's own reader of plain weights sees that they are nothing else."""
    return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")


ALLOWED = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _reconstruct,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("dnnlib.util", "EasyDict"): Settings,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): multiarray._reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): multiarray.scalar for core in ("core", "_core")},
    **{("torch", str(dtype).removeprefix("torch.")): dtype for dtype in (torch.float16, torch.float32, torch.float64)},
}


class Reader(pickle.Unpickler):
    """Reads a pickle by the list, and torch's modules as shells."""

    def find_class(self, module: str, name: str):
        """Raises Refused: the file asks for something that is not on the list."""
        if module.startswith("torch.nn.modules."):
            return Shell
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise Refused(
                f"asks for {module}.{name}, which no EDM2 checkpoint needs: it may be hostile, and nothing of it was run"
            ) from None


def tensors(shell: Shell, prefix: str = "") -> dict[str, Tensor]:
    """The parameters and buffers of a network that was read as shells, by their full names."""
    state = shell.state
    found = {
        prefix + name: value.detach().contiguous()
        for kind in ("_parameters", "_buffers")
        for name, value in state.get(kind, {}).items()
        if value is not None
    }
    for name, module in state.get("_modules", {}).items():
        if module is not None:
            found |= tensors(module, f"{prefix}{name}.")
    return found


def unpickled(path: Path) -> dict:
    """What a file holds, as shells.

    Raises:
        Refused: the file is not whole, or asks for something that is not on the list.
    """
    if not path.is_file():
        raise Refused(f"REG: there is no file {path}.")
    try:
        with path.open("rb") as file:
            return dict(Reader(file).load())
    except Refused as error:
        raise Refused(f"REG: {path.name} {error}.") from error
    except Exception as error:
        raise _not_whole(path, error) from error


def weights(content: dict, path: Path) -> dict[str, Tensor]:
    """The network's weights and, of models on latents, the encoder's scale and bias. Raises Refused."""
    try:
        found, encoder = tensors(content["ema"]), content["encoder"].state
    except Exception as error:
        raise _not_whole(path, error) from error
    if "unet.out_conv.weight" not in found:
        raise Refused(f"REG: {path.name} holds a network of {content['ema'].name}, not EDM2's: choose another file.")
    if "scale" in encoder:
        found |= {
            f"encoder.{name}": torch.from_numpy(np.array(encoder[name], np.float32)) for name in ("scale", "bias")
        }
    return found


def convert(path: Path) -> Path:
    """Write what a file holds beside it: a network as safetensors, statistics of a data set as npz; gives the path.

    Raises:
        Refused: the file is neither, or not safe to read.
        OSError: it is not there, or nothing can be written beside it.
    """
    content = unpickled(path)
    part = path.with_suffix(".part")
    if "fid" in content:  # the authors' dataset-refs
        written = path.with_suffix(".npz")
        with part.open("wb") as stream:
            np.savez(stream, **{name: np.asarray(content["fid"][name], np.float64) for name in ("mu", "sigma")})
    else:
        written = path.with_suffix(".safetensors")
        save_file(weights(content, path), part, metadata={"source": path.name})
    part.replace(written)
    return written


def _not_whole(path: Path, error: Exception) -> Refused:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:100]
    return Refused(
        f"REG: {path.name} is no whole checkpoint of EDM2 ({reason}): download it again from where its authors published it."
    )
