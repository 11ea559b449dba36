"""Every sampler of ComfyUI's list: what it makes of REG is what it makes of the formula, written out by hand.

So each evaluation of a step, the noise of SDE samplers and the unconditional prediction that CFG++ samplers see are
compared.
"""

from dataclasses import replace

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch
from comfy.samplers import SAMPLER_NAMES
from comfy_extras import nodes_advanced_samplers

from pack.guiders.attach import RectifiedSampler, on_model
from pack.guiders.options import Options
from pack.tests.guiders import by_hand, tiny

CFG, STEPS = 3.0, 4
BACKWARD = Options("elementwise", "backward", refresh=1)
DIFFERENCE = Options("jacobian", "difference", refresh=1, step=by_hand.STEP)
CFG_PP = [name for name in SAMPLER_NAMES if name.endswith("cfg_pp")]
TWICE = ["heun", "dpm_2", "dpmpp_2s_ancestral", "dpmpp_sde", "exp_heun_2_x0", "seeds_2", "dpmpp_2s_ancestral_cfg_pp"]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # ComfyUI's own
samplers = pytest.mark.parametrize("sampler", SAMPLER_NAMES)


@pytest.fixture
def model():
    return tiny.as_model(tiny.Network())


def sampled(guider, sampler, **options):
    """A run, and the state of chance after it."""
    torch.manual_seed(0)
    return tiny.sample(guider, steps=STEPS, sampler=sampler, **options), torch.get_rng_state()


def check(model, sampler, options, **wrapped):
    plain, drawn = sampled(tiny.guider(model, CFG), sampler, **wrapped)
    answer, drawn_too = sampled(tiny.guider(on_model(model, options), CFG), sampler, **wrapped)
    expected, _ = sampled(by_hand.Guider(model, CFG, options), sampler, **wrapped)
    assert torch.equal(drawn, drawn_too)
    by_hand.assert_same(answer, expected, expected - plain)


@samplers
def test_samples_as_with_the_formula(model, sampler):
    check(model, sampler, BACKWARD)


@pytest.mark.parametrize("sampler", [*CFG_PP, *TWICE])
def test_samples_as_with_the_formula_by_differences(model, sampler):
    check(model, sampler, DIFFERENCE)


@pytest.mark.parametrize("sampler", TWICE)
def test_a_measurement_stands_for_the_evaluations_of_a_step(model, sampler):
    check(model, sampler, replace(BACKWARD, refresh=2))


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "euler_cfg_pp", "heun", "dpmpp_2m_sde", "lcm"])
def test_flow_models_too(sampler):
    check(tiny.as_model(tiny.Network(), "FLOW"), sampler, BACKWARD)


@pytest.mark.parametrize("version", ["regular", "alternative"])
def test_the_node_of_cfg_pp(model, version):
    node = nodes_advanced_samplers.SamplerEulerCFGpp.execute(version).args[0]
    check(model, "euler", BACKWARD, wrap=lambda _: node)


@pytest.mark.parametrize("options", [BACKWARD, DIFFERENCE], ids=by_hand.name)
def test_a_sampler_that_changes_the_size(model, options):
    """LCM Upscale grows the latent at every step here: what was measured at another size is not kept."""
    node = nodes_advanced_samplers.SamplerLCMUpscale.execute(2.0, STEPS, "bilinear").args[0]
    check(model, "lcm", options, wrap=lambda _: node)
    each, kept = (
        sampled(tiny.guider(on_model(model, replace(options, refresh=refresh)), CFG), "lcm", wrap=lambda _: node)[0]
        for refresh in (1, 10)
    )
    assert torch.equal(each, kept)


@samplers
def test_strength_0_is_the_plain_run_bit_for_bit(model, sampler):
    plain, drawn = sampled(tiny.guider(model, CFG), sampler)
    nothing = Options("elementwise", "backward", strength=0.0)
    for guider, wrap in (
        (tiny.guider(on_model(model, nothing), CFG), lambda s: s),
        (tiny.guider(model, CFG), lambda s: RectifiedSampler(s, nothing)),
    ):
        answer, drawn_too = sampled(guider, sampler, wrap=wrap)
        assert torch.equal(answer, plain)
        assert torch.equal(drawn, drawn_too)


@pytest.mark.parametrize("sampler", TWICE)
@pytest.mark.parametrize("refresh", [1, 2, 0])
def test_both_evaluations_of_a_step_are_rectified(model, sampler, refresh):
    """With refresh = 1 both are measured, else one of a step that is due. A measurement costs one conditional evaluation;
    the run's first one more, to see whether ours agree."""
    options = replace(DIFFERENCE, refresh=refresh)
    hand = by_hand.Guider(model, CFG, options)
    sampled(hand, sampler)
    assert hand.evaluations > STEPS
    assert (
        hand.measurements == {1: hand.evaluations, 2: STEPS / 2, 0: 3}[refresh]
    )  # of four steps 0 and 2; or 0, 1 and 2
    network = model.model.diffusion_model
    before = network.evaluated
    sampled(tiny.guider(on_model(model, options), CFG), sampler)
    assert network.evaluated - before == (2 * hand.evaluations + hand.measurements + 1) * len(tiny.latent())


@pytest.mark.parametrize("sampler", CFG_PP)
@pytest.mark.parametrize("options", by_hand.EVERY_KIND, ids=by_hand.name)
def test_cfg_pp_at_cfg_1_changes_no_bit(model, sampler, options):
    """There the unconditional pass is made for the sampler alone: no guidance, nothing to rectify, nothing measured."""
    network = model.model.diffusion_model
    plain, _ = sampled(tiny.guider(model, 1.0), sampler)
    before = network.evaluated
    answer, _ = sampled(tiny.guider(on_model(model, options), 1.0), sampler)
    assert torch.equal(answer, plain)
    spent = network.evaluated - before
    sampled(tiny.guider(model, 1.0), sampler)
    assert spent == network.evaluated - before - spent
