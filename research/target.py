"""The exact target of guidance in the picture world.

Guidance of weight w asks for pictures from p(x|y)^(1+w) p(x)^(−w), and that is p(x) p(y|x)^(1+w) up to a constant:
pictures of the world, weighted by how surely they show what the prompt y states. Shape, background and count can be
read off every picture, so that a prompt of these alone has the plain conditional p(x|y) for its target, at every w.
Colour words overlap in hue; guidance by one prefers the hues, shapes and backgrounds that leave no doubt about it.

Of a picture, the hue is visible and the colour word is not. Radius, centre and rotation tell nothing about y beyond
what count and shape tell, so their distributions follow from those of count and shape.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from ..demo import world

HUES = 360
CONTINUOUS = ("hue", "radius", "x", "y", "phase")
CIRCULAR = ("hue", "phase")  # radians
DISCRETE = ("shape", "colour", "background", "count")
VISIBLE = ("shape", "hue", "background", "count")  # axes of the tables below


def hue_density() -> np.ndarray:
    """p(hue | colour) on the grid of hues, [colour, hue]."""
    grid = hues()
    density = stats.vonmises.pdf(grid, world.HUE_KAPPA, loc=world.HUE_CENTRE[:, None])
    return density / density.sum(1, keepdims=True)


def hues() -> np.ndarray:
    """The grid of hues in radians, [hue]."""
    return (np.arange(HUES) + 0.5) * 2 * np.pi / HUES


def joint() -> np.ndarray:
    """p(shape, colour, background, count)."""
    return np.einsum(
        "s,sc,cb,n->scbn", world.P_SHAPE, world.P_COLOUR_GIVEN_SHAPE, world.P_BACKGROUND_GIVEN_COLOUR, world.P_COUNT
    )


def with_hue(table: np.ndarray) -> np.ndarray:
    """[shape, colour, background, count] -> [shape, hue, background, count], the colour summed out."""
    return np.einsum("scbn,ch->shbn", table, hue_density())


def stated(prompt: dict) -> np.ndarray:
    """1 where an outcome is what the prompt states, [shape, colour, background, count].

    Raises:
        ValueError: the prompt names what the world does not have.
    """
    mask = np.ones([len(values) for values in world.ATTRIBUTES.values()])
    for name, value in prompt.items():
        if name not in world.ATTRIBUTES or value not in world.ATTRIBUTES[name]:
            raise ValueError(f"the world has no {name} = {value}")
        axis = list(world.ATTRIBUTES).index(name)
        index = np.arange(mask.shape[axis]) == world.ATTRIBUTES[name].index(value)
        mask = mask * np.expand_dims(index, [i for i in range(mask.ndim) if i != axis])
    return mask


def prompt_likelihood(prompt: dict) -> np.ndarray:
    """p(y | picture), which depends on what is visible: [shape, hue, background, count]."""
    return with_hue(joint() * stated(prompt)) / with_hue(joint())


def colour_posterior() -> np.ndarray:
    """p(colour | picture): [colour, shape, hue, background, count]."""
    return np.stack([prompt_likelihood({"colour": colour}) for colour in world.COLOURS])


@dataclass(frozen=True)
class Distribution:
    """Of one attribute: points and their probabilities, [n] each."""

    values: np.ndarray
    p: np.ndarray


@dataclass(frozen=True)
class Target:
    """p(picture) p(y | picture)^(1+w) as a table over what is visible, [shape, hue, background, count]."""

    table: np.ndarray

    def distribution(self, name: str) -> Distribution:
        """Of an attribute; discrete ones by index, phase is the rotation times the symmetry of the shape."""
        if name == "colour":
            return Distribution(
                np.arange(len(world.COLOURS)), np.einsum("cshbn,shbn->c", colour_posterior(), self.table)
            )
        if name in VISIBLE:
            p = self.table.sum(tuple(i for i, axis in enumerate(VISIBLE) if axis != name))
            return Distribution(hues() if name == "hue" else np.arange(len(p)), p)
        return _given_count(name, self.table.sum((0, 1, 2)))


def target(w: float, prompt: dict) -> Target:
    """The exact target; w = 0 is the plain conditional."""
    table = with_hue(joint()) * prompt_likelihood(prompt) ** (1 + w)
    return Target(table / table.sum())


def _given_count(name: str, p_count: np.ndarray) -> Distribution:
    """Of an attribute that depends on the count alone, or on nothing."""
    if name == "phase":
        grid = (np.arange(HUES) + 0.5) * 2 * np.pi / HUES - np.pi
        density = stats.vonmises.pdf(grid, world.ROTATION_KAPPA)
        return Distribution(grid, density / density.sum())
    means, stds, low, high = {
        "radius": (world.RADIUS_MEAN, world.RADIUS_STD, 5.0, 21.0),
        "x": (np.zeros(3), world.CENTRE_STD / np.array([1.0, 2.0, 3.0]), -9.0, 9.0),
        "y": (np.zeros(3), np.full(3, world.CENTRE_STD), -9.0, 9.0),
    }[name]
    edges = np.linspace(low, high, 361)
    cumulated = stats.norm.cdf(edges, means[:, None], stds[:, None])
    cumulated[:, 0], cumulated[:, -1] = 0, 1  # the world clips what lies beyond
    return Distribution((edges[:-1] + edges[1:]) / 2, p_count @ np.diff(cumulated, axis=1))
