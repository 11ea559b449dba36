"""What `dev.py gpu` needs beyond PyTorch and NumPy, in a folder that is carried to a machine without a network.

Standard library only. `python3 dev.py gpu --wheels FOLDER` makes the folder, on a machine with a network and the same
kind of system; `python3 dev.py gpu --from FOLDER` uses it. Other commands take `--from FOLDER`, too, where the machine
has what they import besides.
"""

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from .environment import PINS, SetupError, named_comfyui, prepare

WHEELS = {  # module: distribution
    "comfy_aimdo": "comfy-aimdo",
    "comfy_kitchen": "comfy-kitchen",
    "einops": "einops",
    "packaging": "packaging",
    "psutil": "psutil",
    "pytorch_optimizer": "pytorch-optimizer",
    "safetensors": "safetensors",
    "tabulate": "tabulate",
    "torchsde": "torchsde",
    "tqdm": "tqdm",
    "trampoline": "trampoline",
}
THERE_ALREADY = ("torch", "numpy")
WITHOUT_KERNELS = ("comfy-kitchen",)  # its own for CUDA are 45 MB, and PyTorch's serve
COMFYUI = "ComfyUI.zip"
LARGEST_CONFIG = 100_000  # bytes; tokenizers' vocabularies are larger, and no text is encoded
MEGABYTES = 10


def make(folder: Path) -> None:
    """Fill the folder with wheels and ComfyUI's code. Raises SetupError: it is too large to be carried."""
    python, comfyui = prepare()
    folder.mkdir(parents=True, exist_ok=True)
    versions = _required(comfyui / "requirements.txt") | _required(PINS / "constraints.txt")
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--quiet", "--dest", folder]
    for names, platform in ((set(WHEELS.values()) - {*WITHOUT_KERNELS}, []), (WITHOUT_KERNELS, ["--platform", "any"])):
        wanted = [f"{name}{versions.get(name, '')}" for name in sorted(names)]
        subprocess.run([python, "-m", "pip", "download", *options, *platform, *wanted], check=True)
    with zipfile.ZipFile(folder / COMFYUI, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(comfyui.rglob("*")):
            config = file.suffix in (".json", ".txt", ".toml") and file.stat().st_size < LARGEST_CONFIG
            if (file.suffix == ".py" or config) and "tests" not in file.parts:
                archive.write(file, file.relative_to(comfyui))
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    print(
        f"{folder} has {size:.0f} MB: carry it with this repository, and run `python3 dev.py gpu --from {folder.name}`."
    )
    if size > MEGABYTES:
        raise SetupError(f"{folder} is larger than the {MEGABYTES} MB that it is meant to have.")


def _required(file: Path) -> dict[str, str]:
    """name -> how its version is stated, of a requirements file."""
    lines = (line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    found = {}
    for line in lines:
        name = next((line[: line.index(sign)] for sign in ("==", ">=", "~=") if sign in line), line)
        found[name.strip()] = line[len(name) :].strip()
    return found


def unpack(folder: Path) -> tuple[list[Path], Path]:
    """What must be on Python's path, and ComfyUI's folder, without a network. Raises SetupError."""
    for module in THERE_ALREADY:
        if importlib.util.find_spec(module) is None:
            raise SetupError(f"This Python has no {module}: use the one that has PyTorch and NumPy.")
    comfyui, site = folder / "ComfyUI", folder / "site"
    own = named_comfyui()
    if own is None and not comfyui.is_dir():
        if not (folder / COMFYUI).is_file():
            raise SetupError(f"{folder} has no {COMFYUI}: make it with `python3 dev.py gpu --wheels FOLDER`.")
        shutil.unpack_archive(folder / COMFYUI, comfyui)
    missing = [name for module, name in WHEELS.items() if importlib.util.find_spec(module) is None]
    if missing and not site.is_dir():
        options = ["--no-index", "--no-deps", "--find-links", folder, "--target", site, "--quiet"]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, *missing], check=True)
    return ([site] if site.is_dir() else []), own or comfyui
