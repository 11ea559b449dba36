"""A profile: what rectification would measure, as curves over sigma, measured once for a model and then free.

In exact worlds the ratio hardly depends on the sample and not at all on w, so one curve serves every run.
"""

import json
import os
import stat
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as deserialized
from safetensors.torch import save as serialized
from torch import Tensor

from .rectification import LARGEST

FORMAT = "reg profile 1"
CURVES = ("factor", "gain", "rho", "effect")
LARGEST_FILE = 1 << 20  # bytes; a real one has a few thousand
STORED = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
RANGES = {  # of what can be measured
    "sigmas": (1e-6, 1e6),
    "factor": (-LARGEST, LARGEST),
    "gain": (0.0, 1.0),  # both are clamped where they are measured
    "rho": (0.0, 1.0),
    "spread": (0.0, 1.0),
    "effect": (0.0, 1e3),  # a part of the prediction
}
DAMAGED = "REG: this profile is damaged: measure it again with REG Calibrate."


@dataclass(frozen=True)
class Profile:
    """Curves over `sigmas` [n], ascending, within RANGES.

    Raises:
        ValueError: the curves are malformed.
    """

    sigmas: Tensor  # [n]
    factor: Tensor  # [n, channels] mean of α Jᵀ1 per channel
    gain: Tensor  # [n] mean of ⟨α Jᵀg, g⟩ / ⟨g, g⟩
    rho: Tensor  # [n] mean of ⟨g, J_c g⟩ / ⟨g, J_u g⟩
    effect: Tensor  # [n] rms(D_c − D_u) / rms(D_c): what a unit of guidance does
    about: dict[str, str] = field(default_factory=dict)  # prediction, channels, model, …
    spread: Tensor | None = None  # [n] standard deviation of rho over samples; none in older files, which counts as 0

    def __post_init__(self):
        curves = {name: getattr(self, name) for name in ("sigmas", *CURVES)}
        n = self.sigmas.numel()
        if self.spread is None:
            object.__setattr__(self, "spread", torch.zeros_like(self.rho))
        curves["spread"] = self.spread
        sound = all(c.ndim == 1 + (name == "factor") and len(c) == n and c.numel() for name, c in curves.items())
        sound = sound and n >= 2 and bool((self.sigmas.diff() > 0).all())
        sound = sound and all(_within(curves[name], *limits) for name, limits in RANGES.items())
        if not sound:
            raise ValueError(DAMAGED)

    def at(self, name: str, sigma: Tensor) -> Tensor:
        """A curve at sigma [batch], linear in log sigma and constant beyond its ends: [batch] or [batch, channels]."""
        curve = getattr(self, name).to(sigma)
        known, wanted = self.sigmas.to(sigma).log(), sigma.clamp(min=torch.finfo(sigma.dtype).tiny).log()
        upper = torch.searchsorted(known, wanted).clamp(1, len(known) - 1)
        lower = upper - 1
        t = ((wanted - known[lower]) / (known[upper] - known[lower])).clamp(0, 1)
        return torch.lerp(curve[lower], curve[upper], t.view(-1, *[1] * (curve.ndim - 1)))


def _within(curve: Tensor, low: float, high: float) -> bool:
    return bool(((curve >= low) & (curve <= high)).all())  # NaN is not


def same(a: Profile, b: Profile) -> bool:
    """Do two profiles hold the same curves, measured on the same?"""
    return a.about == b.about and all(
        torch.equal(getattr(a, name).cpu(), getattr(b, name).cpu()) for name in ("sigmas", *CURVES, "spread")
    )


def save(profile: Profile, path: Path) -> None:
    """Write a profile as safetensors, with what it was measured on in the header.

    The file is written beside its place and then put there whole: what was there before stays until then, and for good
    if this fails. A link in its place is replaced, and what it leads to is left alone.

    Raises:
        ValueError: the file cannot be written; the message says why.
    """
    tensors = {
        name: getattr(profile, name).float().cpu().contiguous().clone() for name in ("sigmas", *CURVES, "spread")
    }
    content = serialized(tensors, metadata={"format": FORMAT, "about": json.dumps(profile.about)})
    beside = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        try:
            with open(beside, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ValueError(f"REG: the profile cannot be saved as {path.name}: {error.strerror or error}.") from error


def load(path: Path) -> Profile:
    """Read a profile. What is read is a copy: nothing of the file stays open or mapped.

    Raises:
        ValueError: the file cannot be read, or is not a profile, or a damaged one; the message says which.
    """
    name = Path(path).name
    content = _content(Path(path))
    refusal = f"REG: {name} is not a profile: choose a file saved by REG Save Profile."
    try:
        tensors = deserialized(content)
        about = _about(content)
        curves = [tensors[curve] for curve in ("sigmas", *CURVES)]
        spread = tensors.get("spread", torch.zeros_like(tensors["rho"]))
        if any(curve.dtype not in STORED for curve in (*curves, spread)):
            raise KeyError("dtype")
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError, RuntimeError, SafetensorError) as error:
        raise ValueError(refusal) from error
    return Profile(
        *(curve.to(torch.float32, copy=True) for curve in curves), about, spread.to(torch.float32, copy=True)
    )


def _content(path: Path) -> bytes:
    """The bytes of a file that is small enough for a profile. Raises ValueError."""
    refusal = f"REG: {path.name} cannot be read"
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
            raise ValueError(f"{refusal}, for it is no file: choose a file saved by REG Save Profile.")
        if status.st_size > LARGEST_FILE:
            raise ValueError(f"REG: {path.name} is too large for a profile: choose a file saved by REG Save Profile.")
        with open(path, "rb") as file:
            return file.read(LARGEST_FILE)
    except OSError as error:
        why = error.strerror or error
        raise ValueError(f"{refusal} ({why}): choose a file saved by REG Save Profile.") from error


def _about(content: bytes) -> dict[str, str]:
    """What a profile says of itself, from the header: its length in 8 bytes, then JSON. Raises LookupError and others."""
    metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
    if metadata["format"] != FORMAT:
        raise KeyError("format")
    return {str(name): str(value) for name, value in json.loads(metadata["about"]).items()}
