"""The ratio rectification band by band of radial spatial frequency.

For Gaussian fields each frequency is a direction of its own, and the ratio is exact in each. A band is a ring of the
2-D FFT over the last two dimensions; other dimensions (channels, frames) share a band's number. Tensors are
[batch, ..., height, width].
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..reg import rectification


def bands(height: int, width: int, count: int = 8) -> Tensor:
    """The band of each coefficient of the full FFT, [height, width]: 0 is the mean, the rest are even steps of log |k|.

    |k| is relative to the shorter side's Nyquist frequency; corners beyond it belong to the last band.
    """
    k = _radius(height, width) * min(height, width)  # cycles over the shorter side
    octaves = torch.log2(k.clamp_min(1)) / torch.log2(torch.tensor(min(height, width) / 2))
    return torch.where(k == 0, 0, 1 + (octaves * (count - 1)).floor().clamp(0, count - 2).long())


def rings(height: int, width: int) -> Tensor:
    """The finest bands, one for each distinct |k|, [height, width]."""
    _, index = (_radius(height, width) * height * width).square().round().unique(return_inverse=True)
    return index


def _radius(height: int, width: int) -> Tensor:
    """|k| of each coefficient in cycles a pixel, [height, width]."""
    y, x = (torch.fft.fftfreq(n, dtype=torch.float64) for n in (height, width))
    return (y[:, None].square() + x.square()).sqrt()


def band_dot(a: Tensor, b: Tensor, index: Tensor) -> Tensor:
    """⟨a, b⟩ within each band, sample by sample, from spectra a and b: [batch, ..., h, w] -> [batch, bands]."""
    power = (a * b.conj()).real
    power = power.sum(tuple(range(1, power.ndim - 2))) if power.ndim > 3 else power
    total = power.new_zeros(len(power), int(index.max()) + 1)
    return total.index_add(1, index.flatten(), power.flatten(1))


def jacobian_ratio(guidance: Tensor, jc_guidance: Tensor, ju_guidance: Tensor, index: Tensor) -> Tensor:
    """ρ = ⟨g, J_c g⟩ / ⟨g, J_u g⟩ of each band within [0, 1], [batch, bands]; 1 where J_u g has nothing along g."""
    g, jc, ju = (torch.fft.fft2(v) for v in (guidance, jc_guidance, ju_guidance))
    wide = band_dot(g, ju, index)
    rho = band_dot(g, jc, index) / torch.where(wide > 0, wide, 1.0)
    return torch.where(wide > 0, rho, 1.0).nan_to_num(1.0).clamp(0.0, 1.0)


def scale(v: Tensor, factors: Tensor, index: Tensor) -> Tensor:
    """Multiply each band of v by its factor: [batch, ..., h, w], [batch, bands] -> [batch, ..., h, w]."""
    gains = factors[:, index].view(len(v), *[1] * (v.ndim - 3), *index.shape)
    return torch.fft.ifft2(gains * torch.fft.fft2(v)).real


class SpectralRatio(rectification.Rectification):
    """The ratio band by band, as a rule; its gain along the guidance stands for it."""

    name, label, symbol, colour = "spectral", "ratio by bands", "gain", "#9467bd"
    needs, curve = rectification.Needs.JVP_BOTH, "rho"

    def __init__(self, bands: Callable[[int, int], Tensor] = bands):
        self.bands = bands

    def measure(self, step):
        g = rectification.free(step, step.guidance)
        index = self.bands(*step.x.shape[-2:])
        rectified = ratio(g, *step.products(g), rectification.weight_of(step), index)
        return rectified, rectification.gain(g, rectified)


def ratio(guidance: Tensor, jc_guidance: Tensor, ju_guidance: Tensor, w: Tensor | float, index: Tensor) -> Tensor:
    """R(g): every band of g times its own ρ / (1 + w (1 − ρ)); w: a number or [batch, 1, ...]."""
    rho = jacobian_ratio(guidance, jc_guidance, ju_guidance, index)
    if isinstance(w, Tensor):
        w = w.reshape(-1, 1)
    return scale(guidance, rectification.ratio_factor(rho, w), index)
