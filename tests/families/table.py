"""The matrix of families as a page of documentation."""

from . import FAMILIES, LEFT_OUT
from .measure import CFG, STEP, STEPS, Measured
from .sampling import PERCENT

HEAD = f"""# Model families

Made by `REG_FAMILIES_TABLE=docs/families.md python3 dev.py test tests/test_families.py`, which also tests what it
shows. Do not edit.

Each row is a tiny, randomly initialised instance of a config class in ComfyUI's `comfy.supported_models.models`, built
by that class and guided for one step in inference mode through REG's node, at cfg {CFG:g}, {PERCENT:.0%} into the
schedule. Errors are relative, against central differences of ComfyUI's own conditional prediction D in float32 (fourth
order, steps {" and ".join(map(str, STEPS))} of the latent's root mean square). `backward` is compared element by
element; its errors are the rounding of these differences. `difference` (step {STEP}) is of first order; its errors are
the curvature of D, and random networks are rougher than trained ones.

- **prediction**: ComfyUI's ModelType. **latent**: its shape; two for video with sound. **α**: of that step.
- **backward**: error of α Jᵀ1, and of α Jᵀg. **difference**: error of α J1 ⊙ g, and of α Jg. **ratio**: its factors.

| family | prediction | latent | α | backward 1 | backward g | difference 1 | difference g | ratio |
|---|---|---|---|---|---|---|---|---|
"""


def page(rows: dict[str, Measured], known: dict[str, str]) -> str:
    """The table, with what is known to go wrong: the reason of each family."""
    left_out = {config.__name__: reason for config, reason in LEFT_OUT.items()}
    table = "".join(row(name, measured) for name, measured in rows.items() if name not in known)
    return HEAD + table + listed("Known to fail", known) + listed("Left out", left_out)


def listed(title: str, reasons: dict[str, str]) -> str:
    lines = "".join(f"- {name}: {reason}.\n" for name, reason in reasons.items())
    return f"\n{title}:\n\n{lines}" if reasons else ""


def row(name: str, m: Measured) -> str:
    latents = " + ".join("×".join(map(str, shape)) for shape in FAMILIES[name].latents)
    errors = (m.backward, m.backward_jacobian, m.difference, m.difference_jacobian)
    ratio = " to ".join(dict.fromkeys(f"{factor:.2f}" for factor in m.ratio))
    cells = [name, m.prediction, latents, f"{m.alpha:.2f}", *(f"{e:.0e}" for e in errors), ratio]
    return f"| {' | '.join(cells)} |\n"
