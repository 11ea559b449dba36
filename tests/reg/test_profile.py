"""Profiles: interpolation, and files that are none."""

import errno
import os
import threading

import pytest
import torch
from safetensors.torch import save

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
        {"sigmas": torch.tensor([0.1, 1.0, 1e30])},
        {"factor": torch.tensor([[1.0, 0.8], [0.6, 1e30], [0.1, 0.0]])},
        {"factor": torch.tensor([[1.0, 0.8], [0.6, -11.0], [0.1, 0.0]])},
        {"gain": torch.tensor([1.0, 1.01, 0.1])},
        {"rho": torch.tensor([0.9, -0.01, 0.3])},
        {"effect": torch.tensor([0.5, -0.3, 0.0])},
        {"effect": torch.tensor([0.5, 1e30, 0.0])},
    ],
)
def test_damaged_curves_are_refused(changes):
    with pytest.raises(ValueError, match=r"REG: this profile is damaged.*REG Calibrate"):
        make(**changes)


# How a file can be wrong, and the sentence. `name` is the file's.
NO_PROFILE = "REG: {name} is not a profile: choose a file saved by REG Save Profile."
UNREADABLE = "REG: {name} cannot be read (%s): choose a file saved by REG Save Profile."
NO_FILE = "REG: {name} cannot be read, for it is no file: choose a file saved by REG Save Profile."


def curves(dtype=torch.float32, **changes):
    return {name: getattr(make(), name).to(dtype) for name in ("sigmas", *profiles.CURVES)} | changes


def written(tensors, **metadata):
    """The bytes of a file, with a profile's own metadata but for the changes."""
    return save(tensors, metadata={"format": profiles.FORMAT, "about": "{}"} | metadata)


def bytes_of(content):
    return lambda path: path.write_bytes(content)


WRONG_FILES = {
    "missing": (lambda path: None, UNREADABLE % os.strerror(errno.ENOENT)),
    "empty": (bytes_of(b""), NO_PROFILE),
    "text": (bytes_of(b"not safetensors"), NO_PROFILE),
    "a header too long": (bytes_of((2**62).to_bytes(8, "little") + b"{}"), NO_PROFILE),
    "noise": (bytes_of(b"\xff" * 64), NO_PROFILE),
    "cut short": (bytes_of(written(curves())[:-1]), NO_PROFILE),
    "longer than it says": (bytes_of(written(curves()) + b"0"), NO_PROFILE),
    "other tensors": (bytes_of(save({"weight": torch.ones(3)})), NO_PROFILE),
    "another format": (bytes_of(written(curves(), format="reg profile 9")), NO_PROFILE),
    "a curve missing": (bytes_of(written({"sigmas": torch.ones(2)})), NO_PROFILE),
    "integers": (bytes_of(written(curves(torch.int64))), NO_PROFILE),
    "booleans": (bytes_of(written(curves(rho=torch.ones(3, dtype=torch.bool)))), NO_PROFILE),
    "complex numbers": (bytes_of(written(curves(torch.complex64))), NO_PROFILE),
    "8 bits": (bytes_of(written(curves(torch.float8_e4m3fn))), NO_PROFILE),
    "4 bits": (
        bytes_of(written(curves(rho=torch.zeros(3, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)))),
        NO_PROFILE,
    ),
    "NaN": (bytes_of(written(curves(gain=torch.full([3], torch.nan)))), profiles.DAMAGED),
    "out of range": (bytes_of(written(curves(rho=torch.full([3], 1e30)))), profiles.DAMAGED),
    "about is a list": (bytes_of(written(curves(), about="[]")), NO_PROFILE),
    "about is no JSON": (bytes_of(written(curves(), about="{")), NO_PROFILE),
    "about has no end": (bytes_of(written(curves(), about="[" * 100_000)), NO_PROFILE),
    "a folder": (lambda path: path.mkdir(), NO_FILE),
    "a pipe": (lambda path: os.mkfifo(path), NO_FILE),
    "a link to itself": (lambda path: path.symlink_to(path), UNREADABLE % os.strerror(errno.ELOOP)),
    "a link to nothing": (lambda path: path.symlink_to(path.parent / "gone"), UNREADABLE % os.strerror(errno.ENOENT)),
    "too large": (
        bytes_of(save({"weight": torch.ones(2**20)})),
        "REG: {name} is too large for a profile: choose a file saved by REG Save Profile.",
    ),
}


@pytest.mark.skipif(os.name == "nt", reason="links and pipes are made as on POSIX")
@pytest.mark.parametrize("wrong", WRONG_FILES)
def test_what_is_wrong_with_a_file_is_one_sentence(tmp_path, wrong):
    make_file, sentence = WRONG_FILES[wrong]
    path = tmp_path / "odd.safetensors"
    make_file(path)
    with pytest.raises(ValueError) as refused:
        profiles.load(path)
    assert str(refused.value) == sentence.format(name=path.name)


@pytest.mark.parametrize("dtype", profiles.STORED)
def test_any_floating_dtype_is_read_as_single_precision(tmp_path, dtype):
    path = tmp_path / "other.safetensors"
    path.write_bytes(written(curves(dtype)))
    assert profiles.load(path).rho.dtype == torch.float32


def test_what_was_read_is_a_copy(tmp_path):
    path = tmp_path / "profile.safetensors"
    profiles.save(make(), path)
    loaded = profiles.load(path)
    path.write_bytes(b"\0" * path.stat().st_size)  # the same file, written over in its place
    path.write_bytes(b"")
    assert torch.equal(loaded.rho, make().rho)


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    """Whatever fails: writing, flushing to the disk, or putting the file in its place."""
    path = tmp_path / "profile.safetensors"
    profiles.save(make(), path)
    before = path.read_bytes()

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch, pytest.raises(ValueError, match=r"REG: the profile cannot be saved as"):
            patch.setattr(os, step, full)
            profiles.save(make(gain=torch.zeros(3)), path)
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match=r"REG: the profile cannot be saved as x\.safetensors"):
        profiles.save(make(), tmp_path / "no folder" / "x.safetensors")
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        profiles.save(make(gain=torch.zeros(3)), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_and_what_it_leads_to_is_left_alone(tmp_path):
    target, link = tmp_path / "precious", tmp_path / "profile.safetensors"
    target.write_bytes(b"precious")
    link.symlink_to(target)
    profiles.save(make(), link)
    assert target.read_bytes() == b"precious" and not link.is_symlink()
    assert torch.equal(profiles.load(link).rho, make().rho)


def test_who_reads_while_two_save_finds_one_whole_profile(tmp_path):
    path = tmp_path / "profile.safetensors"
    values = [torch.full([3], value) for value in (0.25, 0.75)]
    profiles.save(make(rho=values[0]), path)

    def keep_saving(rho):
        for _ in range(100):
            profiles.save(make(rho=rho), path)

    savers = [threading.Thread(target=keep_saving, args=[rho]) for rho in values]
    for saver in savers:
        saver.start()
    while any(saver.is_alive() for saver in savers):
        found = profiles.load(path).rho
        assert any(torch.equal(found, rho) for rho in values)
    assert list(tmp_path.iterdir()) == [path]


def test_what_it_says_of_itself_is_words(tmp_path):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(written(curves(), about='{"a": {}}'))
    assert profiles.load(path).about == {"a": "{}"}


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
