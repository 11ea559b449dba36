"""`python3 -m pilot workflow_api.json prompts.txt`: try REG on your own model, and know.

Runs a workflow with a REG node in it with plain CFG and with REG on the same noises, measures the pictures, and writes a page
that says what was found. Without --server or --ray it starts a ComfyUI of its own.
"""

import argparse
import asyncio
import logging
import sys
from pathlib import Path

SETTINGS = "ratio 3 5; elementwise 5; jacobian 5"
MISSING = "REG: the pilot needs {0}: run it with ComfyUI's own Python, and there: pip install {0}"


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(prog="python3 -m pilot", description=__doc__.split("\n\n")[1])
    commands = whole.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="compare settings; the word run can be left out")
    run.add_argument(
        "workflow", type=Path, help="a workflow with a REG node, exported from ComfyUI by File, Export (API)"
    )
    run.add_argument("prompts", type=Path, help="a text file with one prompt a line")
    run.add_argument("--out", type=Path, help="folder of the results (pilot-<workflow>); a second run goes on there")
    run.add_argument("--settings", default=SETTINGS, help=f"rules with their cfg values and options ({SETTINGS})")
    run.add_argument("--cfg", type=float, help="the scale you use now (the workflow's)")
    run.add_argument("--pictures", type=int, default=8, help="of each prompt and setting (8)")
    run.add_argument("--seed", type=int, default=0, help="of the noises (0)")
    run.add_argument("--scorer", default="", help="folder of a CLIP-like model of transformers")
    run.add_argument("--references", default="", help="folder of pictures that yours should be like")
    run.add_argument(
        "--questions",
        type=Path,
        help="a text file of questions, one a line: a man / a woman; or a folder of such files",
    )
    run.add_argument("--margin", type=float, default=0.25, help="of what guidance changes: how much may be lost (0.25)")
    run.add_argument(
        "--prompt-node", default="", help="id of the node where the prompt is written, if there are several"
    )
    run.add_argument("--prompt-input", default="", help="the input of that node")
    run.add_argument("--output-node", default="", help="id of the node that shows the picture, if there are several")
    watch = commands.add_parser("watch", help="make a small part of a finished pilot again, and say what moved")
    watch.add_argument("folder", type=Path, help="the results of a pilot")
    watch.add_argument("--workflow", type=Path, help="another workflow, with a new checkpoint")
    watch.add_argument("--pictures", type=int, default=0, help="of each prompt (4)")
    watch.add_argument("--name", default="", help="of this watch (the time); a second run of it goes on")
    for command in (run, watch):
        command.add_argument(
            "--server",
            action="append",
            default=[],
            metavar="ADDRESS",
            help="address of a running ComfyUI; or several",
        )
        command.add_argument("--parallel", type=int, default=2, help="prompts that a server has at a time (2)")
        command.add_argument("--comfyui", default="", help="folder of the ComfyUI to start (the one this pack is in)")
        command.add_argument("--comfyui-options", default="", help="options for it, such as '--lowvram'")
        command.add_argument("--ray", default="", help="address of a Ray cluster, or local")
        command.add_argument("--workers", type=int, default=0, help="with --ray: how many (one a GPU)")
        command.add_argument("--gpus-per-worker", type=float, default=1.0, help="with --ray (1)")
    return whole


def main(arguments: list[str]) -> None:
    if arguments and arguments[0] not in ("run", "watch", "-h", "--help"):
        arguments = ["run", *arguments]
    options = parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        print(asyncio.run(_run(options) if options.command == "run" else _watch(options)))
    except ModuleNotFoundError as error:
        sys.exit(MISSING.format(error.name))
    except (ValueError, RuntimeError) as error:
        if not str(error).startswith("REG:"):
            raise
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("\nStopped: what is finished is kept, and the same command goes on from here.")


async def _run(options: argparse.Namespace) -> str:
    from . import arms, outside, workflow

    setup = outside.Setup(
        workflow.read(options.workflow),
        arms.read_prompts(options.prompts),
        options.settings,
        options.cfg,
        _positive(options.pictures, "--pictures"),
        options.seed,
        _absolute(options.scorer),
        _absolute(options.references),
        _questions(options.questions),
        options.margin,
        options.prompt_node,
        options.prompt_input,
        options.output_node,
    )
    title = options.workflow.stem
    folder = (options.out or Path(f"pilot-{title}")).resolve()
    answer = await outside.run(setup, _places(options), folder, title)
    return f"\n{answer.verdict.paragraph}\n\nThe page: {folder / 'pilot.html'}"


async def _watch(options: argparse.Namespace) -> str:
    from . import watch, workflow

    other = workflow.read(options.workflow) if options.workflow else None
    found = await watch.watch(options.folder.resolve(), _places(options), other, options.pictures, options.name)
    return f"\n{found.paragraph}\n\nThe numbers: {found.folder / 'watch.txt'}"


def _places(options: argparse.Namespace):
    from .outside import Places

    return Places(
        options.server,
        options.ray,
        options.workers,
        options.gpus_per_worker,
        options.comfyui,
        options.comfyui_options,
        _positive(options.parallel, "--parallel"),
    )


def _questions(path: Path | None) -> list[list[str]]:
    """Questions of a file, or of every text file of a folder."""
    from . import arms

    if path is None:
        return []
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"REG: {path} has no .txt files with questions.")
    return [question for file in files for question in arms.read_questions(file)]


def _absolute(folder: str) -> str:
    return str(Path(folder).resolve()) if folder else ""


def _positive(number: int, name: str) -> int:
    if number < 1:
        raise ValueError(f"REG: {name} must be 1 or more, not {number}.")
    return number


if __name__ == "__main__":
    main(sys.argv[1:])
