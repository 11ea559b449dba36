"""From finished cells to a table: every picture is read once, its vectors are kept beside it."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from .arms import Arm, Cell, address
from .measures import Table, burn_signs, latent_features, pixel_features
from .scorer import Scorer
from .store import Store

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FEWEST_REFERENCES = 10
SHARPNESS = 100.0  # of CLIP's own softmax over texts


def table(
    store: Store,
    arms: list[Arm],
    cells: list[Cell],
    name: Callable[[Cell], str],
    scorer: Scorer | None = None,
    references: list[np.ndarray] | None = None,
    questions: list[list[str]] | None = None,
) -> Table:
    """The table of all noises of which every arm is finished; `name` gives a cell's address.

    Raises:
        ValueError: no noise is finished, or the pictures are not of one size.
    """
    units = list(dict.fromkeys((cell.prompt, cell.seed) for cell in cells))
    addresses = [[name(Cell(arm, *unit)) for unit in units] for arm in arms]
    whole = [i for i in range(len(units)) if all(store.has(row[i]) for row in addresses)]
    if not whole:
        raise ValueError("REG: no noise has been finished with every setting yet: let the pilot go on.")
    units, addresses = [units[i] for i in whole], [[row[i] for i in whole] for row in addresses]
    found = Table(arms, units)
    _read(store, found, addresses)
    if scorer:
        _score(store, found, addresses, scorer, [prompt for prompt, _ in units], questions or [])
    if references:
        _refer(found, references, scorer)
    return found


def _read(store: Store, table: Table, addresses: list[list[str]]) -> None:
    """Signs, pixels, latents and what was recorded of each cell."""
    records = [[store.record(name) for name in row] for row in addresses]
    shapes, signs, pixels, latents = set(), [], [], []
    for row in addresses:
        for name in row:
            picture = store.picture(name)
            shapes.add(picture.shape)
            signs.append(burn_signs(picture))
            pixels.append(pixel_features(picture))
            latents.append(store.latent(name))
    if len(shapes) > 1:
        raise ValueError("REG: the pictures are not all of one size: compare settings at one size.")
    shape = len(table.arms), table.n
    for key in signs[0]:
        table.values[key] = np.array([sign[key] for sign in signs]).reshape(shape)
    for key in ("seconds", "evaluations", "own"):
        if all(record.get(key) is not None for row in records for record in row):
            table.values[key] = np.array([[record[key] for record in row] for row in records], float)
    if all(latent is not None for latent in latents):
        table.features["latent"] = np.stack([latent_features(latent) for latent in latents]).reshape(*shape, -1)
    table.features["pixels"] = np.stack(pixels).reshape(*shape, -1)


def _score(
    store: Store,
    table: Table,
    addresses: list[list[str]],
    scorer: Scorer,
    texts: list[str],
    questions: list[list[str]],
) -> None:
    """Embeddings, their agreement with the prompts, and the probabilities of the answers."""
    embedding = np.stack([_embeddings(store, row, scorer) for row in addresses])
    table.features["embedding"] = embedding
    table.values["score"] = np.einsum("and,nd->an", embedding, scorer.texts(texts))
    for answers in questions:
        logits = SHARPNESS * embedding @ scorer.texts(answers).T
        odds = np.exp(logits - logits.max(-1, keepdims=True))
        table.answers.append((answers, odds / odds.sum(-1, keepdims=True)))


def _embeddings(store: Store, names: list[str], scorer: Scorer) -> np.ndarray:
    """Embeddings of finished cells [n, d], which are kept beside them."""
    mark = address(scorer.identity)[:8]
    for name in names:
        if store.vector(f"{name}.{mark}") is None:
            store.put_vector(f"{name}.{mark}", scorer.pictures([store.picture(name)])[0])
    return np.stack([store.vector(f"{name}.{mark}") for name in names])


def _refer(table: Table, references: list[np.ndarray], scorer: Scorer | None) -> None:
    if scorer:
        table.references["embedding"] = scorer.pictures(references)
        return
    small = [pixel_features(picture) for picture in references]
    if {len(features) for features in small} != {table.features["pixels"].shape[-1]}:
        raise ValueError(
            "REG: without a scorer the reference pictures must be of the shape of the generated ones: crop them."
        )
    table.references["pixels"] = np.stack(small)


def read_references(folder: Path) -> list[np.ndarray]:
    """Pictures of a folder, [height, width, 3] uint8 each.

    Raises:
        ValueError: there are too few that can be read.
    """
    found = list(_pictures(sorted(Path(folder).rglob("*"))))
    if len(found) < FEWEST_REFERENCES:
        raise ValueError(
            f"REG: {folder} has {len(found)} reference pictures that can be read, and {FEWEST_REFERENCES} are the fewest."
        )
    return found


def _pictures(paths: Iterable[Path]) -> Iterable[np.ndarray]:
    for path in paths:
        if path.suffix.lower() in SUFFIXES:
            try:
                with Image.open(path) as picture:
                    yield np.array(picture.convert("RGB"))
            except OSError:  # no picture, or damaged
                continue
