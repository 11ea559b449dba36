"""A profile: what rectification would measure, as curves over sigma, measured once for a model and then free.

In exact worlds the ratio hardly depends on the sample and not at all on w, so one curve serves every run.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT = "reg profile 1"
CURVES = ("factor", "gain", "rho", "effect")
LARGEST_FILE = 1 << 20  # bytes; a real one has a few thousand


@dataclass(frozen=True)
class Profile:
    """Curves over `sigmas` [n], ascending.

    Raises:
        ValueError: the curves are malformed.
    """

    sigmas: Tensor  # [n]
    factor: Tensor  # [n, channels] mean of α Jᵀ1 per channel
    gain: Tensor  # [n] mean of ⟨α Jᵀg, g⟩ / ⟨g, g⟩
    rho: Tensor  # [n] mean of ⟨g, J_c g⟩ / ⟨g, J_u g⟩
    effect: Tensor  # [n] rms(D_c − D_u) / rms(D_c): what a unit of guidance does
    about: dict[str, str] = field(default_factory=dict)  # prediction, channels, model, …

    def __post_init__(self):
        curves = {name: getattr(self, name) for name in ("sigmas", *CURVES)}
        n = self.sigmas.numel()
        sound = all(c.ndim == 1 + (name == "factor") and len(c) == n and c.numel() for name, c in curves.items())
        sound = sound and n >= 2 and all(bool(c.isfinite().all()) for c in curves.values())
        if not sound or not bool((self.sigmas > 0).all() and (self.sigmas.diff() > 0).all()):
            raise ValueError("REG: this profile is damaged: measure it again with REG Calibrate.")

    def at(self, name: str, sigma: Tensor) -> Tensor:
        """A curve at sigma [batch], linear in log sigma and constant beyond its ends: [batch] or [batch, channels]."""
        curve = getattr(self, name).to(sigma)
        known, wanted = self.sigmas.to(sigma).log(), sigma.clamp(min=torch.finfo(sigma.dtype).tiny).log()
        upper = torch.searchsorted(known, wanted).clamp(1, len(known) - 1)
        lower = upper - 1
        t = ((wanted - known[lower]) / (known[upper] - known[lower])).clamp(0, 1)
        return torch.lerp(curve[lower], curve[upper], t.view(-1, *[1] * (curve.ndim - 1)))


def same(a: Profile, b: Profile) -> bool:
    """Do two profiles hold the same curves, measured on the same?"""
    return a.about == b.about and all(
        torch.equal(getattr(a, name).cpu(), getattr(b, name).cpu()) for name in ("sigmas", *CURVES)
    )


def save(profile: Profile, path: Path) -> None:
    """Write a profile as safetensors, with what it was measured on in the header."""
    tensors = {name: getattr(profile, name).float().cpu().contiguous().clone() for name in ("sigmas", *CURVES)}
    save_file(tensors, path, metadata={"format": FORMAT, "about": json.dumps(profile.about)})


def load(path: Path) -> Profile:
    """Read a profile.

    Raises:
        ValueError: the file is not a profile.
    """
    if Path(path).stat().st_size > LARGEST_FILE:
        raise ValueError(f"REG: {Path(path).name} is too large for a profile: choose a file saved by REG Save Profile.")
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("format") != FORMAT:
                raise KeyError("format")
            about = {name: str(value) for name, value in json.loads(file.metadata()["about"]).items()}
            return Profile(*(file.get_tensor(name).float() for name in ("sigmas", *CURVES)), about)
    except (KeyError, AttributeError, OSError, RecursionError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(
            f"REG: {Path(path).name} is not a profile: choose a file saved by REG Save Profile."
        ) from error
