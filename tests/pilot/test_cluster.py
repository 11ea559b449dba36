"""The pilot on a Ray cluster of this machine, as people start it: a worker dies, and nothing is lost."""

import json
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from pack.tests.pilot import fake_comfyui
from pack.tests.pilot.test_workflow import workflow

ROOT = Path(__file__).parents[2]
PATIENCE = 120  # seconds until a worker is at a picture


def kill_a_worker(program: subprocess.Popen) -> bool:
    """Kill the first process that is at a picture."""
    end = time.monotonic() + PATIENCE
    while program.poll() is None and time.monotonic() < end:
        for process in psutil.Process(program.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.name().startswith("ray::Station.run"):
                    process.kill()
                    return True
        time.sleep(0.01)
    return False


def test_a_worker_that_dies_is_started_anew_with_its_comfyui(tmp_path):
    (tmp_path / "w.json").write_text(json.dumps(workflow()))
    (tmp_path / "p.txt").write_text("a\nb\n")
    (tmp_path / "comfy").mkdir()  # by this and main.py a ComfyUI is known
    shutil.copy(fake_comfyui.__file__, tmp_path / "main.py")
    command = [sys.executable, "-m", "pilot", tmp_path / "w.json", tmp_path / "p.txt", "--out", tmp_path / "out"]
    command += ["--settings", "ratio 3", "--pictures", "2"]
    command += ["--ray", "local", "--workers", "1", "--gpus-per-worker", "0", "--comfyui", tmp_path]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as program:
        killed = kill_a_worker(program)
        said = program.communicate()[0]
    assert killed and program.returncode == 0, said
    assert "4 pictures of 2 prompts were made with every setting" in said
    assert len(list((tmp_path / "out" / "cells").glob("*.png"))) == 12
