"""Guidance rules against the ways their authors write them."""

import torch

from pack.reg import rules

STRONG, WEAK = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_cfg_is_extrapolation_from_the_unconditional():
    """D_u + cfg (D_c − D_u), as ComfyUI computes it."""
    torch.testing.assert_close(STRONG + rules.cfg(STRONG, WEAK, 6.0), WEAK + 7.0 * (STRONG - WEAK))


def test_autoguidance_is_karras_interpolation():
    """D_0.lerp(D_1, guidance), as EDM2 computes it."""
    torch.testing.assert_close(STRONG + rules.cfg(STRONG, WEAK, 1.1), WEAK.lerp(STRONG, 2.1))


def test_no_guidance_at_w_0():
    assert not rules.cfg(STRONG, WEAK, 0.0).any()
