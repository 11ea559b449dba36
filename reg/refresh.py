"""When a run measures anew, and what stands between two measurements.

Guidance is largest and changes fastest at the start of a run, so that is where to measure: with gaps that double,
n steps take about log₂ n measurements (7 of 50). In between, the value stands as it was measured.
"""

DOUBLING = 0  # of `refresh`: at guided steps 0, 1, 2, 4, 8, 16, …; a number n > 1 measures every n-th
ALWAYS = 1  # at every evaluation, also where a sampler makes two in a step


def is_due(step: int, last: int | None, refresh: int) -> bool:
    """Does a guided step measure?

    Args:
        step: sampler steps since the first measurement that said something.
        last: the step of the last measurement; None before the first.
        refresh: DOUBLING, ALWAYS, or n.
    """
    if last is None or refresh == ALWAYS:
        return True
    if refresh == DOUBLING:
        return step.bit_length() > last.bit_length()
    return step - last >= refresh


def measured_steps(steps: int, refresh: int) -> list[int]:
    """The steps at which a run of `steps` guided steps measures."""
    measured: list[int] = []
    for step in range(steps):
        if is_due(step, measured[-1] if measured else None, refresh):
            measured.append(step)
    return measured
