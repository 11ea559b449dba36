"""What is measured on the pictures of one prompt, rule and cfg, with bootstrap replicates over pictures."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import ot
from scipy import linalg, stats
from scipy.spatial.distance import cdist

from .. import decode, target, world

ATTRIBUTES = ("shape", "colour", "background", "count", "hue", "radius", "x", "y", "phase")
RESAMPLES = 200
REFERENCE = 500  # drawn pictures of a prompt
NEIGHBOURS = 5
COMPONENTS = 16  # of the features, for the Fréchet distance


@dataclass
class Read:
    """What can be said of each picture alone; arrays over pictures."""

    decoded: decode.Decoded
    features: np.ndarray  # [n, 96]
    clipped: np.ndarray  # [n] share of values beyond the range
    chroma: np.ndarray  # [n] the strongest colour in it; 0.72 in the world
    off: np.ndarray  # [n] root mean square distance to the same attributes drawn by the world, 0 to 1

    def __len__(self) -> int:
        return len(self.clipped)

    @cached_property
    def place(self) -> tuple[np.ndarray, ...]:
        """Indices into tables over what is visible, [n] each."""
        hue = (self.decoded.hue / (2 * np.pi) * target.HUES).astype(int) % target.HUES
        return self.decoded.shape, hue, self.decoded.background, self.decoded.count

    @cached_property
    def colours(self) -> np.ndarray:
        """p(colour | picture), [n, colour]."""
        return posterior()[(slice(None), *self.place)].T


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


def distances(sampled: Read, index: np.ndarray, exact: dict[str, target.Distribution]) -> np.ndarray:
    """Of each attribute's distribution over sampled[index] to the exact one, [attribute].

    Total variation of what is discrete, Wasserstein-1 over the world's spread of the rest.
    """
    return np.array([_distance(name, sampled, index, exact[name]) for name in ATTRIBUTES])


def _distance(name: str, sampled: Read, index: np.ndarray, exact: target.Distribution) -> float:
    if name == "colour":
        return np.abs(sampled.colours[index].mean(0) - exact.p).sum() / 2
    values = getattr(sampled.decoded, name)[index]
    if name in target.DISCRETE:
        return np.abs(np.bincount(values, minlength=len(exact.p)) / len(values) - exact.p).sum() / 2
    if name == "phase":
        values = values[sampled.decoded.shape[index] > 0]  # a circle has none
    if len(values) == 0:
        return 0.0
    return wasserstein(name, values, exact) / units()[name]


def wasserstein(name: str, values: np.ndarray, exact: target.Distribution) -> float:
    """Wasserstein-1, around the circle where the attribute goes around (POT), else along the line (scipy)."""
    if name not in target.CIRCULAR:
        return stats.wasserstein_distance(values, exact.values, v_weights=exact.p)
    turns, grid = values / (2 * np.pi) % 1, exact.values / (2 * np.pi) % 1
    return 2 * np.pi * float(ot.wasserstein_circle(turns, grid, v_weights=exact.p)[0])


def replicates(n: int, statistic) -> np.ndarray:
    """statistic(index) for bootstrap draws of n pictures, the same draws for every rule: [resamples, ...]."""
    rng = np.random.default_rng(0)
    return np.stack([statistic(rng.integers(n, size=n)) for _ in range(RESAMPLES)])


def accuracy(sampled: Read, prompt: dict) -> np.ndarray:
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


def floor(n: int, exact: dict[str, target.Distribution], repeats: int = 20) -> float:
    """The mean distance of n exact draws, by attribute alone: what a perfect rule would score."""
    rng = np.random.default_rng(1)

    def once(name: str) -> float:
        d = exact[name]
        values = rng.choice(d.values, size=n, p=d.p)
        if name in target.DISCRETE:
            return np.abs(np.bincount(values, minlength=len(d.p)) / n - d.p).sum() / 2
        return wasserstein(name, values, d) / units()[name]

    return float(np.mean([once(name) for _ in range(repeats) for name in ATTRIBUTES]))
