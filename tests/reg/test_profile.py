"""Profiles: interpolation, and files that are none."""

import pytest
import torch
from safetensors.torch import save_file

from pack.reg import profile as profiles
from pack.reg.profile import Profile


def make(**changes):
    curves = {
        "sigmas": torch.tensor([0.1, 1.0, 10.0]),
        "factor": torch.tensor([[1.0, 0.8], [0.6, 0.4], [0.1, 0.0]]),
        "gain": torch.tensor([1.0, 0.5, 0.1]),
        "rho": torch.tensor([0.9, 0.5, 0.3]),
        "effect": torch.tensor([0.5, 0.3, 0.0]),
    }
    return Profile(**(curves | changes), about={"prediction": "EPS", "channels": "2"})


def test_linear_in_log_sigma_and_constant_beyond():
    sigma = torch.tensor([0.0, 0.1, 10**-0.5, 1.0, 10**0.25, 10.0, 1e9])
    expected = torch.tensor([1.0, 1.0, 0.75, 0.5, 0.4, 0.1, 0.1])
    torch.testing.assert_close(make().at("gain", sigma), expected)
    torch.testing.assert_close(make().at("factor", sigma)[2], torch.tensor([0.8, 0.6]))


def test_saved_and_loaded_is_the_same(tmp_path):
    path = tmp_path / "profile.safetensors"
    profiles.save(make(), path)
    loaded = profiles.load(path)
    for name in ("sigmas", *profiles.CURVES):
        assert torch.equal(getattr(loaded, name), getattr(make(), name))
    assert loaded.about == make().about


@pytest.mark.parametrize(
    "changes",
    [
        {"sigmas": torch.tensor([1.0, 0.1, 10.0])},
        {"sigmas": torch.tensor([0.0, 0.1, 10.0])},
        {"gain": torch.tensor([1.0, float("nan"), 0.1])},
        {"rho": torch.tensor([1.0])},
        {"factor": torch.ones(3)},
        {"factor": torch.ones(3, 0)},
        {"sigmas": torch.tensor(1.0)},
        {"sigmas": torch.tensor([[0.1, 1.0], [1.0, 10.0]])},
    ],
)
def test_damaged_curves_are_refused(changes):
    with pytest.raises(ValueError, match=r"REG: this profile is damaged.*REG Calibrate"):
        make(**changes)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    contents = [b"", b"not safetensors", (2**62).to_bytes(8, "little") + b"{}", b"\xff" * 64]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"REG: other.safetensors is not a profile"):
            profiles.load(path)
    save_file({"weight": torch.ones(3)}, path)
    with pytest.raises(ValueError, match=r"REG: other.safetensors is not a profile"):
        profiles.load(path)
    save_file({"weight": torch.ones(2**20)}, path)
    with pytest.raises(ValueError, match="too large for a profile"):
        profiles.load(path)


@pytest.mark.parametrize("about", ["[]", "3", "[" * 100_000, "{", '{"a": {}}'])
def test_what_it_says_of_itself_may_be_anything(tmp_path, about):
    tensors = {name: getattr(make(), name) for name in ("sigmas", *profiles.CURVES)}
    path = tmp_path / "odd.safetensors"
    save_file(tensors, path, metadata={"format": profiles.FORMAT, "about": about})
    try:
        assert profiles.load(path).about == {"a": "{}"}
    except ValueError as error:
        assert str(error).startswith("REG: odd.safetensors is not a profile")


def test_damaged_files_are_loaded_or_refused(tmp_path):
    """Whatever the damage, nothing but the sentence of a refusal comes out."""
    path, random = tmp_path / "damaged.safetensors", torch.Generator().manual_seed(0)
    profiles.save(make(), path)
    whole = path.read_bytes()
    for i in range(400):
        length = len(whole) if i % 4 else int(torch.randint(1, len(whole), (), generator=random))
        content = bytearray(whole[:length])
        for place in torch.randint(len(content), (4,), generator=random).tolist():
            content[place] = int(torch.randint(256, (), generator=random))
        path.write_bytes(content)
        try:
            profiles.load(path)
        except ValueError as error:
            assert str(error).startswith("REG:")
