"""REG inside ComfyUI is the paper's REG: against the authors' published formulas, in their own parameterisation."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch

from pack.guiders.attach import on_model
from pack.guiders.options import Options
from pack.tests.guiders import tiny

W = 3.0
X, SIGMA = tiny.latent() * 2, torch.tensor(1.7)
BACKWARD = Options("elementwise", "backward")


def gradient_of_sum(function, x):
    """∂(1ᵀF)/∂x and F, as the authors take it."""
    x = x.clone().requires_grad_(True)
    out = function(x)
    return torch.autograd.grad(out.sum(), x)[0], out.detach()


def time_of(model, sigma=SIGMA):
    return model.model.model_sampling.timestep(sigma.view(1)).float()


def guided(model, x=X, sigma=SIGMA, options=BACKWARD):
    return tiny.predict(tiny.guider(on_model(model, options), 1 + W), (x, sigma))[0]


def test_epsilon_form():
    """DiT and T2I code: ε = ε_c + w (ε_c − ε_u) (1 − √(1 − ᾱ) ∂(1ᵀε_c)/∂x_t), on x_t = √ᾱ x0 + √(1 − ᾱ) ε."""
    network = tiny.Network()
    model = tiny.as_model(network, "EPS")
    alpha_bar = 1 / (1 + SIGMA**2)
    x_t, t = alpha_bar.sqrt() * X, time_of(model)
    gradient, cond = gradient_of_sum(lambda x: network(x, t, tiny.POSITIVE[0][0]), x_t)
    uncond = network(x_t, t, tiny.NEGATIVE[0][0])
    epsilon = cond + W * (cond - uncond) * (1 - (1 - alpha_bar).sqrt() * gradient)
    x0 = (x_t - (1 - alpha_bar).sqrt() * epsilon) / alpha_bar.sqrt()
    torch.testing.assert_close(guided(model), x0.detach(), rtol=1e-5, atol=1e-5)


def test_denoiser_form():
    """EDM2 code: D = D_c + w (D_c − D_u) ∂(1ᵀD_c)/∂x, with EDM's preconditioning written out."""
    network = tiny.Network()
    model = tiny.as_model(network, "EDM")
    data = model.model.model_sampling.sigma_data
    skip = data**2 / (SIGMA**2 + data**2)
    out, scale = SIGMA * data / (SIGMA**2 + data**2).sqrt(), 1 / (SIGMA**2 + data**2).sqrt()

    def denoise(x, text):
        return skip * x + out * network(scale * x, SIGMA.log().view(1) / 4, text[0][0])

    gradient, cond = gradient_of_sum(lambda x: denoise(x, tiny.POSITIVE), X)
    expected = cond + W * (cond - denoise(X, tiny.NEGATIVE)) * gradient
    torch.testing.assert_close(guided(model), expected.detach(), rtol=1e-5, atol=1e-5)


class SameProcess(torch.nn.Module):
    """Predicts, in another parameterisation, what an ε-network predicts of the same process."""

    dtype = torch.float32

    def __init__(self, epsilon, translate):
        super().__init__()
        self.epsilon = epsilon
        self.translate = translate

    def forward(self, x, t, context=None, **kwargs):
        return self.translate(lambda x_t, t: self.epsilon(x_t, t, context), x)


def test_v_form():
    """v = √ᾱ ε − √(1 − ᾱ) x0 of the same variance-preserving latent."""
    network = tiny.Network()
    reference = tiny.as_model(network, "EPS")
    alpha_bar, t = 1 / (1 + SIGMA**2), time_of(reference)

    def velocity(epsilon, x_t):
        e = epsilon(x_t, t)
        return (e - (1 - alpha_bar).sqrt() * x_t) / alpha_bar.sqrt()

    model = tiny.as_model(SameProcess(network, velocity), "V_PREDICTION")
    torch.testing.assert_close(guided(model), guided(reference), rtol=1e-5, atol=1e-5)


def test_flow_form():
    """Flow: x_τ = (1 − τ) x0 + τ ε with τ = σ / (1 + σ), velocity ε − x0; here alpha = 1 − τ enters the factor."""
    network = tiny.Network()
    reference = tiny.as_model(network, "EPS")
    tau, t = SIGMA / (1 + SIGMA), time_of(reference)

    def velocity(epsilon, x_tau):
        x = x_tau / (1 - tau)
        e = epsilon(x / (1 + SIGMA**2).sqrt(), t)
        return e - (x - SIGMA * e)

    model = tiny.as_model(SameProcess(network, velocity), "FLOW")
    torch.testing.assert_close(guided(model, (1 - tau) * X, tau), guided(reference), rtol=1e-5, atol=1e-5)


def explicit_jacobian(denoise, x):
    """[batch, n, n] of every sample."""
    flat = lambda v: denoise(v.view(1, *x.shape[1:])).flatten()  # noqa: E731
    return torch.stack([torch.autograd.functional.jacobian(flat, sample.flatten()) for sample in x])


def denoised(model, text, x=X, sigma=SIGMA):
    network, sampling = model.model.diffusion_model, model.model.model_sampling
    sigmas = sigma.expand(len(x))
    out = network(
        sampling.calculate_input(sigmas, x), sampling.timestep(sigmas).float(), text[0][0].expand(len(x), -1, -1)
    )
    return sampling.calculate_denoised(sigmas, out, x)


@pytest.mark.parametrize(("prediction", "sigma", "alpha"), [("EPS", 1.7, 1.0), ("EDM", 0.4, 1.0), ("FLOW", 0.6, 0.4)])
def test_jacobian_is_the_product_with_the_whole_matrix(prediction, sigma, alpha):
    sigma, model = torch.tensor(sigma), tiny.as_model(tiny.Network(), prediction)
    cond, uncond = (denoised(model, text, sigma=sigma).detach() for text in (tiny.POSITIVE, tiny.NEGATIVE))
    jacobian = explicit_jacobian(lambda x: denoised(model, tiny.POSITIVE, x, sigma), X)
    guidance = W * (cond - uncond)
    product = torch.einsum("bij,bi->bj", jacobian, guidance.flatten(1)).view_as(X)
    answer = guided(model, X, sigma, Options("jacobian", "backward"))
    torch.testing.assert_close(answer, cond + alpha * product, rtol=1e-5, atol=1e-5)


def test_both_rectifications_agree_where_the_jacobian_is_diagonal():
    model = tiny.as_model(tiny.Network(kernel=1, groups=tiny.CHANNELS))
    for options in (Options("jacobian", "backward"), Options("jacobian", "backward", strength=0.5)):
        elementwise = guided(model, options=Options("elementwise", "backward", options.strength))
        torch.testing.assert_close(guided(model, options=options), elementwise, rtol=1e-5, atol=1e-6)


def test_ratio_is_that_of_the_explicit_quadratic_forms():
    model = tiny.as_model(tiny.Network())
    cond, uncond = (denoised(model, text).detach() for text in (tiny.POSITIVE, tiny.NEGATIVE))
    g = W * (cond - uncond)
    forms = []
    for text in (tiny.POSITIVE, tiny.NEGATIVE):
        jacobian = explicit_jacobian(lambda x, text=text: denoised(model, text, x), X)
        forms.append(torch.einsum("bi,bij,bj->b", g.flatten(1), jacobian, g.flatten(1)))
    rho = (forms[0] / forms[1]).clamp(0, 1).view(-1, 1, 1, 1)
    expected = cond + rho / (1 + W * (1 - rho)) * g
    answer = guided(model, options=Options("ratio", step=0.001))
    torch.testing.assert_close(answer, expected, rtol=2e-3, atol=2e-3)


def test_the_natural_step_is_the_posterior_mean_at_the_moved_latent():
    """D_c(x + α s g) + (1 − s) g."""
    model, s = tiny.as_model(tiny.Network(), "FLOW"), 0.5
    sigma = torch.tensor(0.6)
    cond, uncond = (denoised(model, text, sigma=sigma).detach() for text in (tiny.POSITIVE, tiny.NEGATIVE))
    g = W * (cond - uncond)
    expected = denoised(model, tiny.POSITIVE, X + 0.4 * s * g, sigma).detach() + (1 - s) * g
    answer = guided(model, X, sigma, Options("jacobian", "difference", strength=s))
    torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-5)
