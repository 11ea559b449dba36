"""DiT's network is DiT, by another library's; its MODEL has the authors' noise levels and keeps to their guidance."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import comfy.samplers
import torch
from diffusers import DiTTransformer2DModel

from pack.paper import classes, dit, models
from pack.tests.guiders.tiny import predict
from pack.tests.paper import tiny


def of_diffusers(state: dict, heads: int, depth: int, size: int):
    """diffusers' DiT with a checkpoint's weights, and with the two constants that the checkpoints were trained with."""
    network = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=state["pos_embed"].shape[2] // heads,
        in_channels=4,
        out_channels=8,
        num_layers=depth,
        sample_size=size,
        num_embeds_ada_norm=tiny.CLASSES,
        norm_eps=1e-6,
    ).eval()
    renamed = {
        "pos_embed.proj.weight": state["x_embedder.proj.weight"],
        "pos_embed.proj.bias": state["x_embedder.proj.bias"],
        "proj_out_1.weight": state["final_layer.adaLN_modulation.1.weight"],
        "proj_out_1.bias": state["final_layer.adaLN_modulation.1.bias"],
        "proj_out_2.weight": state["final_layer.linear.weight"],
        "proj_out_2.bias": state["final_layer.linear.bias"],
    }
    for i in range(depth):
        ours, theirs = f"blocks.{i}.", f"transformer_blocks.{i}."
        for end in ("weight", "bias"):
            for name, part in zip("qkv", state[f"{ours}attn.qkv.{end}"].chunk(3), strict=True):
                renamed[f"{theirs}attn1.to_{name}.{end}"] = part
            renamed[f"{theirs}attn1.to_out.0.{end}"] = state[f"{ours}attn.proj.{end}"]
            renamed[f"{theirs}ff.net.0.proj.{end}"] = state[f"{ours}mlp.fc1.{end}"]
            renamed[f"{theirs}ff.net.2.{end}"] = state[f"{ours}mlp.fc2.{end}"]
            renamed[f"{theirs}norm1.linear.{end}"] = state[f"{ours}adaLN_modulation.1.{end}"]
            for n in (1, 2):  # the embedding of time and class is one for all blocks there
                key = f"{theirs}norm1.emb.timestep_embedder.linear_{n}.{end}"
                renamed[key] = state[f"t_embedder.mlp.{2 * n - 2}.{end}"]
        renamed[f"{theirs}norm1.emb.class_embedder.embedding_table.weight"] = state["y_embedder.embedding_table.weight"]
        network.transformer_blocks[i].norm1.emb.time_proj.downscale_freq_shift = 0
    network.load_state_dict(renamed)
    network.pos_embed.pos_embed = state["pos_embed"]  # which it does not save
    return network


@pytest.mark.parametrize(("hidden", "heads"), [(64, 1), (128, 2), (1152, 16)])
@torch.no_grad()
def test_it_is_the_dit_of_diffusers(tmp_path, hidden, heads):
    """At three widths, XL's (and XL's heads of 72) among them."""
    state = tiny.dit_state(hidden=hidden, heads=heads, depth=2, mlp=4 * hidden)
    network = models.load_dit(tiny.save(state, tmp_path / "dit.pt")).model.diffusion_model
    x, t, y = tiny.latent(3), torch.tensor([0.0, 17.0, 999.0]), torch.tensor([1, 8, 0])
    told = []
    options = {dit.LEARNED_VARIANCE: told.append, "cond_or_uncond": [0]}
    noise = network(x, t, y=y, transformer_options=options)
    theirs = of_diffusers(state, heads, 2, 8)(x, t.long(), class_labels=torch.tensor([0, 7, tiny.CLASSES])).sample
    assert (torch.cat([noise, told[0][1]], 1) - theirs).abs().max() <= 3e-6 * theirs.abs().max()


def test_the_sizes_of_the_published_family():
    """Parameters in millions, as Peebles and Xie's table 4 has them, with 1000 classes."""
    family = {"S": (384, 12, 6, 33), "B": (768, 12, 12, 130), "L": (1024, 24, 16, 458), "XL": (1152, 28, 16, 675)}
    for hidden, depth, heads, millions in family.values():
        config = tiny.DIT | {"hidden": hidden, "depth": depth, "heads": heads, "mlp": 4 * hidden}
        config |= {"tokens": 256, "classes": 1000}
        network = dit.DiT(**config, device="meta", operations=torch.nn)
        assert round(sum(p.numel() for p in network.parameters()) / 1e6) == pytest.approx(millions, abs=1.5)
        assert dit.sizes(network.state_dict()) == config


def test_betas_are_linear():
    config = models.DiTConfig(dit.sizes(tiny.dit_state()))
    config.set_inference_dtype(torch.float32, None)
    sampling = config.get_model({}).model_sampling
    kept = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    torch.testing.assert_close(sampling.sigmas.double() ** 2, (1 - kept) / kept, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_no_class_becomes_another_in_half_precision(tmp_path, dtype):
    """993 and 994 are the same number in bfloat16."""
    state = tiny.dit_state(classes=1000)
    name = {torch.float16: "float16", torch.bfloat16: "bfloat16"}[dtype]
    model = models.load_dit(tiny.save(state, tmp_path / "dit.pt"), dtype=name)
    seen = []
    table = model.model.diffusion_model.y_embedder.embedding_table
    table.register_forward_pre_hook(lambda module, args: seen.append(args[0].tolist()))
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(classes.conditioning([993, 994]), classes.conditioning([]))
    guider.set_cfg(3.0)
    predict(guider, (tiny.latent(), 1.0))
    assert sorted(row for rows in seen for row in rows) == [993, 994, 1000, 1000]


def test_guidance_moves_the_first_channels_only(tmp_path):
    path = tiny.save(tiny.dit_state(), tmp_path / "dit.pt")
    out = {}
    for channels in (3, 4):
        guider = comfy.samplers.CFGGuider(models.load_dit(path, guided_channels=channels))
        guider.set_conds(classes.conditioning([1]), classes.conditioning([]))
        for cfg in (1.0, 4.0):
            guider.set_cfg(cfg)
            (out[channels, cfg],) = predict(guider, (tiny.latent(), 1.0))
    assert torch.equal(out[3, 1.0], out[4, 1.0])
    torch.testing.assert_close(out[3, 4.0][:, :3], out[4, 4.0][:, :3])
    torch.testing.assert_close(out[3, 4.0][:, 3:], out[3, 1.0][:, 3:], rtol=1e-5, atol=1e-5)
    assert (out[4, 4.0][:, 3:] - out[4, 1.0][:, 3:]).abs().max() > 0.01


def test_a_latent_of_another_size_is_refused(tmp_path):
    guider = comfy.samplers.CFGGuider(models.load_dit(tiny.save(tiny.dit_state(), tmp_path / "dit.pt")))
    guider.set_conds(classes.conditioning([1]), classes.conditioning([]))
    for size in (16, 9):
        with pytest.raises(ValueError, match="REG: this DiT draws 64x64 pixels"):
            predict(guider, (tiny.latent(size=size), 1.0))


def test_a_text_prompt_and_an_unknown_class_are_refused(tmp_path):
    guider = comfy.samplers.CFGGuider(models.load_dit(tiny.save(tiny.dit_state(), tmp_path / "dit.pt")))
    for positive, words in (
        ([[torch.zeros(1, 77, 768), {}]], "connect REG ImageNet Class"),
        (classes.conditioning([207]), "knows 10 classes, 0 to 9, and was asked for 207"),
    ):
        guider.set_conds(positive, classes.conditioning([]))
        with pytest.raises(ValueError, match=f"^REG: .*{words}"):
            predict(guider, (tiny.latent(), 1.0))
