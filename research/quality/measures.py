"""What is measured on the pictures of one prompt, rule and cfg, with bootstrap replicates over pictures."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import ot
from scipy import linalg
from scipy.spatial.distance import cdist

from ...demo import world
from .. import decode, target

ATTRIBUTES = ("shape", "colour", "background", "count", "hue", "radius", "x", "y", "phase")
RESAMPLES = 200
REFERENCE = 500  # drawn pictures of a prompt
NEIGHBOURS = 5
COMPONENTS = 16  # of the features, for the Fréchet distance


@dataclass
class Seen:
    """The attributes seen in each picture, and what follows from them; arrays over pictures."""

    decoded: decode.Decoded

    def __len__(self) -> int:
        return len(self.decoded.shape)

    @cached_property
    def place(self) -> tuple[np.ndarray, ...]:
        """Indices into tables over what is visible, [n] each."""
        hue = (self.decoded.hue / (2 * np.pi) * target.HUES).astype(int) % target.HUES
        return self.decoded.shape, hue, self.decoded.background, self.decoded.count

    @cached_property
    def colours(self) -> np.ndarray:
        """p(colour | picture), [n, colour]."""
        return posterior()[(slice(None), *self.place)].T


@dataclass
class Read(Seen):
    """All that can be said of each picture alone; arrays over pictures."""

    features: np.ndarray  # [n, 96]
    clipped: np.ndarray  # [n] share of values beyond the range
    chroma: np.ndarray  # [n] the strongest colour in it; 0.72 in the world
    off: np.ndarray  # [n] root mean square distance to the same attributes drawn by the world, 0 to 1


posterior = lru_cache(target.colour_posterior)


def read(pictures: np.ndarray, clipped: np.ndarray, decoder: decode.Decoder) -> Read:
    """Read pictures [n, 64, 64, 3] uint8."""
    decoded, features = decode.decode(decoder, pictures)
    attributes = decoded.attributes()
    drawn = np.stack([world.draw_picture(attributes, i) for i in range(len(pictures))])
    off = np.sqrt(((pictures.astype(float) - drawn) ** 2).mean((1, 2, 3))) / 255
    chroma = np.quantile(np.ptp(pictures, axis=-1).reshape(len(pictures), -1), 0.98, axis=1) / 255
    return Read(decoded, features, clipped, chroma, off)


@lru_cache(maxsize=64)
def references(w: float, prompt: tuple) -> dict[str, target.Distribution]:
    """Every attribute's distribution under the exact target."""
    exact = target.target(w, dict(prompt))
    return {name: exact.distribution(name) for name in ATTRIBUTES}


@lru_cache
def units() -> dict[str, float]:
    """The spread of the continuous attributes over the whole world, by which their distances are divided."""
    whole = references(0.0, ())

    def spread(name: str) -> float:
        values, p = whole[name].values, whole[name].p
        if name in target.CIRCULAR:
            return float(np.sqrt(2 * (1 - abs(p @ np.exp(1j * values)))))
        return float(np.sqrt(p @ values**2 - (p @ values) ** 2))

    return {name: spread(name) for name in target.CONTINUOUS}


def distances(sampled: Seen, index: np.ndarray, exact: dict[str, target.Distribution]) -> np.ndarray:
    """Of each attribute's distribution over sampled[index] to the exact one: index [n, draws] -> [attribute, draws].

    Total variation of what is discrete, Wasserstein-1 over the world's spread of the rest.
    """
    return np.stack([_distance(name, sampled, index, exact[name]) for name in ATTRIBUTES])


def _distance(name: str, sampled: Seen, index: np.ndarray, exact: target.Distribution) -> np.ndarray:
    if name == "colour":
        return np.abs(sampled.colours[index].mean(0) - exact.p).sum(-1) / 2
    values = getattr(sampled.decoded, name)[index]
    if name in target.DISCRETE:
        shares = (values[..., None] == np.arange(len(exact.p))).mean(0)
        return np.abs(shares - exact.p).sum(-1) / 2
    has_it = sampled.decoded.shape[index] > 0 if name == "phase" else np.ones_like(index)  # a circle has no rotation
    return wasserstein(name, values, has_it, exact) / units()[name]


def wasserstein(name: str, values: np.ndarray, weights: np.ndarray, exact: target.Distribution) -> np.ndarray:
    """Wasserstein-1, around the circle where the attribute goes around (POT), else along the line: [n, draws] -> [draws].

    0 where all weights are.
    """
    some = weights.any(0)
    values, weights = values[:, some], weights[:, some] / weights[:, some].sum(0)
    grid, p = (np.repeat(v[:, None], some.sum(), axis=1) for v in (exact.values, exact.p))
    found = np.zeros(len(some))
    if name in target.CIRCULAR:
        turn = 2 * np.pi
        found[some] = turn * ot.wasserstein_circle(values / turn % 1, grid / turn % 1, weights, p)
    else:
        found[some] = ot.wasserstein_1d(values, grid, weights, p)
    return found


@lru_cache
def draws(n: int) -> np.ndarray:
    """n pictures themselves, and bootstrap draws of them, the same for every rule: [n, 1 + RESAMPLES] indices."""
    return np.column_stack([np.arange(n), np.random.default_rng(0).integers(n, size=(n, RESAMPLES))])


def accuracy(sampled: Seen, prompt: dict) -> np.ndarray:
    """p(prompt | picture) of each picture, by Bayes' rule on what is visible: [n]."""
    return target.prompt_likelihood(prompt)[sampled.place]


def drawn(n: int, prompt: dict, decoder: decode.Decoder, seed: int = 5) -> Read:
    """n pictures of a prompt as the world draws them."""
    rng = np.random.default_rng(seed)
    wanted, parts = target.stated(prompt), []
    while sum(map(len, parts)) < n:
        attributes = world.sample_attributes(4 * n, rng)
        fits = wanted[tuple(attributes.discrete().T)] > 0
        parts.append([take(attributes, i) for i in np.flatnonzero(fits)])
    chosen = [one for part in parts for one in part][:n]
    pictures = np.stack([world.draw_picture(one, 0) for one in chosen])
    return read(pictures, np.zeros(n), decoder)


def take(attributes: world.Attributes, i: int) -> world.Attributes:
    """Picture i alone."""
    return world.Attributes(**{name: values[i : i + 1] for name, values in vars(attributes).items()})


def neighbourhoods(sampled: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Precision and recall (arXiv 1904.06991), coverage (arXiv 2002.09797), in features [n, d]."""
    between = cdist(sampled, reference)
    radius = lambda x: np.sort(cdist(x, x), axis=1)[:, NEIGHBOURS]  # noqa: E731
    inside = between <= radius(reference)
    return {
        "precision": float(inside.any(1).mean()),
        "recall": float((between <= radius(sampled)[:, None]).any(0).mean()),
        "coverage": float(inside.any(0).mean()),
    }


def frechet(sampled: np.ndarray, reference: np.ndarray) -> float:
    """Fréchet distance (arXiv 1706.08500) in the reference's main components."""
    centre = reference.mean(0)
    axes = np.linalg.svd(reference - centre, full_matrices=False)[2][:COMPONENTS].T
    a, b = ((x - centre) @ axes for x in (sampled, reference))
    covariances = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    return float(np.sum(a.mean(0) ** 2) + np.trace(covariances[0] + covariances[1] - 2 * root))


@lru_cache
def floor(n: int, w: float, prompt: tuple, repeats: int = 20) -> float:
    """The mean distance of n exact draws, by attribute alone: what a perfect rule would score."""
    exact = references(w, prompt)
    rng = np.random.default_rng(1)

    def of(name: str) -> float:
        d = exact[name]
        values = rng.choice(d.values, size=(n, repeats), p=d.p)
        if name in target.DISCRETE:
            shares = (values[..., None] == np.arange(len(d.p))).mean(0)
            return np.abs(shares - d.p).sum(-1).mean() / 2
        circles = exact["shape"].p[0] if name == "phase" else 0.0  # which have no rotation
        weights = (rng.random(values.shape) >= circles).astype(float)
        return wasserstein(name, values, weights, d).mean() / units()[name]

    return float(np.mean([of(name) for name in ATTRIBUTES]))
