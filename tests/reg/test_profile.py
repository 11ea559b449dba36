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
