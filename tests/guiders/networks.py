"""Tiny networks with a will of their own."""

import torch

from pack.tests.guiders import tiny

X = tiny.latent() * 2


class NoGradient(tiny.Network):
    """Cuts its output off: D would have a gradient all the same, through its own x."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs).detach()


class UnderNoGrad(tiny.Network):
    """As experts of some models are."""

    def forward(self, x, t, context=None, **kwargs):
        with torch.no_grad():
            h = self.first(x) + self.text(context).mean(1)[..., None, None] + torch.sin(t / 100).view(-1, 1, 1, 1)
        return self.last(torch.tanh(h))


class MovesItself(tiny.Network):
    """Moves a layer to where it is, as HunyuanVideo 1.5 does in its forward."""

    def forward(self, x, *args, **kwargs):
        self.text.to(x.device)
        return super().forward(x, *args, **kwargs)


class WritesInPlace(tiny.Network):
    """Same function, but it writes into what autograd saved."""

    def forward(self, x, t, context=None, **kwargs):
        h = torch.tanh(
            self.first(x) + self.text(context).mean(1)[..., None, None] + torch.sin(t / 100).view(-1, 1, 1, 1)
        )
        out = self.last(h)
        h.zero_()
        return out


class NoBatchOfThree(tiny.Network):
    def forward(self, x, *args, **kwargs):
        if len(x) > 2 * len(X):
            raise RuntimeError("a batch is a pair")
        return super().forward(x, *args, **kwargs)


class SamplesSeeEachOther(tiny.Network):
    """What is third in a batch is not what it would be alone."""

    def forward(self, x, *args, **kwargs):
        out = super().forward(x, *args, **kwargs)
        return torch.cat([out[: 2 * len(X)], 3 * out[2 * len(X) :]]) if len(x) > 2 * len(X) else out


class OutOfMemory(tiny.Network):
    def forward(self, x, *args, **kwargs):
        if x.requires_grad:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return super().forward(x, *args, **kwargs)


class Broken(tiny.Network):
    """Fails like an interrupt, late in a run."""

    def forward(self, *args, **kwargs):
        if self.evaluated > 10:
            raise KeyboardInterrupt
        return super().forward(*args, **kwargs)
