"""Hooks of a run that do not keep it alive."""

import weakref
from collections.abc import Callable


class Hook:
    """A method of a run, for the lists of hooks and wrappers that ComfyUI calls.

    Patches copy the options that hold it, deeply or into files, and keep what they copied. It holds the run by a weak
    reference, and a copy of it none: where the run is gone, `without` stands for it.
    """

    def __init__(self, method: Callable, without: Callable):
        self.method = weakref.WeakMethod(method)
        self.without = without

    @property
    def is_live(self) -> bool:
        """Does its run still go on?"""
        return self.method() is not None

    def __call__(self, *args, **kwargs):
        return (self.method() or self.without)(*args, **kwargs)

    def __deepcopy__(self, memo: dict) -> "Hook":
        return self

    def __reduce__(self):
        return gone, (self.without,)


def any_live(hooks: list) -> bool:
    """Is one of these a hook of a run that still goes on?"""
    return any(getattr(hook, "is_live", False) for hook in hooks)


def gone(without: Callable) -> Callable:
    """What a hook is after it was read from a file."""
    return without


def passes_on(executor: Callable, *args, **kwargs):
    """A wrapper that does nothing."""
    return executor(*args, **kwargs)


def leaves_predictions(args: dict) -> list:
    """A pre-CFG hook that does nothing."""
    return args["conds_out"]


def leaves_denoised(args: dict):
    """A post-CFG hook that does nothing."""
    return args["denoised"]
