"""What a user does first, in ComfyUI's real page: the template, the search, wires, a report, help, a mistake."""

import json
import os
import re

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

from pack.devtools.server import Server
from pack.tests.browser import gui as page

PACK_NAME = "ComfyUI-REG"
STEPS = 20 if os.environ.get("REG_SCREENSHOTS") else 3
EMPTY = (760, 700)  # where the demo template, as it opens, has no node


@pytest.fixture(scope="module")
def gui(tmp_path_factory):
    """ComfyUI in a browser."""
    if not page.browser_and_driver():
        pytest.skip(page.MISSING)
    folder = tmp_path_factory.mktemp("comfyui")
    settings = folder / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps(page.SETTINGS))
    with Server(folder, PACK_NAME) as client:
        driver = page.start(tmp_path_factory.mktemp("profile"))
        try:
            yield page.Gui(driver, client.url, folder)
        finally:
            driver.quit()


@pytest.fixture
def demo(gui):
    """The demo template, just opened."""
    gui.open()
    gui.open_template("demo", PACK_NAME)
    for sampler in ("Sample with REG", "Sample with CFG"):
        gui.set(sampler, steps=STEPS)
    return gui


def test_the_template_runs_and_shows_its_pictures(demo):
    demo.run()
    with_reg, with_cfg = (demo.until(lambda title=title: demo.pictures(title), title, 120) for title in ("REG", "CFG"))
    assert len(with_reg) == len(with_cfg) == 1  # a sheet of them
    demo.screenshot("gui-demo")


def test_a_node_is_found_by_search_and_wired_by_hand(demo):
    demo.delete("REG Model")
    demo.add("REG Model", "CFG guidance (REG Model)", EMPTY, (420, 318))
    demo.wire("REG Demo Model", "MODEL", "CFG guidance (REG Model)", "model")
    demo.wire("CFG guidance (REG Model)", "MODEL", "Sample with REG", "model")
    demo.run()
    assert demo.until(lambda: demo.pictures("REG"), "the pictures", 120)


def test_the_report_is_shown_on_its_node(demo):
    demo.add("REG Report", "REG Report", EMPTY, (690, 650))
    demo.wire("Sample with REG", "LATENT", "REG Report", "latent")
    demo.run()
    assert demo.until(lambda: demo.pictures("REG Report"), "the report's picture", 120)
    demo.select("REG Report")
    demo.keys(".")  # ComfyUI's key for: fill the view with what is selected
    demo.screenshot("gui-report")


def test_the_node_that_samples_tells_what_it_does(demo):
    demo.run()
    line = demo.until(lambda: demo.line("Sample with REG"), "the line", 120)
    assert re.fullmatch(r"REG: cfg 8\.0 → \d\.\d, REG \(paper\)", line)
    assert demo.line("Sample with CFG") is None
    demo.element(f"//*[contains(text(), '{line[:24]}')]", "the line on the screen")
    demo.screenshot("gui-line")


def test_what_a_node_draws_is_shown_on_it(gui):
    gui.open()
    gui.js("app.graph.clear()")
    gui.add("guidance explained", "REG Toy", EMPTY, (300, 150))
    gui.add("guidance interval", "REG Schedule", EMPTY, (900, 150))
    gui.run()
    for title in ("REG Toy", "REG Schedule"):
        assert len(gui.until(lambda title=title: gui.pictures(title), f"the picture of {title}", 120)) == 1
    gui.screenshot("gui-toy")


def test_the_help_page_opens(demo):
    demo.select("REG Model")
    demo.marked("info-button").click()
    panel = "//*[@data-testid='properties-panel']"
    demo.element(f"{panel}//h1[normalize-space()='CFG guidance (REG Model)']", "the help page")
    demo.element(f"{panel}//h2[normalize-space()='When to use it']", "its own text, not one made of the schema")
    demo.screenshot("gui-help")


def test_a_mistake_is_shown_on_its_node_before_anything_loads(demo):
    demo.set("REG Model", start_percent=0.8, end_percent=0.2)
    demo.run()
    why = "REG: start_percent (0.8) comes after end_percent (0.2): swap them."
    assert demo.marked("error-overlay").text.count(why) == 1
    demo.marked("error-overlay-see-errors").click()
    demo.until(lambda: "1 node — 1 error" in demo.marked("properties-panel").text, "one error")
    demo.screenshot("gui-error")
