"""The picture world: a program draws 64x64 RGB pictures whose attributes have known distributions.

A picture shows one to three equal shapes on a background. A *prompt* states some of the discrete attributes
(shape, colour, background, count); the rest, and the continuous ones (hue, radius, centre, rotation), are drawn from
the distributions below. Because they are known, the exact target of guidance is known too.
"""

from dataclasses import dataclass, fields

import numpy as np
from PIL import Image, ImageDraw

VERSION = 1
SIZE = 64
SUPERSAMPLE = 4

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = ("red", "gold", "green", "blue", "violet")
BACKGROUNDS = ("light", "dark", "striped")
COUNTS = (1, 2, 3)
ATTRIBUTES = {"shape": SHAPES, "colour": COLOURS, "background": BACKGROUNDS, "count": COUNTS}

P_SHAPE = np.array([0.40, 0.30, 0.22, 0.08])  # stars are rare
P_COLOUR_GIVEN_SHAPE = np.array(
    [  # red gold green blue violet
        [0.35, 0.15, 0.15, 0.25, 0.10],  # circle
        [0.10, 0.15, 0.35, 0.30, 0.10],  # square
        [0.20, 0.30, 0.20, 0.10, 0.20],  # triangle
        [0.15, 0.60, 0.05, 0.10, 0.10],  # star
    ]
)
P_BACKGROUND_GIVEN_COLOUR = np.array(
    [  # light dark striped
        [0.60, 0.25, 0.15],
        [0.20, 0.60, 0.20],
        [0.50, 0.20, 0.30],
        [0.60, 0.20, 0.20],
        [0.30, 0.40, 0.30],
    ]
)
P_COUNT = np.array([0.60, 0.25, 0.15])

HUE_CENTRE = np.array([0.0, 0.13, 0.36, 0.61, 0.80]) * 2 * np.pi  # radians on the colour wheel
HUE_KAPPA = 8.0  # von Mises concentration: neighbouring colours overlap
RADIUS_MEAN = np.array([15.0, 10.0, 7.5])  # pixels, by count
RADIUS_STD = np.array([2.2, 1.3, 0.8])
CENTRE_STD = 3.0  # pixels, around the middle of the picture; along x divided by the count
ROTATION_KAPPA = 4.0  # von Mises, around upright; times the symmetry of the shape


@dataclass
class Attributes:
    """What a picture shows. Every field is an array over the batch."""

    shape: np.ndarray  # [batch] index into SHAPES
    colour: np.ndarray  # [batch] index into COLOURS
    background: np.ndarray  # [batch] index into BACKGROUNDS
    count: np.ndarray  # [batch] index into COUNTS
    hue: np.ndarray  # [batch] radians
    radius: np.ndarray  # [batch] pixels
    centre: np.ndarray  # [batch, 2] pixels (x, y)
    rotation: np.ndarray  # [batch] radians

    def discrete(self) -> np.ndarray:
        """The four prompt attributes as indices: [batch, 4]."""
        return np.stack([self.shape, self.colour, self.background, self.count], axis=1)


def _choose(rng: np.random.Generator, p: np.ndarray) -> np.ndarray:
    """One category per row of probabilities p [batch, k]."""
    return (rng.random(len(p))[:, None] > p.cumsum(1)[:, :-1]).sum(1)


def sample_attributes(n: int, rng: np.random.Generator, shape: np.ndarray | None = None) -> Attributes:
    """n draws from the joint distribution of all attributes, or given their shapes [n]."""
    if shape is None:
        shape = _choose(rng, np.tile(P_SHAPE, (n, 1)))
    colour = _choose(rng, P_COLOUR_GIVEN_SHAPE[shape])
    background = _choose(rng, P_BACKGROUND_GIVEN_COLOUR[colour])
    count = _choose(rng, np.tile(P_COUNT, (n, 1)))
    hue = rng.vonmises(HUE_CENTRE[colour] - np.pi, HUE_KAPPA) + np.pi
    radius = np.clip(rng.normal(RADIUS_MEAN[count], RADIUS_STD[count]), 5, 21)
    centre = SIZE / 2 + np.clip(rng.normal(0, CENTRE_STD, (n, 2)), -9, 9) / np.stack([1 + count, np.ones(n)], axis=1)
    rotation = rng.vonmises(0, ROTATION_KAPPA, n) / np.array([1, 4, 3, 5])[shape]
    return Attributes(shape, colour, background, count, hue % (2 * np.pi), radius, centre, rotation)


def _hsv(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    """HSV (hue in radians, the others 0 to 1) to 8-bit RGB."""
    k = (np.array([5, 3, 1]) + hue / (np.pi / 3)) % 6
    rgb = value * (1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1))
    return tuple(round(255 * float(c)) for c in rgb)


def _outline(shape: str, radius: float, rotation: float) -> np.ndarray:
    """Corners of a polygon around the origin, [corners, 2], in pixels."""
    corners = {"square": 4, "triangle": 3, "star": 10}[shape]
    angle = rotation - np.pi / 2 + 2 * np.pi * np.arange(corners) / corners + (np.pi / 4 if shape == "square" else 0)
    r = np.full(corners, radius * {"square": 1.1, "triangle": 1.2, "star": 1.2}[shape])
    if shape == "star":
        r[1::2] *= 0.45
    return np.stack([r * np.cos(angle), r * np.sin(angle)], axis=1)


def _background(draw: ImageDraw.ImageDraw, kind: str) -> None:
    side = SIZE * SUPERSAMPLE
    draw.rectangle((0, 0, side, side), fill={"light": 225, "dark": 40, "striped": 200}[kind] * 0x010101)
    if kind == "striped":
        for y in range(0, SIZE, 16):
            draw.rectangle((0, y * SUPERSAMPLE, side, (y + 8) * SUPERSAMPLE - 1), fill=0x707070)


def draw_picture(attributes: Attributes, i: int) -> np.ndarray:
    """Picture i of a batch of attributes, anti-aliased: [64, 64, 3] uint8."""
    image = Image.new("RGB", (SIZE * SUPERSAMPLE,) * 2)
    draw = ImageDraw.Draw(image)
    _background(draw, BACKGROUNDS[attributes.background[i]])
    count = COUNTS[attributes.count[i]]
    radius, fill = attributes.radius[i], _hsv(attributes.hue[i], 0.85, 0.85)
    for k in range(count):
        centre = attributes.centre[i] + (np.array([(k - (count - 1) / 2) * SIZE / count, 0]) if count > 1 else 0)
        if SHAPES[attributes.shape[i]] == "circle":
            corners = [*(centre - radius), *(centre + radius)]
            draw.ellipse([c * SUPERSAMPLE for c in corners], fill=fill)
        else:
            corners = centre + _outline(SHAPES[attributes.shape[i]], radius, attributes.rotation[i])
            draw.polygon([tuple(c) for c in corners * SUPERSAMPLE], fill=fill)
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX))


def draw_batch(n: int, seed: int, shape: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """n random pictures [n, 64, 64, 3] uint8, or given their shapes [n], and their prompt attributes [n, 4]."""
    attributes = sample_attributes(n, np.random.default_rng(seed), shape)
    return np.stack([draw_picture(attributes, i) for i in range(n)]), attributes.discrete()


def draws(n: int, seed: int, **stated: str) -> tuple[np.ndarray, Attributes]:
    """n pictures of what a prompt states, with the right shares of all that it leaves open: [n, 64, 64, 3] uint8.

    Args:
        stated: values by the names in ATTRIBUTES, as words.
    """
    wanted = {list(ATTRIBUTES).index(k): [str(v) for v in ATTRIBUTES[k]].index(str(word)) for k, word in stated.items()}
    rng, found, pictures = np.random.default_rng(seed), [], []
    while len(pictures) < n:
        attributes = sample_attributes(4096, rng)
        shown = attributes.discrete()
        fits = np.flatnonzero(
            np.all([shown[:, column] == value for column, value in wanted.items()] or [shown[:, 0] >= 0], 0)
        )
        found.append(Attributes(*(getattr(attributes, field.name)[fits] for field in fields(Attributes))))
        pictures += [draw_picture(attributes, i) for i in fits[: n - len(pictures)]]
    every = (np.concatenate([getattr(part, field.name) for part in found])[:n] for field in fields(Attributes))
    return np.stack(pictures), Attributes(*every)
