"""Draw the same prompt with CFG and with REG in a real ComfyUI, beside the right answer, as one labelled sheet."""

import argparse
import copy
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from demo import world

from . import workflow
from .client import Client, PromptError
from .server import PACK, Server, ServerError

WORKFLOW = PACK / "workflows" / "demo.json"
CFGS = (2.0, 5.0, 8.0)
KINDS = ("CFG", "REG", "The right answer")  # titles of the workflow's previews
TITLES = ("CFG", "REG", "the right answer, at every cfg")
COLUMNS, CELL, GAP = 4, 128, 4  # of the sheets that the workflow makes: pictures in a line, and pixels

Sheets = dict[tuple[float, str], np.ndarray]  # (cfg, kind): pictures [n, h, w, 3], 0 to 1


def fill(template: dict, cfg: float) -> dict:
    """The demo workflow at one cfg."""
    graph = copy.deepcopy(template)
    for node in graph.values():
        if node["class_type"] == "KSampler":
            node["inputs"]["cfg"] = cfg
    return graph


def draw(client: Client) -> Sheets:
    """Queue everything, follow it, fetch the pictures."""
    template = workflow.load(WORKFLOW, client.object_info())
    samplers = [node["inputs"]["steps"] for node in template.values() if node["class_type"] == "KSampler"]
    queued = [client.queue(fill(template, cfg)) for cfg in CFGS]
    sheets = {}
    with tqdm(total=len(CFGS) * sum(samplers), unit="step", mininterval=0.1 if sys.stderr.isatty() else 10) as bar:
        for cfg, prompt_id in zip(CFGS, queued, strict=True):
            bar.set_description(f"cfg {cfg:g}", refresh=False)
            outputs = client.wait(prompt_id, counting(bar))
            for kind in KINDS:
                if output := outputs.get(workflow.node_titled(template, kind)):  # ComfyUI draws the answer once
                    sheets[cfg, kind] = cut(fetch_picture(client, output))
    return sheets


def counting(bar: tqdm) -> Callable[[int, int], None]:
    """Moves the bar by the steps since it last heard: the server leaves some out, but never a sampler's last."""
    last = 0

    def on_step(step: int, steps: int) -> None:
        nonlocal last
        bar.update(step - last)
        last = step % steps

    return on_step


def fetch_picture(client: Client, output: dict) -> np.ndarray:
    """The one picture of an output, [h, w, 3], 0 to 1."""
    (file,) = output["images"]
    return np.asarray(Image.open(io.BytesIO(client.fetch(file))).convert("RGB")) / 255


def cut(sheet: np.ndarray) -> np.ndarray:
    """The pictures of a sheet, [n, CELL, CELL, 3]."""
    places = range(0, sheet.shape[0] - CELL + 1, CELL + GAP)
    return np.stack([sheet[y : y + CELL, x : x + CELL] for y in places for x in places])


def montage(pictures: np.ndarray) -> np.ndarray:
    """Pictures in lines of COLUMNS."""
    lines = [pictures[i : i + COLUMNS] for i in range(0, len(pictures), COLUMNS)]
    return np.concatenate([np.concatenate(list(line), axis=1) for line in lines])


def hues(pictures: np.ndarray) -> np.ndarray:
    """The hue of what is coloured in each picture, in radians from 0 to 2π: the direction of its mean colour from grey."""
    red, green, blue = np.moveaxis(pictures.mean((1, 2)), -1, 0)
    return np.angle((2 * red - green - blue) + 1j * 3**0.5 * (green - blue)) % (2 * np.pi)


def strip(angles: np.ndarray) -> np.ndarray:
    """Hues in order, as a line of colours [1, n, 3]. Pink stands beside red, not at the other end."""
    ordered = np.sort((angles + 0.7) % (2 * np.pi)) - 0.7
    return hsv_to_rgb(np.stack([ordered % (2 * np.pi) / (2 * np.pi), 0.85 + 0 * ordered, 0.85 + 0 * ordered], -1))[None]


def plot(sheets: Sheets) -> Figure:
    """A line for each cfg: CFG, REG and the right answer, each over its hues."""
    prompt = stated()
    figure = Figure(figsize=(13, 15), layout="constrained")
    figure.suptitle(
        f'The prompt is "{" ".join(prompt.values())}": any colour is right. Under each sheet are its hues in order;\n'
        "CFG loses colours as cfg rises, and REG loses fewer.",
        fontsize=16,
    )
    answer = hues(world.draws(1000, 0, **prompt)[0] / 255)
    for part, cfg in zip(figure.subfigures(len(CFGS), 1), CFGS, strict=True):
        axes = part.subplots(2, len(KINDS), height_ratios=[12, 1])
        for axis, below, kind, title in zip(*axes, KINDS, TITLES, strict=True):
            pictures = sheets.get((cfg, kind), sheets[CFGS[0], KINDS[-1]])
            axis.imshow(montage(pictures), interpolation="lanczos")
            axis.set_title(title if kind == KINDS[-1] else f"{title}, cfg {cfg:g}", fontsize=16)
            below.imshow(strip(answer if kind == KINDS[-1] else hues(pictures)), aspect="auto", interpolation="nearest")
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[])
    return figure


def stated() -> dict[str, str]:
    """What the workflow's prompt states: values by the names of the world's attributes."""
    (node,) = (node for node in json.loads(WORKFLOW.read_text())["nodes"] if node.get("title") == "Prompt")
    words = zip(world.ATTRIBUTES, node["widgets_values"], strict=True)
    return {name: word for name, word in words if word != "any"}


def make_grid(folder: Path) -> None:
    """Start ComfyUI, draw, stop it, save the grid."""
    # The model is tiny: more threads gain little, and on a busy machine they wait for each other for minutes.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    start = time.monotonic()
    print("Starting ComfyUI ...", flush=True)
    with Server(folder / "comfyui") as client:
        print(f"It answers after {time.monotonic() - start:.0f} s; now drawing.", flush=True)
        pictures = draw(client)
    path = folder / "demo.png"
    plot(pictures).savefig(path, dpi=80)
    print(f"Saved {path} after {time.monotonic() - start:.0f} s.")


def keep_serving(folder: Path) -> None:
    """Leave ComfyUI running until Ctrl-C."""
    print("Starting ComfyUI ...", flush=True)
    server = Server(folder / "comfyui")
    with server:
        print(f"Open http://{server.address} and choose Templates, {server.pack_name}. Ctrl-C stops it.", flush=True)
        server.process.wait()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py demo", description=__doc__)
    parser.add_argument("--gui", action="store_true", help="leave ComfyUI running and print its address")
    parser.add_argument(
        "--output", type=Path, default="output", metavar="FOLDER", help="from dev.py's folder; default: %(default)s"
    )
    return parser.parse_args()


def make_folder(folder: Path) -> Path:
    """A folder that is new tells git to leave it out."""
    if not folder.exists():
        folder.mkdir(parents=True)
        (folder / ".gitignore").write_text("*\n")
    return folder.resolve()


def main() -> None:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))  # so that the server is stopped too
    act = keep_serving if options.gui else make_grid
    try:
        act(make_folder(options.output))
    except KeyboardInterrupt:
        sys.exit("Stopped.")
    except (PromptError, ServerError) as error:
        sys.exit(f"The demo failed: {error}")


if __name__ == "__main__":
    main()
