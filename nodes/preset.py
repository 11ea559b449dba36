"""Presets of the pilot, for the REG nodes."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..pilot import preset as presets
from .options import PRESET

FOLDER = "reg_presets"

folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER), is_default=True)
folder_paths.folder_names_and_paths[FOLDER][1].add(".json")


class REGLoadPreset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="REGLoadPreset",
            display_name="REG Load Preset",
            category="model/sampling",
            search_aliases=["guidance preset", "pilot preset", "recommended setting", "REG"],
            description="A guidance setting that a pilot recommended, or that somebody shared: options for a REG node and the "
            "cfg that belongs to them.",
            inputs=[
                io.Combo.Input(
                    "name", options=folder_paths.get_filename_list(FOLDER), tooltip=f"A file in models/{FOLDER}."
                ),
                io.Float.Input(
                    "share",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much of the preset's strength is used, for a roll-out in stages. 0 is plain CFG at its cfg.",
                ),
            ],
            outputs=[
                PRESET.Output(display_name="preset", tooltip="Connect to a REG node, whose own options it replaces."),
                io.Float.Output(display_name="cfg", tooltip="Connect to the cfg of the sampler or guider."),
                io.String.Output(display_name="text", tooltip="What the preset says of itself."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name, share):
        path = name and folder_paths.get_full_path(FOLDER, name)  # None: another node gives it
        return path and Path(path).stat().st_mtime_ns

    @classmethod
    def execute(cls, name, share) -> io.NodeOutput:
        preset = presets.load(Path(folder_paths.get_full_path_or_raise(FOLDER, name))).scaled(share)
        return io.NodeOutput(preset, preset.cfg, preset.text())
