"""DiT's sampling as its papers and the authors of REG write it: DDPM with learned variance on the variance-preserving
latent, guided in the noise. Nothing of the pack."""

import math

import torch

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)


def spaced(steps):
    """Evenly spaced timesteps, from 0 to 999 (Nichol and Dhariwal's, rounded as they are)."""
    stride, at, times = 999 / (steps - 1), 0.0, []
    for _ in range(steps):
        times.append(round(at))
        at += stride
    return times


def weight(rule, scale, t, numbers, rectified):
    """What multiplies ε_c − ε_u, added to ε_c."""
    if rule == "intervalt":
        return scale if numbers[0] <= t <= numbers[1] else 0.0
    if rule == "linear":
        return t * (numbers[0] - scale) / (0 - 1000) + scale
    if rule == "cosine":
        coefficient = (1 - math.cos(math.pi * (1 - t / 1000) ** numbers[0])) * 0.5 * scale
        return coefficient if rectified else coefficient - 1  # the plain one is added to ε_u
    return scale


def guided(network, x, t, alpha_bar, w, rectified):
    """ε and the variance's share of a guided step; network: (x, t, conditional) -> [batch, 8, h, w]."""
    half = x.clone().requires_grad_(True)
    out = network(half, t, True)
    cond, variance = out[:, :4], out[:, 4:]
    (gradient,) = torch.autograd.grad(cond.sum(), half)
    uncond = network(x, t, False)[:, :4]
    factor = 1 - math.sqrt(1 - alpha_bar) * gradient if rectified else 1.0
    epsilon = cond + w * factor * (cond - uncond)
    epsilon = torch.cat([epsilon[:, :3], cond[:, 3:]], 1)  # three channels are guided
    return epsilon.detach(), variance.detach()


def sample(network, noise, steps, later_noises, rule, scale, numbers=(), rectified=False):
    """A run from noise, [batch, 4, h, w] float64, to the latent that the VAE decodes."""
    kept, x = (1 - BETAS).cumprod(0), noise
    times = spaced(steps)
    bars = [1.0, *(float(kept[t]) for t in times)]
    for i in reversed(range(steps)):
        t, bar, before = times[i], bars[i + 1], bars[i]
        beta = 1 - bar / before
        epsilon, v = guided(network, x, t, bar, weight(rule, scale, t, numbers, rectified), rectified)
        x0 = (x - math.sqrt(1 - bar) * epsilon) / math.sqrt(bar)
        mean = beta * math.sqrt(before) / (1 - bar) * x0 + (1 - before) * math.sqrt(1 - beta) / (1 - bar) * x
        if i == 0:
            return mean / 0.18215
        posterior, share = beta * (1 - before) / (1 - bar), (v + 1) / 2
        log_variance = share * math.log(beta) + (1 - share) * math.log(posterior)
        x = mean + (0.5 * log_variance).exp() * next(later_noises)
