"""The pilot as a node: settings of guidance, compared on the same noises."""

from pathlib import Path

import comfy.samplers
import folder_paths
import torch
from comfy_api.latest import io, ui

from ..pilot import arms as arms_
from ..reg.rectification import RECTIFICATIONS
from .guidance import REGModel

OUTPUT = "reg_pilot"
SCORERS = "reg_scorers"
NO_CHOICE = "none"
NEEDS_OTHERS = ("model", "profile", "schedule", "preset")  # inputs of a REG node that no line of text can give
MOST_POSITIVES = 10
REPORT_SIDE = 1024  # pixels of the report as it is shown on the node

folder_paths.add_model_folder_path(SCORERS, str(Path(folder_paths.models_dir) / SCORERS), is_default=True)


def scorer_folders() -> dict[str, Path]:
    """Models for scoring that lie in ComfyUI's folder for them, by name."""
    configs = [
        path for root in folder_paths.get_folder_paths(SCORERS) for path in sorted(Path(root).glob("*/config.json"))
    ]
    return {path.parent.name: path.parent for path in configs}


def reference_folders() -> dict[str, Path]:
    """Folders in ComfyUI's input folder, by name."""
    root = Path(folder_paths.get_input_directory())
    return {path.name: path for path in sorted(root.glob("*")) if path.is_dir() and not path.name.startswith(".")}


def node_defaults() -> dict:
    """What the REG Model node has set when it is new."""
    found = {
        entry.id: entry.default for entry in REGModel.GET_SCHEMA().inputs if getattr(entry, "default", None) is not None
    }
    return {key: value for key, value in found.items() if key not in NEEDS_OTHERS}


def node_options(arm: arms_.Arm) -> dict:
    """All options of the REG node of an arm."""
    return node_defaults() | arm.node_options()


def rectified(model, arm: arms_.Arm):
    """The model as the REG Model node makes it for this arm. Raises ValueError: the node does not take these options."""
    return REGModel.execute(model, **node_options(arm)).args[0]


def plain_name(name: str) -> str:
    """Raises ValueError: it is no name of one folder."""
    name = name.strip()
    if not name or not name.isprintable() or name != Path(name).name or "\\" in name or name.startswith("."):
        raise ValueError(f"REG: {name!r} is no name for a folder: use letters, digits, spaces and dashes.")
    return name


class REGPilot(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="REGPilot",
            display_name="REG Pilot",
            category="advanced/guidance",
            search_aliases=["compare guidance", "ab test", "A/B test", "benchmark cfg", "recommended setting", "REG"],
            description="Compares settings of guidance on your model and prompts: the same noises with plain CFG and with REG, "
            "measured with intervals, and a recommended setting if one is shown to be better. What is finished is kept: "
            "a run that was stopped, or has one more setting, makes only what is missing.",
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to try, as you use it. REG on it is replaced by each setting."
                ),
                io.Conditioning.Input("negative", tooltip="The negative prompt you use; often an empty prompt."),
                io.Vae.Input("vae", tooltip="Decodes the pictures."),
                io.Latent.Input(
                    "latent_image", tooltip="An empty latent of the size you use. Its batch does not count."
                ),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="",
                    tooltip="Your prompts, one a line. A connected CLIP encodes them; connected conditionings are described by "
                    "them, in order.",
                ),
                io.String.Input(
                    "settings",
                    multiline=True,
                    default="ratio 3 5; elementwise 5; jacobian 5",
                    tooltip="What to try, one rule a line with its cfg values and, if you like, options of the REG node: "
                    "ratio 3 5 8 strength=0.5. elementwise is REG (paper), jacobian is whole Jacobian, and cfg is plain CFG. "
                    "No guidance and your own cfg are always there.",
                ),
                io.Float.Input(
                    "cfg",
                    default=5.0,
                    min=1.1,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="The guidance scale you use now. Everything is compared with plain CFG at this scale.",
                ),
                io.Int.Input(
                    "pictures_per_prompt",
                    default=8,
                    min=1,
                    max=1000,
                    tooltip="For each setting. 100 over all prompts show what matters in most cases.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**32 - 1, control_after_generate=False, tooltip="Of the noises."
                ),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="As you use them."),
                io.Combo.Input(
                    "sampler_name",
                    options=list(comfy.samplers.SAMPLER_NAMES),
                    default="euler",
                    tooltip="As you use it.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=list(comfy.samplers.SCHEDULER_NAMES),
                    default="normal",
                    tooltip="As you use it.",
                ),
                io.String.Input(
                    "name",
                    default="my model",
                    tooltip=f"The folder of the results in ComfyUI's output folder, under {OUTPUT}.",
                ),
                io.Combo.Input(
                    "scorer",
                    options=[NO_CHOICE, *scorer_folders()],
                    default=NO_CHOICE,
                    advanced=True,
                    tooltip=f"A CLIP-like model of transformers in models/{SCORERS}, to measure how well pictures fit their "
                    "prompts. none asks the model itself.",
                ),
                io.Combo.Input(
                    "references",
                    options=[NO_CHOICE, *reference_folders()],
                    default=NO_CHOICE,
                    advanced=True,
                    tooltip="A folder of pictures in ComfyUI's input folder that yours should be like, or none.",
                ),
                io.String.Input(
                    "questions",
                    multiline=True,
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Asked of every picture, one question a line, a slash between answers: a man / a woman. Shows what "
                    "each setting favours. Needs a scorer.",
                ),
                io.Boolean.Input(
                    "ask_model",
                    default=True,
                    advanced=True,
                    tooltip="Ask the model itself whether each picture shows its prompt: 14 more evaluations a picture.",
                ),
                io.Float.Input(
                    "margin",
                    default=0.25,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="How much of what guidance changes a recommended setting may lose in a measure. Less needs more "
                    "pictures.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="Encodes the prompts."),
                io.Autogrow.Input(
                    "positives",
                    template=io.Autogrow.TemplatePrefix(
                        io.Conditioning.Input("positive", tooltip="A prompt, encoded by nodes of your own."),
                        prefix="positive",
                        min=0,
                        max=MOST_POSITIVES,
                    ),
                    optional=True,
                    tooltip="Prompts that other nodes encode, in place of a CLIP.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="report", tooltip="The answer and the plots."),
                io.Image.Output(display_name="pictures", tooltip="Pictures of the same noises side by side."),
                io.String.Output(display_name="text", tooltip="The answer in words."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, scorer=NO_CHOICE, references=NO_CHOICE, **inputs):
        """Pictures and models that the judgement depends on, for a new one where they changed."""
        folders = scorer_folders().get(scorer), reference_folders().get(references)
        files = sorted(path for folder in folders if folder is not None for path in folder.rglob("*") if path.is_file())
        return [(str(path), path.stat().st_mtime_ns) for path in files]

    @classmethod
    def execute(cls, model, negative, vae, latent_image, name, **inputs) -> io.NodeOutput:
        from ..pilot import graph, session
        from ..pilot.store import Store

        plan, positives = _plan(inputs, session)
        for arm in plan.arms:
            rectified(model, arm)
        plain = graph.is_plain([negative, list(positives.values())])
        conds = () if plain else _conds(cls.hidden.prompt, cls.hidden.unique_id)
        studio = graph.Studio(
            model,
            positives,
            negative,
            vae,
            latent_image,
            inputs["sampler_name"],
            inputs["scheduler"],
            inputs["steps"],
            rectified,
            _upstream(cls.hidden.prompt, cls.hidden.unique_id, ("model", "vae", *conds)),
            inputs["ask_model"],
        )
        address = lambda cell: studio.name(cell, node_options(cell.arm))  # noqa: E731
        with Store(Path(folder_paths.get_output_directory()) / OUTPUT / plain_name(name)) as store:
            missing = [cell for cell in plan.cells if not store.has(address(cell))]
            progress = graph.Progress(len(missing), inputs["steps"])
            for cell in missing:
                picture, record, latent = studio.make(cell, progress.on_step)
                store.put(address(cell), picture, record, latent)
                progress.finished(picture)
            checkpoint = _checkpoint(cls.hidden.prompt, cls.hidden.unique_id)
            facts = [(key, str(inputs[key])) for key in ("sampler_name", "scheduler", "steps")]
            answer = session.answer(store, plan, address, name, checkpoint, facts)
            progress.show(answer.report, REPORT_SIDE)
            text = f"{answer.verdict.paragraph}\n\nThe page, the tables and the pictures are in {store.folder}."
        report = _image(answer.report)
        shown = ui.PreviewImage(report, cls=cls).as_dict() | ui.PreviewText(text).as_dict()
        return io.NodeOutput(report, _image(answer.grid), text, ui=shown)


def _plan(inputs: dict, session):
    """The plan, and the conditionings by prompt. Raises ValueError: an input is wrong, with what to do."""
    text, questions = inputs.get("prompts") or "", inputs.get("questions") or ""
    given = [cond for cond in (inputs.get("positives") or {}).values() if cond is not None]
    positives = _named(given, text) if given else _encoded(inputs.get("clip"), text)
    entries = [entry.id for entry in REGModel.GET_SCHEMA().inputs if entry.id not in NEEDS_OTHERS]
    scorer, references = inputs["scorer"], inputs["references"]
    if scorer != NO_CHOICE and given and not text.strip():
        raise ValueError(
            "REG: a scorer compares pictures with texts: write what the conditionings say in prompts, one a line."
        )
    plan = session.plan(
        arms_.parse_arms(inputs["settings"], list(RECTIFICATIONS), entries),
        inputs["cfg"],
        _folder(scorer, scorer_folders()),
        _folder(references, reference_folders()),
        arms_.parse_questions(questions),
        prompts=list(positives),
        pictures=inputs["pictures_per_prompt"],
        seed=inputs["seed"],
        margin=inputs["margin"],
    )
    return plan, positives


def _named(conditionings: list, text: str) -> dict:
    """Conditionings under what the prompts say of them, or numbered."""
    names = arms_.parse_prompts(text) if text.strip() else [f"prompt {i + 1}" for i in range(len(conditionings))]
    if len(names) != len(conditionings):
        raise ValueError(
            f"REG: {len(conditionings)} conditionings are connected and {len(names)} prompts are written: "
            "write one line for each of them, or none."
        )
    return dict(zip(names, conditionings, strict=True))


def _encoded(clip, text: str) -> dict:
    prompts = arms_.parse_prompts(text)
    if clip is None:
        raise ValueError("REG: nothing encodes the prompts: connect a CLIP, or conditionings to positives.")
    return {prompt: clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in prompts}


def _folder(choice: str, known: dict[str, Path]) -> str:
    if choice == NO_CHOICE:
        return ""
    if choice not in known:
        raise ValueError(f"REG: the folder {choice!r} is no longer there: choose another one.")
    return str(known[choice])


def _upstream(prompt: dict | None, node: str, names: tuple[str, ...]) -> object:
    """What some inputs of a node are made of: classes and values, without the nodes' ids."""
    if not prompt or node not in prompt:
        return None

    def made_of(value):
        if isinstance(value, list) and len(value) == 2 and value[0] in prompt:
            origin = prompt[value[0]]
            return [origin["class_type"], {key: made_of(v) for key, v in sorted(origin["inputs"].items())}, value[1]]
        return value

    return [made_of(prompt[node]["inputs"].get(name)) for name in names]


def _conds(prompt: dict | None, node: str) -> list[str]:
    """The inputs that conditionings come from."""
    inputs = (prompt or {}).get(node, {}).get("inputs", {})
    return [name for name in inputs if name.split(".")[0] in ("negative", "positives", "clip")]


def _checkpoint(prompt: dict | None, node: str) -> str:
    """The file that the model comes from, as far as the graph says."""
    found = []

    def look(value):
        if isinstance(value, str) and value.endswith((".safetensors", ".ckpt", ".sft", ".gguf")):
            found.append(value)
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            look(part)

    look(_upstream(prompt, node, ("model",)))
    return ", ".join(dict.fromkeys(found))


def _image(pixels) -> torch.Tensor:
    """[h, w, 3] uint8 -> ComfyUI's IMAGE [1, h, w, 3]."""
    return torch.from_numpy(pixels.copy()).float()[None] / 255
