"""What is kept between runs, by content: batches that were sampled, and cells that were judged."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch

from .batches import Batch, Result


class Store:
    """A folder. Every file is written whole or not at all, so that a run can be ended at any moment and gone on with."""

    def __init__(self, folder: Path):
        self.folder = folder

    def file(self, batch: Batch) -> Path:
        address = batch.address()
        return self.folder / "batches" / address[:2] / f"{address}.npz"

    def has(self, batch: Batch) -> bool:
        return self.file(batch).is_file()

    def put(self, batch: Batch, result: Result) -> None:
        file = self.file(batch)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        with part.open("wb") as stream:
            np.savez(stream, **vars(result))
        part.replace(file)

    def get(self, batch: Batch) -> Result:
        with np.load(self.file(batch), allow_pickle=False) as kept:
            return Result(**{name: kept[name] for name in kept.files})

    def all_of(self, batches: list[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and logits of all pictures, in their order."""
        kept = [self.get(batch) for batch in batches]
        return tuple(
            torch.from_numpy(np.concatenate(parts)) for parts in ([r.features for r in kept], [r.logits for r in kept])
        )

    def judged(self, batches: list[Batch], reference: str, judge) -> dict[str, float]:
        """The measures of a cell against a reference (its digest), by `judge()` unless they are known."""
        content = json.dumps([reference, *(batch.address() for batch in batches)])
        file = self.folder / "judged" / f"{hashlib.sha256(content.encode()).hexdigest()}.json"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(judge()), encoding="utf-8")
            part.replace(file)
        return json.loads(file.read_text(encoding="utf-8"))
