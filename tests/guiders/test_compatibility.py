"""REG beside ComfyUI's own patches, through their nodes: what is rectified, REG is last, they act as alone."""

import logging

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import comfy.hooks
import comfy.lora
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

from pack.guiders.attach import on_model
from pack.guiders.options import Options
from pack.tests.families import FAMILIES
from pack.tests.guiders import by_hand, compatibility
from pack.tests.guiders.single_step import CFG, DRAW, alpha_of, answer, built, copying, guider

BACKWARD, DIFFERENCE = Options("elementwise", "backward"), Options("elementwise", "difference", step=0.002)
FAINT = Options("elementwise", "backward", strength=1e-6)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # ComfyUI's own


def neighbours(rows):
    pairs = [(row, family) for row in rows for family in row.families]
    return pytest.mark.parametrize(("row", "family"), pairs, ids=[f"{row.name}-{f}" for row, f in pairs])


SINGLE_STEPS = [*compatibility.GUIDANCE, *compatibility.NETWORK]
estimators = pytest.mark.parametrize("options", [BACKWARD, DIFFERENCE], ids=["backward", "difference"])


@pytest.fixture(scope="module", autouse=True)
def _models_go_before_the_interpreter():
    yield
    built.cache_clear()


def patched(row, model):
    """The model as ComfyUI's node returns it."""
    module, name = row.node.split(":")
    node = getattr(pytest.importorskip(f"comfy_extras.{module}"), name, None)
    if node is None:
        pytest.skip("this ComfyUI does not have it yet")
    if not hasattr(node, "execute"):  # of the older kind
        return getattr(node(), node.FUNCTION)(model, **row.inputs)[0]
    out = node.execute(model, **row.inputs)
    return out[0] if isinstance(out, tuple) else out.args[0]


def latent(row, family, seed=0):
    shape = FAMILIES[family].latent().shape[:-2]
    return torch.randn(*shape, row.size, row.size, generator=torch.Generator().manual_seed(seed))


def watched(model, seen):
    """The model, with D_c and D_u of a step put into `seen`: as the network gives them, before any patch of the guidance."""

    def watch(executor, model, conds, *args):
        out = executor(model, conds, *args)
        for i, (cond, denoised) in enumerate(zip(conds, out, strict=True)):
            if cond is not None:
                seen.setdefault(i, denoised)
        return out

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "watch", watch)
    return model


def predictions(guided_by, model, x):
    """D_c and D_u at x within a guided step of the model without REG."""
    seen = {}
    answer(guided_by(watched(model, seen)), x)
    return seen


def d_cond(guided_by, model, x):
    return predictions(guided_by, model, x)[0]


def product(guided_by, model, x, options):
    """α Jᵀ1 by autograd, or α J1 by a central difference, of the model without REG."""
    alpha = alpha_of(model)
    if options.estimator == "backward":
        leaf = x.clone().requires_grad_(True)
        with torch.enable_grad(), copying():
            return alpha * torch.autograd.grad(d_cond(guided_by, model, leaf).sum(), leaf)[0]
    h = 0.002
    return alpha * (d_cond(guided_by, model, x + h) - d_cond(guided_by, model, x - h)) / (2 * h)


def check(guided_by, model, x, options):
    """D_reg = D_c + α J 1 ⊙ (D_guided − D_c)."""
    d, guided = d_cond(guided_by, model, x), answer(guided_by(model), x)
    rectified = answer(guided_by(on_model(model, options)), x)
    expected = product(guided_by, model, x, options) * (guided - d)
    assert (rectified - guided).abs().max() > 0.02 * (guided - d).abs().max()
    distance = ((rectified - d) - expected).norm() / expected.norm()
    assert distance < (1e-4 if options.estimator == "backward" else 0.02)


@neighbours(SINGLE_STEPS)
@estimators
def test_what_is_rectified(row, family, options):
    if options.estimator == "difference" and not row.smooth:
        pytest.skip("a difference crosses its jumps, as the page says")
    model = patched(row, built(family))
    check(lambda m: guider(family, m), model, latent(row, family), options)


@neighbours([row for row in SINGLE_STEPS if row.smooth])
def test_what_the_ratio_leaves_of_it(row, family):
    """f g with f = ρ / (1 + w (1 − ρ)), from central differences along g; nothing here is of the pack."""
    model = patched(row, built(family))
    x = latent(row, family)

    def of(x):
        return predictions(lambda m: guider(family, m), model, x)

    d, uncond = of(x)[0], of(x)[1]
    guided = answer(guider(family, model), x)
    g = guided - d
    options = Options("ratio", step=0.002)
    rectified = answer(guider(family, on_model(model, options)), x)
    both = [lambda x, i=i: of(x)[i] for i in (0, 1)]
    expected = by_hand.rectified(options, *both, x, g, d - uncond, alpha_of(model), by_hand.differenced)
    assert ((rectified - d) - expected).norm() < 0.03 * g.norm()


@torch.inference_mode()
def run(guided, row, family, sampler="euler_ancestral", callback=None):
    sampling = guided.model_patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", row.steps)
    noise = latent(row, family, seed=3)
    torch.manual_seed(DRAW)
    sampler = comfy.samplers.sampler_object(sampler)
    return guided.sample(noise, torch.zeros_like(noise), sampler, sigmas, callback=callback, disable_pbar=True, seed=5)


@neighbours([*SINGLE_STEPS, *compatibility.CACHES])
def test_in_a_run_it_comes_last_and_leaves_the_other_alone(row, family):
    model = built(family)
    alone = run(guider(family, patched(row, model)), row, family)
    before = run(guider(family, patched(row, on_model(model, BACKWARD))), row, family)
    after = run(guider(family, on_model(patched(row, model), BACKWARD)), row, family)
    faint = run(guider(family, on_model(patched(row, model), FAINT)), row, family)
    assert torch.equal(before, after)
    size = alone.abs().max()
    assert (after - alone).abs().max() > 1e-3 * size
    assert (faint - alone).abs().max() < 1e-4 * size
    assert (alone - run(guider(family, model), row, family)).abs().max() > 1e-4 * size  # the other does something


DRAWING = [row for row in compatibility.NETWORK if row.name.startswith(("HyperTile", "ToMe"))]


@neighbours(DRAWING)
def test_a_block_evaluated_again_in_the_reverse_pass_draws_the_same(row, family):
    model = patched(row, built(family))
    checkpointed = Options("elementwise", "backward", checkpoint="always")
    check(lambda m: guider(family, m), model, latent(row, family), checkpointed)


def test_token_merging_under_differences_is_named(caplog):
    row = DRAWING[1]
    model, x = patched(row, built("SD15")), latent(row, "SD15")
    with caplog.at_level(logging.WARNING):
        answer(guider("SD15", on_model(model, BACKWARD)), x)
        assert "token merging" not in caplog.text
        answer(guider("SD15", on_model(model, DIFFERENCE)), x)
    assert "token merging jumps" in caplog.text


def test_the_page_is_that_of_the_table():
    assert compatibility.PAGE.read_text(encoding="utf-8") == compatibility.page()


def lora(model, seed):
    """A prompt's LoRA on three weights of the network."""
    generator = torch.Generator().manual_seed(seed)
    keys = [k for k, w in model.model.state_dict().items() if k.endswith("to_q.weight") or k.endswith("proj_in.weight")]
    weights = {}
    for key in keys:
        rows, columns = model.model.state_dict()[key].shape[:2]
        name = key.removesuffix(".weight")
        weights[f"{name}.lora_up.weight"] = torch.randn(rows, 4, generator=generator)
        weights[f"{name}.lora_down.weight"] = torch.randn(4, columns, generator=generator)
    return comfy.hooks.create_hook_lora(weights, 1.0, 1.0)


@pytest.mark.parametrize("name", ["elementwise", "jacobian"])
def test_lora_of_a_prompt(name):
    """The positive prompt has a LoRA, the negative none: the Jacobian is the one under the LoRA.

    It is taken from the model with the LoRA patched in for good: ComfyUI swaps a prompt's LoRA in and out in place.
    """
    model, x, options = built("SD15"), latent(compatibility.LORA_HOOKS, "SD15"), Options(name, "backward")
    plain, hooks = FAMILIES["SD15"].conditioning(1), lora(model, 1)
    hooked = comfy.hooks.set_hooks_for_conditioning(plain, hooks)
    d = d_cond(lambda m: guider("SD15", m, positive=hooked), model, x)
    guided = answer(guider("SD15", model, positive=hooked), x)
    rectified = answer(guider("SD15", on_model(model, options), positive=hooked), x) - d

    for_good = model.clone()
    for_good.add_patches(comfy.lora.load_lora(hooks.hooks[0].weights, lora_keys(model)))
    leaf = x.clone().requires_grad_(True)
    under_lora = answer(guider("SD15", for_good, cfg=1.0), leaf)
    torch.testing.assert_close(under_lora.detach(), d, rtol=1e-3, atol=1e-3)
    v = torch.ones_like(x) if name == "elementwise" else guided - d
    pulled = torch.autograd.grad(under_lora, leaf, v.clone())[0]
    expected = pulled * (guided - d) if name == "elementwise" else pulled
    assert (rectified - expected).norm() < 1e-3 * expected.norm()


def lora_keys(model):
    return comfy.lora.model_lora_keys_unet(model.model, {})


def test_a_prompt_of_several_loras_is_measured_by_a_difference(caplog):
    model, x = built("SD15"), latent(compatibility.LORA_HOOKS, "SD15")
    parts = [comfy.hooks.set_hooks_for_conditioning(FAMILIES["SD15"].conditioning(i), lora(model, i)) for i in (1, 3)]
    both = parts[0] + parts[1]
    with caplog.at_level(logging.WARNING):
        asked = answer(guider("SD15", on_model(model, Options("elementwise", "auto", step=0.002)), positive=both), x)
    assert "several sets of LoRA weights" in caplog.text
    check(lambda m: guider("SD15", m, positive=both), model, x, DIFFERENCE)
    torch.testing.assert_close(asked, answer(guider("SD15", on_model(model, DIFFERENCE), positive=both), x))


def traced(guided, row):
    """Per step of a run: x, sigma, D_c, D_u, what was sampled with, and how often the network was asked for that."""

    def watch(executor, model, conds, x, sigma, *args):
        before = len(asked)
        out = executor(model, conds, x, sigma, *args)
        if all(cond is not None for cond in conds) and len(conds) == 2:
            steps.append([x.clone(), float(sigma[0]), *(d.clone() for d in out), None, len(asked) - before])
        return out

    def at_step(i, denoised, x, total):
        steps[i][4] = denoised.clone()

    steps, asked = [], []
    model = guided.model_patcher
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "watch", watch)
    counter = model.model.diffusion_model.out.register_forward_hook(lambda *_: asked.append(1))
    latents = run(guided, row, "SD15", "euler", at_step)
    counter.remove()
    return steps, latents


@pytest.mark.parametrize("row", compatibility.CACHES[:1], ids=lambda row: row.name)
def test_on_steps_from_easycache_the_last_measurement_stands(row, caplog):
    model = built("SD15")
    alone, _ = traced(guider("SD15", patched(row, model).clone()), row)
    with caplog.at_level(logging.WARNING):
        steps, _ = traced(guider("SD15", on_model(patched(row, model), BACKWARD)), row)
    assert "a cache answers some steps" in caplog.text
    assert [asked for *_, asked in steps] == [asked for *_, asked in alone]
    from_cache = [asked == 0 for *_, asked in steps]
    assert 0 < sum(from_cache) < len(steps) - 1

    factor = None
    for (x, sigma, d, d_uncond, denoised, _), cached in zip(steps, from_cache, strict=True):
        if not cached:
            leaf = x.clone().requires_grad_(True)
            factor = torch.autograd.grad(answer(guider("SD15", model, cfg=1.0), leaf, sigma).sum(), leaf)[0]
        expected = factor * (CFG - 1) * (d - d_uncond)
        assert ((denoised - d) - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("rule", ["elementwise", "jacobian", "ratio"])
def test_easycache_remembers_nothing_of_what_is_measured(rule):
    """A moved latent's answer, kept, would be given on the next step."""
    row, model = compatibility.CACHES[0], built("SD15")
    faint = on_model(patched(row, model), Options(rule, "difference", strength=1e-6, step=0.1))
    alone = run(guider("SD15", patched(row, model)), row, "SD15")
    assert (run(guider("SD15", faint), row, "SD15") - alone).abs().max() < 1e-4 * alone.abs().max()


def test_where_nothing_was_measured_yet_a_step_from_easycache_stays_as_it_is():
    """REG that begins on a step from the cache."""
    row, model = compatibility.CACHES[0], built("SD15")
    late = Options("elementwise", "backward", start_percent=0.5)
    steps, _ = traced(guider("SD15", on_model(patched(row, model), late)), row)
    begins = model.get_model_object("model_sampling").percent_to_sigma(0.5)
    _, _, d, d_uncond, denoised, asked = next(step for step in steps if step[1] <= begins)
    assert asked == 0
    torch.testing.assert_close(denoised, d_uncond + CFG * (d - d_uncond), rtol=1e-3, atol=1e-3)
