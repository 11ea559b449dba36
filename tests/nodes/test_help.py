"""Every node has its help page, which tells of everything on the node; no page points to what is not there."""

import re
from pathlib import Path

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

from comfy import samplers

from pack.devtools import locales
from pack.devtools.server import Server

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "web" / "docs"
LANGUAGES = ("en", "ja")
SCHEMAS = {schema.node_id: schema for schema in locales.schemas()}
DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part == "node_modules" for part in path.relative_to(ROOT).parts)
)
LINK = re.compile(r"(!?)\[[^\]]*\]\(([^)\s]+)\)")
COMFYUIS = {*samplers.SAMPLER_NAMES, *samplers.SCHEDULER_NAMES}  # its own documents tell of these
PAPER = "https://arxiv.org/abs/2501.18865"

each_page = pytest.mark.parametrize(
    ("node", "language"), [(node, language) for node in SCHEMAS for language in LANGUAGES]
)


def page(node: str, language: str) -> str:
    return (PAGES / node / f"{language}.md").read_text(encoding="utf-8")


def rows(text: str) -> dict[str, list[str]]:
    """What a page says of each input and output: items of lists, for a table does not fit ComfyUI's side panel."""
    items = re.findall(r"^- \*\*(`.*?)\*\*[:：] *(.*)$", text, flags=re.MULTILINE)
    return {name: [rest] for first, rest in items for name in re.findall(r"`([^`]+)`", first)}


def test_no_table_stands_in_a_help_page():
    assert not [
        path for path in PAGES.rglob("*.md") if re.search(r"^\|", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]


def test_pages_of_the_nodes_and_no_others():
    found = {path.relative_to(PAGES).as_posix() for path in PAGES.rglob("*.md")}
    assert found == {f"{node}/{language}.md" for node in SCHEMAS for language in LANGUAGES}


@each_page
def test_page_tells_of_everything(node, language):
    schema, text = SCHEMAS[node], page(node, language)
    names = locales.phrases(language)
    assert text.startswith(f"# {names[schema.display_name]}\n")
    inputs = [entry for socket in schema.inputs for entry in [socket, *getattr(socket, "get_all", list)()]]
    told_of = rows(text)
    assert {entry.id for entry in inputs} | {out.display_name or out.io_type for out in schema.outputs} == set(told_of)
    headings = "".join(re.findall(r"^- \*\*(`.*?)\*\*[:：]", text, flags=re.MULTILINE))
    for entry in schema.inputs:
        assert names.get(getattr(entry, "display_name", None), "") in headings, "what the node shows"
        options = getattr(entry, "options", None) or []
        for option in options if len(options) < 100 else []:  # a page does not list ImageNet's classes
            value = str(getattr(option, "key", option))
            assert value in text or value in COMFYUIS or value.endswith((".safetensors", ".json")), (entry.id, value)
    assert PAPER in text


def shown_as(value, language: str) -> str:
    """A value as a page has it."""
    if isinstance(value, bool):
        return {"en": ("off", "on"), "ja": ("オフ", "オン")}[language][value]
    return value if isinstance(value, str) else f"{value:g}"


@each_page
def test_defaults_are_the_nodes(node, language):
    told_of = rows(page(node, language))
    for entry in SCHEMAS[node].inputs:
        default = getattr(entry, "default", None)
        if default not in (None, ""):
            shown = shown_as(default, language)
            words = {"en": f"Default: {shown}.", "ja": f"既定値：{shown}。"}[language]
            assert told_of[entry.id][0].endswith(words), entry.id


@pytest.mark.parametrize("language", LANGUAGES)
def test_shared_options_are_explained_alike(language):
    shared = ["rectification", "strength", "estimator", "every", "skip_below", "profile", "schedule"]
    pages = [told_of for node in SCHEMAS if "estimator" in (told_of := rows(page(node, language)))]
    assert len(pages) >= 3
    texts = {name: len({tuple(told_of[name]) for told_of in pages}) for name in shared}
    assert texts == dict.fromkeys(shared, 1)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_dead_link(path):
    """Of help pages, ComfyUI resolves pictures from the folder of all pages, and no other relative link at all."""
    is_help = PAGES in path.parents
    text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for picture, target in LINK.findall(text):
        if re.match(r"https://[\w.-]+\.\w+(/|$)", target):
            continue
        file, _, heading = target.partition("#")
        pointed_at = path.parent / file if file else path
        assert pointed_at.exists(), target
        assert not is_help or (picture and target.startswith("../")), target
        if heading:
            assert heading in anchors(pointed_at.read_text(encoding="utf-8")), target


def test_readmes_say_the_same():
    """Not word by word: a change in one of them must be made in the other, too."""
    parts = []
    for name in ("README.md", "README.ja.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        commands = re.findall(r"```.*?```", text, flags=re.DOTALL)
        headings = [line.count("#") for line in re.findall(r"^#+ ", text, flags=re.MULTILINE)]
        targets = {target.replace(".ja.md", ".md") for _, target in LINK.findall(text)}
        parts.append((commands, headings, targets, sum(line.startswith("|") for line in text.splitlines())))
    assert parts[0] == parts[1]


def test_the_readme_is_read_in_a_minute():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 700
    assert text.count("![") <= 4


def anchors(text: str) -> set[str]:
    """The anchors that a Markdown page's headings get."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_releases_contain_them():
    """comfy-cli reads .comfyignore as git reads .gitignore: a name without a slash before it counts in every folder."""
    left_out = {line.rstrip("/") for line in (ROOT / ".comfyignore").read_text().split()}
    needed = [path.relative_to(ROOT) for folder in (PAGES, locales.LOCALES) for path in folder.rglob("*.*")]
    assert not left_out & {part for path in needed for part in path.parts}


def test_server_has_the_pages_where_comfyui_looks(tmp_path):
    """In a folder named as people name it: ComfyUI itself serves nothing from one with commas, spaces and umlauts."""
    with Server(tmp_path, "ComfyUI-REG") as client:
        about = client.object_info()
        for node in SCHEMAS:
            folder = about[node]["python_module"].split(".")[1]  # as ComfyUI's pages take it
            for language in LANGUAGES:
                url = f"{client.url}/extensions/{folder}/docs/{node}/{language}.md"
                assert client.session.get(url).content.decode() == page(node, language)
