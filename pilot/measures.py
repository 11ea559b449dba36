"""What is measured on the pictures: agreement with the prompt, variety, burn, nearness to references, shares of answers, cost.

A measure gives a statistic for each arm (see `intervals`), so that every number comes with an interval, and every
difference of two arms is taken on the same noises.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image

from . import intervals
from .arms import UNGUIDED, Arm
from .intervals import Statistic

SIDE = 32  # pixels to which pictures are averaged where their pixels themselves are compared
NEIGHBOURS = 3  # of precision and recall, as in their paper
FEW_COMPONENTS = 16  # for the Fréchet distance, whose covariances must be had from few pictures
PROMPTS_TO_RESAMPLE = 20  # from so many prompts on, intervals tell of prompts like these, not of these alone
COSTLY_RESAMPLES = 200
LEVEL_OF_VALUES = 0.95  # of the interval of one number alone
LUMA = np.array([0.299, 0.587, 0.114])


def burn_signs(picture: np.ndarray) -> dict[str, float]:
    """Signs of a burnt picture [height, width, 3] uint8, each from 0 to 1.

    clipped: the share of values at the ends of the range. saturation: mean of (max − min) / max, as in HSV.
    contrast: standard deviation of the luma, times two.
    """
    x = picture.astype(np.float32) / 255
    high, low = x.max(-1), x.min(-1)
    saturation = np.divide(high - low, high, out=np.zeros_like(high), where=high > 0)
    return {
        "clipped": float(((picture == 0) | (picture == 255)).mean()),
        "saturation": float(saturation.mean()),
        "contrast": float(2 * (x @ LUMA).std()),
    }


def pixel_features(picture: np.ndarray) -> np.ndarray:
    """A picture averaged to at most SIDE pixels a side, 0 to 1, over √d: distances are root mean squares."""
    height, width = picture.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX), np.float32).ravel() / 255
    return small / np.sqrt(len(small))


def latent_features(latent: np.ndarray) -> np.ndarray:
    """A latent [channels, ..., h, w] averaged to at most SIDE a side, over √d."""
    import torch

    planes = torch.from_numpy(latent.astype(np.float32)).flatten(0, -3)
    scale = min(1.0, SIDE / max(planes.shape[-2:]))
    size = [max(1, round(n * scale)) for n in planes.shape[-2:]]
    small = torch.nn.functional.adaptive_avg_pool2d(planes, size).flatten().numpy()
    return small / np.sqrt(len(small))


@dataclass
class Table:
    """What is known of the pictures, the same noises of every arm: n pictures an arm, in the same order.

    values: one number a picture, [arms, n]. features: vectors, [arms, n, d]. references: features of reference pictures,
    [m, d]. answers: for each question its answers and their probabilities, [arms, n, answers].
    """

    arms: list[Arm]
    units: list[tuple[str, int]]  # prompt and seed of each noise, [n]
    values: dict[str, np.ndarray] = field(default_factory=dict)
    features: dict[str, np.ndarray] = field(default_factory=dict)
    references: dict[str, np.ndarray] = field(default_factory=dict)
    answers: list[tuple[list[str], np.ndarray]] = field(default_factory=list)

    @property
    def n(self) -> int:
        return len(self.units)

    @cached_property
    def prompts(self) -> list[str]:
        return list(dict.fromkeys(prompt for prompt, _ in self.units))

    @cached_property
    def prompt(self) -> np.ndarray:
        """Index into prompts, [n]."""
        return np.array([self.prompts.index(prompt) for prompt, _ in self.units])

    @cached_property
    def groups(self) -> list[np.ndarray]:
        """Indices of the pictures of each prompt that has two or more."""
        found = [np.flatnonzero(self.prompt == i) for i in range(len(self.prompts))]
        return [group for group in found if len(group) > 1]

    @cached_property
    def over_prompts(self) -> bool:
        """Are there prompts enough to draw prompts, where possible, and not pictures?"""
        return len(self.prompts) >= PROMPTS_TO_RESAMPLE and all(np.bincount(self.prompt, minlength=len(self.prompts)))

    def index(self, arm: Arm) -> int:
        return self.arms.index(arm)

    def compared(self, kind: str) -> np.ndarray:
        """Features between which distances are taken, [arms, n, d]: embeddings as they are, others over the mean contrast of
        the arm's pictures, for a burnt picture is further from everything and shows no more variety."""
        features = self.features[kind]
        if kind == "embedding":
            return features
        contrast = np.sqrt(features.shape[-1]) * features.std(-1).mean(-1)
        return features / np.maximum(contrast, 1e-6)[:, None, None]

    def space(self, kind: str | None = None) -> str | None:
        """The best features there are."""
        return next((name for name in ("embedding", "latent", "pixels") if name in self.features), kind)


@dataclass(frozen=True)
class Measure:
    """`better` is 1 where more is better, −1 where less is, 0 where neither. `of` gives the statistic of an arm's index."""

    name: str
    title: str
    better: int
    of: Callable[[int], Statistic]
    n: int  # independent drawings
    explanation: str
    resamples: int = intervals.RESAMPLES
    deciding: bool = False  # does the recommendation follow from it?
    scale: float = 1.0  # of what is shown
    digits: int = 3

    def estimate(self, arm: int, level: float) -> intervals.Estimate:
        return intervals.estimate(self.of(arm), self.n, level, self.resamples)

    def difference(self, arm: int, other: int, level: float) -> intervals.Estimate:
        """The arm's value less the other's."""
        return intervals.estimate(intervals.difference(self.of(arm), self.of(other)), self.n, level, self.resamples)


def measures(table: Table) -> list[Measure]:
    """Every measure that the table has the numbers for."""
    return [*_agreement(table), *_variety(table), *_burn(table), *_nearness(table), *_cost(table)]


def _per_picture(table: Table, values: np.ndarray, **about) -> Measure:
    """A measure that is one number a picture, [arms, n]."""
    if not table.over_prompts:
        return Measure(of=lambda arm: intervals.mean(values[arm]), n=table.n, **about)
    by_prompt = np.stack([values[:, table.prompt == i].mean(1) for i in range(len(table.prompts))], axis=1)
    return Measure(of=lambda arm: intervals.mean(by_prompt[arm]), n=len(table.prompts), **about)


def _agreement(table: Table) -> list[Measure]:
    found = []
    if "score" in table.values:
        found.append(
            ("score", "agreement", "how near the scorer finds picture and prompt: 100 times the cosine", 100.0, 2)
        )
    if "own" in table.values:
        text = "at how many noise levels the model itself explains the picture better with its prompt than without, in percent"
        found.append(("own", "own agreement" if found else "agreement", f"{text} (arXiv 2303.16203)", 100.0, 1))
    return [
        _per_picture(
            table,
            scale * table.values[key],
            name=key,
            title=title,
            better=1,
            explanation=text,
            deciding=place == 0,
            digits=digits,
        )
        for place, (key, title, text, scale, digits) in enumerate(found)
    ]


def _variety(table: Table) -> list[Measure]:
    """Mean pairwise distance in every space, and the Vendi score in the best one. Needs two pictures of a prompt."""
    if not table.groups or not table.features:
        return []
    best = table.space()
    found = [_pairwise(table, kind, deciding=kind == best) for kind in table.features]
    return [*sorted(found, key=lambda measure: not measure.deciding), _vendi(table, best)]


def _pairwise(table: Table, kind: str, deciding: bool) -> Measure:
    matrices = [[_distances(kind, arm[group], arm[group]) for group in table.groups] for arm in table.compared(kind)]
    about = dict(
        name=f"variety {kind}",
        title={"embedding": "variety", "latent": "variety of latents", "pixels": "variety of pixels"}[kind],
        better=1,
        explanation="mean distance between pictures of a prompt"
        + {"embedding": ", one less the cosine", "latent": " in the VAE's latent", "pixels": " in pixels, 0 to 1"}[
            kind
        ],
        deciding=deciding,
    )
    if table.over_prompts and len(table.groups) == len(table.prompts):
        by_prompt = np.array([[m.sum() / (len(m) * (len(m) - 1)) for m in row] for row in matrices])
        return Measure(of=lambda arm: intervals.mean(by_prompt[arm]), n=len(table.prompts), **about)
    return Measure(of=lambda arm: intervals.mean_over_groups(matrices[arm], table.groups), n=table.n, **about)


def _vendi(table: Table, kind: str) -> Measure:
    features = table.compared(kind)
    if kind == "embedding":
        kernel = lambda x: (x @ x.T).clip(0)  # noqa: E731
    else:
        pooled = [_distances(kind, arm[group], arm[group]) for arm in features for group in table.groups]
        width = float(np.median(np.concatenate([d[np.triu_indices(len(d), 1)] for d in pooled]))) or 1.0
        kernel = lambda x: np.exp(-((_distances(kind, x, x) / width) ** 2) / 2)  # noqa: E731
    kernels = [[kernel(arm[group]) for group in table.groups] for arm in features]
    return Measure(
        "vendi",
        "Vendi score",
        1,
        lambda arm: intervals.vendi(kernels[arm], table.groups),
        table.n,
        "how many different pictures of a prompt there seem to be (arXiv 2210.02410)",
        resamples=COSTLY_RESAMPLES,
        digits=2,
    )


def _distances(kind: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[n, d] and [m, d] -> [n, m]: one less the cosine of embeddings, else Euclidean."""
    from scipy.spatial.distance import cdist

    found = 1 - a @ b.T if kind == "embedding" else cdist(a, b)
    if a is b:
        np.fill_diagonal(found, 0)
    return found.clip(0)


def _burn(table: Table) -> list[Measure]:
    """The three signs, and their mean less that of the same noises without guidance."""
    if "clipped" not in table.values:
        return []
    texts = {
        "clipped": "values at the ends of the range, in percent",
        "saturation": "mean saturation of HSV, in percent",
        "contrast": "spread of the brightness, in percent of its greatest",
    }
    signs = [
        _per_picture(table, 100 * table.values[key], name=key, title=key, better=0, explanation=text, digits=2)
        for key, text in texts.items()
    ]
    if UNGUIDED not in table.arms:
        return signs
    level = np.mean([table.values[key] for key in texts], axis=0)
    excess = _per_picture(
        table,
        100 * (level - level[table.index(UNGUIDED)]),
        name="burn",
        title="burn",
        better=-1,
        explanation="how far clipping, saturation and contrast, in the mean, are from those without guidance, in percent",
        deciding=True,
        digits=2,
    )
    return [_with(excess, of=lambda arm: intervals.absolute(excess.of(arm))), *signs]


def _with(measure: Measure, **changes) -> Measure:
    return Measure(**{**vars(measure), **changes})


def _nearness(table: Table) -> list[Measure]:
    """Distances to reference pictures, in the best features that both have."""
    kind = next((name for name in ("embedding", "pixels") if name in table.references and name in table.features), None)
    if kind is None:
        return []
    references, features = table.references[kind], table.features[kind]
    axes = _main_axes(references)
    centre = references.mean(0)
    radii = intervals.radii(references, NEIGHBOURS)
    between = [_euclidean(arm, references) for arm in features]
    where = {"embedding": "the scorer's features", "pixels": "small pictures' pixels"}[kind]
    few = min(axes.shape[1], FEW_COMPONENTS)
    scale = np.sqrt(references.shape[1])  # the kernel divides by d what unit vectors have already
    about = dict(n=table.n, resamples=COSTLY_RESAMPLES)
    return [
        Measure(
            name="kid",
            title="KID × 1000",
            better=-1,
            of=lambda arm: _times(1000, intervals.kernel_distance(scale * features[arm], scale * references)),
            explanation=f"distance to the reference pictures in {where} (arXiv 1801.01401)",
            deciding=True,
            digits=2,
            n=table.n,
        ),
        Measure(
            name="fid",
            title="FID",
            better=-1,
            of=lambda arm: intervals.frechet_distance((features[arm] - centre) @ axes, (references - centre) @ axes),
            explanation=f"Fréchet distance in the {few} main axes of {where}; at equal numbers only (arXiv 1706.08500)",
            **about,
        ),
        Measure(
            name="precision",
            title="precision",
            better=1,
            of=lambda arm: intervals.precision(between[arm], radii),
            explanation=f"share of pictures that look like a reference, in {where} (arXiv 1904.06991)",
            **about,
        ),
        Measure(
            name="recall",
            title="recall",
            better=1,
            of=lambda arm: intervals.recall(between[arm], intervals.radii(features[arm], NEIGHBOURS)),
            explanation=f"share of references that a picture looks like, in {where} (arXiv 1904.06991)",
            **about,
        ),
    ]


def _euclidean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    from scipy.spatial.distance import cdist

    return cdist(a, b)


def _main_axes(features: np.ndarray) -> np.ndarray:
    """The main axes of features [m, d], as columns [d, k]."""
    return np.linalg.svd(features - features.mean(0), full_matrices=False)[2][:FEW_COMPONENTS].T


def _times(factor: float, statistic: Statistic) -> Statistic:
    return lambda w: factor * statistic(w)


def _cost(table: Table) -> list[Measure]:
    texts = {
        "seconds": ("seconds", "time of a picture, decoding included"),
        "evaluations": (
            "evaluations",
            "how often the model was evaluated for a picture; reverse passes are not counted",
        ),
    }
    return [
        _per_picture(table, table.values[key], name=key, title=title, better=-1, explanation=text, digits=2)
        for key, (title, text) in texts.items()
        if key in table.values
    ]


def shares(table: Table) -> list[tuple[str, list[Measure]]]:
    """For each question the share of pictures that each answer fits best."""
    found = []
    for answers, probability in table.answers:
        best = probability.argmax(-1)
        rows = [
            _per_picture(
                table,
                100.0 * (best == i),
                name=answer,
                title=answer,
                better=0,
                explanation="percent of the pictures that this answer fits best",
                digits=1,
            )
            for i, answer in enumerate(answers)
        ]
        found.append((" | ".join(answers), rows))
    return found
