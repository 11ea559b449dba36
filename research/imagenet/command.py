"""`python3 dev.py imagenet`: sample and judge DiT and EDM2 on ImageNet as the paper does, or convert EDM2's files.

`run` goes on where it was ended: what was sampled is kept. docs/imagenet.md says what to download and how long it takes.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from . import features, metrics, remote, report
from .batches import Batch, Models, Result, digest, is_edm2, sample
from .convert import convert
from .rules import Rule
from .store import Store

STEPS_OF_DIT, STEPS_OF_EDM2 = 250, 32


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dev.py imagenet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    converting = commands.add_parser("convert", help="write EDM2's pickles as safetensors, beside them")
    converting.add_argument("files", nargs="+", type=Path)
    run = commands.add_parser("run", help="sample a grid of rules and scales, judge it, and write the tables")
    run.add_argument("--model", required=True, help="a checkpoint of DiT, or of EDM2, converted")
    run.add_argument("--vae", default="", help="Stable Diffusion's VAE, for models on latents")
    run.add_argument("--uncond", default="", help="EDM2's network without classes, which its CFG moves away from")
    run.add_argument("--weak", default="", help="the weaker network, for the rules autog and reg_autog")
    run.add_argument("--rules", nargs="+", default=["original", "reg_original"], help='as in "reg_intervalt 0.28 2.9"')
    run.add_argument("--scales", nargs="+", type=float, required=True, help="as the authors' programs take them")
    run.add_argument("--pictures", type=int, default=50_000, help="of each rule and scale; default: %(default)s")
    run.add_argument("--batch", type=int, default=32, help="pictures at a time; default: %(default)s")
    run.add_argument("--steps", type=int, default=0, help="of the sampler; default: 250 for DiT, 32 for EDM2")
    run.add_argument("--dtype", default="auto", choices=["auto", "float32", "float16", "bfloat16"])
    run.add_argument("--reference", type=Path, required=True, help="ADM's statistics of ImageNet, .npz")
    run.add_argument("--features", default="inception", choices=features.NAMES, help="tiny is for trying the command")
    run.add_argument("--ray", metavar="ADDRESS", help="spread the batches over a Ray cluster; local starts one here")
    run.add_argument("--out", type=Path, default=Path("imagenet"), help="a folder; default: ./%(default)s")
    return parser.parse_args()


def cells(options: argparse.Namespace) -> dict[tuple[str, float], list[Batch]]:
    """The batches of each rule and scale. Raises ValueError: an option makes no sense, or a file is missing."""
    rules = [Rule.parse(text) for text in options.rules]
    files = Models(*(absolute(options, name) for name in ("model", "vae", "uncond", "weak")), options.dtype)
    if options.pictures < 2 or options.batch < 1:
        raise ValueError("REG: --pictures must be 2 or more, and --batch 1 or more.")
    if any(rule.guides_by_a_weaker_model for rule in rules) and not files.weak:
        raise ValueError("REG: the rules autog and reg_autog need the weaker network: name it with --weak.")
    steps = options.steps or (STEPS_OF_EDM2 if is_edm2(files.model) else STEPS_OF_DIT)
    firsts = range(0, options.pictures, options.batch)
    return {
        (str(rule), scale): [
            Batch(files, str(rule), scale, steps, first, min(options.batch, options.pictures - first), options.features)
            for first in firsts
        ]
        for rule in rules
        for scale in options.scales
    }


def absolute(options: argparse.Namespace, name: str) -> str:
    """The path of a file that an option names, for workers in other folders. Raises ValueError: there is none."""
    given = getattr(options, name)
    if given and not Path(given).is_file():
        raise ValueError(f"REG: --{name} names {given}, and there is no such file.")
    return str(Path(given).resolve()) if given else ""


def results(todo: list[Batch], ray: str | None) -> Iterator[tuple[Batch, Result]]:
    """Sample batches, here or on a cluster, in any order."""
    if ray is None:
        yield from ((batch, sample(batch)) for batch in todo)
    else:
        for batch, result in remote.run([asdict(batch) for batch in todo], ray):
            yield Batch.of(batch), Result(**result)


def fill(store: Store, batches: list[Batch], ray: str | None) -> Iterator[Batch]:
    """Sample what the store does not have, with an estimate of the time that is left; each batch as it is there."""
    todo = [batch for batch in batches if not store.has(batch)]
    total, left = (sum(batch.count for batch in some) for some in (batches, todo))
    with tqdm(total=total, initial=total - left, unit=" pictures", smoothing=0.05, disable=not left) as bar:
        for batch, result in results(todo, ray) if todo else ():
            store.put(batch, result)
            bar.update(batch.count)
            yield batch


def run(options: argparse.Namespace) -> Path:
    """Sample and judge a grid; gives the page that was written. Raises ValueError: something is not as it must be.

    The page is written anew whenever a row is there.
    """
    reference = metrics.read_reference(options.reference)
    grid, store = cells(options), Store(options.out)
    extract = features.extractor(options.features)
    real = None if reference.pictures is None else metrics.features_of(reference.pictures, extract)
    if options.features != "inception":
        reference = metrics.seen_by_another(real)

    def judge(batches: list[Batch]) -> dict[str, float]:
        known = digest(str(options.reference))
        return store.judged(batches, known, lambda: metrics.judge(*store.all_of(batches), reference, real))

    todo = [batch for batches in grid.values() for batch in batches]
    missing = Counter((batch.rule, batch.scale) for batch in todo if not store.has(batch))
    for batch in fill(store, todo, options.ray):
        missing[batch.rule, batch.scale] -= 1
        if not missing[batch.rule, batch.scale]:
            tabulate(options, grid, store, judge)
    return tabulate(options, grid, store, judge)


def tabulate(options: argparse.Namespace, grid: dict, store: Store, judge: Callable) -> Path:
    """Write the page of the rows that are there, and the first pictures of each."""
    rows = []
    for (rule, scale), batches in grid.items():
        if all(map(store.has, batches)):
            rows.append({"rule": rule, "scale": scale, "pictures": options.pictures, **judge(batches)})
            report.sheet(store.get(batches[0]).shown, options.out / "pictures" / f"{rule} {scale:g}.png")
    steps = next(iter(grid.values()))[0].steps
    return report.write(options.out, Path(options.model), about(options, steps), rows)


def about(options: argparse.Namespace, steps: int) -> str:
    """How the grid was made, in a sentence."""
    network = {"inception": "Inception", "tiny": "a tiny random network, which says nothing of quality"}[
        options.features
    ]
    return (
        f"{options.pictures:,} pictures a row, {steps} steps, against {options.reference.name}, features by {network}."
    )


def main() -> str | None:
    """What `sys.exit` is to be told."""
    options = parse()
    try:
        if options.command == "convert":
            for file in options.files:
                print(convert(file))
        else:
            print(run(options))
    except (ValueError, OSError) as error:
        return str(error)
    except KeyboardInterrupt:
        return "\nInterrupted: the same command goes on from here."
    return None
