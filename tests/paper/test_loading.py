"""Loading: what is no whole checkpoint of the family is refused in one sentence; the nodes find files and classes."""

import argparse
import shutil

import folder_paths
import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import comfy.samplers
import torch

from pack.nodes.imagenet import REGDiTLoader, REGEDM2Loader, REGImageNetClass
from pack.paper import classes, models
from pack.tests.guiders.tiny import predict
from pack.tests.paper import tiny


def refusal(load, path) -> str:
    with pytest.raises(ValueError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith("REG: ") and message.count("\n") == 0 and path.name in message
    return message


def test_another_family(tmp_path):
    for name, state in {
        "unet.safetensors": {"model.diffusion_model.out.2.weight": torch.zeros(4, 4)},
        "empty.pt": {},
    }.items():
        path = tmp_path / name
        tiny.save(state, path)
        assert "is no checkpoint of DiT" in refusal(models.load_dit, path)
        assert "is no checkpoint of EDM2" in refusal(models.load_edm2, path)
    tiny.save(tiny.edm2_state(), tmp_path / "edm2.safetensors")
    assert "load it with REG EDM2 Loader" in refusal(models.load_dit, tmp_path / "edm2.safetensors")
    tiny.save(tiny.dit_state(), tmp_path / "dit.safetensors")
    assert "load it with REG DiT Loader" in refusal(models.load_edm2, tmp_path / "dit.safetensors")


@pytest.mark.parametrize("name", ["dit.pt", "dit.safetensors"])
def test_a_truncated_file(tmp_path, name):
    path = tmp_path / name
    tiny.save(tiny.dit_state(), path)
    path.write_bytes(path.read_bytes()[:-5000])
    assert "cannot be read as plain weights" in refusal(models.load_dit, path)


def test_a_file_that_holds_more_than_weights(tmp_path):
    """As DiT's training writes them."""
    path = tmp_path / "dit.pt"
    torch.save({"ema": tiny.dit_state(), "args": argparse.Namespace(lr=1)}, path)
    assert "cannot be read as plain weights" in refusal(models.load_dit, path)
    torch.save({"model": tiny.dit_state(1), "ema": tiny.dit_state(2), "opt": {"lr": 1}}, path)
    loaded = models.load_dit(path).model.diffusion_model.pos_embed
    assert torch.equal(loaded.cpu(), tiny.dit_state(2)["pos_embed"])


@pytest.mark.parametrize(
    "damage", [lambda s: s.pop("blocks.1.mlp.fc2.bias"), lambda s: s.update({"more.weight": torch.zeros(2)})]
)
def test_weights_that_are_missing_or_too_many(tmp_path, damage):
    path, state = tmp_path / "dit.safetensors", tiny.dit_state()
    damage(state)
    tiny.save(state, path)
    assert "is not a whole checkpoint of DiT: 1 of its weights" in refusal(models.load_dit, path)


@pytest.mark.parametrize(
    "lost", ["unet.enc.8x8_block0.emb_gain", "unet.out_gain", "unet.enc.8x8_block0.conv_res0.weight"]
)
def test_an_edm2_that_lacks_something(tmp_path, lost):
    path, state = tmp_path / "edm2.safetensors", tiny.edm2_state() | tiny.encoder()
    del state[lost]
    tiny.save(state, path)
    assert "is not a whole checkpoint of EDM2" in refusal(models.load_edm2, path)


def test_an_edm2_with_something_else_or_without_its_prefix(tmp_path):
    path, state = tmp_path / "edm2.safetensors", tiny.edm2_state() | tiny.encoder()
    tiny.save(state | {"unet.other": torch.tensor(1.0)}, path)
    assert "is not a whole checkpoint of EDM2" in refusal(models.load_edm2, path)
    tiny.save({name.removeprefix("unet."): value for name, value in state.items()}, path)
    assert "is not a whole checkpoint of EDM2" in refusal(models.load_edm2, path)


def test_latents_whose_scale_is_not_known(tmp_path):
    path = tmp_path / "edm2.safetensors"
    tiny.save(tiny.edm2_state(), path)
    assert "lacks encoder.scale: convert" in refusal(models.load_edm2, path)


def test_a_pickle_is_not_opened(tmp_path):
    path = tmp_path / "edm2.pkl"
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert "convert it once with `python3 dev.py imagenet convert`" in refusal(models.load_edm2, path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of models with a file of each kind."""
    for name in ("diffusion_models", "checkpoints"):
        (tmp_path / name).mkdir()
        endings = folder_paths.folder_names_and_paths[name][1]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(tmp_path / name)], endings))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    tiny.save(tiny.dit_state(), tmp_path / "checkpoints" / "dit.pt")
    tiny.save(tiny.edm2_state() | tiny.encoder(), tmp_path / "diffusion_models" / "edm2.safetensors")
    tiny.save(tiny.edm2_state(in_channels=3), tmp_path / "diffusion_models" / "edm2-64.safetensors")
    return tmp_path


def options(node) -> list[str]:
    return next(entry for entry in node.define_schema().inputs if entry.id == "ckpt_name").options


def test_the_nodes_load_from_both_folders(folder):
    assert options(REGDiTLoader) == ["dit.pt", "edm2-64.safetensors", "edm2.safetensors"]
    assert options(REGEDM2Loader) == ["edm2-64.safetensors", "edm2.safetensors"]
    assert REGDiTLoader.execute("dit.pt").args[0].model.diffusion_model.classes == tiny.CLASSES
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(ValueError, match=r"REG: dit.pt is in neither"):
        REGDiTLoader.execute("dit.pt")


def test_edm2s_vae(folder):
    vae = models.pixel_vae()
    _, pixels = REGEDM2Loader.execute("edm2-64.safetensors").args
    assert pixels.decode(torch.zeros(1, 3, 4, 4)).unique().tolist() == [0.5]
    _, ours = REGEDM2Loader.execute("edm2.safetensors", vae).args
    assert ours.decode(torch.zeros(1, 3, 4, 4)).unique().tolist() == [0.0]
    _, missing = REGEDM2Loader.execute("edm2.safetensors").args
    assert not hasattr(missing, "get_ram_usage")
    with pytest.raises(AttributeError, match="REG: this EDM2 works on latents and has no VAE yet"):
        missing.decode(torch.zeros(1, 4, 8, 8))


def test_a_model_can_be_loaded_once_more(folder):
    """As ComfyUI does for several devices and for a second set of LoRA weights."""
    model = REGDiTLoader.execute("dit.pt").args[0]
    again, arguments = model.cached_patcher_init
    twin = again(*arguments, disable_dynamic=True)
    assert twin.model is not model.model and not twin.is_dynamic()


def test_classes_by_name_number_and_label():
    assert classes.parse("tench, 207, goldfish (1)\nGREAT white shark, Egyptian cat") == [0, 207, 1, 2, 285]
    assert classes.parse(" , ") == []
    assert classes.names()[classes.find("whistle")] == "whistle"  # though others hold the word
    assert len(classes.labels()) == len(set(classes.labels())) == 1000
    assert [classes.find(label) for label in classes.labels()] != list(range(1000))
    assert sorted(classes.find(label) for label in classes.labels()) == list(range(1000))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1000", "there is no class 1000: ImageNet's classes are numbered 0 to 999"),
        ("shark", r'"shark" fits 2 classes \(great white shark \(2\), tiger shark \(3\)\): name one of them'),
        ("retriever", r'"retriever" fits \d classes \(.*golden retriever \(207\)'),
        ("²", 'ImageNet has no class "²"; the nearest names are'),
        ("goldn retriver", 'ImageNet has no class "goldn retriver"; the nearest names are golden retriever'),
    ],
)
def test_what_is_no_class(text, words):
    with pytest.raises(ValueError, match=f"^REG: {words}"):
        classes.find(text)
    assert REGImageNetClass.validate_inputs(more=f"tench, {text}").startswith("REG: ")
    assert REGImageNetClass.validate_inputs(more="tench") is True


def test_the_pictures_of_a_batch_take_the_classes_in_turn(tmp_path):
    state = tiny.dit_state(classes=1000)
    model = models.load_dit(tiny.save(state, tmp_path / "dit.pt"))
    positive, negative = REGImageNetClass.execute("golden retriever (207)", "tench").args
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(2.0)
    x = tiny.latent(1).expand(3, -1, -1, -1).clone()
    (out,) = predict(guider, (x, 1.0))
    assert torch.allclose(out[0], out[2], atol=1e-5) and not torch.allclose(out[0], out[1], atol=1e-3)
