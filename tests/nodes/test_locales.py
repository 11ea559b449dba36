"""Every name and tooltip is there, in every language, and says of a value what the node itself says."""

import re

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

from pack.devtools import locales

SCHEMAS = locales.schemas()
DEFINITIONS = locales.english(SCHEMAS)
WANTED = locales.phrases_in(DEFINITIONS)
LANGUAGES = ("en", *locales.LANGUAGES)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.node_id)
def test_everything_on_a_node_is_explained(schema):
    assert schema.display_name and schema.description and len(schema.search_aliases) >= 3
    nested = [entry for socket in schema.inputs for entry in getattr(socket, "get_all", lambda: [])()]
    unexplained = [socket.id for socket in [*schema.inputs, *nested, *schema.outputs] if not socket.tooltip]
    assert not unexplained, "no tooltip"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_phrase_is_translated_and_no_other(language):
    known = locales.phrases(language)
    assert list(set(WANTED) - set(known)) == [], "translate these in devtools/phrases.json"
    assert list(set(known) - set(WANTED)) == [], "no longer shown: remove these from devtools/phrases.json"
    assert all(text.strip() for text in known.values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_file_is_up_to_date(language):
    """After a change of a schema or of the phrases: `python -m devtools.locales` writes the files."""
    known = {phrase: phrase for phrase in WANTED} | locales.phrases(language)
    expected = locales.text(locales.translated(DEFINITIONS, known.__getitem__))
    assert (locales.LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8") == expected


def test_no_other_languages():
    assert {path.name for path in locales.LOCALES.iterdir()} == set(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_character_that_comfyui_reads_as_a_placeholder(language):
    """ComfyUI's messages give a meaning to { } @ and |."""
    assert [text for text in locales.phrases(language).values() if set(text) & set("{}@|")] == []


@pytest.mark.parametrize("language", locales.LANGUAGES)
def test_values_and_references_survive_translation(language):
    """Values of a combo are shown as they are, so a tooltip must name them so; papers keep their numbers."""
    known = locales.phrases(language)
    for socket in (socket for schema in SCHEMAS for socket in schema.inputs):
        for option in getattr(socket, "options", None) or []:
            value = str(getattr(option, "key", option))
            if re.search(rf"\b{re.escape(value)}:", socket.tooltip):
                assert value in known[socket.tooltip], (socket.id, value)
    for english, text in known.items():
        assert re.findall(r"\d{4}\.\d{5}", english) == re.findall(r"\d{4}\.\d{5}", text), english


def test_server_offers_them(server):
    offered = server.session.get(server.url + "/i18n").json()
    for language in LANGUAGES:
        assert offered[language]["nodeDefs"]["REGModel"]["inputs"]["strength"]["tooltip"]
