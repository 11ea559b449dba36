"""The converter reads weights out of EDM2's pickles, and runs nothing that comes along."""

import functools
import os
import pickle

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import numpy as np
import torch
from safetensors.torch import load_file

from pack.paper import models
from pack.research.imagenet.convert import Refused, convert
from pack.research.imagenet.metrics import read_reference
from pack.tests.paper import authors_pickle, tiny


def half(state: dict) -> dict:
    return {name: value.half() for name, value in state.items()}


def test_every_weight_arrives_and_the_model_loads(tmp_path):
    state = half(tiny.edm2_state())
    arrays = {name.removeprefix("encoder."): value.numpy() for name, value in tiny.encoder().items()}
    path = authors_pickle.write(tmp_path / "edm2.pkl", state, {**arrays, "vae_name": "stabilityai/sd-vae-ft-mse"})
    written = convert(path)
    found = load_file(written)
    assert found.keys() == state.keys() | tiny.encoder().keys()
    for name, value in (state | tiny.encoder()).items():
        assert torch.equal(found[name], value), name
    assert models.load_edm2(written).model.latent_format.latent_channels == 4
    assert sorted(file.name for file in tmp_path.iterdir()) == ["edm2.pkl", "edm2.safetensors"]


def test_a_model_on_pixels_has_no_encoder(tmp_path):
    path = authors_pickle.write(tmp_path / "edm2.pkl", half(tiny.edm2_state(in_channels=3)))
    assert isinstance(models.load_edm2(convert(path)).model.latent_format, models.Pixels)


def test_the_authors_statistics_of_a_data_set(tmp_path):
    content = {"fid": {"mu": np.arange(3.0), "sigma": np.eye(3)}, "fd_dinov2": {"mu": np.zeros(2), "sigma": np.eye(2)}}
    (tmp_path / "img512.pkl").write_bytes(pickle.dumps(content))
    reference = read_reference(convert(tmp_path / "img512.pkl"))
    assert np.array_equal(reference.mu, content["fid"]["mu"]) and np.array_equal(reference.sigma, np.eye(3))


def test_source_that_comes_along_is_not_run(tmp_path):
    source = f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()"
    convert(authors_pickle.write(tmp_path / "edm2.pkl", half(tiny.edm2_state(in_channels=3)), source=source))
    assert not (tmp_path / "ran").exists()


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(tmp_path):
    """Ways to have a reader run something, each of which would make the file `ran`."""
    ran = str(tmp_path / "ran")
    payload = pickle.dumps(Calls(os.mkdir, ran))
    return {
        "posix.mkdir": Calls(os.mkdir, ran),
        "builtins.eval": Calls(eval, f"__import__('os').mkdir({ran!r})"),
        "_pickle.loads": Calls(pickle.loads, payload),
        "torch.serialization.load": Calls(torch.load, ran),
        "functools.partial": Calls(functools.partial, os.mkdir, ran),
    }


HOSTILE = ["posix.mkdir", "builtins.eval", "_pickle.loads", "torch.serialization.load", "functools.partial"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused(tmp_path, name):
    state = half(tiny.edm2_state(in_channels=3))
    path = authors_pickle.write(tmp_path / "edm2.pkl", state, extra=hostile(tmp_path)[name])
    with pytest.raises(
        Refused, match=f"REG: edm2.pkl asks for {name}, .*it may be hostile, and nothing of it was run."
    ):
        convert(path)
    assert [file.name for file in tmp_path.iterdir()] == ["edm2.pkl"]


def test_a_call_within_a_tensors_numbers_is_refused(tmp_path):
    """Plain pickles keep a tensor's numbers as a file of PyTorch's within the file, which is a pickle again."""
    inner = pickle.dumps(Calls(os.mkdir, str(tmp_path / "ran")))
    path = authors_pickle.write(
        tmp_path / "edm2.pkl", half(tiny.edm2_state(in_channels=3)), extra=Calls(torch.storage._load_from_bytes, inner)
    )
    with pytest.raises(Refused, match=r"REG: edm2.pkl is no whole checkpoint of EDM2"):
        convert(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["storage._load_from_bytes.__globals__", "hub.load", "os.system"])
def test_names_with_dots_lead_nowhere(tmp_path, name):
    """From protocol 4 on, a name may walk through attributes."""
    code = b"\x80\x04\x8c\x05torch\x8c" + bytes([len(name)]) + name.encode() + b"\x93."
    (tmp_path / "edm2.pkl").write_bytes(code)
    with pytest.raises(Refused, match=f"asks for torch.{name}"):
        convert(tmp_path / "edm2.pkl")


def test_a_truncated_file_and_another_network_are_refused(tmp_path):
    path = authors_pickle.write(tmp_path / "edm2.pkl", half(tiny.edm2_state(in_channels=3)))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(Refused, match=r"REG: edm2.pkl is no whole checkpoint of EDM2 .*download it again"):
        convert(path)
    authors_pickle.write(path, {"model.map.weight": torch.zeros(2, 2)}, {"scale": np.ones(4)})
    with pytest.raises(Refused, match=r"REG: edm2.pkl holds a network of Precond, not EDM2's"):
        convert(path)
    assert [file.name for file in tmp_path.iterdir()] == ["edm2.pkl"]
