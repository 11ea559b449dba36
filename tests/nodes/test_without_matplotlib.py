"""Without matplotlib every node works that does not draw, and those that do say what to install."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

from pack.nodes.draw import NO_MATPLOTLIB

PROGRAM = """
import asyncio, sys, tempfile, types
from pathlib import Path
sys.modules["matplotlib"] = None  # as if it were not installed
pack = sys.modules["pack"] = types.ModuleType("pack")
pack.__path__ = [sys.argv[1]]
from comfy.cli_args import args
args.cpu = True
import comfy.samplers, folder_paths, torch
from pack.__init__ import REGExtension

nodes = {node.__name__: node for node in asyncio.run(REGExtension().get_node_list())}
folder_paths.models_dir = folder_paths.temp_directory = tempfile.mkdtemp()
run = lambda name, *inputs, **options: nodes.pop(name).execute(*inputs, **options).args
refused = []

def refuses(name, call):
    node = nodes.pop(name)
    try:
        call(node)
    except ImportError as error:
        refused.append(f"{name}: {error}")

def sample(guider, sampler):
    with torch.inference_mode():
        noise = torch.randn(1, 3, 64, 64)
        assert guider.sample(noise, 0 * noise, sampler, sigmas, disable_pbar=True).isfinite().all()

weak, _ = nodes["REGDemoModel"].execute("weak").args
model, _ = run("REGDemoModel")
prompt, *_ = run("REGDemoPrompt", **dict.fromkeys(("shape", "colour", "background", "count"), "any"))
star = [[prompt[0][0].roll(1, -1) + 0.1, {}]]
euler = comfy.samplers.sampler_object("euler")
sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 2)
sample(run("REGGuider", run("REGModel", model)[0], star, prompt, 4.0)[0], euler)
plain = comfy.samplers.CFGGuider(model)
plain.set_conds(star, prompt)
plain.set_cfg(4.0)
sample(plain, run("REGSampler", euler)[0])
sample(run("REGAutoGuider", model, weak, star, cfg=2.0)[0], euler)
with torch.inference_mode():
    (profile,) = run("REGCalibrate", model, star, prompt, {"samples": torch.zeros(1, 3, 64, 64)}, 4.0, 2, 2, 0)
run("REGSaveProfile", profile, "mine")
run("REGLoadProfile", "reg-demo.safetensors")
*_, latent = run("REGToyModel", 22, 8)
refuses("REGReport", lambda node: node.check_lazy_status())
refuses("REGSchedule", lambda node: node.execute({"shape": "constant", "cfg": 5.0}))
refuses("REGToy", lambda node: node.execute("samples", "ratio", 4.0, 0.7, 22))
refuses("REGToyPlot", lambda node: node.execute(latent, 4.0, 22))
run("REGImageNetClass", "tiger cat")
for name in ("REGPilot", "REGLoadPreset", "REGDiTLoader", "REGEDM2Loader", "REGDDPM"):  # these need files, or a long run
    nodes.pop(name).GET_SCHEMA()
assert not nodes, nodes
print("\\n".join(refused))
"""
DRAWING = ("REGReport", "REGSchedule", "REGToy", "REGToyPlot")


def test_only_the_nodes_that_draw_ask_for_it():
    root = Path(__file__).parents[2]
    command = [sys.executable, "-P", "-c", PROGRAM, str(root)]
    environment = os.environ | {"PYTHONPATH": os.environ["COMFYUI_PATH"]}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{node}: {NO_MATPLOTLIB}" for node in DRAWING]
