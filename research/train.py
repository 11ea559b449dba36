"""Train a demo model: `python3 dev.py train --config demo --output demo/weights/demo.safetensors`.

Everything a step draws comes from (seed, step), so a run can be killed and goes on where it was.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from ..demo import models, world

BATCH = 32
LOG_SIGMA_MEAN, LOG_SIGMA_STD = 0.7, 1.4  # large flat shapes are decided at high noise
SMALLEST_SCALE = 0.1
HELD_OUT_SEED = 2**31


def draw_training_batch(seed: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures in -1 to 1, [batch, 3, 64, 64], and prompt tokens with attributes left out at random.

    15 % of the prompts are empty, 30 % lose each attribute with probability one half.
    """
    pictures, attributes = world.draw_batch(BATCH, seed)
    rng = np.random.default_rng((*seed, 1))
    u = rng.random((BATCH, 1))
    dropped = (u < 0.15) | ((u < 0.45) & (rng.random(attributes.shape) < 0.5))
    tokens = models.encode_prompts(torch.from_numpy(np.where(dropped, -1, attributes)))
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1, tokens


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


class Training(lightning.LightningModule):
    """EDM's loss, the error of the prediction over that of a Gaussian of the data's variance; at low noise it is capped."""

    def __init__(self, config: str, seed: int, steps: int, learning_rate: float):
        super().__init__()
        self.save_hyperparameters()
        base = models.build(models.CONFIGS[config])
        initialise(base.diffusion_model)
        self.model = base.diffusion_model.requires_grad_(True)
        self.sampling = base.model_sampling
        self.evaluate = self.model.forward  # or its compiled form

    def loss(self, evaluate: Callable[..., torch.Tensor], seed: tuple[int, ...]) -> torch.Tensor:
        pictures, tokens = draw_training_batch(seed)
        generator = torch.Generator().manual_seed(int(np.random.default_rng(seed).integers(2**62)))
        ratio = (LOG_SIGMA_MEAN + LOG_SIGMA_STD * torch.randn(BATCH, generator=generator)).exp()
        noise = torch.randn(pictures.shape, generator=generator)
        pictures, tokens, ratio, noise = (v.to(self.device) for v in (pictures, tokens, ratio, noise))
        sigma = models.sigma_at(self.sampling, ratio)
        x = self.sampling.noise_scaling(sigma, noise, pictures)
        scaled = self.sampling.calculate_input(sigma, x).to(memory_format=torch.channels_last)
        out = evaluate(scaled, self.sampling.timestep(sigma), context=tokens)
        error = self.sampling.calculate_denoised(sigma, out, x) - pictures
        scale = ratio * models.SIGMA_DATA / (ratio**2 + models.SIGMA_DATA**2).sqrt()
        return (error / scale.clamp(min=SMALLEST_SCALE).view(-1, 1, 1, 1)).square().mean()

    def training_step(self, batch, batch_index):
        loss = self.loss(self.evaluate, (self.hparams.seed, self.global_step))
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_index):
        self.log(
            "held_out_loss",
            self.loss(self.model.forward, (HELD_OUT_SEED, batch_index)),
            prog_bar=True,
            batch_size=BATCH,
        )

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.hparams.learning_rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.hparams.learning_rate, total_steps=self.hparams.steps + 1, pct_start=0.05
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
    axes.set_title(title, fontsize=10)
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
    parser.add_argument("--start", type=Path, help="weights to go on from, with a learning rate that rises again")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the network: two minutes, then a quarter faster"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    lightning.seed_everything(arguments.seed)
    training = Training(arguments.config, arguments.seed, arguments.steps, arguments.learning_rate)
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
            ModelCheckpoint(arguments.work, "last", every_n_train_steps=250, enable_version_counter=False),
            ModelCheckpoint(arguments.work, "{step}", every_n_train_steps=arguments.steps // 4, save_top_k=-1),
        ],
        val_check_interval=min(500, arguments.steps),
        limit_val_batches=8,
        num_sanity_val_steps=0,
        log_every_n_steps=25,
    )
    trainer.fit(
        training,
        DataLoader(range(arguments.steps)),
        DataLoader(range(8)),
        ckpt_path=saved[-1] if saved else None,
        weights_only=True,
    )
    held_out = trainer.validate(training, DataLoader(range(8)))[0]["held_out_loss"]
    options = ("config", "steps", "seed", "learning_rate", "start")
    chosen = [
        f"--{name.replace('_', '-')} {value}" for name in options if (value := getattr(arguments, name)) is not None
    ]
    metadata = {"config": arguments.config, "command": " ".join(["python3 dev.py train", *chosen])}
    export(training.model.state_dict(), arguments.output, **metadata, held_out_loss=round(held_out, 5))
    export_checkpoints(arguments.work, **metadata)
    draw_curve(arguments.work, metadata["command"])
