"""Is what a pilot found on the demo model what the exact target says? `python tests/pilot/truth.py FOLDER`.

FOLDER is what REG Pilot wrote; `--prompt "a star" shape=star` says what each of its prompts asks of the demo model. It prints
for each setting the pilot's merit, the mean gain over the deciding measures, beside the distance of its pictures to the exact
target of guidance at the baseline's cfg, and how the two orders agree.
"""

import argparse
import csv
import sys
import types
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import stats

DECIDING = {"own": 1, "score": 1, "variety latent": 1, "burn": -1}


def pack_importable() -> None:
    pack = types.ModuleType("pack")
    pack.__path__ = [str(Path(__file__).parents[2])]
    sys.modules.setdefault("pack", pack)


def merits(folder: Path) -> dict[str, float]:
    """The mean gain of each setting over the deciding measures, in units of what guidance changes."""
    changes: dict[str, dict[str, float]] = defaultdict(dict)
    with (folder / "settings.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["measure"] in DECIDING:
                changes[row["measure"]][row["setting"]] = float(row["less the baseline"])
    gains = {
        name: {setting: DECIDING[name] * change / abs(found["no guidance"]) for setting, change in found.items()}
        for name, found in changes.items()
    }
    return {
        setting: float(np.mean([found[setting] for found in gains.values()])) for setting in next(iter(gains.values()))
    }


def distances(folder: Path, prompts: dict[str, dict], w: float) -> dict[str, float]:
    """The distance of each setting's pictures to the exact target, mean over prompts and attributes."""
    from pack.research import decode
    from pack.research.quality import measures

    decoder, pictures = decode.load(), defaultdict(list)
    with (folder / "pictures.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            pictures[row["setting"], row["prompt"]].append(np.asarray(Image.open(folder / row["file"]).convert("RGB")))
    found = defaultdict(list)
    for (setting, prompt), drawn in pictures.items():
        read = measures.read(np.stack(drawn), np.zeros(len(drawn)), decoder)
        exact = measures.references(w, tuple(prompts[prompt].items()))
        index = np.arange(len(drawn))[:, None]
        found[setting].append(measures.distances(read, index, exact)[:, 0].mean())
    return {setting: float(np.mean(values)) for setting, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompt", nargs="+", action="append", default=[], metavar=("TEXT", "NAME=VALUE"))
    parser.add_argument("--cfg", type=float, default=5.0, help="of the baseline")
    options = parser.parse_args()
    prompts = {text: dict(pair.split("=") for pair in pairs) for text, *pairs in options.prompt}
    pack_importable()
    merit, distance = merits(options.folder), distances(options.folder, prompts, options.cfg - 1)
    for setting in sorted(merit, key=lambda setting: -merit[setting]):
        print(f"{setting:28} merit {merit[setting]:+.2f}   distance {distance[setting]:.3f}")
    guided = [setting for setting in merit if setting != "no guidance"]
    agreement = stats.spearmanr([-merit[s] for s in guided], [distance[s] for s in guided])
    print(f"rank correlation of the {len(guided)} guided settings: {agreement.statistic:.2f}")


if __name__ == "__main__":
    main()
