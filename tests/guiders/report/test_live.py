"""What cannot be done is said in one sentence, with what was done instead; what is asked of the device is little."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch
from comfy_extras.nodes_custom_sampler import Guider_Basic
from torch.overrides import TorchFunctionMode

from pack.guiders.attach import RectifiedSampler, on_model
from pack.guiders.options import Options
from pack.tests.families.measure import captured_warnings
from pack.tests.guiders import tiny

POINT = (tiny.latent() * 2, 1.7)


def one_condition(model):
    guided = Guider_Basic(model)
    guided.set_conds(tiny.POSITIVE)
    return guided


@pytest.mark.parametrize("guider", [one_condition, lambda model: tiny.guider(model, cfg=1.0)], ids=["basic", "cfg 1"])
def test_without_guidance_it_says_that_it_did_nothing(guider):
    model = tiny.as_model(tiny.Network())
    with captured_warnings() as lines:
        found = tiny.sample(guider(on_model(model, Options())))
    assert torch.equal(found, tiny.sample(guider(model)))
    assert len(lines) == 1 and "did nothing" in lines[0] and "cfg 1" in lines[0]


def test_a_run_out_of_range_says_nothing():
    """It may be one stage of several."""
    options = Options(start_percent=0.0, end_percent=0.0)
    with captured_warnings() as lines:
        tiny.sample(tiny.guider(on_model(tiny.as_model(tiny.Network()), options)))
    assert lines == []


def test_a_model_without_noise_scaling_is_refused():
    model = tiny.as_model(tiny.Network())

    class Sampling(torch.nn.Module):
        sigma_max = torch.tensor(1.0)

        def percent_to_sigma(self, percent):
            return 1 - percent

    model.add_object_patch("model_sampling", Sampling())
    with pytest.raises(ValueError, match="REG: this model has no denoiser: connect a diffusion model"):
        on_model(model, Options())
    with pytest.raises(ValueError, match="REG: this model has no denoiser: connect a diffusion model"):
        tiny.predict(tiny.guider(model), POINT, wrap=lambda sampler: RectifiedSampler(sampler, Options()))


@pytest.mark.parametrize("rectification", ["elementwise", "jacobian"])
def test_a_hidden_network_is_named_and_differences_are_taken(rectification):
    """A wrapper keeps the network where only it knows: there is nothing to differentiate."""

    def hidden(network):
        model = tiny.as_model(network)
        base = model.model
        base.hidden = base.diffusion_model
        apply = base._apply_model

        def apply_model(*args, **kwargs):
            base.diffusion_model = base.hidden
            try:
                return apply(*args, **kwargs)
            finally:
                del base.diffusion_model

        base._apply_model = apply_model
        return model

    def run(model, estimator):
        guided = tiny.guider(on_model(model, Options(rectification, estimator)))
        base = model.model
        hides = hasattr(base, "hidden")
        wrap = (lambda sampler: Hiding(sampler, base)) if hides else (lambda sampler: sampler)
        return tiny.predict(guided, POINT, POINT, wrap=wrap)[1]

    with captured_warnings() as lines:
        found = run(hidden(tiny.Network()), "auto")
    expected = run(tiny.as_model(tiny.Network()), "difference")
    assert len(lines) == 1 and "diffusion_model" in lines[0] and "estimator = difference" in lines[0]
    torch.testing.assert_close(found, expected)


class Hiding(tiny.Once):
    """Takes the network away before it asks, as ComfyUI's own loading needs it."""

    def __init__(self, once, base):
        super().__init__(*once.points)
        self.denoised, self.base = once.denoised, base

    def sample(self, *args, **kwargs):
        del self.base.diffusion_model
        try:
            return super().sample(*args, **kwargs)
        finally:
            self.base.diffusion_model = self.base.hidden


class Reads(TorchFunctionMode):
    """Counts where the value of a tensor is asked for, which waits for the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        of_a_generator = args and getattr(args[0], "dtype", None) is torch.uint8  # its state, which the CPU has
        asks = func.__name__ in ("__float__", "item", "__bool__", "__int__", "tolist", "equal")
        self.count += asks and not of_a_generator
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("options", "most"), [({}, 0), ({"start_percent": 0.1}, 1)])
@pytest.mark.parametrize("rectification", ["elementwise", "jacobian", "ratio"])
def test_sigma_is_read_once_a_step_and_only_for_a_range(rectification, options, most):
    """Four steps more read as much more, with REG, as without, and at most one value a step."""

    def reads(model, steps):
        with Reads() as mode:
            tiny.sample(tiny.guider(model), steps=steps)
        return mode.count

    def per_four_steps(model):
        return reads(model, 9) - reads(model, 5)

    model = tiny.as_model(tiny.Network())
    rectified = on_model(model, Options(rectification, "difference", **options))
    assert per_four_steps(rectified) <= per_four_steps(model) + 4 * most
