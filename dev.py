"""For developers: `python3 dev.py demo` draws pictures with CFG beside REG, `python3 dev.py test` runs the tests.

The first command sets up an environment in a cache folder, once; `devtools/environment.py` says how.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent
COMMANDS = {  # name: module and its first argument, what it does
    "demo": ("devtools.demo", "draw the same pictures with CFG and with REG in a real ComfyUI"),
    "test": ("devtools.check", "lint, format check and tests; arguments go to pytest"),
    "lab": ("research lab", "measure guidance rules in worlds whose exact answer is known"),
    "train": ("research train", "train a demo model"),
    "decode": ("research decode", "train the network that reads attributes off the demo's pictures"),
    "quality": ("research quality", "measure guidance rules on the demo models"),
    "holding": ("research holding", "measure how far the guidance is off between two measurements"),
    "few-steps": ("research few-steps", "draw pictures of short runs under CFG and REG"),
    "imagenet": ("research imagenet", "sample and judge DiT and EDM2 on ImageNet, as the paper does"),
    "install-check": ("devtools.install_check", "install the pack in every way users do, with the real programs"),
    "latents": ("devtools.latents", "record what fixed seeds give, and compare two records"),
    "startup": ("devtools.startup", "measure what the pack adds to the start of ComfyUI"),
    "bench": ("research bench", "measure what a guided step costs"),
    "steps": ("research steps", "measure the error of the difference estimator by its step"),
    "faults": ("research faults", "raise exceptions at every call of ours, and see what is left behind"),
    "soak": ("research soak", "run many mixed prompts in one server, and see what grows"),
    "gpu": ("research gpu", "check correctness and cost on a CUDA machine, without a network"),
    "recording": ("research recording", "measure what a report costs the run it records"),
}


def exists(module: str) -> bool:
    """Whether this checkout has the module, as a file or as a package that can be run."""
    path = ROOT.joinpath(*module.split()[0].split("."))
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def parse_arguments() -> argparse.Namespace:
    """The command and, untouched, the arguments that follow it."""
    commands = {name: text for name, (module, text) in COMMANDS.items() if exists(module)}
    parser = argparse.ArgumentParser(
        prog="dev.py",
        description=__doc__.split("\n\n")[0],
        epilog="\n".join(f"  {name:14} {text}" for name, text in commands.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=commands, metavar="command", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="passed to the command, which explains --help")
    return parser.parse_args()


def run(python: Path, comfyui: Path, module: str, arguments: list[str], site: Sequence[Path] = (), **variables) -> None:
    """Become `python -m module` in the repository's root, with ComfyUI on the path; never returns.

    ComfyUI comes before the repository, since both have a `nodes`; -P keeps the working folder from going first.
    """
    os.chdir(ROOT)
    path = os.pathsep.join(map(str, [comfyui, ROOT, *site]))
    environment = os.environ | {"PYTHONPATH": path, "COMFYUI_PATH": str(comfyui), "PYTHONUNBUFFERED": "1"} | variables
    command = [str(python), "-P", "-m", *module.split(), *arguments]
    if os.name == "nt":  # exec would give the prompt back at once there
        sys.exit(subprocess.call(command, env=environment))
    os.execve(python, command, environment)


def carried(command: str, what: str, folder: str = "carried", *arguments: str) -> None:
    """Make the folder that a machine without a network needs, or become the command with it; never returns."""
    from devtools import carried

    if what == "--wheels":
        carried.make(Path(folder))
        sys.exit()
    site, comfyui = carried.unpack(Path(folder).resolve())
    run(Path(sys.executable), comfyui, COMMANDS[command][0], list(arguments), site, REG_STAND_INS="1")


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 (whoever starts this with an older Python deserves a sentence)
        sys.exit(f"dev.py needs Python 3.11 or newer, and this is {sys.version.split()[0]}: try `python3.11 dev.py`.")
    from devtools import environment

    options = parse_arguments()
    try:
        if options.arguments[:1] in (["--wheels"], ["--from"]):
            carried(options.command, *options.arguments)
        python, comfyui = environment.prepare(options.command)
    except environment.SetupError as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted: the same command goes on from here.")
    run(python, comfyui, COMMANDS[options.command][0], options.arguments)


if __name__ == "__main__":
    main()
