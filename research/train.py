"""Train a demo model: `python3 dev.py train --config demo --output demo/weights/demo.safetensors`.

Everything a step draws comes from (seed, step), so a run can be killed and goes on where it was. On a graphics card
`--batch 512 --workers 12` keeps it busy; the noise is the card's own there.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from pytorch_optimizer import Muon
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Dataset

from ..demo import models, world

BATCH = 32  # where nothing else is said; of the held-out pictures always
LOG_SIGMA_MEAN, LOG_SIGMA_STD = 0.7, 1.4  # large flat shapes are decided at high noise
SMALLEST_SCALE = 0.1
HELD_OUT_SEED = 2**31
NOT_MATRICES = ("input_blocks.0.", "out.", "time_embed.", "label_emb.")  # of the network: its inputs and output


def draw_training_batch(
    seed: tuple[int, ...], batch: int = BATCH, even: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures in -1 to 1, [batch, 3, 64, 64], and prompt tokens with attributes left out at random.

    15 % of the prompts are empty, 30 % lose each attribute with probability one half. `even` lets prompts that state a
    shape state each as often: rare ones are learnt sooner, and what is right for a prompt stays what it is.
    """
    rng = np.random.default_rng((*seed, 1))
    u = rng.random((batch, 1))
    dropped = (u < 0.15) | ((u < 0.45) & (rng.random((batch, len(world.ATTRIBUTES))) < 0.5))
    shape = None
    if even:
        usual = world.sample_attributes(batch, rng).shape
        shape = np.where(dropped[:, 0], usual, rng.integers(len(world.SHAPES), size=batch))
    pictures, attributes = world.draw_batch(batch, seed, shape)
    tokens = models.encode_prompts(torch.from_numpy(np.where(dropped, -1, attributes)))
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1, tokens


def spread_normal(n: int, generator: torch.Generator) -> torch.Tensor:
    """A standard normal draw from each of n intervals of equal probability, in order, [n]."""
    p = (torch.arange(n) + torch.rand(n, generator=generator)) / n
    return torch.special.ndtri(p.clamp(max=1 - 2**-24))


def expected_error(ratio: torch.Tensor) -> torch.Tensor:
    """About what a trained network's error is where noise is `ratio` times as strong as the picture, [batch]."""
    return ratio / (40 + 3 * ratio) + 0.01 / ratio


def initialise(network: torch.nn.Module) -> None:
    """PyTorch's own initialisation, which ComfyUI's layers skip; residual branches and the output start at zero."""
    for kind in (torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm):
        for module in network.modules():
            if isinstance(module, kind):
                kind.reset_parameters(module)
    for name, module in network.named_modules():
        if name.endswith(("out_layers.3", "proj_out")) or name == "out.2":
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)


@dataclass(frozen=True)
class Drawn(Dataset):
    """The batches of a training from a step on, [steps]; another process may draw them."""

    steps: int
    seed: int
    batch: int
    start: int = 0
    even: bool = True

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return draw_training_batch((self.seed, self.start + index), self.batch, self.even)


class Training(lightning.LightningModule):
    """EDM's loss, the error of the prediction over that of a Gaussian of the data's variance; at low noise it is capped.

    A step divides it by the square root of what is expected at that noise level, halfway to EDM2's weights (arXiv
    2312.02696): high noise, where most of the error is chance, does not drown the rest, and still decides what is drawn.
    """

    def __init__(self, config: str, seed: int, steps: int, learning_rate: float, batch: int = BATCH, workers: int = 0):
        super().__init__()
        self.save_hyperparameters()
        base = models.build(models.CONFIGS[config])
        initialise(base.diffusion_model)
        self.model = base.diffusion_model.requires_grad_(True)
        self.sampling = base.model_sampling
        self.evaluate = self.model.forward  # or its compiled form

    def errors(
        self, evaluate: Callable[..., torch.Tensor], drawn: tuple, seed: tuple[int, ...], even: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of each picture, and how much stronger than the picture its noise is: [batch] each.

        `even` draws noise levels more evenly, for training.
        """
        pictures, tokens = (v.to(self.device) for v in drawn)
        number = int(np.random.default_rng(seed).integers(2**62))
        generator = torch.Generator().manual_seed(number)
        normal = (spread_normal if even else torch.randn)(len(pictures), generator=generator)
        ratio = (LOG_SIGMA_MEAN + LOG_SIGMA_STD * normal).exp().to(self.device)
        if even and self.device.type != "cpu":  # held-out noise is the same everywhere
            generator = torch.Generator(self.device).manual_seed(number)
        noise = torch.randn(pictures.shape, generator=generator, device=generator.device).to(self.device)
        sigma = models.sigma_at(self.sampling, ratio)
        x = self.sampling.noise_scaling(sigma, noise, pictures)
        scaled = self.sampling.calculate_input(sigma, x).to(memory_format=torch.channels_last)
        out = evaluate(scaled, self.sampling.timestep(sigma), context=tokens)
        error = self.sampling.calculate_denoised(sigma, out, x) - pictures
        scale = ratio * models.SIGMA_DATA / (ratio**2 + models.SIGMA_DATA**2).sqrt()
        return (error / scale.clamp(min=SMALLEST_SCALE).view(-1, 1, 1, 1)).square().mean((1, 2, 3)), ratio

    def loss(self, evaluate: Callable[..., torch.Tensor], drawn: tuple, seed: tuple[int, ...]) -> torch.Tensor:
        return self.errors(evaluate, drawn, seed)[0].mean()

    def train_dataloader(self):
        """From the step on at which a run that was killed goes on."""
        drawn = Drawn(self.hparams.steps, self.hparams.seed, self.hparams.batch, self.global_step)
        return DataLoader(drawn, batch_size=None, num_workers=self.hparams.workers)

    def val_dataloader(self):
        return DataLoader(Drawn(8, HELD_OUT_SEED, BATCH, even=False), batch_size=None)

    def training_step(self, batch, batch_index):
        errors, ratio = self.errors(self.evaluate, batch, (self.hparams.seed, self.global_step), even=True)
        self.log("loss", errors.mean(), prog_bar=True, batch_size=self.hparams.batch)
        return 0.25 * (errors / expected_error(ratio).sqrt()).mean()

    def validation_step(self, batch, batch_index):
        self.log(
            "held_out_loss",
            self.loss(self.model.forward, batch, (HELD_OUT_SEED, batch_index)),
            prog_bar=True,
            batch_size=BATCH,
        )

    def configure_optimizers(self):
        """Muon for the matrices, AdamW for the rest; the rate is constant until the last 40 % of the steps, then falls to 0.

        So a run can be made longer or shorter until then, by going on with another number of steps.
        """
        named = dict(self.model.named_parameters())
        matrices = [name for name, p in named.items() if p.ndim > 1 and not name.startswith(NOT_MATRICES)]
        common = {"lr": self.hparams.learning_rate, "weight_decay": 0.01}
        optimizer = Muon(
            [
                {"params": [named.pop(name) for name in matrices], "use_muon": True, "use_adjusted_lr": True, **common},
                {"params": list(named.values()), "use_muon": False, "betas": (0.9, 0.99), **common},
            ]
        )
        steps = self.hparams.steps
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: max(0.0, min(1.0, (step + 1) / 100, (steps - step) / (0.4 * steps)))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer, **kwargs):
        self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")


def export(state: dict[str, torch.Tensor], path: Path, **metadata) -> None:
    """Write averaged weights as fp16 safetensors with what made them in the header."""
    state = {name: w.detach().half().contiguous() for name, w in state.items()}
    header = {"world_version": world.VERSION, "licence": "Apache-2.0", **metadata}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata={key: str(value) for key, value in header.items()})


def export_checkpoints(work: Path, **metadata) -> None:
    """The quarters of a training, beside its checkpoints."""
    for checkpoint in work.glob("step=*.ckpt"):
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        state = {name.removeprefix("model."): w for name, w in saved.items() if name.startswith("model.")}
        export(state, checkpoint.with_suffix(".safetensors"), **metadata, stopped_at=checkpoint.stem)


def draw_curve(work: Path, title: str) -> None:
    """The losses of a training, all its parts together, as curve.png beside its checkpoints."""
    parts = [pd.read_csv(file) for file in sorted(work.glob("curve/version_*/metrics.csv"))]
    losses = pd.concat(parts).drop_duplicates("step", keep="last").set_index("step").sort_index()
    figure = Figure(figsize=(7, 4), layout="tight")
    axes = figure.subplots()
    axes.plot(losses.loss.dropna().rolling(8, min_periods=1).mean(), color="#9ab8d6", label="loss, mean of 200 steps")
    axes.plot(losses.held_out_loss.dropna(), "o-", color="#22406a", label="held-out loss, averaged weights")
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_title(title, fontsize=10, wrap=True)
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=8)
    figure.savefig(work / "curve.png", dpi=110)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev.py train", description=__doc__.splitlines()[0])
    parser.add_argument("--config", choices=models.CONFIGS, default="demo", help="what to train")
    parser.add_argument("--output", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--work", type=Path, default=Path("demo-training"), help="checkpoints and loss curve")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=BATCH, help="pictures of a step")
    parser.add_argument("--workers", type=int, default=0, help="processes that draw pictures")
    parser.add_argument("--start", type=Path, help="weights to go on from, with a learning rate that rises again")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the network: two minutes, then a quarter faster"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    lightning.seed_everything(arguments.seed)
    training = Training(
        arguments.config,
        arguments.seed,
        arguments.steps,
        arguments.learning_rate,
        batch=arguments.batch,
        workers=arguments.workers,
    )
    if arguments.start:
        training.model.load_state_dict(load_file(arguments.start))
    if arguments.compile:
        torch._dynamo.config.recompile_limit = 64  # ComfyUI's UNet runs its blocks through one function
        training.evaluate = torch.compile(training.model.forward)
    saved = sorted(arguments.work.glob("last*.ckpt"), key=lambda path: path.stat().st_mtime)
    trainer = lightning.Trainer(
        max_steps=arguments.steps,
        precision="bf16-mixed",
        default_root_dir=arguments.work,
        logger=CSVLogger(arguments.work, name="curve"),  # a part for each time it was started
        callbacks=[
            EMAWeightAveraging(decay=0.998),
            ModelCheckpoint(arguments.work, "last", every_n_train_steps=100, enable_version_counter=False),
            ModelCheckpoint(arguments.work, "{step}", every_n_train_steps=arguments.steps // 4, save_top_k=-1),
        ],
        val_check_interval=min(250, arguments.steps),
        num_sanity_val_steps=0,
        log_every_n_steps=25,
    )
    trainer.fit(training, ckpt_path=saved[-1] if saved else None, weights_only=True)
    held_out = trainer.validate(training)[0]["held_out_loss"]
    options = ("config", "steps", "seed", "learning_rate", "batch", "start")
    chosen = [
        f"--{name.replace('_', '-')} {value}" for name in options if (value := getattr(arguments, name)) is not None
    ]
    metadata = {"config": arguments.config, "command": " ".join(["python3 dev.py train", *chosen])}
    export(training.model.state_dict(), arguments.output, **metadata, held_out_loss=round(held_out, 5))
    export_checkpoints(arguments.work, **metadata)
    draw_curve(arguments.work, metadata["command"])
