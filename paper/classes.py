"""ImageNet's thousand classes by name and number."""

import difflib
from functools import cache

import torch

MOST_NAMED = 5


@cache
def names() -> tuple[str, ...]:
    """The name of each class, as torchvision has them."""
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


@cache
def labels() -> tuple[str, ...]:
    """Name and number of each class, "golden retriever (207)", in the order of the names."""
    return tuple(sorted((f"{name} ({i})" for i, name in enumerate(names())), key=str.lower))


def parse(text: str) -> list[int]:
    """Classes by name, number or label, separated by commas or lines -> their numbers.

    Raises:
        ValueError: one of them is unknown, or fits several classes; the message names the nearest.
    """
    return [find(part) for line in text.splitlines() for part in line.split(",") if part.strip()]


def find(text: str) -> int:
    """One class by its number, its label, its whole name, or a part that no other name has. Raises ValueError."""
    text = text.strip().lower()
    if text.isdecimal():
        if int(text) < len(names()):
            return int(text)
        raise ValueError(f"REG: there is no class {text}: ImageNet's classes are numbered 0 to {len(names()) - 1}.")
    by_label = {label.lower(): label for label in labels()}
    if text in by_label:
        return _number(by_label[text])
    found = [i for i, name in enumerate(names()) if name.lower() == text]
    found = found or [i for i, name in enumerate(names()) if text in name.lower()]
    if len(found) == 1:
        return found[0]
    if found:
        some = ", ".join(f"{names()[i]} ({i})" for i in found[:MOST_NAMED]) + ", …" * (len(found) > MOST_NAMED)
        raise ValueError(f'REG: "{text}" fits {len(found)} classes ({some}): name one of them.')
    near = difflib.get_close_matches(text, [name.lower() for name in names()], n=3, cutoff=0.0)
    raise ValueError(f'REG: ImageNet has no class "{text}"; the nearest names are {", ".join(near)}.')


def _number(label: str) -> int:
    return int(label.rsplit("(", 1)[1].rstrip(")"))


def conditioning(ids: list[int]) -> list:
    """Classes, one a picture of the batch, as a CONDITIONING; an empty list is no class."""
    return [[torch.tensor([i + 1 for i in ids] or [0]).view(-1, 1, 1), {}]]
