"""What the notes of the templates tell people to do, done in ComfyUI's page, in both renderers: nothing of it fails.

Runs are short here: what is asked is that they end, and that what they show is there.
"""

import json
import re

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

from selenium.webdriver.common.keys import Keys

from pack.devtools.server import Server
from pack.tests.browser import gui as page

PACK_NAME = "ComfyUI-REG"
RENDERERS = {"classic": False, "nodes 2.0": True}
EMPTY = (1250, 690)  # where no template has a node when it opens
FEW = """
    for (const node of app.graph._nodes) for (const widget of node.widgets ?? []) {
        if (widget.name == "steps") widget.value = 2
        if (widget.name == "batch_size" && node.type == "EmptyLatentImage") widget.value = 2
        if (widget.name == "points") widget.value = 2
    }
"""
LINK = """
    const [origin, output, target, input] = arguments, find = title => app.graph._nodes.find(node => node.title == title)
    const from = find(origin), to = find(target)
    from.connect(from.findOutputSlot(output), to, to.findInputSlot(input))
"""
BESIDE = "app.graph._nodes.find(node => node.title == arguments[0]).pos = [1700, 0]"  # what the demo has
MODE = "app.graph._nodes.find(node => node.title == arguments[0]).mode = arguments[1]"
TEXT = """
    const node = app.graph._nodes.find(node => node.title == arguments[0])
    const shown = (node.widgets ?? []).map(widget => String(widget.value))
    return [...shown, ...(app.nodeOutputs[node.id]?.text ?? [])].join(" ")
"""
IN_SIGHT = """
    const hit = arguments[0].getBoundingClientRect(), list = arguments[0].parentElement.parentElement.getBoundingClientRect()
    return hit.bottom < Math.min(window.innerHeight, list.bottom + 5)
"""


@pytest.fixture(scope="module", params=RENDERERS)
def gui(request, tmp_path_factory):
    """ComfyUI in a browser, with one of its two renderers."""
    if not page.browser_and_driver():
        pytest.skip(page.MISSING)
    folder = tmp_path_factory.mktemp("comfyui")
    settings = folder / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps({**page.SETTINGS, "Comfy.VueNodes.Enabled": RENDERERS[request.param]}))
    with Server(folder, PACK_NAME) as client:
        driver = page.start(tmp_path_factory.mktemp("profile"))
        try:
            gui = page.Gui(driver, client.url, folder)
            gui.client, gui.renderer = client, request.param.replace(" ", "")
            yield gui
        finally:
            driver.quit()


@pytest.fixture
def opened(gui):
    """Opens a template, with little to sample."""

    def opening(name):
        gui.open()
        gui.open_template(name, PACK_NAME)
        gui.js(FEW)
        return gui

    return opening


def run(gui) -> None:
    """Press Run and wait for the end, which is to be a success."""
    before = set(history(gui))
    gui.run()
    (key,) = gui.until(lambda: set(history(gui)) - before, "the end of the run", 120)
    status = history(gui)[key]["status"]
    assert status["completed"], status["messages"]


def history(gui) -> dict:
    return gui.client._get("/history").json()


def shows(gui, *titles: str) -> None:
    for title in titles:
        assert gui.until(lambda title=title: gui.pictures(title), f"the picture of {title}", 30)


def says(gui, title: str, words: str) -> None:
    gui.until(lambda: words in gui.js(TEXT, title), f"'{words}' on {title}", 30)


def test_demo(opened):
    gui = opened("demo")
    run(gui)
    shows(gui, "CFG", "REG", "The right answer")
    gui.screenshot(f"demo-{gui.renderer}")
    for sampler in ("Sample with CFG", "Sample with REG"):
        gui.set(sampler, cfg=2)
    gui.set("REG Model", rectification="ratio")
    gui.set("Prompt", shape="circle", colour="red")
    run(gui)
    shows(gui, "CFG", "REG", "The right answer")


def test_strength_0_a_bypassed_and_a_deleted_report(opened):
    """As the notes of the templates with models have it, whose weights are not here."""
    gui = opened("demo")
    gui.add("REG Report", "REG Report", EMPTY)
    gui.js(LINK, "Sample with REG", "LATENT", "REG Report", "latent")
    gui.js(BESIDE, "REG Report")
    run(gui)
    line = gui.until(lambda: gui.line("Sample with REG"), "the line")
    cfg = re.fullmatch(r"REG: (cfg 8\.0 → \d+\.\d), REG \(paper\)", line)[1]
    says(gui, "REG Report", cfg)
    shows(gui, "REG Report")
    gui.js("app.canvas.ds.offset[0] -= 400; app.graph.setDirtyCanvas(true, true)")  # the report is on the right
    gui.screenshot(f"report-{gui.renderer}")
    gui.set("REG Model", every=1)
    run(gui)
    says(gui, "REG Report", "measured at every step")
    gui.set("REG Model", strength=0)
    run(gui)
    says(gui, "REG Report", "this run was not rectified")
    gui.until(lambda: not gui.line("Sample with REG"), "the line to be gone")
    gui.set("REG Model", strength=1)
    gui.js(MODE, "REG Model", 4)  # bypassed
    gui.set("Sample with REG", seed=2)
    run(gui)
    says(gui, "REG Report", "this run was not rectified")
    shows(gui, "REG Report", "REG")
    gui.delete("REG Report")
    run(gui)


def test_a_muted_node_fails_no_more_than_comfyui_lets_it(opened):
    gui = opened("demo")
    gui.add("REG Report", "REG Report", EMPTY)
    gui.js(LINK, "Sample with REG", "LATENT", "REG Report", "latent")
    gui.js(MODE, "REG Model", 2)  # muted: its sampler has no model, and ComfyUI says so and runs the rest
    run(gui)
    shows(gui, "CFG")
    errors = gui.js("return Object.values(app.lastNodeErrors)")
    found = [(entry["class_type"], error["type"]) for entry in errors for error in entry["errors"]]
    assert found == [("KSampler", "required_input_missing")]
    gui.js(MODE, "REG Model", 0)
    gui.js(MODE, "REG Report", 2)
    run(gui)
    shows(gui, "REG")


def test_a_saved_workflow_that_names_a_rule_as_it_did(opened):
    gui = opened("demo")
    gui.set("REG Model", rectification="elementwise", every=4)
    run(gui)
    shows(gui, "REG")


def test_compare_and_its_blueprint(opened):
    gui = opened("compare")
    gui.set("CFG beside REG", cfg=8, rectification="whole Jacobian", strength=2)
    run(gui)
    shows(gui, "CFG", "REG")
    gui.screenshot(f"compare-{gui.renderer}")
    gui.until(lambda: gui.search(EMPTY), "the search").send_keys("CFG beside REG")
    gui.element("//*[@role='option'][.//*[normalize-space()='CFG beside REG']]", "the blueprint")
    gui.keys(Keys.ESCAPE)


def test_grid(opened):
    gui = opened("grid")
    gui.set("Make Image Grid", columns=3)
    gui.set("REG Model", rectification="ratio")
    run(gui)
    shows(gui, "cfg down, strength to the right")


def test_guided_tour(opened):
    gui = opened("guided_tour")
    gui.set("Samples", cfg=6, seed=3)
    gui.set("Arrows", sigma=0.1)
    run(gui)
    shows(gui, "Samples", "Arrows", "Curves", "What is left", "CFG", "REG")
    gui.screenshot(f"tour-{gui.renderer}")


def test_autoguidance(opened):
    gui = opened("autoguidance")
    run(gui)
    gui.js(LINK, "Empty prompt", "CONDITIONING", "REG AutoGuider", "negative")
    gui.set("REG AutoGuider", negative_share=0.3)
    run(gui)
    shows(gui, "AutoGuidance", "CFG")


def test_profile(opened):
    gui = opened("profile")
    run(gui)
    shows(gui, "Profile", "Measured")
    says(gui, "REG Save Profile", "models/reg_profiles/demo.safetensors")
    gui.set("REG by the profile", skip_below=0.02)
    run(gui)
    gui.delete("REG Calibrate")
    gui.add("REG Load Profile", "REG Load Profile", EMPTY)
    gui.set("REG Load Profile", name="demo.safetensors")
    gui.js(LINK, "REG Load Profile", "profile", "REG by the profile", "profile")
    gui.delete("REG Save Profile")
    run(gui)
    shows(gui, "Profile")


def test_pilot(opened):
    gui = opened("pilot")
    gui.set("REG Pilot", pictures_per_prompt=1)
    run(gui)
    shows(gui, "REG Pilot", "The same noises side by side")
    says(gui, "The answer", "2 pictures of 2 prompts")
    gui.screenshot(f"pilot-{gui.renderer}")
    gui.set("REG Pilot", pictures_per_prompt=2)
    run(gui)
    says(gui, "The answer", "4 pictures of 2 prompts")
    gui.set("REG Pilot", settings="elementwise 8\ncfg 4\nratio 8")
    run(gui)
    shows(gui, "The same noises side by side")


@pytest.mark.parametrize("words", ["REG", "cfg", "guidance"])
def test_search(opened, words):
    gui = opened("demo")
    gui.until(lambda: gui.search(EMPTY), "the search").send_keys(words)
    first = "//*[@role='option'][.//*[normalize-space()='CFG guidance (REG Model)']]"
    hit = gui.element(first, f"REG Model among what '{words}' finds")
    # ComfyUI ranks by names, then by use: "guidance" is in ten names that are used more. Aliases only add to the list.
    assert words == "guidance" or gui.js(IN_SIGHT, hit), "not on the first page"
    gui.screenshot(f"search-{words}-{gui.renderer}")


def test_two_inputs_are_in_sight(opened):
    gui = opened("demo")
    shown = """
        const node = app.graph._nodes.find(node => node.type == "REGModel")
        return node.widgets.filter(widget => !(widget.advanced || widget.options?.advanced)).map(widget => widget.name)
    """
    assert gui.js(shown) == ["rectification", "strength"]
    visible = "return app.graph._nodes.find(n => n.type == 'REGModel').widgets.filter(w => !w.advanced).length"
    assert gui.js(visible) == 2
    gui.select("REG Model")
    gui.keys(".")
    gui.screenshot(f"node-{gui.renderer}")
