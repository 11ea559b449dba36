"""Any API-format workflow with a REG node in it, and what the pilot varies there: options, cfg, seed and prompt."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path

from .arms import NONE, Cell
from .preset import OPTIONS, RECTIFIERS

TEXTS = ("text", "text_g", "text_l", "clip_g", "clip_l", "t5xxl", "llama", "prompt", "tags", "caption", "lyrics")
SEEDS = ("seed", "noise_seed")
POSITIVES = ("positive", "conditioning")  # inputs of samplers and guiders
PREVIEW = "PreviewImage"
PICTURES = ("SaveImage", PREVIEW, "SaveImageWebsocket", "SaveAnimatedWEBP", "SaveAnimatedPNG")

Prompt = dict[str, dict]


class WorkflowError(ValueError):
    """The workflow cannot be piloted; the message says why, and what to do."""


def read(path: Path) -> Prompt:
    """A workflow in the API's format.

    Raises:
        WorkflowError: the file is not there, or is none.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise WorkflowError(f"REG: the workflow {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise WorkflowError(f"REG: {path} is no workflow: it is not JSON.") from error
    if isinstance(data, dict) and "nodes" in data and "links" in data:
        raise WorkflowError(
            f"REG: {path} is a workflow as the page saves it: in ComfyUI's menu choose File, Export (API), and give that file."
        )
    if not isinstance(data, dict) or not data or not all(_is_node(node) for node in data.values()):
        raise WorkflowError(
            f"REG: {path} is no workflow in the API's format: in ComfyUI's menu choose File, Export (API)."
        )
    return data


def _is_node(node) -> bool:
    return isinstance(node, dict) and isinstance(node.get("inputs"), dict) and isinstance(node.get("class_type"), str)


class Workflow:
    """A workflow, and where in it a cell's arm, seed and prompt go."""

    def __init__(self, prompt: Prompt, prompt_node: str = "", prompt_input: str = "", output_node: str = ""):
        """
        prompt_node, prompt_input: where the prompt is written, if it cannot be found or is not the only one.
        output_node: whose picture counts, if there are several.

        Raises:
            WorkflowError: something is not in the workflow, or there more than once.
        """
        self.whole = prompt
        rectifying = [key for key, node in prompt.items() if node["class_type"] in RECTIFIERS]
        if not rectifying:
            raise WorkflowError(
                "REG: there is no REG node in the workflow: put one between the model and the sampler, and export it again."
            )
        self.output = self._find_output(rectifying, output_node)
        kept = {self.output, *self.upstream(self.output)}
        self.prompt = {key: copy.deepcopy(node) for key, node in prompt.items() if key in kept}
        self.prompt[self.output]["class_type"] = PREVIEW  # leaves nothing in the server's output folder
        self.prompt[self.output]["inputs"] = {"images": prompt[self.output]["inputs"]["images"]}
        self.rectifiers = [key for key in rectifying if key in kept]
        self.scales = [key for key in self.prompt if "cfg" in self.prompt[key]["inputs"] and self._is_guided(key)]
        if not self.scales:
            raise WorkflowError("REG: nothing in the workflow that REG rectifies has a cfg.")
        self.seeds = [(key, name) for key in self.prompt for name in SEEDS if self._is_seed(key, name)]
        if not self.seeds:
            raise WorkflowError("REG: nothing in the workflow has a seed.")
        self.texts = list(self._find_texts(prompt_node, prompt_input))

    @property
    def cfg(self) -> float | None:
        """The guidance scale that the workflow has, if it is written there."""
        values = [self.prompt[key]["inputs"]["cfg"] for key in self.scales]
        return next((float(value) for value in values if isinstance(value, int | float)), None)

    @property
    def options(self) -> dict:
        """What the REG node of the workflow has, as far as a preset holds it and it is written there."""
        inputs = self.prompt[self.rectifiers[0]]["inputs"]
        return {name: value for name, value in inputs.items() if name in OPTIONS and not _is_link(value)}

    @property
    def model(self) -> str:
        """The files of the models in it."""
        values = [value for node in self.prompt.values() for value in node["inputs"].values()]
        files = [v for v in values if isinstance(v, str) and v.endswith((".safetensors", ".ckpt", ".sft", ".gguf"))]
        return ", ".join(dict.fromkeys(files))

    def of(self, cell: Cell) -> Prompt:
        """The workflow that makes a cell's picture."""
        made = copy.deepcopy(self.prompt)
        for node in made.values():
            if "batch_size" in node["inputs"]:
                node["inputs"]["batch_size"] = 1
        for key in self.rectifiers:
            made[key]["inputs"].update(cell.arm.node_options())
            for replacing in ("preset", "schedule"):  # the options, or the cfg
                made[key]["inputs"].pop(replacing, None)
        for key in self.scales:
            made[key]["inputs"]["cfg"] = 1.0 if cell.arm.rule == NONE else cell.arm.cfg
        for key, name in self.seeds:
            made[key]["inputs"][name] = cell.seed
        for key, name in self.texts:
            made[key]["inputs"][name] = cell.prompt
        return made

    def upstream(self, key: str) -> set[str]:
        """Every node that the given one is made from."""
        found, left = set(), [key]
        while left:
            new = set(self._parents(left.pop())) - found
            found |= new
            left.extend(new)
        return found

    def _parents(self, key: str, only: tuple[str, ...] | None = None) -> Iterator[str]:
        for name, value in self.whole[key]["inputs"].items():
            if _is_link(value) and value[0] in self.whole and (only is None or name in only):
                yield value[0]

    def _find_output(self, rectifying: list[str], wanted: str) -> str:
        pictures = [key for key, node in self.whole.items() if "images" in node["inputs"] and self._shows(node)]
        found = [key for key in pictures if self.upstream(key) & set(rectifying)]
        if wanted:
            if wanted not in found:
                raise WorkflowError(f"REG: node {wanted} is no node that shows a picture made with REG.")
            return wanted
        if not found:
            raise WorkflowError(
                "REG: no Save Image or Preview Image of the workflow shows a picture that was made with REG."
            )
        return found[0]

    def _shows(self, node: dict) -> bool:
        return node["class_type"] in PICTURES

    def _is_guided(self, key: str) -> bool:
        """Does this cfg set guidance that REG rectifies?"""
        mine = {key, *self.upstream(key)}
        if mine & set(self.rectifiers):
            return True
        for node in self.prompt.values():  # REG on a sampler, and the guider beside it
            inputs = node["inputs"]
            if _is_link(inputs.get("sampler")) and _is_link(inputs.get("guider")):
                sampler, guider = inputs["sampler"][0], inputs["guider"][0]
                if {sampler, *self.upstream(sampler)} & set(self.rectifiers) and key in {
                    guider,
                    *self.upstream(guider),
                }:
                    return True
        return False

    def _is_seed(self, key: str, name: str) -> bool:
        node = self.prompt[key]
        return name in node["inputs"] and not node["class_type"].startswith("REG")  # REG Calibrate has one of its own

    def _find_texts(self, node: str, name: str) -> Iterator[tuple[str, str]]:
        if node:
            if node not in self.prompt:
                raise WorkflowError(f"REG: node {node} is not among those that make the picture.")
            names = [name] if name else self._text_inputs(node)
            if not names or names[0] not in self.prompt[node]["inputs"]:
                raise WorkflowError(f"REG: node {node} has no input for a text: name one with --prompt-input.")
        else:
            starts = [
                tuple(value)
                for one in self.prompt.values()
                for key, value in one["inputs"].items()
                if key in POSITIVES and _is_link(value)
            ]
            found = dict.fromkeys(key for start in starts for key in self._encoders(start, set()))
            if len(found) != 1:
                which = f"several prompts (nodes {', '.join(found)})" if found else "no prompt"
                raise WorkflowError(f"REG: the workflow has {which}: name the node to write in with --prompt-node.")
            (node,) = found
            names = self._text_inputs(node)
        for name in names:
            yield node, name

    def _encoders(self, origin: tuple[str, int], seen: set) -> Iterator[str]:
        """Nodes with a text from which a conditioning comes; of nodes that carry both prompts, along the positive one."""
        key, slot = origin
        if origin in seen or key not in self.prompt:
            return
        seen.add(origin)
        if self._text_inputs(key):
            yield key
            return
        inputs = self.prompt[key]["inputs"]
        carried = {"positive", "negative"} <= set(inputs)
        for name, value in inputs.items():
            if _is_link(value) and not (
                carried and name in ("positive", "negative") and (name == "positive") != (slot == 0)
            ):
                yield from self._encoders(tuple(value), seen)

    def _text_inputs(self, key: str) -> list[str]:
        """Inputs of a node that encodes a text. A link there comes from a node that holds the text."""
        inputs = self.prompt[key]["inputs"]
        return [name for name in TEXTS if isinstance(inputs.get(name), str) or _is_link(inputs.get(name))]


def _is_link(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
