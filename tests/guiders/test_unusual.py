"""Samplers, guiders and patches that are rare, and must not make REG wrong without a word."""

import copy
import pickle
from dataclasses import replace

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from comfy_extras.nodes_custom_sampler import Guider_Basic, Guider_DualModel
from comfy_extras.nodes_sag import SelfAttentionGuidance
from comfy_extras.nodes_tcfg import TCFG

from pack.guiders.attach import RectifiedSampler, on_model
from pack.guiders.autoguidance import AutoGuider
from pack.guiders.options import Options
from pack.guiders.run import Run
from pack.guiders.schedule import GuidanceSchedule
from pack.reg.rectification import RECTIFICATIONS
from pack.tests.families.measure import captured_warnings
from pack.tests.families.table import FAMILIES
from pack.tests.guiders import by_hand, tiny
from pack.tests.guiders.report.test_record import recorded

POINT = tiny.latent() * 2, 2.0
SCHEDULE = Options(strength=0.0, schedule=GuidanceSchedule("constant", 6.0))


@pytest.fixture
def model():
    return tiny.as_model(by_hand.Narrowing())


@pytest.fixture
def values(monkeypatch):
    """(sigma, mean of the factor) of every rectified step."""
    seen, report = [], Run._report

    def noting(run, step, rectified):
        seen.append((float(step.sigma[0]), float(run.value.mean())))
        report(run, step, rectified)

    monkeypatch.setattr(Run, "_report", noting)
    return seen


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_schedule_scales_no_prediction_of_a_guider_without_a_negative(model, strength):
    def basic(model):
        guider = Guider_Basic(model)
        guider.set_conds(tiny.POSITIVE)
        return guider

    options = Options(strength=strength, schedule=SCHEDULE.schedule)
    with captured_warnings() as lines:
        found = tiny.sample(basic(on_model(model, options)))
    torch.testing.assert_close(found, tiny.sample(basic(model)), rtol=0, atol=0)
    assert any("no guidance to change" in line for line in lines)


def two_models(model, other, cfg):
    guider = Guider_DualModel(model, other)
    guider.set_conds(tiny.POSITIVE, tiny.NEGATIVE)
    guider.set_cfg(cfg)
    return guider


def test_a_schedule_says_so_where_the_second_model_is_not_loaded(model):
    other = tiny.as_model(tiny.Network(1))
    with captured_warnings() as lines:
        found = tiny.sample(two_models(on_model(model, SCHEDULE), other, 1.0))
    torch.testing.assert_close(found, tiny.sample(two_models(model, other, 1.0)), rtol=0, atol=0)
    assert any("no guidance to change" in line for line in lines)
    scheduled = tiny.sample(two_models(on_model(model, SCHEDULE), other, 3.0))
    torch.testing.assert_close(scheduled, tiny.sample(two_models(model, other, 6.0)))


class Deep(by_hand.Narrowing):
    """With blocks that do nothing, but are counted."""

    def __init__(self, depth, seed=0):
        super().__init__(seed)
        self.blocks = torch.nn.ModuleList(torch.nn.Identity() for _ in range(depth))

    def forward(self, x, *args, **kwargs):
        for block in self.blocks:
            x = block(x)
        return super().forward(x, *args, **kwargs)


@pytest.mark.parametrize("options", by_hand.EVERY_KIND, ids=by_hand.name)
@pytest.mark.parametrize("depths", [(4, 8), (8, 4)])
def test_networks_of_two_depths_are_no_cache(options, depths):
    def found(one, other):
        models = on_model(tiny.as_model(Deep(one)), options), tiny.as_model(Deep(other, 1))
        with captured_warnings() as lines:
            samples = tiny.sample(two_models(*models, 4.0))
        assert lines == []
        return samples

    torch.testing.assert_close(found(*depths), found(4, 4), rtol=0, atol=0)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_rectified_sampler_can_be_copied(model, copied):
    sampler = RectifiedSampler(comfy.samplers.sampler_object("euler"), Options(refresh=1))
    once = tiny.sample(tiny.guider(model), wrap=lambda _: sampler)
    torch.testing.assert_close(tiny.sample(tiny.guider(model), wrap=lambda _: copied(sampler)), once, rtol=0, atol=0)


def test_wrappers_may_name_what_they_pass_on(model):
    def sampling(executor, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, *args):
        return executor(
            guider, sigmas, extra_args, callback, noise, latent_image=latent_image, denoise_mask=denoise_mask
        )

    def predicting(executor, x, timestep, model_options={}, seed=None):  # noqa: B006 (ComfyUI's signature)
        return executor(x=x, timestep=timestep, model_options=model_options, seed=seed)

    def evaluating(executor, model, conds, x_in, timestep, model_options):
        return executor(model, conds, x_in=x_in, timestep=timestep, model_options=model_options)

    options = Options(refresh=1, schedule=GuidanceSchedule("linear", 2.0, 6.0))
    wrapped = model.clone()
    wrapped.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "another", sampling)
    wrapped.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "another", predicting)
    wrapped.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "another", evaluating)
    found, expected = (tiny.sample(tiny.guider(on_model(one, options))) for one in (wrapped, model))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


class Halves(comfy.samplers.Sampler):
    """Two samplers in one run, as chains of samplers are made."""

    def __init__(self, first, second):
        self.first, self.second = first, second

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, *args):
        half = len(sigmas) // 2
        shared = model_wrap, extra_args, callback, denoise_mask

        def part(sampler, sigmas, noise, latent):
            model_wrap, extra_args, callback, mask = shared
            return sampler.sample(model_wrap, sigmas, extra_args, callback, noise, latent, mask, True)

        middle = part(self.first, sigmas[: half + 1], noise, latent_image)
        return part(self.second, sigmas[half:], torch.zeros_like(noise), middle)


@pytest.mark.parametrize("options", [Options(refresh=1), SCHEDULE], ids=["REG", "schedule"])
def test_a_rectified_sampler_twice_in_a_run_is_rectified_twice(model, options):
    def rectified(sampler):
        return RectifiedSampler(sampler, options)

    with captured_warnings() as lines:
        within = tiny.sample(tiny.guider(model), 6, wrap=lambda one: Halves(rectified(one), rectified(one)))
    around = tiny.sample(tiny.guider(model), 6, wrap=lambda one: rectified(Halves(one, one)))
    torch.testing.assert_close(within, around, rtol=0, atol=0)
    assert lines == []


class Twice(comfy.samplers.Sampler):
    """Goes through all noise levels twice, counting its steps anew."""

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, *args):
        euler, x = comfy.samplers.sampler_object("euler"), latent_image
        for _ in range(2):
            x = euler.sample(model_wrap, sigmas, dict(extra_args), callback, noise, x, denoise_mask, True)
        return x


@pytest.mark.parametrize("refresh", [0, 2])
def test_a_second_pass_measures_as_the_first(model, values, refresh):
    tiny.sample(tiny.guider(on_model(model, Options("elementwise", refresh=refresh))), 8, wrap=lambda _: Twice())
    first, second = ([value for _, value in values[i : i + 8]] for i in (0, 8))
    assert len(set(second)) >= len(set(first)) > 3  # the first step of a pass tells that it is one
    assert second[-1] >= first[-1] - 0.02


@pytest.mark.parametrize("sampler", ["er_sde", "dpmpp_2m_sde", "sa_solver", "dpmpp_sde", "seeds_2", "euler"])
@pytest.mark.parametrize("rule", ["elementwise", "jacobian"])
def test_what_a_flow_model_says_next_to_pure_noise_is_not_held(values, sampler, rule):
    """α is nearly 0 there, and f with it: held, it would switch guidance off for the steps that follow."""
    model = tiny.as_model(by_hand.Narrowing(), "FLOW")
    tiny.sample(tiny.guider(on_model(model, Options(rule, refresh=4))), 20, sampler)
    held = [value for sigma, value in values if sigma < 0.97]
    assert min(held) > 1e-3


@pytest.mark.parametrize("rule", RECTIFICATIONS.values(), ids=RECTIFICATIONS)
@pytest.mark.parametrize(("value", "said"), [(0.0, False), (1e-5, False), (0.01, True), (0.5, True)])
def test_next_to_0_everywhere_says_nothing(rule, value, said):
    assert bool(rule.is_informative(torch.full((2, 1, 1, 1), value))) == said


def test_an_unconditional_pass_that_a_patch_needs_is_not_skipped():
    """SAG asks for it, and would stop the run without."""
    family = FAMILIES["SD15"]
    little, four = torch.full([3], 0.01), torch.full([3, 4], 0.5)
    profile = replace(tiny.profile(channels="4"), effect=little, factor=four)

    def answers(model):
        guider = comfy.samplers.CFGGuider(SelfAttentionGuidance.execute(model, 0.8, 2.0).args[0])
        guider.set_conds(family.conditioning(1), family.conditioning(2))
        guider.set_cfg(4.0)
        return tiny.predict(guider, *[(family.latent(0), sigma) for sigma in (5.0, 2.0)])

    model = family.build(0)
    options = Options(profile=profile, estimator="profile", skip_below=0.05, strength=1e-6)
    torch.testing.assert_close(answers(on_model(model, options)), answers(model), rtol=1e-4, atol=1e-4)


def scaled_by(scale):
    """A patch that changes the other prediction before guidance is made of it."""

    def patch(model):
        model = model.clone()
        model.set_model_sampler_pre_cfg_function(lambda args: [args["conds_out"][0], args["conds_out"][1] * scale])
        return model

    return patch


@pytest.mark.parametrize("patch", [scaled_by(1.05), scaled_by(0.95), lambda model: TCFG.execute(model).args[0]])
def test_what_a_patch_makes_of_the_weak_models_prediction_is_no_difference_of_its(values, model, patch):
    """ρ is along another g then, and of the same two Jacobians."""
    weak = tiny.as_model(tiny.Network(1))
    guider = AutoGuider(on_model(patch(model), Options("ratio", refresh=1, step=by_hand.STEP)), weak)
    guider.set_conds(tiny.POSITIVE)
    guider.set_cfg(4.0)
    x, sigma = POINT
    tiny.predict(guider, POINT)
    strong, other = (by_hand.prediction(one, tiny.POSITIVE) for one in (model, weak))
    sigmas = torch.full([len(x)], sigma)
    plain = AutoGuider(patch(model), weak)
    plain.set_conds(tiny.POSITIVE)
    plain.set_cfg(4.0)
    d_cond = strong(x, sigmas)
    g = tiny.predict(plain, POINT)[0] - d_cond
    j_c, j_u = (by_hand.dot(g, by_hand.pushed_forward(lambda x, f=f: f(x, sigmas), x, g)) for f in (strong, other))
    expected = (j_c / j_u).clamp(0, 1).mean()
    assert values[-1][1] == pytest.approx(float(expected), abs=5e-3)


@pytest.mark.parametrize("scale", [0.99, 1.01, 1.05])
def test_a_wrapper_that_changes_only_the_other_prediction_is_in_the_ratio(values, scale):
    """ρ is that of the two predictions as they are, with the wrapper."""

    def wrapper(apply, args):
        out = apply(args["input"], args["timestep"], **args["c"])
        parts = zip(out.chunk(len(args["cond_or_uncond"])), args["cond_or_uncond"], strict=True)
        return torch.cat([part * (scale if which == 1 else 1) for part, which in parts])

    def rho(model, **options):
        tiny.predict(tiny.guider(on_model(model, Options("ratio", refresh=1, **options))), POINT)
        return values.pop()[1]

    model = tiny.as_model(Deep(4))
    plain, wrapped = rho(model), model.clone()
    wrapped.set_model_unet_function_wrapper(wrapper)
    assert rho(wrapped) == pytest.approx(plain, abs=0.06)


class Weakened(by_hand.Narrowing):
    """Predicts less where it is asked to."""

    def forward(self, x, t, context=None, transformer_options={}, **kwargs):  # noqa: B006
        out = super().forward(x, t, context, **kwargs)
        return out * 0.5 if transformer_options.get("weaken") else out


def perturbed(first, copied):
    """A CALC_COND_BATCH wrapper that adds guidance by a weakened evaluation of the same conds, made first or last."""

    def wrapper(executor, model, conds, x, sigma, options):
        weakened = {**options, "transformer_options": {**options["transformer_options"], "weaken": True}}
        order = (weakened, options) if first else (options, weakened)
        out = {id(one): executor(model, conds, x, sigma, one) for one in order}
        plain, weak = out[id(options)], out[id(weakened)]
        return [plain[0] + 2 * (plain[0] - weak[0]), plain[1].clone() if copied else plain[1]]

    return wrapper


@pytest.mark.parametrize("options", by_hand.EVERY_KIND, ids=by_hand.name)
@pytest.mark.parametrize("copied", [False, True])
def test_the_order_of_evaluations_of_one_cond_changes_nothing(options, copied):
    """Which of them guidance was made of is known by what was handed on, else by the options."""

    def answer(first):
        model = tiny.as_model(Weakened())
        model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "perturbed", perturbed(first, copied))
        return tiny.predict(tiny.guider(on_model(model, options)), *[POINT] * 3)

    torch.testing.assert_close(answer(True), answer(False), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", by_hand.EVERY_KIND, ids=by_hand.name)
def test_several_latents_in_a_step_are_left_as_they_are_and_said(model, options):
    """A wrapper within REG's own that guides a shifted latent, too: what is between the two is no guidance."""

    def shifting(executor, x, sigma, *args):
        return (executor(x, sigma, *args) + torch.roll(executor(torch.roll(x, 1, -1), sigma, *args), -1, -1)) / 2

    def adding(executor, guider, sigmas, extra_args, *args, **kwargs):
        options = guider.model_options
        add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "shifting", shifting, options, is_model_options=True)
        return executor(guider, sigmas, extra_args, *args, **kwargs)

    def answer(model):
        wrapped = model.clone()
        wrapped.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "adding", adding)
        return tiny.predict(tiny.guider(wrapped), POINT)

    with captured_warnings() as lines:
        found = answer(on_model(model, options))
    torch.testing.assert_close(found, answer(on_model(model, Options(strength=0.0))), rtol=0, atol=0)
    assert any("several latents in one step" in line for line in lines)


class DrawsLate(tiny.Network):
    """Draws random numbers at low noise only."""

    def forward(self, x, t, context=None, transformer_options={}, **kwargs):  # noqa: B006
        out = super().forward(x, t, context, **kwargs)
        return out + 0.05 * torch.randn_like(out) if float(transformer_options["sigmas"][0]) < 3 else out


@pytest.mark.parametrize("options", by_hand.EVERY_KIND, ids=by_hand.name)
def test_a_network_that_draws_from_some_step_on_is_seen_to(values, options):
    """A difference of two draws would be noise: with numbers that are drawn again f stays near what it is without."""
    x = POINT[0]
    points = [(x, sigma) for sigma in (5.0, 2.0, 1.9, 1.8)]
    drawing, quiet = tiny.as_model(DrawsLate()), tiny.as_model(tiny.Network())
    torch.manual_seed(5)
    tiny.predict(tiny.guider(on_model(drawing, options)), *points)
    found = [value for _, value in values[-2:]]
    tiny.predict(tiny.guider(on_model(quiet, options)), *points)
    assert found == pytest.approx([value for _, value in values[-2:]], abs=0.1)


@pytest.mark.parametrize("options", by_hand.EVERY_KIND, ids=by_hand.name)
def test_passes_that_a_patch_makes_in_comfyuis_place_are_counted_once(model, options):
    def stand_in(args):
        return comfy.samplers.calc_cond_batch(
            args["model"], args["conds"], args["input"], args["sigma"], args["model_options"]
        )

    patched = model.clone()
    patched.set_model_sampler_calc_cond_batch_function(stand_in)
    network = model.model.diffusion_model
    before = network.evaluated
    passes = recorded(patched, options).passes
    assert (network.evaluated - before) / 2 == passes["cond"] + passes["uncond"] + passes["extra"]
