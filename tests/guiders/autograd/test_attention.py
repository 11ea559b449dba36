"""Attention kernels: the prediction is the kernel's own, and its gradient PyTorch's, wherever the kernel comes from."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch
from comfy.ldm.modules import attention
from comfy.ldm.modules.attention import attention_pytorch, wrap_attn

from pack.guiders.attach import on_model
from pack.guiders.options import Options
from pack.nodes.guidance import REGModel
from pack.tests.families import FAMILIES
from pack.tests.families.measure import CFG, Guided, captured_warnings, only
from pack.tests.guiders import tiny

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SD15 = FAMILIES["SD15"]


def rounded(q, k, v, heads, **kwargs):
    """Attention on 8-bit queries and keys, in memory that autograd knows nothing of."""
    q, k, v = (t.detach() for t in (q, k, v))
    scales = [t.abs().amax((1, 2), keepdim=True) / 127 for t in (q, k)]
    q, k = ((t / scale).round() * scale for t, scale in zip((q, k), scales, strict=True))
    return attention_pytorch(q, k, v, heads, **kwargs)


@wrap_attn
def attention_sage(q, k, v, heads, mask=None, **kwargs):
    """Stands for SageAttention, whose kernel has no gradient and says nothing."""
    return rounded(q, k, v, heads, mask=mask, **kwargs)


def sage_patch(func, q, k, v, heads, **kwargs):
    """As packs put SageAttention into a model: it never calls what it is handed."""
    return rounded(q, k, v, heads, **kwargs)


def doubling_patch(func, *args, **kwargs):
    """Does something of its own with the kernel it is handed."""
    return 2 * func(*args, **kwargs)


def doubling_kernel(func, q, k, v, heads, **kwargs):
    """Does something of its own, and has no gradient."""
    return 2 * rounded(q, k, v, heads, **kwargs)


def with_override(model, override):
    model = model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    return model


def answers(model, estimator="backward"):
    """D_c + R(g) of one step by the node, and what it told."""
    with captured_warnings() as lines:
        return only(SD15, REGModel.execute(model, estimator=estimator, rectification="jacobian").args[0], CFG), lines


def error(found, true):
    return ((found - true).norm() / true.norm()).item()


@pytest.fixture(scope="module")
def exact():
    return answers(SD15.build())[0]


@pytest.mark.parametrize("kernel", ["split", "sub_quad", "basic", "sage"])
def test_kernels(kernel, exact, monkeypatch):
    kernel = attention_sage if kernel == "sage" else getattr(attention, f"attention_{kernel}")
    monkeypatch.setattr(attention, "optimized_attention", kernel)
    backward, lines = answers(SD15.build())
    assert lines == []
    assert error(backward, exact) < (0.05 if kernel is attention_sage else 1e-4)


def test_the_prediction_with_a_gradient_is_the_kernels_own(monkeypatch):
    model = SD15.build()
    by_pytorch = only(SD15, model, CFG)
    monkeypatch.setattr(attention, "optimized_attention", attention_sage)
    plain = only(SD15, model, CFG)
    nearly = REGModel.execute(model, estimator="backward", rectification="jacobian", strength=1e-6).args[0]
    assert error(only(SD15, nearly, CFG), plain) < 0.3 * error(by_pytorch, plain)


@pytest.mark.parametrize("patch", [sage_patch, doubling_patch])
def test_overrides_of_other_packs(patch, exact):
    model = with_override(SD15.build(), patch)
    backward, lines = answers(model)
    assert lines == []
    if patch is sage_patch:
        assert error(backward, exact) < 0.05
    else:
        guided = Guided.of(SD15, model)
        assert guided.error_of_jacobian_gradient(backward - guided.d_cond) < 1e-3


def test_an_override_without_a_gradient_that_does_more_is_refused():
    model = with_override(SD15.build(), doubling_kernel)
    (backward, lines), (difference, _) = (answers(model, estimator) for estimator in ("backward", "difference"))
    assert len(lines) == 1 and "does more than attention" in lines[0] and "estimator = difference" in lines[0]
    assert error(backward, difference) < 1e-4


def test_flash_attention_in_comfyuis_own_op(exact, monkeypatch):
    def kernel(q, k, v, dropout_p, causal, softmax_scale):
        return torch.nn.functional.scaled_dot_product_attention(
            *(t.transpose(1, 2) for t in (q, k, v)), is_causal=causal, scale=softmax_scale
        ).transpose(1, 2)

    monkeypatch.setattr(attention, "flash_attn_func", kernel, raising=False)
    model = with_override(SD15.build(), lambda func, *args, **kwargs: attention.attention_flash(*args, **kwargs))
    backward, lines = answers(model)
    assert lines == []
    assert error(backward, exact) < 1e-4


class OutOfReach(tiny.Network):
    """Attention between pixels, called as some models do: without the options that have the override."""

    def forward(self, x, t, context=None, **kwargs):
        tokens = self.first(x).flatten(2).transpose(1, 2)
        h = 4 * attention.optimized_attention(2 * tokens, 2 * tokens, tokens, heads=1)
        return super().forward(x + 6 * self.last(h.transpose(1, 2).unflatten(2, x.shape[2:])), t, context)


def test_a_kernel_out_of_reach_is_found_by_its_gradient(monkeypatch):
    """ComfyUI was started with SageAttention, and the model calls it where no override gets."""
    point, model = (tiny.latent() * 2, 1.7), tiny.as_model(OutOfReach())
    monkeypatch.setattr(attention, "optimized_attention", attention_sage)
    with captured_warnings() as lines:
        backward, difference = (
            tiny.predict(tiny.guider(on_model(model, Options("jacobian", estimator))), point, point)[1]
            for estimator in ("backward", "difference")
        )
    assert len(lines) == 1 and "off from differences" in lines[0] and "estimator = difference" in lines[0]
    torch.testing.assert_close(backward, difference)


def test_only_the_differentiated_pass_is_changed():
    seen = []

    def watching(func, *args, **kwargs):
        seen.append((func.__name__, torch.is_grad_enabled() and args[0].requires_grad))
        return func(*args, **kwargs)

    model = REGModel.execute(with_override(SD15.build(), watching), estimator="backward").args[0]
    only(SD15, model, CFG)
    plain = {name for name, graph in seen if not graph}
    assert plain == {attention.optimized_attention.__wrapped__.__name__}
    assert {name for name, graph in seen if graph} == {"ours"}
