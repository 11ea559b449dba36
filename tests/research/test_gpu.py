"""`dev.py gpu` on this machine: all of it, small; and that it would see what is wrong."""

import gc
import subprocess
import sys

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch

from pack.research import gpu
from pack.research.benchmarks import cost, models

pytestmark = pytest.mark.skipif(gpu.GPU, reason="`python3 dev.py gpu` itself is for this machine")


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """What is there already is not looked through each time memory is released: a fifth of the time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def wan():
    """The family whose network has the fewest kinds of blocks, with two of them."""
    found = gpu.of_size(models.architectures(False)["wan2.1"], 8)
    found.unet = found.unet | {"num_layers": 2, "dim": 128, "ffn_dim": 256, "num_heads": 1}
    found.text = (8, 4096)
    return found


def test_all_of_it_runs_small(wan, monkeypatch):
    monkeypatch.setattr(cost, "STEPS", 3)
    monkeypatch.setattr(cost, "LENGTHS", (8, 30))
    checks, reads = list(gpu.correctness({"wan2.1": wan})), list(gpu.synchronisation(wan))
    text = gpu.page(checks, reads, list(gpu.costs({"wan2.1": wan}, torch.float32, 60)), torch.float32)
    assert not [check for check in checks if check.good is False], text
    for words in ("no CUDA device", "Wan2.1, bf16: gradient", "streamed weights", "FLASH_ATTENTION", "torch.compile"):
        assert words in text
    for words in ("three interrupts", "out of memory on purpose", "elementwise, difference", "peak memory"):
        assert words in text
    assert "**NO**" not in text and "Left out" not in text


def test_no_step_waits_for_the_device_beyond_cfg(wan):
    """What a run reads: whether it can repeat ComfyUI's prediction, before it measures; where the next measurement
    depends on it, whether the first ones said something; and with differences, whether a probe may be in the batch of
    the conds. A range reads each sigma, for it decides which passes are made."""
    rows = {name: (int(run), float(step)) for name, run, step in gpu.synchronisation(wan)}
    assert rows == {
        "elementwise, backward": (2, 0),
        "elementwise, difference": (3, 0),
        "jacobian, backward": (2, 0),
        "ratio": (2, 0),
        "profile": (0, 0),
        "elementwise, backward, every step": (1, 0),
        "elementwise, backward, a range": (2 + 4, 1),
    }


def test_every_read_is_counted():
    x = torch.ones(3)
    reads = (lambda: float(x[0]), lambda: bool(x[0] > 0), lambda: x[0].item(), x.tolist, x.cpu, x.numpy, x.nonzero)
    for context in (torch.inference_mode, torch.no_grad):
        for read in reads:
            with context(), gpu.Waits() as values, gpu.Reads() as tensors:
                read()
            assert values.count + tensors.count == 1, read


BARE = """
import os
import sys
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions, requires
from re import match

from devtools.carried import THERE_ALREADY, WHEELS

def plain(name):
    return name.lower().replace("_", "-")

modules = {module: set(map(plain, names)) for module, names in packages_distributions().items()}
there, left = set(WHEELS.values()), list(THERE_ALREADY)
while left:
    name = plain(left.pop())
    if name not in there and any(name in names for names in modules.values()):
        there.add(name)
        left += [match(r"[\\w.-]+", line).group() for line in requires(name) or () if "extra ==" not in line]
gone = {module for module, names in modules.items() if not names & there}
assert {"pandas", "scipy", "aiohttp"} <= gone and not {"torch", "sympy"} & gone

class Bare:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if path is None and name in gone else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
os.environ["REG_STAND_INS"] = "1"
from research import start
from pack.guiders.report.live import warn_user
from pack.research import gpu
from pack.research.benchmarks import models
warn_user("without a server")
print(gpu.STANDING_IN, models.architectures(False)["wan2.1"].build(gpu.DTYPES["bf16"]).model.model_type)
"""


def test_it_needs_pytorch_numpy_and_what_is_carried():
    """Where nothing else can be imported."""
    found = subprocess.run([sys.executable, "-P", "-c", BARE], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "'PIL', 'aiohttp'" in found.stdout and "FLOW" in found.stdout
    assert "REG: without a server" in found.stderr


def test_a_wrong_gradient_is_seen(wan, monkeypatch):
    gradient = gpu.Point.gradient

    def wrong(self, checkpoints=False):
        denoised, product = gradient(self, checkpoints)
        return denoised, 0.8 * product

    monkeypatch.setattr(gpu.Point, "gradient", wrong)
    assert [check.good for check in gpu.gradient(wan, "fp32")] == [False]


def test_a_check_that_fails_is_said_and_the_others_go_on(wan, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("something broke")

    for name in ("gradient", "streamed", "compiled", "estimated", "ends", "out_of_memory"):
        monkeypatch.setattr(gpu, name, lambda *args: iter([]))
    monkeypatch.setattr(gpu, "estimated", lambda *args: map(fails, [1]))
    found = {check.what: check for check in gpu.correctness({"wan2.1": wan})}
    assert found["Wan2.1: batched probe"] == gpu.Check("Wan2.1: batched probe", "something broke", False)
    kernels = [check.good for what, check in found.items() if "gradient through" in what]
    assert kernels == [True, None, None]  # a CPU has one of them, and says so of the others


def test_a_page_is_written_of_models_that_do_not_fit(wan, monkeypatch):
    def too_large(*args, **kwargs):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(cost, "measure", too_large)
    assert "too little memory" in next(gpu.costs({"wan2.1": wan}, torch.float32, 60))
    assert "the time for all of them was over" in next(gpu.costs({"wan2.1": wan}, torch.float32, -1))
