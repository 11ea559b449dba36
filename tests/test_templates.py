"""The templates: whole, with a thumbnail and a note, offered by a real server, which runs those that need no download."""

import json
from pathlib import Path

import pytest
from PIL import Image

from pack.devtools import workflow
from pack.devtools.client import PromptError

ROOT = Path(__file__).parents[1]
TEMPLATES = sorted(ROOT.glob("workflows/*.json"))
BLUEPRINTS = sorted(ROOT.glob("subgraphs/*.json"))
LOADED = (".safetensors", ".ckpt", ".pth", ".pt", ".gguf")
FEW = {"steps": 3, "batch_size": 1, "pictures_per_prompt": 1}  # whether it runs shows in a few
LOADERS = "CheckpointLoaderSimple|UNETLoader|CLIPLoader|VAELoader|REGDiTLoader|REGEDM2Loader"


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def graphs(saved: dict) -> list[dict]:
    """The workflow itself and the subgraphs in it."""
    return [saved, *saved.get("definitions", {}).get("subgraphs", [])]


def models(path: Path) -> list[dict]:
    """What a template needs, as the browser is told, which offers to download it: name, url and directory."""
    return [model for node in read(path)["nodes"] for model in node["properties"].get("models", [])]


def converted(path: Path) -> list[dict]:
    """What its user converts from another file, which the browser can not do: name, from (a URL) and directory."""
    return [file for node in read(path)["nodes"] for file in node["properties"].get("converted", [])]


WITH_MODELS = [path for path in TEMPLATES if models(path)]
WITHOUT_MODELS = [path for path in TEMPLATES if not models(path)]


def each(paths: list[Path]):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


@each(TEMPLATES)
def test_it_has_a_thumbnail(path):
    picture = path.with_suffix(".jpg")
    assert picture.stat().st_size < 40_000
    with Image.open(picture) as image:
        assert image.format == "JPEG" and min(image.size) >= 300


@each(TEMPLATES)
def test_its_notes_say_what_to_do_and_what_to_download(path):
    notes = "\n".join(node["widgets_values"][0] for node in read(path)["nodes"] if node["type"] == "MarkdownNote")
    assert len(notes) > 200
    for model in models(path):
        assert f"[{model['name']}]({model['url']}) in *models/{model['directory']}*" in notes
    for file in converted(path):
        source = file["from"].rsplit("/")[-1]
        assert f"{file['name']} in *models/{file['directory']}*, from [{source}]({file['from']})" in notes
        assert "python3 dev.py imagenet convert" in notes
    assert "`" not in notes  # Nodes 2.0 writes code in blue on the brown of a note: nobody can read it
    if not models(path):
        assert "nothing to download" in notes


@each(TEMPLATES)
def test_the_browser_is_told_of_every_file_that_it_loads(path):
    values = [value for node in read(path)["nodes"] for value in node["widgets_values"] if isinstance(value, str)]
    assert {value for value in values if value.endswith(LOADED)} == {
        file["name"] for file in [*models(path), *converted(path)]
    }


@each([*TEMPLATES, *BLUEPRINTS])
def test_every_link_is_known_at_both_ends(path):
    for graph in graphs(read(path)):
        links = {link[0]: link for link in map(workflow.as_list, graph["links"])}
        origins, targets = {}, {}
        for node in graph["nodes"]:
            for slot, output in enumerate(node["outputs"]):
                origins |= dict.fromkeys(output["links"], (node["id"], slot))
            for slot, entry in enumerate(node["inputs"]):
                targets |= {entry["link"]: (node["id"], slot)} if entry["link"] is not None else {}
        for slot, entry in enumerate(graph.get("inputs", [])):
            origins |= dict.fromkeys(entry["linkIds"], (workflow.INPUTS, slot))
        for slot, output in enumerate(graph.get("outputs", [])):
            targets |= dict.fromkeys(output["linkIds"], (workflow.OUTPUTS, slot))
        assert origins == {key: tuple(link[1:3]) for key, link in links.items()}
        assert targets == {key: tuple(link[3:5]) for key, link in links.items()}


def test_the_blueprint_is_the_subgraph_of_the_compare_template():
    (blueprint,) = BLUEPRINTS
    (subgraph,) = read(blueprint)["definitions"]["subgraphs"]
    assert read(ROOT / "workflows" / "compare.json")["definitions"]["subgraphs"] == [subgraph]
    assert subgraph["name"] == blueprint.stem


def test_the_server_offers_them_all(server):
    (names,) = server._get("/api/workflow_templates").json().values()
    assert sorted(names) == [path.stem for path in TEMPLATES]


def test_the_server_offers_the_blueprint(server):
    known = server._get("/global_subgraphs").json()
    (key,) = (key for key, entry in known.items() if entry["source"] == "custom_node")
    assert [known[key]["name"]] == [path.stem for path in BLUEPRINTS]
    assert json.loads(server._get(f"/global_subgraphs/{key}").json()["data"]) == read(BLUEPRINTS[0])


@each(WITHOUT_MODELS)
def test_it_runs(server, path):
    prompt = workflow.load(path, server.object_info())
    for node in prompt.values():
        node["inputs"] |= {name: few for name, few in FEW.items() if name in node["inputs"]}
    outputs = server.wait(server.queue(prompt))
    assert any("images" in kind and files for output in outputs.values() for kind, files in output.items())


@each(WITH_MODELS)
def test_the_server_accepts_it(server, path):
    """The prompt is sound, so that the server runs it: as far as the empty files that stand for the models can be loaded."""
    prompt = workflow.load(path, server.object_info())
    with pytest.raises(PromptError, match=f"^({LOADERS}): "):
        server.wait(server.queue(prompt))
