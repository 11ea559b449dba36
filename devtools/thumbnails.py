"""Draws the templates' thumbnails: `COMFYUI_PATH=/path/to/ComfyUI python -m devtools.thumbnails`.

Templates that need no download are run in a real server, and their thumbnails are what they draw. The others get a card
with the model's name on the picture of the banner.
"""

import io
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image

from . import artwork, workflow
from .client import Client
from .server import PACK, Server

SIZE = 400  # pixels; the template browser shows squares
MOST_BYTES = 40_000
CARDS = {  # template: what is written on its card
    "sd15": ("SD 1.5", "REG Model"),
    "sdxl": ("SDXL", "REG Model"),
    "sd35": ("SD 3.5", "REG Model"),
    "chroma": ("Chroma", "REG Guider"),
    "flux2_klein": ("Flux.2 klein", "REG Guider"),
    "qwen_image": ("Qwen-Image", "REG Model"),
    "z_image": ("Z-Image", "REG Model"),
    "wan22_text_to_video": ("Wan 2.2", "REG Model"),
    "ltxv_text_to_video": ("LTXV", "REG Sampler"),
    "dit": ("DiT", "REG Model"),
    "edm2": ("EDM2", "REG AutoGuider"),
    "edm2_autoguidance": ("EDM2", "AutoGuidance, rectified"),
}
VIDEO = LinearSegmentedColormap.from_list("video", ["#150d20", "#33195a", "#7a3fb0", "#e0b3ff"])
PICTURES = {
    "images": None,
    "a_images": "CFG",
    "b_images": "REG",
}  # outputs of nodes; the sides of an image compare node


def card(name: str) -> Figure:
    """A card for a template whose model is not here."""
    title, way = CARDS[name]
    glow = VIDEO if name.endswith("video") else artwork.GLOW
    figure = artwork.draw((SIZE, SIZE), count=9, line=1.6, low=-2.4, high=4.6, first=25, glow=glow)
    figure.text(0.07, 0.94, title, color="white", fontsize=min(38, 400 / len(title)), fontweight="bold", va="top")
    figure.text(0.07, 0.07, way, color=artwork.SOFT, fontsize=20)
    return figure


def run(client: Client, path: Path) -> dict[str, list[np.ndarray]]:
    """What a template draws: pictures [h, w, 3] by the title over them."""
    prompt = workflow.load(path, client.object_info())
    outputs = client.wait(client.queue(prompt))
    drawn = {}
    for key, node in prompt.items():  # in the order of the file
        if node["class_type"] not in ("REGReport", "REGPilot"):  # plots, too fine for a thumbnail
            for kind in (kind for kind in outputs.get(key, ()) if kind in PICTURES):
                title = PICTURES[kind] or node["_meta"]["title"]
                drawn[title] = [picture(client, file) for file in outputs[key][kind]]
    return drawn


def picture(client: Client, file: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(client.fetch(file))).convert("RGB"))


def tiles(drawn: dict[str, list[np.ndarray]]) -> Figure:
    """Two pictures of each of two titles, or half a sheet of each, CFG first; otherwise the first picture."""
    titles = [title for title in ("CFG", "REG", "AutoGuidance", "Profile", "Measured") if title in drawn][:2]
    if "The right answer" in drawn:
        pictures = [drawn[title][0][:, : drawn[title][0].shape[1] // 2] for title in titles]
    elif len(titles) == 2 and all(len(drawn[title]) > 1 for title in titles):
        pictures = [drawn[title][row] for row in (0, 1) for title in titles]
    else:
        titles, pictures = [], next(iter(drawn.values()))[:1]
    rows, columns = {4: (2, 2), 2: (1, 2)}.get(len(pictures), (1, 1))
    figure = Figure(figsize=(SIZE / 100, SIZE / 100), dpi=100, facecolor="#1e1e1e")
    edges = {
        "left": 0.01,
        "right": 0.99,
        "bottom": 0.01,
        "top": 0.92 if titles else 0.99,
        "wspace": 0.02,
        "hspace": 0.02,
    }
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw=edges)
    for axis, image in zip(axes.flat, pictures, strict=True):
        axis.imshow(image, aspect="auto" if titles else "equal", interpolation="lanczos")
        axis.set_axis_off()
    for axis, title in zip(axes[0], titles, strict=False):
        axis.set_title(title, color="white", fontsize=14)
    return figure


def save(figure: Figure, path: Path) -> None:
    """As JPEG, as good as the size allows."""
    buffer = io.BytesIO()
    figure.savefig(buffer)
    image = Image.open(buffer).convert("RGB")
    for quality in range(88, 40, -4):
        image.save(path, quality=quality, optimize=True)
        if path.stat().st_size < MOST_BYTES:
            return
    raise ValueError(f"{path} does not fit in {MOST_BYTES} bytes.")


def main() -> None:
    """All of them, or those named."""
    paths = [path for path in sorted(PACK.glob("workflows/*.json")) if path.stem in (sys.argv[1:] or path.stem)]
    for path in paths:
        if path.stem in CARDS:
            save(card(path.stem), path.with_suffix(".jpg"))
    runnable = [path for path in paths if path.stem not in CARDS]
    if runnable:
        with tempfile.TemporaryDirectory() as folder, Server(Path(folder)) as client:
            for path in runnable:
                save(tiles(run(client, path)), path.with_suffix(".jpg"))


if __name__ == "__main__":
    main()
