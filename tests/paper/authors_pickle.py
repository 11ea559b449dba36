"""Writes pickles as EDM2's authors do: objects that carry their source, which their reader would run."""

import pickle
import sys
import types
from collections import OrderedDict
from unittest import mock

import torch


def _reconstruct_persistent_obj(meta):
    raise AssertionError("the source was asked for")


class EasyDict(dict):
    pass


_reconstruct_persistent_obj.__module__, EasyDict.__module__ = "torch_utils.persistence", "dnnlib.util"
MODULES = {
    "torch_utils": types.ModuleType("torch_utils"),
    "torch_utils.persistence": types.ModuleType("torch_utils.persistence"),
    "dnnlib": types.ModuleType("dnnlib"),
    "dnnlib.util": types.ModuleType("dnnlib.util"),
}
MODULES["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj
MODULES["dnnlib.util"].EasyDict = EasyDict


class Persistent:
    """An object of a class that comes along as source."""

    def __init__(self, name: str, state: dict, source: str = "raise SystemExit"):
        self.meta = {"type": "class", "version": 6, "module_src": source, "class_name": name, "state": state}

    def __reduce__(self):
        return _reconstruct_persistent_obj, (self.meta,)


def network(state: dict, name: str = "Precond", source: str = "raise SystemExit") -> Persistent:
    """A network of nested modules from a state dict, half of its leaves torch's own."""
    own = {key: value for key, value in state.items() if "." not in key}
    parts = OrderedDict((key.split(".")[0], None) for key in state if "." in key)
    for part in parts:
        inner = {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}
        parts[part] = network(inner, "Block", source)
    parameters = {key: torch.nn.Parameter(value) for key, value in own.items() if key not in ("freqs", "phases")}
    buffers = {key: value for key, value in own.items() if key in ("freqs", "phases")}
    if set(parts) == {"enc", "dec"}:
        parts["unused"] = torch.nn.ModuleDict({"silu": torch.nn.SiLU()})
    attributes = {"_parameters": parameters, "_buffers": buffers, "_modules": parts, "training": False}
    return Persistent(name, {**attributes, "_init_args": (), "_init_kwargs": EasyDict(sigma_data=0.5)}, source)


def write(path, state: dict, encoder: dict | None = None, source: str = "raise SystemExit", **more):
    """A checkpoint; `encoder` holds arrays by name."""
    content = {"ema": network(state, source=source), "encoder": Persistent("Encoder", encoder or {}, source)}
    content |= {"dataset_kwargs": EasyDict(path="img.zip"), "loss_fn": Persistent("EDM2Loss", {"P_mean": -0.4}), **more}
    with mock.patch.dict(sys.modules, MODULES):
        path.write_bytes(pickle.dumps(content))
    return path
