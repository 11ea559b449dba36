"""AutoGuidance inside runs, against its definition; rectified; what it costs; the weak model's own life; refusals."""

import inspect

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import comfy.latent_formats
import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_custom_sampler import Guider_Basic
from comfy_extras.nodes_mahiro import Mahiro

from pack.guiders.attach import RectifiedSampler, on_model
from pack.guiders.autoguidance import AutoGuider
from pack.guiders.checks import describe
from pack.guiders.options import Options
from pack.guiders.schedule import GuidanceSchedule
from pack.nodes.autoguidance import REGAutoGuider
from pack.reg import estimators, rectification
from pack.research.benchmarks.cost import flat_profile
from pack.tests.families import FAMILIES
from pack.tests.families.measure import captured_warnings
from pack.tests.guiders import tiny

X, SIGMA, CFG = tiny.latent() * 2, 0.8, 3.0
W = CFG - 1
PLAIN = Options(strength=0.0)
LOADS_TWICE = "force_deepcopy" in inspect.signature(ModelPatcher.clone).parameters  # ComfyUI since 0.27
predictions = pytest.mark.parametrize("prediction", ["EPS", "FLOW"])


@pytest.fixture
def model():
    return tiny.as_model(tiny.Network(seed=0))


@pytest.fixture
def weak():
    return tiny.as_model(tiny.Network(seed=1))


def auto(model, weak, options=PLAIN, cfg=CFG, **given):
    return REGAutoGuider.execute(model, weak, tiny.POSITIVE, cfg=cfg, **given, **tiny.node_inputs(options)).args[0]


def alone(model, cond=tiny.POSITIVE, x=X):
    """What a model predicts under one cond, without guidance."""
    guider = Guider_Basic(model)
    guider.set_conds(cond)
    return tiny.predict(guider, (x, SIGMA))[0]


def answer(guider, x=X):
    return tiny.predict(guider, (x, SIGMA))[0]


def evaluated(*models):
    return [m.model.diffusion_model.evaluated for m in models]


@predictions
def test_is_karras_rule(prediction):
    """D_w = D_1 + (w − 1)(D_1 − D_0), both under the same condition; the paper's w is ComfyUI's cfg."""
    model, weak = (tiny.as_model(tiny.Network(seed), prediction) for seed in (0, 1))
    d, d_weak = alone(model), alone(weak)
    torch.testing.assert_close(answer(auto(model, weak)), d + (CFG - 1) * (d - d_weak))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_with_a_negative_it_leaves_a_blend(model, weak, share):
    d, away = alone(model), torch.lerp(alone(weak), alone(model, tiny.NEGATIVE), share)
    before = evaluated(model, weak)
    guided = answer(auto(model, weak, negative=tiny.NEGATIVE, negative_share=share))
    torch.testing.assert_close(guided, d + W * (d - away))
    passes = [(after - b) // len(X) for after, b in zip(evaluated(model, weak), before, strict=True)]
    assert passes == [1 + (share > 0), int(share < 1)]


@pytest.mark.parametrize("options", [PLAIN, Options()], ids=["plain", "reg"])
def test_without_guidance_it_is_the_model_alone_bit_for_bit(model, weak, options):
    basic = Guider_Basic(model)
    basic.set_conds(tiny.POSITIVE)
    expected, before = tiny.sample(basic), evaluated(weak)
    assert torch.equal(tiny.sample(auto(model, weak, options, cfg=1.0)), expected)
    assert evaluated(weak) == before


@predictions
@pytest.mark.parametrize("estimator", ["backward", "difference"])
@pytest.mark.parametrize("name", ["elementwise", "jacobian"])
def test_rectified(prediction, name, estimator):
    """R takes the Jacobian of the model alone: by the reverse pass transposed, by a difference as it is."""
    model, weak = (tiny.as_model(tiny.Network(seed), prediction) for seed in (0, 1))
    step = 0.001 if estimator == "difference" else 0.0
    rectified = answer(auto(model, weak, Options(name, estimator, step=step))) - alone(model)

    g = W * (alone(model) - alone(weak))
    jacobian = jacobian_of(model).T if estimator == "backward" else jacobian_of(model)
    alpha = 1.0 if prediction == "EPS" else 1 - SIGMA
    v = torch.ones_like(g) if name == "elementwise" else g
    product = alpha * (jacobian @ v.flatten()).view_as(g)
    expected = product * g if name == "elementwise" else product
    torch.testing.assert_close(rectified, expected, rtol=1e-2, atol=1e-2)


def jacobian_of(model):
    """∂D_c/∂x of the bare network, over the flattened batch."""
    sigma, context = torch.full([len(X)], SIGMA), tiny.POSITIVE[0][0].repeat(len(X), 1, 1)
    j = torch.autograd.functional.jacobian(lambda x: model.model.apply_model(x, sigma, c_crossattn=context), X)
    return j.view(X.numel(), X.numel())


def test_ratio_compares_with_the_weak_model(model, weak):
    step = 0.01
    g = W * (alone(model) - alone(weak))
    probe = estimators.probe(X, g, step)
    jc, jw = (probe.product(alone(m), alone(m, x=probe.x)) for m in (model, weak))
    expected = rectification.ratio_factor(rectification.jacobian_ratio(g, jc, jw), W) * g
    rectified = answer(auto(model, weak, Options("ratio", step=step))) - alone(model)
    torch.testing.assert_close(rectified, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        # of a run's first step: one more sees that ours agrees with ComfyUI's, …
        (Options("elementwise", "backward"), [1 + 1 + 1, 1]),  # … and one has a graph (and then a reverse pass)
        (Options("jacobian", "backward"), [1 + 1 + 1, 1]),
        (Options("elementwise", "difference"), [1 + 1 + 3, 1]),  # … and the probe is tried alone and in a batch
        (Options("jacobian", "difference"), [1 + 1 + 1, 1]),
        (Options("ratio"), [1 + 1 + 1, 1 + 1 + 1]),
        (Options("ratio", strength=0.0), [1, 1]),
    ],
    ids=str,
)
def test_passes(model, weak, options, passes):
    before = evaluated(model, weak)
    answer(auto(model, weak, options))
    assert [(after - b) // len(X) for after, b in zip(evaluated(model, weak), before, strict=True)] == passes


def test_rectified_by_the_sampler_as_by_the_guider(model, weak):
    options = Options("elementwise", "backward")
    plain = auto(model, weak)
    by_sampler = tiny.sample(plain, wrap=lambda sampler: RectifiedSampler(sampler, options))
    torch.testing.assert_close(by_sampler, tiny.sample(auto(model, weak, options)))


def test_follows_a_schedule_from_any_cfg(model, weak):
    schedule = GuidanceSchedule("interval", 4.0, start_percent=0.0, end_percent=0.5)
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    guider = auto(model, weak, Options(strength=0.0, schedule=schedule), cfg=1.0)
    before = evaluated(weak)
    inside, outside = tiny.predict(guider, (X, to_sigma(0.4)), (X, to_sigma(0.6)))
    assert evaluated(weak) == [before[0] + len(X)]
    torch.testing.assert_close(inside, tiny.predict(auto(model, weak, cfg=4.0), (X, to_sigma(0.4)))[0])
    torch.testing.assert_close(outside, tiny.predict(auto(model, weak, cfg=1.0), (X, to_sigma(0.6)))[0])


@pytest.mark.parametrize("patch", [lambda m: APG.execute(m, 0.5, 2.0, 0.0), Mahiro.execute], ids=["APG", "Mahiro"])
def test_hooks_run_as_in_comfyuis_own_guidance(model, weak, patch):
    """With the negative alone it is CFG, and CFG with patches is known."""
    patched = patch(model).args[0]
    guided = answer(auto(patched, weak, negative=tiny.NEGATIVE, negative_share=1.0))
    torch.testing.assert_close(guided, answer(tiny.guider(patched, CFG)))
    assert (answer(auto(patched, weak)) - answer(auto(model, weak))).abs().max() > 1e-3


def test_patches_are_each_models_own(model, weak):
    def doubled(patched):
        patched = patched.clone()
        patched.set_model_unet_function_wrapper(
            lambda apply, args: 2 * apply(args["input"], args["timestep"], **args["c"])
        )
        return patched

    d, d_weak = alone(model), alone(weak)
    torch.testing.assert_close(answer(auto(model, doubled(weak))), d + W * (d - 2 * d_weak))
    torch.testing.assert_close(answer(auto(doubled(model), weak)), 2 * d + W * (2 * d - d_weak))


def test_reg_on_the_weak_model_counts_for_nothing(model, weak):
    torch.testing.assert_close(answer(auto(model, on_model(weak, Options()))), answer(auto(model, weak)))


def test_both_models_are_loaded_by_comfyui_and_let_go(model, weak):
    def look(executor, *args):
        loaded = [m.model.model for m in comfy.model_management.current_loaded_models]
        seen.append([any(m is x.model for m in loaded) for x in (model, weak)])
        seen.append([x.model.current_patcher is not None for x in (model, weak)])
        return executor(*args)

    seen, watched = [], model.clone()
    watched.add_wrapper(WrappersMP.SAMPLER_SAMPLE, look)
    guider = auto(watched, weak)
    answer(guider)
    assert seen == [[True, True], [True, True]]
    assert guider.model_patcher.get_nested_additional_models() == [guider.weak.model_patcher]
    assert model.model.current_patcher is None and weak.model.current_patcher is None
    assert guider.weak_arguments is None


def test_one_guider_serves_many_runs_also_after_a_failure(model, weak):
    guider = auto(model, weak, Options())
    first = tiny.sample(guider)

    def fail(*args):
        raise RuntimeError("in the weak model")

    broken = weak.clone()
    broken.set_model_unet_function_wrapper(fail)
    with pytest.raises(RuntimeError, match="in the weak model"):
        tiny.sample(auto(model, broken))
    assert torch.equal(tiny.sample(guider), first)
    assert model.model.current_patcher is None and weak.model.current_patcher is None


def test_a_model_may_be_its_own_weak_model_with_other_patches(model):
    """Of one loaded model: nothing to guide by alone, something with a patch."""
    torch.testing.assert_close(answer(auto(model, model.clone())), alone(model))
    patched = model.clone()
    patched.set_model_unet_function_wrapper(
        lambda apply, args: 0.5 * apply(args["input"], args["timestep"], **args["c"])
    )
    torch.testing.assert_close(answer(auto(model, patched)), alone(model) * (1 + W * 0.5))


def with_other_weights(model):
    """The model with weights patched in, as a LoRA patches them."""
    patched = model.clone()
    weight = model.model.diffusion_model.last.weight
    assert patched.add_patches({"diffusion_model.last.weight": (torch.ones_like(weight),)})
    return patched


@pytest.mark.skipif(not LOADS_TWICE, reason="this ComfyUI does not load a model twice")
def test_a_weak_model_that_differs_by_a_lora_is_loaded_once_more(model):
    model.cached_patcher_init = (lambda disable_dynamic=False: tiny.as_model(tiny.Network(seed=0)), ())
    other = with_other_weights(model)
    d, d_other = alone(model), alone(other)
    assert (d - d_other).abs().max() > 0.1
    torch.testing.assert_close(answer(auto(model, other)), d + W * (d - d_other))
    torch.testing.assert_close(answer(auto(other, model)), d_other + W * (d_other - d))


def refused(words, model, weak):
    with pytest.raises(ValueError, match=words) as error:
        AutoGuider(model, weak)
    message = str(error.value)
    assert message.startswith("REG: ") and "\n" not in message


def test_refuses_what_cannot_be_compared(model, weak):
    flow = tiny.as_model(tiny.Network(seed=1), "FLOW")
    refused("adds noise on another scale", model, flow)
    refused("adds noise on another scale", flow, model)
    tiny_v = tiny.as_model(tiny.Network(seed=1), "V_PREDICTION")
    AutoGuider(model, tiny_v)  # the same noisy latent, another way to write the prediction
    other = tiny.as_model(tiny.Network(seed=1))
    other.model.latent_format = comfy.latent_formats.SDXL()
    refused("works on other latents", model, other)
    wider = tiny.as_model(tiny.Network(seed=1))
    wider.model.latent_format = type(model.model.latent_format)()
    wider.model.latent_format.latent_channels = 16
    refused("works on other latents", model, wider)
    why = "its loader cannot load it a second time" if LOADS_TWICE else "needs ComfyUI 0.27 or newer"
    refused(why, model, with_other_weights(model))


def test_at_cfg_1_a_patch_that_needs_it_sees_the_weak_models_prediction(model, weak):
    seen, patched = [], model.clone()

    def note(args):
        seen.append(args["uncond_denoised"].clone())
        return args["denoised"]

    patched.set_model_sampler_post_cfg_function(note, disable_cfg1_optimization=True)
    answer(auto(patched, weak, cfg=1.0))
    torch.testing.assert_close(seen, [alone(weak)])


def test_skip_below_is_said_to_do_nothing(model, weak):
    profile = flat_profile(describe(model.model, tiny.CHANNELS), 0.5)
    options = Options("ratio", profile=profile, skip_below=0.5)
    with captured_warnings() as lines:
        tiny.sample(auto(model, weak, options))
    assert any("skip_below leaves out the pass of a negative prompt" in line for line in lines)


@pytest.mark.parametrize("name", ["LTXAV", "WAN21_T2V", "SD15"])
def test_on_nested_latents_videos_and_masked_pictures(name):
    """A weak model of the same weights guides nowhere; another one does, and a masked part stays as it was."""
    family = FAMILIES[name]
    model, other = family.build(0), family.build(1)
    mask = torch.tensor([0.0, 1.0]).repeat_interleave(4).expand(1, 1, 8, 8) if name == "SD15" else None
    alone = sampled(family, Guider_Basic(model), mask)
    same = sampled(family, AutoGuider(model, family.build(0)), mask)
    guided = sampled(family, AutoGuider(on_model(model, Options()), other), mask)
    for a, b, c in zip(*([x.unbind() if x.is_nested else [x] for x in (alone, same, guided)]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert c.isfinite().all() and (c - a).abs().max() > 1e-2 * a.abs().max()
    if mask is not None:
        assert guided[..., :4].abs().max() < 1e-4


@torch.inference_mode()
def sampled(family, guider, mask):
    """Two Euler steps from an empty latent."""
    guider.set_conds(family.conditioning(1))
    if isinstance(guider, AutoGuider):
        guider.set_cfg(CFG)
    sigmas = comfy.samplers.calculate_sigmas(guider.model_patcher.get_model_object("model_sampling"), "simple", 2)
    noise, euler = family.latent(0), comfy.samplers.sampler_object("euler")
    return guider.sample(noise, noise * 0.0, euler, sigmas, denoise_mask=mask, disable_pbar=True, seed=0)


@pytest.mark.parametrize("module", ["nodes_sag:SelfAttentionGuidance", "nodes_nag:NAGuidance"])
def test_patches_on_the_negatives_pass_act_with_a_negative(module):
    module, name = module.split(":")
    node = getattr(pytest.importorskip(f"comfy_extras.{module}"), name)
    values = (
        {"scale": 0.8, "blur_sigma": 2.0}
        if name.startswith("Self")
        else {"nag_scale": 3.0, "nag_alpha": 0.5, "nag_tau": 1.5}
    )
    family = FAMILIES["SD15"]
    model, weak = family.build(0), family.build(1)

    def guided(model):
        guider = AutoGuider(on_model(model, Options()), weak)
        guider.set_conds(family.conditioning(1), family.conditioning(2), 0.5)
        guider.set_cfg(CFG)
        at = tiny.Once((family.latent(0), SIGMA))
        blank = torch.zeros(1, 4, 8, 8)
        with torch.inference_mode():
            guider.sample(blank, blank, at, torch.tensor([1.0, 0.0]), disable_pbar=True)
        return at.denoised[0]

    plain, patched = guided(model), guided(node.execute(model, **values).args[0])
    assert patched.isfinite().all() and (patched - plain).abs().max() > 1e-3 * plain.abs().max()
