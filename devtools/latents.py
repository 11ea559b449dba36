"""Recorded latents: what the nodes make of fixed seeds, to be compared before and after a change of the code.

`python3 dev.py latents record FILE` samples every case through the nodes' public inputs and keeps the latents;
`python3 dev.py latents compare BEFORE AFTER` says for each case whether its latents are equal bit for bit. (On two
machines they need not be.) Where there is an environment already, `python -m devtools.latents` does the same with the
ComfyUI that COMFYUI_PATH names.
"""

import argparse
import asyncio
import json
import logging
import os
import sys
import time
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

ROOT = Path(__file__).parents[1]
SIZE = 64  # of the demo model's pictures
EVERY_OPTION = {  # stated in every case, whatever the defaults are or become
    "strength": 1.0,
    "start_percent": 0.0,
    "end_percent": 1.0,
    "every": 1,
    "step": 0.0,
    "checkpoint": "off",
    "skip_below": 0.0,
    "verify": False,
}
RULES = (  # rectification, estimator
    ("elementwise", "backward"),
    ("elementwise", "difference"),
    ("jacobian", "backward"),
    ("jacobian", "difference"),
    ("ratio", "auto"),
)
THREE = (("elementwise", "backward"), ("jacobian", "difference"), ("ratio", "auto"))
TINY = [
    "SD15",
    "SD20-v",
    "SDXL",
    "SDXL-edm",
    "SD3",
    "Flux",
    "Chroma",
    "Lumina2",
    "QwenImage",
    "WAN21_T2V",
    "LTXAV",
    "ACEStep",
    "StableAudio",
]
SAMPLERS = ["heun", "euler_ancestral", "euler_cfg_pp", "dpmpp_2m", "res_multistep_ancestral_cfg_pp", "ddpm"]
SCHEDULES = {
    "linear": {"cfg": 1.0, "cfg_end": 6.0},
    "cosine": {"cfg": 6.0, "power": 2.0},
    "interval": {"cfg": 5.0, "start_percent": 0.3, "end_percent": 0.8},
}


@dataclass(frozen=True)
class Case:
    """One run. `options` are inputs of a REG node, which `way` names; way "none" samples without REG."""

    model: str  # "demo", "demo eps", "demo flow", "toy", or a family in tests/families
    way: str = "guider"  # model, guider, sampler, autoguider, both cfgs (dual, nested), perp-neg, none
    options: dict = field(default_factory=dict)
    sampler: str = "euler"
    steps: int = 4
    cfg: float = 3.0
    batch: int = 1  # of the demo models
    schedule: str = ""  # of the guidance, a key of SCHEDULES
    masked: bool = False  # the upper half of the latent is given
    negative: bool = False  # autoguider with a negative, too
    dtype: torch.dtype = torch.float32  # of a tiny model's weights


def cases() -> dict[str, Case]:
    """Every case by its name."""
    return dict(_cases())


def _rule(rectification: str, estimator: str, **options) -> dict:
    return {"rectification": rectification, "estimator": estimator} | options


def _cases() -> Iterable[tuple[str, Case]]:
    for model in (*TINY, "demo"):
        yield f"{model}/none", Case(model, "none")
        for rule in RULES:
            yield f"{model}/{'-'.join(rule)}", Case(model, options=_rule(*rule))
    for rule in THREE:
        name = "-".join(rule)
        for model in ("demo eps", "demo flow", "toy"):
            yield f"{model}/{name}", Case(model, options=_rule(*rule))
        for way in ("model", "sampler", "autoguider", "dual", "nested", "perp-neg"):
            yield f"demo/{way}/{name}", Case("demo", way, _rule(*rule))
        yield f"demo/autoguider with negative/{name}", Case("demo", "autoguider", _rule(*rule), negative=True)
        for sampler in SAMPLERS:
            yield f"SD15/{sampler}/{name}", Case("SD15", options=_rule(*rule), sampler=sampler, steps=5)
        for model in ("demo", "SD3"):
            yield f"{model}/masked/{name}", Case(model, options=_rule(*rule), masked=True)
            yield f"{model}/every 2/{name}", Case(model, options=_rule(*rule, every=2), steps=8)
        yield f"SD15/every 4/{name}", Case("SD15", options=_rule(*rule, every=4), steps=12)
        yield f"SD15/bfloat16/{name}", Case("SD15", options=_rule(*rule), dtype=torch.bfloat16)
        yield f"SD3/strength .5/{name}", Case("SD3", options=_rule(*rule, strength=0.5))
        yield (
            f"SD15/part of the run/{name}",
            Case("SD15", options=_rule(*rule, start_percent=0.2, end_percent=0.7), steps=8),
        )
        yield f"demo/batch of 2/{name}", Case("demo", options=_rule(*rule), batch=2)
        yield f"demo/profile/{name}", Case("demo", options=_rule(rule[0], "profile"), steps=8)
    for shape in SCHEDULES:
        yield f"SD15/{shape} cfg", Case("SD15", options=_rule(*THREE[0], strength=0.0), schedule=shape, steps=8)
        yield f"SD15/{shape} cfg, elementwise", Case("SD15", options=_rule(*THREE[0]), schedule=shape, steps=8)
    skips = _rule("elementwise", "profile", skip_below=0.1)
    yield "demo/skip_below", Case("demo", options=skips, steps=8)
    yield "SD15/strength 2", Case("SD15", options=_rule(*THREE[0], strength=2.0))
    yield "SD15/cfg 1", Case("SD15", options=_rule(*THREE[0]), cfg=1.0)
    yield "SD15/checkpointed", Case("SD15", options=_rule(*THREE[0], checkpoint="always"))
    yield "Flux/checkpointed", Case("Flux", options=_rule(*THREE[0], checkpoint="always"))
    yield "SD15/verified", Case("SD15", options=_rule(*THREE[0], verify=True))
    yield "SD15/step .01", Case("SD15", options=_rule("elementwise", "difference", step=0.01))
    yield "SD15/ratio, step .01", Case("SD15", options=_rule(*THREE[2], step=0.01))


class Recording:
    """Runs cases. Models and the profile are made once."""

    def __init__(self):
        self.nodes = {node.define_schema().node_id: node for node in _pack_nodes()}
        self.model = cache(self._model)
        self.profile = cache(self._profile)

    def node(self, name: str, *args, **inputs):
        """The first output of a node of the pack."""
        return self.nodes[name].execute(*args, **inputs).args[0]

    def _model(self, name: str, dtype: torch.dtype = torch.float32):
        if name == "toy":
            return self.node("REGToyModel", seed=22, points=32)
        kind, _, version = name.partition(" ")
        if kind == "demo":
            return self.node("REGDemoModel", version=version or "full")
        return _families()[name].build(dtype=dtype)

    def _profile(self):
        latent = {"samples": torch.zeros(2, 3, SIZE, SIZE)}
        settings = dict(cfg=4.0, steps=4, points=4, seed=1)
        prompts = self._prompts("demo")
        return self.node("REGCalibrate", model=self.model("demo"), latent_image=latent, **prompts, **settings)

    def _prompts(self, name: str) -> dict[str, list]:
        """Positive and negative conditioning. Fresh tensors, for some models write into them."""
        if name == "toy":
            outputs = self.nodes["REGToyModel"].execute(seed=22, points=32).args
            return {"positive": outputs[1], "negative": outputs[2]}
        if name.startswith("demo"):
            return {"positive": self._prompt(shape="star", colour="gold"), "negative": self._prompt()}
        return {"positive": _families()[name].conditioning(1), "negative": _families()[name].conditioning(2)}

    def _prompt(self, **stated) -> list:
        attributes = dict.fromkeys(("shape", "colour", "background", "count"), "any") | stated
        return self.node("REGDemoPrompt", **attributes)

    def _options(self, case: Case) -> dict:
        options = EVERY_OPTION | case.options
        if options["estimator"] == "profile":
            options["profile"] = self.profile()
        if case.schedule:
            shape = {"shape": case.schedule} | SCHEDULES[case.schedule]
            options["schedule"] = self.node("REGSchedule", shape=shape)
        return options

    def _guider(self, case: Case):
        """The case's guider, as a node of the pack or of ComfyUI makes it."""
        from comfy_extras import nodes_custom_sampler as core
        from comfy_extras import nodes_perpneg

        model, prompts = self.model(case.model, case.dtype), self._prompts(case.model)
        if case.way == "guider":
            return self.node("REGGuider", model, **prompts, cfg=case.cfg, **self._options(case))
        if case.way == "autoguider":
            weak = self.model("demo weak")
            shares = {"negative": prompts["negative"] if case.negative else None, "negative_share": 0.5}
            both = {"positive": prompts["positive"]} | shares
            return self.node("REGAutoGuider", model, weak, **both, cfg=case.cfg, **self._options(case))
        if case.way not in ("none", "sampler"):
            model = self.node("REGModel", model, **self._options(case))
        positive, negative = prompts.values()
        if case.way in ("dual", "nested"):
            middle, style = self._prompt(shape="star"), "nested" if case.way == "nested" else "regular"
            return core.DualCFGGuider.execute(model, positive, middle, negative, case.cfg, 2.0, style).args[0]
        if case.way == "perp-neg":
            other = self._prompt(colour="red")
            return nodes_perpneg.PerpNegGuider.execute(model, positive, other, negative, case.cfg, 1.0).args[0]
        return core.CFGGuider.execute(model, positive, negative, case.cfg).args[0]

    def _latents(self, case: Case) -> tuple:
        """Noise, the latent to start from, and the mask or None."""
        if case.model in TINY:
            family = _families()[case.model]
            noise, start, mask = family.latent(5), family.latent(6), family.mask()
            clean = case.masked or family.starts_from_latent or family.masked
        else:
            shape = (32, 2, 1, 1) if case.model == "toy" else (case.batch, 3, SIZE, SIZE)
            generator = torch.Generator().manual_seed(5)
            noise, start = (torch.randn(shape, generator=generator) for _ in range(2))
            mask, clean = None, case.masked
        if case.masked:
            mask = torch.ones(len(noise), 1, *noise.shape[2:])
            mask[:, :, : mask.shape[2] // 2] = 0
        return noise, start * float(clean), mask

    @torch.inference_mode()
    def run(self, case: Case) -> Tensor:
        """The latent a case ends in, flat where it has several parts."""
        import comfy.samplers

        torch.manual_seed(0)
        guider = self._guider(case)
        sampler = comfy.samplers.sampler_object(case.sampler)
        if case.way == "sampler":
            sampler = self.node("REGSampler", sampler, **self._options(case))
        sampling = guider.model_patcher.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", case.steps)
        noise, start, mask = self._latents(case)
        out = guider.sample(noise, start, sampler, sigmas, mask, disable_pbar=True, seed=3)
        parts = out.unbind() if out.is_nested else [out]
        return torch.cat([part.flatten() for part in parts]) if len(parts) > 1 else parts[0].contiguous()


class Sentences(logging.Handler):
    """Keeps what REG says."""

    def __init__(self):
        super().__init__()
        self.said: list[str] = []

    def emit(self, entry: logging.LogRecord) -> None:
        if entry.levelno >= logging.WARNING and "REG" in entry.getMessage():
            self.said.append(entry.getMessage())


def record(path: Path, chosen: Callable[[str], bool]) -> None:
    """Every case's latent by its name, empty where it failed; what was said of it is in the header."""
    recording, latents, said, start = Recording(), {}, {}, time.monotonic()
    for name, case in cases().items():
        if not chosen(name):
            continue
        sentences = Sentences()
        logging.getLogger().addHandler(sentences)
        try:
            latents[name] = recording.run(case).clone()
        except Exception as error:  # a refusal is an outcome, too
            latents[name] = torch.empty(0)
            sentences.said.append(f"{type(error).__name__}: {error}")
        finally:
            logging.getLogger().removeHandler(sentences)
        said[name] = sentences.said
        print(f"{time.monotonic() - start:6.1f} s  {name}  {'; '.join(sentences.said)[:150]}", flush=True)
    save_file(latents, path, metadata={"said": json.dumps(said, ensure_ascii=False)})
    print(f"{len(latents)} cases in {path}")


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """Latents and sentences by name."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["said"])  # noqa: SIM118


def difference(before: Tensor | None, after: Tensor | None) -> str:
    """ "equal" bit for bit, or how far apart: the largest difference over the largest value."""
    if before is None or after is None:
        return "only after" if before is None else "only before"
    if before.shape != after.shape:
        return "failed after" if not after.numel() else "failed before" if not before.numel() else "another shape"
    if not after.numel():
        return "failed both"
    bits = [latent.view(torch.uint8) for latent in (before.flatten(), after.flatten())]
    if torch.equal(*bits):
        return "equal"
    return f"{float((before - after).abs().max() / before.abs().max()):.1e}"


def compare(before: Path, after: Path) -> int:
    """Print each case's difference; the exit code is 1 if there is one."""
    (first, said_first), (second, said_second) = read(before), read(after)
    found = {name: difference(first.get(name), second.get(name)) for name in sorted(first | second)}
    width = max(map(len, found))
    for name, answer in found.items():
        new = [sentence for sentence in said_second.get(name, []) if sentence not in said_first.get(name, [])]
        print(f"{name:{width}}  {answer:12}  {'; '.join(new)[:150]}".rstrip())
    differing = sum(answer not in ("equal", "failed both") for answer in found.values())
    print(f"{len(found)} cases: {len(found) - differing} alike bit for bit, {differing} not")
    return int(differing > 0)


@cache
def _families() -> dict:
    from pack.tests.families import FAMILIES

    return FAMILIES


def _pack_nodes() -> list:
    """The node classes, as ComfyUI is given them."""
    from pack.__init__ import comfy_entrypoint

    async def nodes():
        return await (await comfy_entrypoint()).get_node_list()

    return asyncio.run(nodes())


def prepare() -> None:
    """Make ComfyUI and the pack importable, and sums independent of the machine's other work."""
    torch.set_num_threads(1)
    sys.path.insert(0, os.environ["COMFYUI_PATH"])  # before the repository's root: both have a `nodes`
    from comfy.cli_args import args

    args.cpu = True
    pack = sys.modules.setdefault("pack", types.ModuleType("pack"))
    pack.__path__ = [str(ROOT)]
    import utils.install_util  # noqa: F401  (as ComfyUI's main does, before `comfy/utils.py` gets in its way)


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py latents", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="sample every case and keep the latents")
    recording.add_argument("file", type=Path)
    recording.add_argument("--only", default="", metavar="TEXT", help="cases whose name has this in it")
    comparing = commands.add_parser("compare", help="say which cases' latents are equal")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    options = parser.parse_args()
    if options.command == "compare":
        return compare(options.before, options.after)
    prepare()
    record(options.file, lambda name: options.only in name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
