"""`python -m devtools.locales`: the nodes' names and tooltips in ComfyUI's languages, for the `locales` folder.

COMFYUI_PATH names the folder of a ComfyUI, whose Python runs this.

English is what the schemas say. The other languages are written by hand in `devtools/phrases.json`: each phrase is
translated once, wherever it is shown, and one that changes in a schema is missed until it is translated anew.

ComfyUI shows no translation of a combo's values, nor of the tooltip of an input that depends on a combo's value.
"""

import asyncio
import json
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PHRASES = ROOT / "devtools" / "phrases.json"  # English -> language -> translation
LOCALES = ROOT / "locales"
LANGUAGES = ("ja", "zh", "ko", "fr", "de", "es", "ru")

Definitions = dict[str, dict]


def schemas() -> list:
    """The schema of every node in the pack."""
    from pack.__init__ import REGExtension

    return [node.GET_SCHEMA() for node in asyncio.run(REGExtension().get_node_list())]


def english(schemas: list) -> Definitions:
    """What ComfyUI looks for in nodeDefs.json, as the schemas have it."""
    return {schema.node_id: _node(schema) for schema in schemas}


def translated(definitions: Definitions, translate: Callable[[str], str]) -> Definitions:
    """The same definitions, each phrase translated."""
    return {
        key: translated(value, translate) if isinstance(value, dict) else translate(value)
        for key, value in definitions.items()
    }


def phrases_in(definitions: Definitions) -> list[str]:
    """Every phrase of the definitions once, in order."""
    found: list[str] = []
    translated(definitions, found.append)
    return list(dict.fromkeys(found))


def phrases(language: str) -> dict[str, str]:
    """The phrases known in a language, English to translated."""
    known = json.loads(PHRASES.read_text(encoding="utf-8"))
    return {phrase: phrase if language == "en" else by_language[language] for phrase, by_language in known.items()}


def text(definitions: Definitions) -> str:
    """The content of a nodeDefs.json."""
    return json.dumps(definitions, ensure_ascii=False, indent=2) + "\n"


def _node(schema) -> dict:
    definition = {"display_name": schema.display_name, "description": schema.description}
    definition["inputs"] = {key: value for entry in schema.inputs for key, value in _input(entry).items()}
    definition["outputs"] = {str(i): _output(output) for i, output in enumerate(schema.outputs)}
    return {key: value for key, value in definition.items() if value}


def _input(entry) -> dict[str, dict]:
    """An input and, under the names ComfyUI gives them, the inputs that depend on its value."""
    found = {entry.id: _named(entry)}
    for option in getattr(entry, "options", None) or []:
        for nested in getattr(option, "inputs", []):
            found[f"{entry.id}_{nested.id}"] = {"name": _named(nested)["name"]}
    return found


def _named(entry) -> dict[str, str]:
    return {"name": entry.display_name or entry.id, "tooltip": entry.tooltip}


def _output(output) -> dict[str, str]:
    """ComfyUI names an output by its type, in its own words, unless we do."""
    named = {"name": output.display_name} if output.display_name else {}
    return {**named, "tooltip": output.tooltip}


def main() -> int:
    """Write every nodeDefs.json; the exit code says whether all phrases are translated."""
    definitions = english(schemas())
    wanted = phrases_in(definitions)
    missing = [phrase for phrase in wanted if phrase not in phrases("en")]
    for phrase in missing:
        print("To be translated in devtools/phrases.json:", json.dumps(phrase, ensure_ascii=False))
    for phrase in phrases("en").keys() - set(wanted):
        print("No longer shown:", json.dumps(phrase, ensure_ascii=False))
    for language in ("en", *LANGUAGES):
        known = {phrase: phrase for phrase in missing} | phrases(language)
        path = LOCALES / language / "nodeDefs.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text(translated(definitions, known.__getitem__)), encoding="utf-8")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.path.insert(0, os.environ["COMFYUI_PATH"])  # before the repository's root: both have a `nodes`
    from comfy.cli_args import args as comfy_options

    comfy_options.cpu = True
    pack = types.ModuleType("pack")
    pack.__path__ = [str(ROOT)]
    sys.modules["pack"] = pack
    sys.exit(main())
