"""What is concluded from pictures whose truth is known."""

from html import unescape

import numpy as np
import pytest
from scipy import stats

from pack.demo import world
from pack.pilot import collect, measures, page
from pack.pilot.arms import UNGUIDED, Arm, Cell, address, cells
from pack.pilot.intervals import Estimate
from pack.pilot.store import Store
from pack.pilot.verdict import Change, Comparison, _rounded, judge
from pack.research import target

BASELINE, GENTLE, HARSH, BROKEN, SAME = (
    Arm("cfg", 5.0),
    Arm("ratio", 3.0),
    Arm("cfg", 9.0),
    Arm("ratio", 9.0),
    Arm("ratio", 5.0),
)
ARMS = [UNGUIDED, BASELINE, GENTLE, HARSH, BROKEN, SAME]
PROMPTS, PICTURES = ["square", "circle"], 30


def name(cell: Cell) -> str:
    return address(cell.arm.as_json(), cell.prompt, cell.seed)


def drawn(arm: Arm, prompt: str, seed: int) -> np.ndarray:
    """A picture of the world that a rule might have made. Settings differ in what is drawn and how strongly, in known ways.

    Without guidance half of the shapes are others; the baseline has few colours and burns; the gentle one is the world's own
    conditional, which is the exact target of guidance; the harsh one has one colour and burns more; the broken one is noise.
    """
    rng = np.random.default_rng(seed)
    attributes = world.sample_attributes(1, rng)
    other = rng.random() < 0.5
    shape = world.SHAPES.index(prompt)
    attributes.shape[:] = (shape + 2) % 4 if arm == UNGUIDED and other else shape
    spread, burn = {UNGUIDED: (1, 0), GENTLE: (1, 0), HARSH: (0.05, 0.7), BROKEN: (1, 0)}.get(arm, (0.4, 0.35))
    attributes.hue[:] = 2 + spread * (attributes.hue - 2)
    attributes.centre[:] = 32 + spread * (attributes.centre - 32)
    if spread < 1:
        attributes.background[:] = 0 if rng.random() > spread else attributes.background
    x = world.draw_picture(attributes, 0).astype(float)
    if arm == BROKEN:
        x = 0.3 * x + 0.7 * 255 * rng.random(x.shape)
    return (127.5 + (1 + burn) * (x - 127.5)).clip(0, 255).round().astype(np.uint8)


def agreement(arm: Arm, prompt: str, seed: int) -> float:
    """As a judge would say it who sees the shape, with an error of his own."""
    other = np.random.default_rng(seed)
    world.sample_attributes(1, other)
    shows_it = arm != BROKEN and not (arm == UNGUIDED and other.random() < 0.5)
    return 0.9 * shows_it + 0.1 * np.random.default_rng([seed, ARMS.index(arm) % 5]).random()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with Store(tmp_path_factory.mktemp("pilot")) as store:
        for cell in cells(ARMS, PROMPTS, PICTURES, 0):
            arm = BASELINE if cell.arm == SAME else cell.arm
            picture = drawn(arm, cell.prompt, cell.seed)
            store.put(
                name(cell),
                picture,
                {"own": agreement(arm, cell.prompt, cell.seed), "seconds": 1.0 + ARMS.index(cell.arm)},
            )
        yield store


@pytest.fixture(scope="module")
def references():
    """The exact target at any w, of prompts that state the shape alone: the world's own pictures."""
    exact = target.target(4.0, {"shape": "square"}).distribution("background").p
    assert exact == pytest.approx(target.target(0.0, {"shape": "square"}).distribution("background").p)
    return [drawn(GENTLE, PROMPTS[i % 2], 10_000 + i) for i in range(120)]


@pytest.fixture(scope="module")
def verdict(store):
    return judge(collect.table(store, ARMS, cells(ARMS, PROMPTS, PICTURES, 0), name), BASELINE)


def test_the_setting_nearest_to_the_exact_target_is_recommended(verdict):
    assert verdict.recommended == GENTLE
    assert verdict.paragraph.startswith("60 pictures of 2 prompts were made with every setting, from the same noises.")
    assert "ratio 3 is recommended: it is better than CFG 5 in" in verdict.paragraph


def test_a_broken_and_a_burning_one_are_found_out(verdict):
    found = {comparison.arm: comparison for comparison in verdict.comparisons}
    assert not found[BROKEN].is_better and any(c.is_loss for c in found[BROKEN].changes if c.measure.name == "own")
    assert found[HARSH].is_worse and "Worse than CFG 5, and better in nothing: CFG 9" in verdict.paragraph
    assert verdict.comparisons[0].arm == GENTLE and verdict.comparisons[-1].arm == BROKEN


def test_the_same_pictures_show_no_difference(verdict):
    (same,) = (c for c in verdict.comparisons if c.arm == SAME)
    assert all(change.raw.value == change.raw.error == 0 for change in same.changes)
    assert "was found with this many pictures for ratio 5 (the pictures are the same)." in verdict.paragraph


def test_nearness_orders_as_the_exact_target_does(store, references):
    table = collect.table(store, ARMS, cells(ARMS, PROMPTS, PICTURES, 0), name, references=references)
    (kid,) = (measure for measure in measures.measures(table) if measure.name == "kid")
    found = {arm: kid.estimate(i, 0.95) for i, arm in enumerate(ARMS)}
    assert found[GENTLE].low < 0.5 and found[GENTLE].value < found[UNGUIDED].value < found[HARSH].value
    assert found[GENTLE].value < found[BASELINE].value < found[HARSH].value
    assert judge(table, BASELINE).recommended == GENTLE


def test_a_few_pictures_recommend_nothing(store):
    few = collect.table(store, ARMS, cells(ARMS, PROMPTS, 2, 0), name)
    assert judge(few, BASELINE).recommended is None
    some = judge(collect.table(store, [UNGUIDED, BASELINE, HARSH], cells(ARMS, PROMPTS, 4, 0), name), BASELINE)
    assert some.recommended is None and "keep CFG 5" in some.paragraph


def test_without_agreement_nothing_is_recommended(store):
    table = collect.table(store, ARMS, cells(ARMS, PROMPTS, PICTURES, 0), name)
    del table.values["own"]
    verdict = judge(table, BASELINE)
    assert verdict.recommended is None and "give a scorer" in verdict.paragraph


def test_one_cell_by_hand(store, verdict):
    """Every number of one setting, with plain loops over its pictures."""
    units = verdict.table.units
    pictures = {
        arm: [store.picture(name(Cell(arm, *unit))).astype(float) for unit in units] for arm in (UNGUIDED, BASELINE)
    }

    def signs(x: np.ndarray) -> list[float]:
        flat = x.reshape(-1, 3)
        clipped = sum(v in (0, 255) for v in x.ravel()) / x.size
        saturation = sum((max(p) - min(p)) / max(p) if max(p) else 0 for p in flat.tolist()) / len(flat)
        return [clipped, saturation, 2 * (flat @ [0.299, 0.587, 0.114]).std() / 255]

    by_hand = {arm: np.array([signs(x) for x in xs]) for arm, xs in pictures.items()}
    shown = {m.name: m.estimate(verdict.table.index(BASELINE), 0.95) for m in verdict.measures}
    for i, key in enumerate(("clipped", "saturation", "contrast")):
        assert shown[key].value == pytest.approx(100 * by_hand[BASELINE][:, i].mean(), rel=1e-4)
    assert shown["burn"].value == pytest.approx(100 * (by_hand[BASELINE] - by_hand[UNGUIDED]).mean(), rel=1e-4)
    small = [x.reshape(32, 2, 32, 2, 3).mean((1, 3)) / 255 for x in pictures[BASELINE]]
    pairs = [
        np.sqrt(((small[i] - small[j]) ** 2).mean())
        for i in range(len(units))
        for j in range(i)
        if units[i][0] == units[j][0]
    ]
    contrast = np.mean([x.std() for x in small])
    assert shown["variety pixels"].value == pytest.approx(np.mean(pairs) / contrast, rel=3e-3)  # averages are rounded
    assert shown["own"].value == pytest.approx(100 * np.mean([agreement(BASELINE, *unit) for unit in units]))
    assert shown["seconds"].value == 2.0


def test_many_prompts_are_drawn_in_place_of_pictures():
    """Then the interval of a mean is Student's over the prompts' means."""
    rng = np.random.default_rng(0)
    units = [(f"prompt {i}", j) for i in range(25) for j in range(3)]
    values = rng.normal(size=(1, 75)) + np.repeat(rng.normal(size=25), 3)
    table = measures.Table([BASELINE], units, {"score": values})
    (score,) = measures.measures(table)
    found = score.estimate(0, 0.95)
    means = 100 * values.reshape(25, 3).mean(1)
    assert (found.n, found.value) == (25, pytest.approx(means.mean()))
    assert found.error == pytest.approx(means.std(ddof=1) / 5, rel=0.1)


def test_the_page_holds_everything(store, verdict):
    from pack.pilot.preset import Preset, load

    preset = Preset.of(verdict.recommended, {}, model="<b>my model</b>.safetensors", evidence=verdict.paragraph)
    page.write(store, verdict, name, "<script>alert(1)</script>", [("made", "today"), ("model", "<b>")], preset)
    html = (store.folder / "pilot.html").read_text(encoding="utf-8")
    assert "<script" not in html and "&lt;script&gt;" in html and verdict.paragraph in unescape(html)
    assert (
        "http" not in html.replace("https://arxiv.org/abs/2501.18865", "").replace("http-equiv", "").split("base64")[0]
    )
    assert all(arm.label in html for arm in ARMS)
    assert load(store.folder / "preset.json") == preset
    lines = (store.folder / "pictures.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + len(ARMS) * 60
    assert len((store.folder / "settings.csv").read_text().splitlines()) == 1 + len(ARMS) * len(verdict.measures)


def compared(*gains: tuple[float, float], margin: float = 0.25) -> Comparison:
    """A setting whose gains are these, and as far around them as the intervals go."""
    more = measures.Measure("m", "m", 1, None, 10, "")
    changes = [Change(more, Estimate(gain, reach / 2, gain - reach, gain + reach, 10), 1.0) for gain, reach in gains]
    return Comparison(GENTLE, changes, margin)


def test_a_loss_that_may_exceed_the_margin_is_not_put_up_with():
    """By the end of its interval, not by what it seems to be."""
    assert not compared((1, 0.5), (-0.1, 0.2), margin=0.25).is_better
    assert compared((1, 0.5), (-0.1, 0.2), margin=0.31).is_better
    assert not compared((0.4, 0.5), (0.0, 0.1)).is_better


def test_how_many_pictures_would_settle_it():
    """An interval is as wide as one over the root of their number."""
    assert compared((1, 0.5), (-0.1, 0.3)).factor_needed() == pytest.approx((0.3 / 0.15) ** 2)
    assert compared((0.5, 1), (0.0, 0.1)).factor_needed() == pytest.approx((1 / 0.5) ** 2)
    assert compared((1, 0.5), (-0.3, 0.1)).factor_needed() == np.inf
    assert compared((-0.1, 0.2)).factor_needed() == np.inf
    assert [_rounded(n) for n in (7, 31.2, 312, 5e6)] == ["7", "32", "320", "more than a million"]


def test_intervals_hold_for_all_settings_together():
    """Bonferroni, over Student's paired intervals."""
    arms = [UNGUIDED, BASELINE, *(Arm("ratio", float(cfg)) for cfg in (2, 3, 4, 5, 6))]
    scores = np.random.default_rng(0).normal(size=(len(arms), 12))
    found = judge(measures.Table(arms, [("p", i) for i in range(12)], {"score": scores}), BASELINE)
    assert found.level == pytest.approx(1 - 0.05 / 5)
    for comparison in found.comparisons:
        pair = 100 * scores[[arms.index(comparison.arm), arms.index(BASELINE)]]
        interval = stats.ttest_rel(*pair).confidence_interval(0.99)
        raw = comparison.changes[0].raw
        assert [raw.low, raw.high] == pytest.approx([*interval], abs=0.1 * (interval.high - interval.low))
