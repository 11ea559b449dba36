"""What moved since a pilot: nothing, or what was moved."""

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from pack.pilot import __main__ as program
from pack.pilot import watch
from pack.pilot.arms import UNGUIDED, Arm, address, cells
from pack.pilot.store import Store
from pack.tests.pilot.test_servers import FakeComfyUI, files, impatient  # noqa: F401 (fixtures)

ARMS = [UNGUIDED, Arm("cfg", 5.0)]
CELLS = cells(ARMS, ["a", "b"], 12, 0)


def name(cell) -> str:
    return address(cell.arm.as_json(), cell.prompt, cell.seed)


def picture(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.integers(60, 190, 3) + rng.normal(0, 20, (16, 16, 3))).clip(0, 255).astype(np.uint8)


@pytest.fixture
def stores(tmp_path):
    with Store(tmp_path / "before") as before, Store(tmp_path / "after") as after:
        for i, cell in enumerate(CELLS):
            before.put(name(cell), picture(i), {"seconds": 1.0})
        yield before, after


def compared(stores) -> watch.Watched:
    return watch.compare(*stores, ARMS, CELLS, name, name)


def test_the_same_pictures_have_not_moved(stores):
    for i, cell in enumerate(CELLS):
        stores[1].put(name(cell), picture(i), {"seconds": 9.0})
    found = compared(stores)
    assert (found.pictures, found.same, found.distance, found.moved) == (48, 48, 0.0, [])
    assert found.paragraph == "48 pictures were made again; 48 are the same to the last bit. Nothing moved."


def test_other_noise_moves_nothing(stores):
    for i, cell in enumerate(CELLS):
        stores[1].put(name(cell), picture(1000 + i), {})
    found = compared(stores)
    assert found.same == 0 and not found.moved and "less than that cannot be seen with so few" in found.paragraph


def test_more_contrast_is_seen_and_told_of_the_setting_that_has_it(stores):
    for i, cell in enumerate(CELLS):
        x = picture(i).astype(float)
        burnt = (x.mean() + 1.6 * (x - x.mean())).clip(0, 255).astype(np.uint8)
        stores[1].put(name(cell), burnt if cell.arm == ARMS[1] else picture(i), {})
    found = compared(stores)
    assert {(m.setting, m.measure.name) for m in found.moved} >= {("CFG 5", "contrast"), ("CFG 5", "saturation")}
    assert {m.setting for m in found.moved} == {"CFG 5"}
    assert found.same == 24 and "Moved beyond the intervals: CFG 5: " in found.paragraph
    (contrast,) = (m.change for m in found.moved if m.measure.name == "contrast")
    assert contrast.value > 0.4 * found.movements[0].change.high and contrast.low > 0


def test_a_saved_pilot_is_watched(files, tmp_path):  # noqa: F811
    comfyui = FakeComfyUI()

    async def ran(*arguments: str) -> str:
        async with comfyui as server:
            options = program.parser().parse_args([*arguments, "--server", server])
            return await (program._run(options) if options.command == "run" else program._watch(options))

    asyncio.run(ran("run", *files, "--pictures", "2", "--settings", "ratio 3"))
    made = sum(comfyui.made.values())
    text = asyncio.run(ran("watch", files[3], "--pictures", "1", "--name", "new"))
    assert sum(comfyui.made.values()) == made + 4  # two settings, two prompts
    assert "4 pictures were made again; 4 are the same to the last bit. Nothing moved." in text
    assert (Path(files[3]) / "watch" / "new" / "watch.txt").exists()
    asyncio.run(ran("watch", files[3], "--pictures", "1", "--name", "new"))
    assert sum(comfyui.made.values()) == made + 4

    other = json.loads(Path(files[0]).read_text())
    other["ckpt"]["inputs"]["ckpt_name"] = "newer.safetensors"
    (tmp_path / "newer.json").write_text(json.dumps(other))
    asyncio.run(ran("watch", files[3], "--workflow", str(tmp_path / "newer.json"), "--pictures", "1"))
    assert sum("newer.safetensors" in prompt for prompt in comfyui.made) == 4
