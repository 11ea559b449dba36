"""Results on disk, under the content addresses of their cells: nothing is lost, nothing is made twice."""

import errno
import json
from pathlib import Path

import numpy as np
import safetensors.numpy
from filelock import FileLock, Timeout
from PIL import Image


class FolderError(RuntimeError):
    """The folder cannot be used or written to; the message says what to do."""


class Store:
    """A folder of finished pictures, for one run at a time.

    A cell is finished when its record is there: the record is written last, and whole or not at all.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.cells = self.folder / "cells"
        self._lock = FileLock(self.folder / ".lock", timeout=0)

    def __enter__(self) -> "Store":
        """Raises FolderError: another run uses the folder, or it cannot be written to."""
        try:
            self.cells.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout as error:
            raise FolderError(
                f"REG: another pilot is at work in {self.folder}: wait until it has ended, or give this one another folder."
            ) from error
        except OSError as error:
            raise self._explained(error) from error
        return self

    def __exit__(self, *_) -> None:
        self._lock.release()

    def has(self, address: str) -> bool:
        return self._record(address).exists()

    def record(self, address: str) -> dict:
        """What is known of a finished cell, beside its picture."""
        return json.loads(self._record(address).read_text(encoding="utf-8"))

    def picture(self, address: str) -> np.ndarray:
        """The picture of a finished cell, [height, width, 3] uint8."""
        with Image.open(self.picture_path(address)) as picture:
            return np.array(picture.convert("RGB"))

    def latent(self, address: str) -> np.ndarray | None:
        """Its latent, if it was kept."""
        return self.vector(f"{address}.latent")

    def picture_path(self, address: str) -> Path:
        return self.cells / f"{address}.png"

    def put(self, address: str, picture: np.ndarray, record: dict, latent: np.ndarray | None = None) -> None:
        """Keep a finished cell: picture [height, width, 3] uint8.

        Raises:
            FolderError: the disk is full or cannot be written to.
        """
        self.write(self.picture_path(address), lambda file: Image.fromarray(picture).save(file, "PNG"))
        if latent is not None:
            self.put_vector(f"{address}.latent", latent)
        self.keep_text(self._record(address), json.dumps(record, ensure_ascii=False))

    def vector(self, name: str) -> np.ndarray | None:
        """Numbers that were kept under a name, if they were."""
        path = self.cells / f"{name}.safetensors"
        return safetensors.numpy.load_file(path)["values"] if path.exists() else None

    def put_vector(self, name: str, values: np.ndarray) -> None:
        """Keep numbers under a name. Raises FolderError."""
        content = safetensors.numpy.save({"values": np.ascontiguousarray(values)})
        self.write(self.cells / f"{name}.safetensors", lambda file: file.write(content))

    def keep_text(self, path: Path, text: str) -> None:
        """Write a text file of the folder, whole or not at all. Raises FolderError."""
        self.write(path, lambda file: file.write(text.encode("utf-8")))

    def write(self, path: Path, fill) -> None:
        """Write a file of the folder, whole or not at all: `fill` gets it open for bytes. Raises FolderError."""
        try:
            write_atomically(path, fill)
        except OSError as error:
            raise self._explained(error) from error

    def _record(self, address: str) -> Path:
        return self.cells / f"{address}.json"

    def _explained(self, error: OSError) -> FolderError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return FolderError(
                f"REG: the disk of {self.folder} is full: free some space and run again; finished pictures are kept."
            )
        return FolderError(
            f"REG: {self.folder} cannot be written to ({error.strerror}): give the pilot another folder."
        )


def write_atomically(path: Path, fill) -> None:
    """Write a file beside its place and move it there when it is whole. Raises OSError."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            fill(file)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
