"""What ComfyUI lets through to a node: a word or a number where a link is meant, and NaN."""

import math


def require_prompt(name: str, conditioning: list) -> None:
    """Raises ValueError: it is no conditioning."""
    parts = conditioning if isinstance(conditioning, list) else [None]
    if not all(isinstance(part, list | tuple) and len(part) == 2 and isinstance(part[1], dict) for part in parts):
        raise ValueError(f"REG: what is connected as {name} is no conditioning: connect a prompt.")


def require_latent(name: str, latent: dict) -> None:
    """Raises ValueError: it is no latent."""
    if not isinstance(latent, dict) or not hasattr(latent.get("samples"), "is_nested"):
        raise ValueError(f"REG: what is connected as {name} is no latent: connect the output of a sampler.")


def require_numbers(**numbers: float) -> None:
    """Raises ValueError: one is NaN, which is neither below the least nor above the most that ComfyUI looks at."""
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise ValueError(f"REG: {name} must be a number, not {value}.")
