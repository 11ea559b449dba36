"""The numbers that README states are those of the tables that it links to."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("comfyui_workflow_templates_json", reason="needs ComfyUI: python3 dev.py test")

import comfyui_workflow_templates_json

from pack.reg.refresh import DOUBLING, measured_steps

ROOT = Path(__file__).parents[1]
SENTENCES = {  # how many steps are measured; what a run costs, and by differences
    "README.md": (
        r"(\d+) of (\d+) steps are measured",
        r"([\d.]+) to ([\d.]+) times CFG's time on an H200",
        r"([\d.]+) to ([\d.]+) with `measured by` difference",
    ),
    "README.ja.md": (
        r"(\d+) ステップのうち (\d+) ステップを測定",
        r"CFG の ([\d.]+)～([\d.]+) 倍",
        r"difference にすると ([\d.]+)～([\d.]+) 倍",
    ),
}
CFG_AT = {"KSampler": 3, "KSamplerAdvanced": 4, "SamplerCustom": 3, "CFGGuider": 0}  # place among the node's values


@pytest.fixture(params=SENTENCES)
def stated(request) -> list[list[float]]:
    """The numbers of each sentence, ascending."""
    text = (ROOT / request.param).read_text(encoding="utf-8").replace("\n", " ")
    return [sorted(map(float, re.search(sentence, text).groups())) for sentence in SENTENCES[request.param]]


def cost_at_30_steps(estimator: str) -> list[float]:
    """Of the default rule, on every model in the table of a GPU, over CFG's."""
    lines = (ROOT / "research/benchmarks/gpu.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("|")]
    column = next(row.index("30 steps") for row in rows if "30 steps" in row)
    return [float(row[column]) for row in rows if row[1] == f"elementwise, {estimator}" and len(row) > column]


def cfgs(workflow: dict) -> list[float]:
    """Of every node that samples, also within subgraphs; a guider without a cfg has 1."""
    subgraphs = workflow.get("definitions", {}).get("subgraphs", [])
    nodes = [node for graph in (workflow, *subgraphs) for node in graph["nodes"]]
    found = [node["widgets_values"][CFG_AT[node["type"]]] for node in nodes if node["type"] in CFG_AT]
    return [*found, *(1 for node in nodes if node["type"] == "BasicGuider")]


def test_how_many_steps_are_measured(stated):
    measured, steps = stated[0]
    assert len(measured_steps(int(steps), DOUBLING)) == measured


def test_the_cost(stated):
    for found, estimator in zip(stated[1:], ("backward", "difference"), strict=True):
        assert found == [round(end(cost_at_30_steps(estimator)), 1) for end in (min, max)]


def test_about_half_of_comfyuis_templates_run_at_cfg_1():
    folder = Path(comfyui_workflow_templates_json.__file__).parent / "templates"
    read = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    sampling = [found for one in read if "nodes" in one and (found := cfgs(one))]
    assert 0.45 < sum(1 in found for found in sampling) / len(sampling) < 0.6
