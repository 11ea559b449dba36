"""What is on disk is whole, and one run at a time writes it."""

import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pack.pilot.store import FolderError, Store

PICTURE = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
ROOT = Path(__file__).parents[2]
KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from pilot.store import Store
with Store(sys.argv[2]) as store:
    store.put("first", np.zeros((2, 2, 3), np.uint8), {})
    def half(file):
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    store.write(store.cells / "second.json", half)
"""


def test_what_is_kept_comes_back(tmp_path):
    with Store(tmp_path) as store:
        assert not store.has("a")
        store.put("a", PICTURE, {"seconds": 1.5, "note": "ü"}, PICTURE[..., 0].astype(np.float16))
    with Store(tmp_path) as store:
        assert store.has("a") and store.record("a") == {"seconds": 1.5, "note": "ü"}
        assert (store.picture("a") == PICTURE).all() and (store.latent("a") == PICTURE[..., 0]).all()
        assert store.latent("b") is None


def test_two_runs_on_one_folder(tmp_path):
    with (
        Store(tmp_path),
        pytest.raises(FolderError, match=r"^REG: another pilot is at work in ") as error,
        Store(tmp_path),
    ):
        pass
    assert "another folder" in str(error.value)
    with Store(tmp_path):
        pass


def test_a_killed_run_leaves_what_was_finished_and_no_lock(tmp_path):
    ended = subprocess.run([sys.executable, "-c", KILLED, str(ROOT), str(tmp_path)])
    assert ended.returncode < 0
    with Store(tmp_path) as store:
        assert store.has("first") and not store.has("second")


def test_a_full_disk_loses_nothing_that_was_finished(tmp_path):
    def full(file):
        file.write(b"begin")
        raise OSError(errno.ENOSPC, "No space left on device")

    with Store(tmp_path) as store:
        store.put("a", PICTURE, {})
        with pytest.raises(FolderError, match=r"^REG: the disk of .* is full: free some space and run again"):
            store.write(store.folder / "pilot.html", full)
        assert store.has("a") and not (store.folder / "pilot.html").exists()
        assert not list(store.folder.glob(".*.part"))


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FolderError, match=r"^REG: .* cannot be written to"), Store(tmp_path / "file" / "folder"):
        pass
