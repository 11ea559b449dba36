"""Draw the same pictures with CFG and with two rectifications of REG in a real ComfyUI, as one labelled grid."""

import argparse
import copy
import io
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from . import workflow
from .client import Client, PromptError
from .server import PACK, Server, ServerError

WORKFLOW = PACK / "workflows" / "demo.json"
PROMPTS = (
    {"shape": "star", "colour": "gold", "background": "dark", "count": "1"},
    {"shape": "circle", "colour": "red", "background": "light", "count": "2"},
    {"shape": "triangle", "colour": "violet", "background": "striped", "count": "1"},
    {"shape": "square", "colour": "blue", "background": "light", "count": "3"},
    {"shape": "circle", "colour": "green", "background": "dark", "count": "1"},
    {"shape": "star", "colour": "red", "background": "striped", "count": "2"},
)
PROMPTS_PER_LINE = 3
CFGS = (2.0, 4.0, 8.0)
RECTIFICATIONS = ("ratio", "elementwise")
STEPS = 20
SEED = 1
AMPLIFICATION = 4

Pictures = dict[tuple[float, str], np.ndarray]  # (cfg, "CFG" or a rectification): a montage [h, w, 3], 0 to 1


def fill(template: dict, prompt: dict, seed: int, cfg: float, rectification: str) -> dict:
    """The demo workflow for one picture of each kind."""
    graph = copy.deepcopy(template)
    for node in graph.values():
        inputs = node["inputs"]
        match node["class_type"], node["_meta"]["title"]:
            case "KSampler", _:
                inputs |= {"seed": seed, "cfg": cfg, "steps": STEPS}
            case "REGModel", _:
                inputs["rectification"] = rectification
            case "REGDemoPrompt", "Prompt":
                inputs |= prompt
            case "EmptyLatentImage", _:
                inputs["batch_size"] = 1
    return graph


def draw(client: Client) -> Pictures:
    """Queue everything, follow it, fetch the pictures. ComfyUI draws each CFG picture once, for it caches."""
    template = workflow.load(WORKFLOW, client.object_info())
    runs = [(cfg, i, rectification) for cfg in CFGS for i in range(len(PROMPTS)) for rectification in RECTIFICATIONS]
    queued = [client.queue(fill(template, PROMPTS[i], SEED + i, cfg, rule)) for cfg, i, rule in runs]
    drawn = {}
    steps = len(CFGS) * len(PROMPTS) * (1 + len(RECTIFICATIONS)) * STEPS
    with tqdm(total=steps, unit="step", mininterval=0.1 if sys.stderr.isatty() else 10) as bar:
        for (cfg, i, rule), prompt_id in zip(runs, queued, strict=True):
            bar.set_description(f"cfg {cfg:g}, {rule}", refresh=False)
            outputs = client.wait(prompt_id, counting(bar))
            drawn[cfg, "CFG", i] = fetch_picture(client, outputs[workflow.node_titled(template, "CFG")])
            drawn[cfg, rule, i] = fetch_picture(client, outputs[workflow.node_titled(template, "REG")])
    kinds = {(cfg, kind) for cfg, kind, _ in drawn}
    return {(cfg, kind): montage([drawn[cfg, kind, i] for i in range(len(PROMPTS))]) for cfg, kind in kinds}


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


def montage(pictures: list[np.ndarray]) -> np.ndarray:
    """Pictures in lines of PROMPTS_PER_LINE."""
    lines = [pictures[i : i + PROMPTS_PER_LINE] for i in range(0, len(pictures), PROMPTS_PER_LINE)]
    return np.concatenate([np.concatenate(line, axis=1) for line in lines])


def plot(pictures: Pictures) -> Figure:
    """A line for each cfg; CFG, both kinds of REG, and what each changed."""
    columns = ["CFG", *RECTIFICATIONS]
    figure = Figure(figsize=(20, 8.4), layout="constrained")
    axes = figure.subplots(len(CFGS), len(columns) + len(RECTIFICATIONS))
    for line, cfg in zip(axes, CFGS, strict=True):
        line[0].set_ylabel(f"cfg {cfg:g}", fontsize=16)
        changes = [0.5 + AMPLIFICATION * (pictures[cfg, rule] - pictures[cfg, "CFG"]) for rule in RECTIFICATIONS]
        for axis, picture in zip(line, [*(pictures[cfg, column] for column in columns), *changes], strict=True):
            axis.imshow(picture.clip(0, 1), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
    titles = ["CFG", *(f"REG {rule}" for rule in RECTIFICATIONS)]
    titles += [f"REG {rule} − CFG, times {AMPLIFICATION}" for rule in RECTIFICATIONS]
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=16)
    return figure


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
    plot(pictures).savefig(path, dpi=100)
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
