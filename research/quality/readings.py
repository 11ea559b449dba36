"""What was read off sampled pictures, kept beside the tables: every machine that samples adds to the evidence, and tables
can be made anew without the pictures. A file for each seed, an array for each cell.
"""

from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ...demo import world
from ..decode import Decoded
from .cells import VERSION, WEAK, Cell, digest

FIELDS = {"shape": int, "background": int, "count": int} | dict.fromkeys(("hue", "phase", "radius", "x", "y"), float)
PRECISION = np.float16  # 0.004 radians, 0.02 pixels at worst: the decoder errs by more


class Readings:
    """Of the pictures of one model, in a folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._seeds: dict[int, dict[str, np.ndarray]] = {}

    def __contains__(self, cell: Cell) -> bool:
        return name_of(cell) in self._seed(cell)

    def get(self, cells: list[Cell]) -> Decoded:
        """All pictures of these cells, one after another."""
        columns = np.concatenate([self._seed(cell)[name_of(cell)] for cell in cells]).T
        return Decoded(**{name: column.astype(FIELDS[name]) for name, column in zip(FIELDS, columns, strict=True)})

    def add(self, cell: Cell, decoded: Decoded) -> None:
        """Keep what was read off a cell's pictures, at once."""
        found = self._seed(cell)
        found[name_of(cell)] = np.stack([getattr(decoded, name) for name in FIELDS], axis=1).astype(PRECISION)
        self.folder.mkdir(parents=True, exist_ok=True)
        save_file(found, self._path(cell.seed), metadata=made_with(cell))

    def _path(self, seed: int) -> Path:
        return self.folder / f"seed-{seed}.safetensors"

    def _seed(self, cell: Cell) -> dict[str, np.ndarray]:
        """Everything of the cell's seed, by name.

        Raises:
            ValueError: it was made in another way than the cell would be.
        """
        if cell.seed not in self._seeds:
            self._seeds[cell.seed] = self._read(self._path(cell.seed), made_with(cell))
        return self._seeds[cell.seed]

    def _read(self, path: Path, wanted: dict[str, str]) -> dict[str, np.ndarray]:
        if not path.exists():
            return {}
        with safe_open(path, "numpy") as file:
            found = file.metadata()
        if found != wanted:
            raise ValueError(f"{path} was made with {found}, not with {wanted}: delete it to sample anew")
        return load_file(path)


def name_of(cell: Cell) -> str:
    """Of a cell among those of its seed."""
    return f"{cell.prompt} | {cell.rule} | {cell.cfg:g}"


def made_with(cell: Cell) -> dict[str, str]:
    """What the pictures of all cells of a file depend on besides."""
    own = {name: str(getattr(cell, name)) for name in ("model", "batch", "steps", "sampler")}
    return own | {"version": str(VERSION), "world": str(world.VERSION), "weak model": digest(WEAK)}
