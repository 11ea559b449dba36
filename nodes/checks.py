"""What ComfyUI lets through to a node: a word or a number where a link is meant, and NaN."""

import math


def require_latent(name: str, latent: dict) -> None:
    """Raises ValueError: it is no latent."""
    if not isinstance(latent, dict) or not hasattr(latent.get("samples"), "is_nested"):
        raise ValueError(f"REG: what is connected as {name} is no latent: connect the output of a sampler.")


def require_numbers(**numbers: float) -> None:
    """Raises ValueError: one is NaN, which is neither below the least nor above the most that ComfyUI looks at."""
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise ValueError(f"REG: {name} must be a number, not {value}.")
