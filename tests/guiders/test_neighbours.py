"""REG beside patches of other packs, one of each kind: against the Jacobian of the patched model, taken without REG."""

import copy
import gc
import pickle
import re
import traceback
import weakref

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import comfy.ops
import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP

from pack.guiders.attach import RectifiedSampler, on_model
from pack.guiders.autograd.calls import GraphOptions, evaluate_with_graph
from pack.guiders.options import Options
from pack.guiders.run import Run
from pack.guiders.schedule import GuidanceSchedule
from pack.tests.families import FAMILIES
from pack.tests.families.measure import captured_warnings
from pack.tests.guiders import by_hand, compatibility, neighbours
from pack.tests.guiders.autograd.test_checkpointing import denoiser_of, saved_bytes
from pack.tests.guiders.single_step import CFG, DRAW, alpha_of, answer, built, copying, guider

X = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
KINDS = [
    Options("elementwise", "backward", refresh=1),
    Options("elementwise", "difference", refresh=1, step=0.002),
    Options("jacobian", "backward", refresh=1),
    Options("jacobian", "difference", refresh=1, step=0.002),
    Options("ratio", refresh=1, step=0.002),
]
kinds = pytest.mark.parametrize("options", KINDS, ids=by_hand.name)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # ComfyUI's own


@pytest.fixture(scope="module", autouse=True)
def _models_go_before_the_interpreter():
    yield
    built.cache_clear()


@pytest.fixture
def model():
    return built("SD15")


def guided(model, cfg=CFG):
    return guider("SD15", model, cfg)


def predictions(model, x):
    """D_c and D_u of a guided step without REG, before any patch of the guidance sees them."""
    seen = []

    def look(args):
        seen.extend(d.clone() for d in args["conds_out"])
        return args["conds_out"]

    model = model.clone()
    hooks = model.model_options.get("sampler_pre_cfg_function", [])
    model.model_options["sampler_pre_cfg_function"] = [look, *hooks]
    answer(guided(model), x)
    return seen


def expected(model, options):
    """R(g), g = D_guided − D_c, from the patched model's own predictions."""
    conditional, unconditional = (lambda x, i=i: predictions(model, x)[i] for i in (0, 1))
    d_cond, d_uncond = predictions(model, X)
    g, delta = answer(guided(model), X) - d_cond, d_cond - d_uncond
    with copying():
        rectified = by_hand.rectified(
            options, conditional, unconditional, X.clone(), g, delta, alpha_of(model), by_hand.differenced
        )
    return d_cond + rectified, g


REPEATED = [
    neighbours.own_calc,
    neighbours.half_of_the_batch,
    neighbours.copies_of_conds,
    neighbours.noisy_copies_of_conds,
    neighbours.in_place_pre_cfg,
    neighbours.deep_copies,
]


@pytest.mark.parametrize("patched", REPEATED, ids=lambda f: f.__name__)
@kinds
def test_what_can_be_repeated_is_rectified_by_the_patched_models_jacobian(model, patched, options):
    patched = patched(model)
    truth, g = expected(patched, options)
    with captured_warnings() as lines:
        found = answer(guided(on_model(patched, options)), X)
    assert lines == []
    by_hand.assert_same(found, truth, g, 1e-4 if options.estimator == "backward" else 0.03)


@kinds
def test_predictions_made_elsewhere_leave_the_guidance_as_it_is(model, options):
    patched = neighbours.conds_not_evaluated(model)
    with captured_warnings() as lines:
        found = run(on_model(patched, options))
    assert len(lines) == 1 and "another patch evaluates the prompts itself, where REG cannot see it" in lines[0]
    torch.testing.assert_close(found, run(patched), rtol=0, atol=0)


@kinds
def test_what_cannot_be_repeated_is_said_and_leaves_the_guidance_as_it_is(model, options):
    """Its first call multiplies by 1.2, and no later one by the same as the one before."""
    with captured_warnings() as lines:
        found = answer(guided(on_model(neighbours.counts_its_calls(model), options)), X)
    assert len(lines) == 1
    assert re.search(
        r"another patch changes the predictions in a way that REG cannot repeat \(.* \d+\.\d% off", lines[0]
    )
    assert torch.equal(found, answer(guided(neighbours.counts_its_calls(model)), X))


@torch.inference_mode()
def run(model, steps=4, callback=None, wrap=lambda sampler: sampler, guided=guided):
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
    noise = torch.randn(X.shape, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(DRAW)
    sampler = wrap(comfy.samplers.sampler_object("euler"))
    return guided(model).sample(
        noise, torch.zeros_like(noise), sampler, sigmas, callback=callback, disable_pbar=True, seed=5
    )


CACHES = [
    neighbours.cache_around_the_network,
    neighbours.cache_of_one_residual,
    neighbours.cache_around_the_model,
]
EVERY = [*REPEATED, neighbours.conds_not_evaluated, *CACHES]


@pytest.mark.parametrize("patched", EVERY, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "options",
    [
        Options("elementwise", "backward", strength=1e-6),
        Options("jacobian", "difference", strength=1e-6, step=0.1),
        Options("ratio", strength=1e-6, step=0.1),
    ],
    ids=by_hand.name,
)
def test_at_a_strength_near_0_the_patch_acts_as_it_does_alone(model, patched, options):
    """So evaluations of ours leave nothing behind, in caches and in what is drawn."""
    alone, drawn = run(patched(model)), torch.get_rng_state()
    faint, drawn_too = run(on_model(patched(model), options)), torch.get_rng_state()
    assert (faint - alone).abs().max() < 1e-4 * alone.abs().max()
    assert torch.equal(drawn, drawn_too)
    assert (alone - run(model)).abs().max() > 1e-3 * alone.abs().max()  # it does something


@pytest.mark.parametrize("patched", CACHES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("options", KINDS[:2], ids=by_hand.name)
def test_where_a_cache_answers_the_last_measurement_stands(model, patched, options):
    """Every second step is from the cache; the map of the step before is that of the network without it."""
    steps, ran = [], []
    watched = patched(model)

    def watch(executor, model, conds, x, sigma, *args):
        before = len(ran)
        out = executor(model, conds, x, sigma, *args)
        if None not in conds and len(conds) == 2:
            steps.append([x.clone(), float(sigma[0]), *(d.clone() for d in out), len(ran) == before])
        return out

    watched.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "watch", watch)
    denoised = []
    counter = model.model.diffusion_model.middle_block[0].register_forward_hook(lambda *_: ran.append(1))
    with captured_warnings() as lines:
        run(on_model(watched, options), callback=lambda i, d, x, total: denoised.append(d.clone()))
    counter.remove()
    assert len(lines) == 1 and "a cache answers some steps" in lines[0]
    assert [cached for *_, cached in steps] == [False, True, False, True]
    for (x, sigma, d, d_uncond, cached), found in zip(steps, denoised, strict=True):
        g = (CFG - 1) * (d - d_uncond)
        if not cached:
            conditional = lambda x, sigma=sigma: answer(guided(model, 1.0), x, sigma, recorded=True)  # noqa: E731
            value = by_hand.measure(options, conditional, None, x.clone(), g, 1.0, by_hand.differenced)
        by_hand.assert_same(found - d, value * g, g, 1e-3 if options.estimator == "backward" else 0.03)


@pytest.mark.parametrize(("start_percent", "first"), [(0.3, 2), (0.6, 4)])
@pytest.mark.parametrize("patched", CACHES, ids=lambda f: f.__name__)
def test_a_run_that_begins_on_a_cached_step_takes_no_measurement_from_it(model, patched, start_percent, first):
    """Of six steps, those from 2 or 3 on are in the range; the third is from the cache, and left as it is."""

    def denoised(model):
        seen = []
        run(model, steps=6, callback=lambda i, d, x, total: seen.append(d.clone()))
        return seen

    options = Options("elementwise", "backward", start_percent=start_percent, refresh=1)
    pairs = zip(denoised(on_model(patched(model), options)), denoised(patched(model)), strict=True)
    same = [torch.equal(found, plain) for found, plain in pairs]
    assert same == [i < first for i in range(6)]


def test_a_rule_whose_hooks_are_told_little(model):
    """REG alone, and with a schedule: that of the guider's own cfg."""

    def thin(model, cfg=CFG):
        out = neighbours.ThinRule(model)
        out.set_conds(FAMILIES["SD15"].conditioning(1), FAMILIES["SD15"].conditioning(2))
        out.set_cfg(cfg)
        return out

    for options in KINDS:
        torch.testing.assert_close(
            answer(thin(on_model(model, options)), X), answer(guided(on_model(model, options)), X)
        )
    scheduled = Options(refresh=1, schedule=GuidanceSchedule("constant", 6.0))
    found = answer(thin(on_model(model, scheduled)), X)
    torch.testing.assert_close(found, answer(thin(on_model(model, Options(refresh=1)), cfg=6.0), X))


@pytest.mark.parametrize("first", ["REG", "patch"])
def test_copies_of_the_options_hold_nothing_of_the_run(first):
    """A patch keeps deep copies, and a file of them: model, guider and run go all the same."""
    model, kept = FAMILIES["SD15"].build(), []
    steps = []

    def pickled(args):
        ours = [hook for hook in args["model_options"]["sampler_post_cfg_function"] if "pack." in type(hook).__module__]
        steps.append(pickle.dumps(ours))
        return args["conds_out"]

    options = Options(refresh=1)
    patch = lambda m: neighbours.deep_copies(m, kept)  # noqa: E731
    patched = patch(on_model(model, options)) if first == "REG" else on_model(patch(model), options)
    patched.set_model_sampler_pre_cfg_function(pickled)
    found = guided(patched)
    expected = run(patched, guided=lambda _, guider=found: guider)
    assert expected.isfinite().all()
    references = [weakref.ref(model.model), weakref.ref(found)]
    assert [one for one in gc.get_objects() if isinstance(one, Run) and one.guider is found] == []
    del model, patched, found, patch
    gc.collect()
    assert [reference() for reference in references] == [None, None]
    assert len(kept) == 4
    (hook,) = pickle.loads(steps[0])
    denoised = torch.ones(1)
    assert hook({"denoised": denoised}) is denoised
    again = copy.deepcopy(kept[0])
    for hooks in (again["sampler_post_cfg_function"], kept[0]["sampler_post_cfg_function"]):
        assert hooks[-1]({"denoised": denoised}) is denoised


def test_weights_of_a_tensor_subclass_have_a_gradient():
    """As a prompt loads them, in inference mode."""
    with torch.inference_mode():
        plain, tagged = FAMILIES["SD15"].build(), neighbours.tensor_subclass_weights(FAMILIES["SD15"].build())
    for options in KINDS[:3:2]:
        with captured_warnings() as lines:
            found = answer(guided(on_model(tagged, options)), X)
        assert lines == []
        torch.testing.assert_close(found, answer(guided(on_model(plain, options)), X), rtol=1e-5, atol=1e-5)


class Dequantising(comfy.ops.manual_cast.Linear):
    """A pack's own layer: it keeps bytes, and makes its weight for each call."""

    def keep_bytes(self):
        weight = self.weight.detach().clone()
        self.scale = weight.abs().max() / 127
        self.bytes = (weight / self.scale).round().to(torch.int8)
        self.dequantised = torch.nn.Parameter(self.bytes.float() * self.scale, requires_grad=False)
        self.comfy_cast_weights = True

    def forward_comfy_cast_weights(self, x):
        weight = self.bytes.to(x.dtype) * self.scale
        return torch.nn.functional.linear(x, weight, self.bias)


def with_own_layers(dequantising):
    """The same numbers, made for each call or kept."""
    model = FAMILIES["SD15"].build()
    for layer in model.model.diffusion_model.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.__class__ = Dequantising
            layer.keep_bytes()
            if not dequantising:
                layer._parameters["weight"] = layer.dequantised
                layer.__class__ = comfy.ops.manual_cast.Linear
                layer.comfy_cast_weights = False
    return model


def test_a_packs_own_dequantising_layers_keep_no_weight_for_the_gradient():
    found = {}
    for dequantising in (True, False):
        model = with_own_layers(dequantising)
        network, x, denoise = denoiser_of(FAMILIES["SD15"], model)
        own = {w.untyped_storage().data_ptr() for w in network.parameters()}
        graph = evaluate_with_graph(denoise, x, network, GraphOptions())
        kept = saved_bytes(graph, own)
        found[dequantising] = kept, graph.pull_back(torch.ones_like(x))
        matrices = 4 * sum(m.weight.numel() for m in network.modules() if isinstance(m, torch.nn.Linear))
    torch.testing.assert_close(found[True][1], found[False][1], rtol=1e-4, atol=1e-5)
    assert found[True][0] < found[False][0] + matrices / 3  # a layer that makes its weight keeps its input


@pytest.mark.parametrize("way", ["model", "sampler"])
@pytest.mark.parametrize("options", [KINDS[1], KINDS[2], KINDS[4]], ids=by_hand.name)
def test_a_rule_that_fails_fails_in_the_same_place(model, options, way):
    """Same exception, raised from the same line of the patch; and the next run is sound."""

    def outcome(patched, wrap=lambda sampler: sampler):
        with pytest.raises(IndexError) as caught:
            run(patched, wrap=wrap)
        frames = traceback.extract_tb(caught.value.__traceback__)
        return str(caught.value), frames[-1].name, frames[-1].lineno

    plain = outcome(neighbours.fails_in_the_third_step(model))
    if way == "model":
        failing = on_model(neighbours.fails_in_the_third_step(model), options)
        with captured_warnings() as lines:
            assert outcome(failing) == plain
        next_run = run(failing)
    else:
        failing = neighbours.fails_in_the_third_step(model)
        with captured_warnings() as lines:
            assert outcome(failing, lambda sampler: RectifiedSampler(sampler, options)) == plain
        next_run = run(failing, wrap=lambda sampler: RectifiedSampler(sampler, options))
    assert lines == []
    sound = run(on_model(model, options))
    assert (next_run - sound).norm() < 1e-3 * sound.norm()


def test_every_kind_on_the_page_is_here():
    patches = {name for row in compatibility.KINDS for name in row.patches}
    assert patches == {
        name
        for name, one in vars(neighbours).items()
        if getattr(one, "__module__", "") == neighbours.__name__ and name not in ("Cache", "Tagged")
    }
