"""What the registry, the Manager and the forge read; `python3 dev.py install-check` has the real programs read it."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from PIL import Image

from pack import dev
from pack.devtools.shipped import shipped

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, COMFY = SETTINGS["project"], SETTINGS["tool"]["comfy"]


def picture(key: str) -> tuple[int, int]:
    """Width and height of a picture that the registry shows, which lies in this repository."""
    host, owner, name, branch, path = re.fullmatch(r"https://([^/]+)/([^/]+)/([^/]+)/([^/]+)/(.+)", COMFY[key]).groups()
    assert (host, branch) == ("raw.githubusercontent.com", "main")
    assert f"https://github.com/{owner}/{name}" == PROJECT["urls"]["Repository"]
    with Image.open(ROOT / path) as image:
        return image.size


def test_icon_and_banner_have_the_registrys_shapes():
    width, height = picture("Icon")
    assert width == height <= 400
    width, height = picture("Banner")
    assert width * 9 == height * 21


def test_the_name_follows_the_registrys_rules():
    assert re.fullmatch(r"[a-z](-?[a-z0-9])*", PROJECT["name"]) and "comfy" not in PROJECT["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", PROJECT["version"])
    assert COMFY["PublisherId"] and COMFY["DisplayName"]


def test_the_changelog_begins_with_this_version():
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)[1] == PROJECT["version"]


def test_one_list_of_requirements():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    names = [line.split("#")[0].strip() for line in lines]
    assert sorted(filter(None, names)) == sorted(PROJECT["dependencies"])


def test_the_lowest_comfyui_is_tested_at_every_push():
    lowest = COMFY["requires-comfyui"].removeprefix(">=")
    assert re.search(rf"comfyui: \[.*\bv{re.escape(lowest)}\]", (ROOT / ".github/workflows/test.yml").read_text())


def test_every_line_of_comfyignore_names_something():
    lines = (ROOT / ".comfyignore").read_text().split()
    assert [line for line in lines if not (ROOT / line.removeprefix("/")).exists()] == []


@pytest.mark.parametrize("path", [path for path in shipped() if path.endswith(".py")])
def test_what_a_program_imports_of_the_pack_is_shipped(path):
    files = set(shipped())
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = Path(path).parents[node.level - 1].joinpath(*(node.module or "").split("."))
            assert any(
                {f"{target}.py", f"{target}/__init__.py"} & files
                for target in (folder.as_posix(), *((folder / alias.name).as_posix() for alias in node.names))
            ), ast.unparse(node)


def test_the_forges_workflow_files_are_sound():
    linter = [str(Path(sys.executable).parent / "zizmor"), "--offline", "--strict-collection", "--quiet"]
    found = subprocess.run([*linter, ".github/workflows"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("path", sorted((ROOT / ".github/workflows").iterdir()), ids=lambda path: path.name)
def test_the_forges_workflow_files_refer_to_what_there_is(path):
    """Which the linter does not see: jobs that are needed, files, names in the matrix, and the shell's own syntax."""
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    for job in jobs.values():
        needed = job.get("needs", [])
        assert ({needed} if isinstance(needed, str) else set(needed)) <= set(jobs)
        assert not job.get("uses", "").startswith("./") or (ROOT / job["uses"]).is_file()
        assert set(re.findall(r"\bmatrix\.(\w+)", str(job))) == set(job.get("strategy", {}).get("matrix", {}))
        for script in (step["run"] for step in job.get("steps", []) if "run" in step):
            assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""
            assert set(re.findall(r"dev\.py (\S+)", script)) <= set(dev.COMMANDS)


def test_only_the_demo_model_and_its_half_are_shipped():
    weights = {path for path in shipped() if path.endswith(".safetensors") and "profiles" not in path}
    assert weights == {"demo/weights/demo.safetensors", "demo/weights/demo-half.safetensors"}
    sizes = {path: (ROOT / path).stat().st_size for path in shipped()}
    assert max(sizes.values()) < 12e6


def test_nothing_of_research_is_shipped():
    assert {path.split("/")[0] for path in shipped()}.isdisjoint({"research", "docs", "tests", "devtools"})
