"""Read the attributes off a picture: a small network trained on drawn ones, `python3 dev.py decode`.

It sees what a measurement needs (shape, background, count, hue, radius, centre, rotation) and never the model under
test. Its errors on fresh drawn pictures are in the header of its weights.
"""

import argparse
import json
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..demo import world

WEIGHTS = Path(__file__).parent / "weights" / "decoder.safetensors"
SYMMETRY = np.array([1, 4, 3, 5])  # of the shapes: the rotation is known up to 2 pi over this
HEADS = {"shape": 4, "background": 3, "count": 3, "hue": 2, "phase": 2, "radius": 1, "centre": 2}
RADIUS_UNIT, CENTRE_UNIT = 5.0, 3.0  # pixels to a unit of the network's output
HELD_OUT_SEED = 2**30


@dataclass
class Decoded:
    """What was read off pictures; arrays over the batch."""

    shape: np.ndarray  # [batch] index
    background: np.ndarray  # [batch] index
    count: np.ndarray  # [batch] index
    hue: np.ndarray  # [batch] radians, 0 to 2 pi
    phase: np.ndarray  # [batch] rotation times the symmetry of the shape, radians, −pi to pi
    radius: np.ndarray  # [batch] pixels
    x: np.ndarray  # [batch] pixels from the middle
    y: np.ndarray  # [batch]

    def attributes(self) -> world.Attributes:
        """As the world draws them; the colour word cannot be seen and is left 0."""
        return world.Attributes(
            shape=self.shape,
            colour=np.zeros_like(self.shape),
            background=self.background,
            count=self.count,
            hue=self.hue,
            radius=self.radius.clip(min=0),  # of what is no shape it can be anything
            centre=world.SIZE / 2 + np.stack([self.x, self.y], axis=1),
            rotation=self.phase / SYMMETRY[self.shape],
        )


class Decoder(nn.Module):
    """Pictures [batch, 3, 64, 64] in −1 to 1 -> features [batch, 96] -> the heads side by side."""

    def __init__(self):
        super().__init__()
        channels = (3, 24, 48, 64, 96)
        layers = [
            layer
            for a, b in pairwise(channels)
            for layer in (
                nn.Conv2d(a, b, 5 if a == 3 else 3, stride=2, padding=2 if a == 3 else 1),
                nn.GroupNorm(4, b),
                nn.SiLU(),
            )
        ]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 16, 96), nn.SiLU())
        self.heads = nn.Linear(96, sum(HEADS.values()))

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        out = self.heads(self.body(pictures)).split(list(HEADS.values()), dim=1)
        return dict(zip(HEADS, out, strict=True))


def to_input(pictures: np.ndarray) -> Tensor:
    """[batch, 64, 64, 3] uint8 -> [batch, 3, 64, 64] in −1 to 1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.inference_mode()
def decode(decoder: Decoder, pictures: np.ndarray) -> tuple[Decoded, np.ndarray]:
    """Attributes of pictures [batch, 64, 64, 3] uint8, and their features [batch, 96]."""
    chunks = [decoder.body(part) for part in to_input(pictures).split(64)]
    features = torch.cat(chunks)
    out = dict(zip(HEADS, decoder.heads(features).double().split(list(HEADS.values()), dim=1), strict=True))
    hue, phase = (torch.atan2(out[name][:, 1], out[name][:, 0]).numpy() for name in ("hue", "phase"))
    x, y = (out["centre"] * CENTRE_UNIT).numpy().T
    discrete = {name: out[name].argmax(1).numpy() for name in ("shape", "background", "count")}
    radius = (out["radius"][:, 0] * RADIUS_UNIT + world.RADIUS_MEAN.mean()).numpy()
    return Decoded(**discrete, hue=hue % (2 * np.pi), phase=phase, radius=radius, x=x, y=y), features.numpy()


def draw(n: int, seed: int) -> tuple[np.ndarray, world.Attributes]:
    """n drawn pictures [n, 64, 64, 3] uint8 with all of their attributes."""
    attributes = world.sample_attributes(n, np.random.default_rng(seed))
    return np.stack([world.draw_picture(attributes, i) for i in range(n)]), attributes


def answers(attributes: world.Attributes) -> dict[str, Tensor]:
    """What the heads should say."""
    turn = lambda angle: torch.tensor(np.stack([np.cos(angle), np.sin(angle)], axis=1)).float()  # noqa: E731
    return {
        "shape": torch.tensor(attributes.shape),
        "background": torch.tensor(attributes.background),
        "count": torch.tensor(attributes.count),
        "hue": turn(attributes.hue),
        "phase": turn(attributes.rotation * SYMMETRY[attributes.shape]),
        "radius": torch.tensor((attributes.radius - world.RADIUS_MEAN.mean()) / RADIUS_UNIT).float()[:, None],
        "centre": torch.tensor((attributes.centre - world.SIZE / 2) / CENTRE_UNIT).float(),
    }


def loss(out: dict[str, Tensor], answer: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of what is discrete, squared error of the rest; a circle has no rotation."""
    terms = [nn.functional.cross_entropy(out[name], answer[name]) for name in ("shape", "background", "count")]
    terms += [nn.functional.mse_loss(out[name], answer[name]) * 4 for name in ("hue", "radius", "centre")]
    turned = (answer["shape"] > 0).float()[:, None]
    return sum(terms) + ((out["phase"] - answer["phase"]).square() * turned).mean()


def train(steps: int, pictures: int = 12000, batch: int = 64, seed: int = 1) -> Decoder:
    """Train on drawn pictures, some with a little noise, as sampled ones have."""
    torch.manual_seed(seed)
    drawn, attributes = draw(pictures, seed)
    inputs, answer = to_input(drawn), answers(attributes)
    decoder = Decoder()
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        index = torch.randint(pictures, (batch,))
        x = inputs[index]
        x = (x + 0.08 * torch.rand(batch, 1, 1, 1) ** 2 * torch.randn_like(x)).clamp(-1, 1)
        value = loss(decoder(x), {name: a[index] for name, a in answer.items()})
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return decoder.eval()


def errors(decoder: Decoder, n: int = 2000, seed: int = HELD_OUT_SEED) -> dict[str, float]:
    """On fresh drawn pictures: the share read wrongly of what is discrete, the root mean square error of the rest."""
    pictures, truth = draw(n, seed)
    read, _ = decode(decoder, pictures)
    wrong = {
        name: float((getattr(read, name) != getattr(truth, name)).mean()) for name in ("shape", "background", "count")
    }
    turned = truth.shape > 0
    apart = {
        "hue": _turn(read.hue - truth.hue),
        "phase": _turn(read.phase - truth.rotation * SYMMETRY[truth.shape])[turned],
        "radius": read.radius - truth.radius,
        "x": read.x + world.SIZE / 2 - truth.centre[:, 0],
        "y": read.y + world.SIZE / 2 - truth.centre[:, 1],
    }
    return wrong | {name: float(np.sqrt(np.mean(e**2))) for name, e in apart.items()}


def _turn(angle: np.ndarray) -> np.ndarray:
    return (angle + np.pi) % (2 * np.pi) - np.pi


def save(decoder: Decoder, path: Path, **metadata: str) -> None:
    """Write the weights in half precision, with the world's version and the measured errors in the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: w.detach().half().contiguous() for name, w in decoder.state_dict().items()}
    save_file(state, path, metadata={"world_version": str(world.VERSION), **metadata})


def load(path: Path = WEIGHTS) -> Decoder:
    """Read the decoder.

    Raises:
        ValueError: it was trained on another version of the world.
    """
    decoder = Decoder()
    with safe_open(path, framework="pt") as file:
        if (version := (file.metadata() or {}).get("world_version")) != str(world.VERSION):
            raise ValueError(f"the decoder is for world {version}, not {world.VERSION}: python3 dev.py decode")
        decoder.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})  # noqa: SIM118
    return decoder.eval()


load_once = cache(load)  # in each process


def main() -> None:
    parser = argparse.ArgumentParser(prog="dev.py decode", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()
    decoder = train(arguments.steps)
    save(decoder, arguments.output, command=f"python3 dev.py decode --steps {arguments.steps}")
    measured = {name: round(value, 4) for name, value in errors(load(arguments.output)).items()}
    save(
        decoder,
        arguments.output,
        command=f"python3 dev.py decode --steps {arguments.steps}",
        errors=json.dumps(measured),
    )
    print(json.dumps(measured, indent=1))
