"""The templates in ComfyUI's real page: nothing is missing, nothing lies over another, and the page queues what we run."""

import json
from pathlib import Path

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

from pack.devtools import workflow
from pack.devtools.server import Server
from pack.tests.browser import gui as page

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("workflows/*.json"), *ROOT.glob("subgraphs/*.json")])
OPENED = """
    const [saved, done] = arguments
    const overlap = (a, b) => a[0] < b[0] + b[2] && b[0] < a[0] + a[2] && a[1] < b[1] + b[3] && b[1] < a[1] + a[3]
    const report = async () => {
        await app.loadGraphData(JSON.parse(saved))
        const nodes = app.graph._nodes
        nodes.forEach(node => node.updateArea())
        const pairs = nodes.flatMap((a, i) => nodes.slice(i + 1).map(b => [a, b]))
        return {
            nodes: nodes.length,
            links: app.graph.links.size,
            broken: nodes.filter(node => node.has_errors).map(node => node.type),
            overlapping: pairs.filter(([a, b]) => overlap(a.boundingRect, b.boundingRect)).map(p => p.map(n => n.title)),
            prompt: (await app.graphToPrompt()).output,
        }
    }
    report().then(done, error => done({error: String(error)}))
"""


@pytest.fixture(scope="module")
def server(comfyui_folder, tmp_path_factory):
    """With the pack under its own name: from an odd one ComfyUI serves no script to its page."""
    if not page.browser_and_driver():
        pytest.skip(page.MISSING)
    folder = tmp_path_factory.mktemp("comfyui")
    (folder / "models").symlink_to(comfyui_folder / "models", target_is_directory=True)
    with Server(folder, "ComfyUI-REG") as client:
        yield client


@pytest.fixture(scope="module")
def gui(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    driver = page.start(folder / "profile")
    try:
        gui = page.Gui(driver, server.url, folder)
        gui.open()
        yield gui
    finally:
        driver.quit()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_opens_whole_and_runs_as_the_tests_run_it(gui, server, path):
    text = path.read_text(encoding="utf-8")
    saved = json.loads(text)
    opened = gui.driver.execute_async_script(OPENED, text)
    assert "error" not in opened, opened
    assert (opened["nodes"], opened["links"]) == (len(saved["nodes"]), len(saved["links"]))
    assert opened["broken"] == opened["overlapping"] == []
    assert without_titles(opened["prompt"]) == without_titles(workflow.to_prompt(saved, server.object_info()))


def without_titles(prompt: dict) -> dict:
    return {key: (node["class_type"], node["inputs"]) for key, node in prompt.items()}
