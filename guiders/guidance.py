"""What the guidance of a step is between: the cond that it guides, and the one that it moves away from."""

from typing import NamedTuple

import comfy.samplers
from torch import Tensor

from .state import Evaluated, StepState


class Guidance(NamedTuple):
    """Where two conds were evaluated, and the prediction that guidance moves away from.

    A guider with a rule of its own (AutoGuidance) gives that prediction itself: then there may be no other cond.
    """

    guided: Evaluated
    position: int
    d_uncond: Tensor
    other: Evaluated | None = None
    other_position: int = -1

    @property
    def cond(self) -> list[dict]:
        """The guided one."""
        return self.guided.conds[self.position]


def find_guidance(state: StepState, guider, guided_cond: list[dict] | None) -> Guidance | None:
    """What the guidance of a step is between; None where there is no guidance.

    The guided cond is the guider's positive prompt where that was evaluated, else what the post-CFG hook was told; the other
    one its negative, or the empty prompt of Perp-Neg, or any other that was evaluated beside it.

    Args:
        guided_cond: the one of the step before, or the guider's positive prompt.
    """
    hook = state.hook
    x = hook.get("input", state.x)
    known = [evaluated for evaluated in state.evaluated if evaluated.x is x] or evaluated_by_hook(hook)
    known.sort(key=lambda evaluated: _unlike(evaluated, hook))  # a patch may evaluate the same cond in another way, too
    guided = find(known, [guided_cond, hook.get("cond")], hook.get("cond_denoised"))
    if guided is None:
        return None
    cond = guided[0].conds[guided[1]]
    if hasattr(guider, "denoise_both") and hook.get("uncond_denoised") is not None:
        other = find(known, [hook.get("uncond")], None, but=cond) or (None, -1)
        raw = state.d_uncond_of_guider
        return Guidance(*guided, hook["uncond_denoised"] if raw is None else raw, *other)
    other = find(known, *_moved_away_from(hook, guider), but=cond) or find(known, guided[0].conds, None, but=cond)
    return None if other is None else Guidance(*guided, other[0].predictions[other[1]], *other)


def _unlike(evaluated: Evaluated, hook: dict) -> tuple[bool, bool]:
    """Orders evaluations: those first whose predictions are what guidance was made of, then those made with its options."""
    made = evaluated.gave(hook.get("cond_denoised")) or evaluated.gave(hook.get("uncond_denoised"))
    return not made, evaluated.model_options is not hook.get("model_options")


def _moved_away_from(hook: dict, guider) -> tuple[list, Tensor | None]:
    """The conds that guidance may move away from, the likeliest first, and the prediction that it does."""
    if hook.get("empty_cond") is not None:  # Perp-Neg straightens its negative against an empty prompt
        return [hook["empty_cond"]], hook.get("empty_cond_denoised")
    negative = (getattr(guider, "conds", None) or {}).get("negative")
    return [negative, hook.get("uncond")], hook.get("uncond_denoised")


def find(known: list[Evaluated], conds: list, prediction: Tensor | None, but=None) -> tuple[Evaluated, int] | None:
    """Where a cond was evaluated: the first of `conds` that was, or the one that gave this very prediction.

    Args:
        but: a cond that it is not.
    """
    places = [(e, e.index(cond)) for cond in conds for e in known]
    places += [(e, e.index_of_prediction(prediction)) for e in known]
    return next(((e, i) for e, i in places if i is not None and e.conds[i] is not None and e.conds[i] is not but), None)


def evaluated_by_hook(hook: dict) -> list[Evaluated]:
    """What a post-CFG hook was told of an evaluation that no other hook saw (context windows under some guiders)."""
    names = ("model", "cond", "uncond", "input", "sigma", "model_options", "cond_denoised", "uncond_denoised")
    model, cond, uncond, x, sigma, model_options, d_cond, d_uncond = map(hook.get, names)
    if any(value is None for value in (model, cond, uncond, x, sigma, model_options, d_cond, d_uncond)):
        return []
    handed = [d_cond, d_uncond]
    calc = comfy.samplers.calc_cond_batch
    copies = [d.clone() for d in handed]
    return [Evaluated(calc, model, [cond, uncond], x, sigma, model_options, handed, copies, counts_itself=True)]
