"""What people add to a network, through ComfyUI's classes and nodes, on tiny families: each against the Jacobian of
ComfyUI's own conditional prediction, by autograd or by differences.

Every case is built twice from the same numbers: as in a prompt, from inference tensors, where REG is asked; and from
ordinary tensors, which autograd accepts without REG."""

import logging
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import comfy.cldm.cldm
import comfy.controlnet
import comfy.gligen
import comfy.lora
import comfy.ops
import comfy.samplers
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import CoreModelPatcher
from comfy_extras.nodes_context_windows import LTXVContextWindowsNode, WanContextWindowsManualNode

import nodes  # ComfyUI's
from pack.guiders.attach import on_model
from pack.tests.families import FAMILIES
from pack.tests.families.family import Family, draw_from, randomise
from pack.tests.families.measure import graphs, measure, state
from pack.tests.families.sampling import sample
from pack.tests.guiders import by_hand
from pack.tests.guiders.single_step import CFG, alpha_of, answer, answers, built, copying, guider, ordinary

CPU = torch.device("cpu")
TOLERANCE = 0.03  # of differences, which are of first order

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # ComfyUI's own


@dataclass
class Setting:
    """A model and its prompts, to which something is added; all numbers come from `draw`."""

    model: CoreModelPatcher
    positive: list
    negative: list
    draw: object
    ordinary: bool

    def network(self, network):
        """A network with its weights drawn."""
        randomise(network, self.draw)
        return ordinary(network) if self.ordinary else network


# What is added


def lora_weights(model, draw, ending):
    """A LoRA in the format of kohya's trainer, by the names that ComfyUI's own table has for this model."""
    weights = {}
    for name, key in comfy.lora.model_lora_keys_unet(model.model, {}).items():
        if name.startswith("lora_unet_") and key.endswith(ending):
            rows, columns = model.model.state_dict()[key].shape[:2]
            weights |= {f"{name}.lora_up.weight": draw(rows, 4), f"{name}.lora_down.weight": draw(4, columns)}
    assert weights
    return weights


def lora(setting):
    weights = lora_weights(setting.model, setting.draw, ("to_q.weight", "to_out.0.weight", "proj_in.weight"))
    keys = comfy.lora.model_lora_keys_unet(setting.model.model, {})
    setting.model = setting.model.clone()
    assert setting.model.add_patches(comfy.lora.load_lora(weights, keys), 0.05)


def controlnet(setting, strength=0.8, start=0.0, end=1.0):
    config = setting.model.model.model_config.unet_config.copy()
    config.pop("out_channels")
    network = comfy.cldm.cldm.ControlNet(**config, hint_channels=3, operations=comfy.ops.manual_cast)
    control = comfy.controlnet.ControlNet(setting.network(network), load_device=CPU)
    hint = setting.draw(2, 64, 64, 3).sigmoid()
    setting.positive, setting.negative = nodes.ControlNetApplyAdvanced().apply_controlnet(
        setting.positive, setting.negative, control, hint, strength, start, end
    )


def two_controlnets(setting):
    """One that has ended, and a chain."""
    controlnet(setting, end=0.3)
    controlnet(setting, strength=0.5)


class Adapter(torch.nn.Module):
    """What a T2I-Adapter gives, in the sizes of the tiny network."""

    unshuffle_amount, xl, input_channels = 8, False, 3

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(192, 32, 1)

    def forward(self, hint):
        features = self.conv(torch.nn.functional.pixel_unshuffle(hint, 8))
        return {"input": [None, None, features, features]}


def t2i_adapter(setting):
    control = comfy.controlnet.T2IAdapter(setting.network(Adapter()), 3, 8, "nearest-exact", device=CPU)
    setting.positive, setting.negative = nodes.ControlNetApplyAdvanced().apply_controlnet(
        setting.positive, setting.negative, control, setting.draw(1, 64, 64, 3).sigmoid(), 1.0, 0.0, 1.0
    )


def ip_adapter(setting):
    """A picture's tokens have keys and values of their own, for each prompt's place in the batch."""
    model, draw = setting.model.clone(), setting.draw
    pictures = draw(2, 3, 16)  # for the positive prompt and for the negative one
    projections = {width: (draw(16, width) / 4, draw(16, width) / 4) for width in (32, 64)}

    def attend(q, context, value, options):
        chunks = options["cond_or_uncond"]
        seen = torch.cat([pictures[i].expand(len(q) // len(chunks), -1, -1) for i in chunks])
        k, v = (seen @ weight for weight in projections[q.shape[-1]])
        heads = options["n_heads"]
        return optimized_attention(q, context, value, heads) + 0.8 * optimized_attention(q, k, v, heads)

    for block in [("input", 1), ("input", 3), ("output", 1), ("output", 2), ("middle", 0)]:
        model.set_model_attn2_replace(attend, *block)
    setting.model = model


def attention_patches(setting):
    """More tokens for the cross-attention, other keys for the self-attention, other outputs of both."""
    model = setting.model.clone()
    tokens, tilt = setting.draw(1, 2, 32), setting.draw(64)

    def more_tokens(n, context, value, options):
        more = tokens.expand(len(context), -1, -1)
        return n, torch.cat([context, more], 1), torch.cat([value, 0.5 * more], 1)

    model.set_model_attn2_patch(more_tokens)
    model.set_model_attn1_patch(lambda n, context, value, options: (n, context * 0.9, value))
    model.set_model_attn1_output_patch(lambda n, options: n * (1 + 0.1 * tilt[: n.shape[-1]]))
    model.set_model_attn2_output_patch(lambda n, options: torch.tanh(n))
    setting.model = model


class Boxes:
    """A CLIP as far as GLIGENTextBoxApply asks for it."""

    def __init__(self, draw):
        self.draw = draw

    def tokenize(self, text):
        return text

    def encode_from_tokens(self, tokens, return_pooled):
        return None, self.draw(1, 32)


def gligen(setting):
    widths = [32, 64, 64, 64, 64, 32, 32]  # of the transformers, in the order they are passed
    gates = [comfy.gligen.GatedSelfAttentionDense(width, 32, 8, width // 8) for width in widths]
    network = comfy.gligen.Gligen(gates, comfy.gligen.PositionNet(32, 32), 32)
    setting.network(network)
    for gate in network.module_list:
        gate.alpha_attn.data.fill_(1.0)
        gate.alpha_dense.data.fill_(0.5)
    patcher = CoreModelPatcher(network, load_device=CPU, offload_device=CPU)
    (setting.positive,) = nodes.GLIGENTextBoxApply().append(
        setting.positive, Boxes(setting.draw), patcher, "", width=32, height=40, x=8, y=16
    )


def pictures_in_the_prompt(setting):
    for strength, noise in ((0.6, 0.3), (1.0, 0.0)):
        seen = SimpleNamespace(image_embeds=setting.draw(1, 768))
        (setting.positive,) = nodes.unCLIPConditioning().apply_adm(setting.positive, seen, strength, noise)


def inpainting(setting):
    """As InpaintModelConditioning leaves it."""
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 20:50, 10:40] = 1
    seen = {"concat_latent_image": setting.draw(1, 4, 8, 8), "concat_mask": mask}
    for prompt in (setting.positive, setting.negative):
        prompt[0][1].update(seen)


def nothing(setting):
    pass


CASES = {
    "LoRA": ("SD15", lora),
    "ControlNet": ("SD15", controlnet),
    "two ControlNets": ("SD15", two_controlnets),
    "T2I-Adapter": ("SD15", t2i_adapter),
    "IP-Adapter": ("SD15", ip_adapter),
    "attention patches": ("SD15", attention_patches),
    "GLIGEN": ("SD15", gligen),
    "unCLIP": ("SD21UnclipL", pictures_in_the_prompt),
    "inpaint model": ("SD15-inpaint", inpainting),
    "odd size, U-Net": ("SD15", nothing, (2, 4, 9, 7)),
    "odd size, DiT": ("SD3", nothing, (2, 16, 7, 9)),
}


@cache
def as_in_a_prompt(family):
    with torch.inference_mode():
        return FAMILIES[family].build()


@pytest.fixture(scope="module", autouse=True)
def _models_go_before_the_interpreter():
    yield
    built.cache_clear()
    as_in_a_prompt.cache_clear()


def setting(family, add, ordinary):
    with torch.inference_mode(not ordinary):
        prompts = [FAMILIES[family].conditioning(seed) for seed in (1, 2)]
        out = Setting((built if ordinary else as_in_a_prompt)(family), *prompts, draw_from(11), ordinary)
        add(out)
    return out


def cfg(d_cond, d_uncond):
    return d_uncond + CFG * (d_cond - d_uncond)


@pytest.mark.parametrize("name", CASES)
def test_against_the_jacobian_of_comfyuis_prediction(name, caplog):
    family, add, shape = (*CASES[name], (2, 4, 8, 8))[:3]
    reference, ours = setting(family, add, True), setting(family, add, False)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def by(case, model, cfg):
        return guider(family, model, cfg, case.positive, case.negative)

    def conditional(x):
        return answer(by(reference, reference.model, 1.0), x, recorded=True)

    def unconditional(x):
        return answer(by(reference, reference.model, 0.0), x, recorded=True)  # D_u + 0 (D_c − D_u)

    guidance = (CFG - 1) * (conditional(x) - unconditional(x))
    for options in by_hand.EVERY_KIND:
        with copying():  # ControlNets write into what was saved
            expected = by_hand.step(
                options, conditional, unconditional, cfg, x, alpha_of(reference.model), by_hand.differenced
            )
        with caplog.at_level(logging.WARNING, "pack.guiders"):
            for found in answers(by(ours, on_model(ours.model, options), CFG), x):
                by_hand.assert_same(found, expected, guidance, 1e-3 if options.estimator == "backward" else TOLERANCE)
    assert caplog.text == ""
    assert graphs(state(ours.model)) == []


@pytest.mark.parametrize("name", [name for name, (_, add, *_) in CASES.items() if add is not nothing])
def test_they_do_something(name):
    """So that the comparison above is one of them."""
    family, add = CASES[name][:2]
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with_it, without = (setting(family, one, False) for one in (add, nothing))
    one, other = (answer(guider(family, s.model, 1.0, s.positive, s.negative), x) for s in (with_it, without))
    assert (one - other).norm() > 0.02 * other.norm()


@dataclass(frozen=True)
class InWindows(Family):
    """A family in context windows of three latent frames."""

    node: type = WanContextWindowsManualNode
    lengths: tuple[int, int] = (9, 4)  # of a window and of an overlap, in frames of the video

    def build(self, *args, **kwargs):
        model, shared = super().build(*args, **kwargs), {"context_schedule": "standard_static", "freenoise": True}
        shared |= {"fuse_method": "pyramid", "context_stride": 1, "closed_loop": False}
        return self.node.execute(model, *self.lengths, **shared).args[0]


def in_windows(family, *latents, **node):
    return InWindows(**vars(family) | {"latents": latents} | node)


ODD = {"Flux": (2, 16, 7, 9), "WAN21_T2V": (2, 16, 3, 7, 9)}
OTHERWISE = {
    **{f"odd sizes, {name}": replace(FAMILIES[name], latents=(shape,)) for name, shape in ODD.items()},
    "a start frame, noise levels by frame": replace(FAMILIES["WAN22_T2V"], masked=True),
    "context windows": in_windows(FAMILIES["WAN21_T2V"], (1, 16, 5, 8, 8)),
    "context windows with sound": in_windows(
        FAMILIES["LTXAV"], (1, 128, 5, 4, 4), (1, 8, 10, 16), node=LTXVContextWindowsNode, lengths=(17, 8)
    ),
    "a start frame and sound": replace(FAMILIES["LTXAV"], masked=True),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_other_latents_of_families(name):
    """Batches of odd sizes, and latents of which a part is given."""
    measured = measure(OTHERWISE[name])
    assert measured.backward < 1e-3
    assert measured.backward_jacobian < 1e-3
    assert measured.difference < 0.1
    assert measured.difference_jacobian < 0.1
    assert all(0 <= factor <= 1 for factor in measured.ratio)
    assert measured.finite and not measured.warnings and not measured.changed


def test_causal_video_has_no_guidance_to_rectify(caplog):
    """ComfyUI's AR sampler keeps one cache of keys and values, so it takes one prompt: there REG does nothing."""
    family = FAMILIES["WAN21_CausalAR_T2V"]
    model = family.build()
    sampler, sigmas = comfy.samplers.ksampler("ar_video"), torch.tensor([1.0, 0.5, 0.0])
    plain = sample(family, model, sampler, sigmas, cfg=1.0)
    with caplog.at_level(logging.WARNING, "pack.guiders"):
        assert torch.equal(sample(family, on_model(model, by_hand.EVERY_KIND[0]), sampler, sigmas, cfg=1.0), plain)
    assert "no guidance to rectify" in caplog.text
    with pytest.raises(RuntimeError):  # ComfyUI's own, without REG
        sample(family, model, sampler, sigmas, cfg=3.0)
