"""Hooks that do not keep a run alive, and whose copies are nothing."""

import copy
import gc
import pickle
import weakref

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

from pack.guiders.hooks import Hook, leaves_denoised, leaves_predictions, passes_on


class Owner:
    def __init__(self):
        self.hook = Hook(self.method, leaves_denoised)

    def method(self, args):
        return 2 * args["denoised"]


def test_it_calls_its_method_while_the_owner_lives():
    owner = Owner()
    hook, reference = owner.hook, weakref.ref(owner)
    assert hook({"denoised": 3}) == 6
    del owner
    assert reference() is None  # at once, without a collection
    assert hook({"denoised": 3}) == 3


def test_a_deep_copy_is_the_hook_itself():
    """So a pass of a patch's own, with copied options, is watched like any other; and it keeps nothing alive."""
    owner = Owner()
    copied = copy.deepcopy({"hooks": [owner.hook, {"nested": owner.hook}]})
    assert copied["hooks"][0] is owner.hook and copied["hooks"][1]["nested"] is owner.hook
    reference = weakref.ref(owner)
    del owner
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize(
    ("without", "args", "expected"),
    [
        (leaves_denoised, ({"denoised": 5},), 5),
        (leaves_predictions, ({"conds_out": [1, 2]},), [1, 2]),
        (passes_on, (lambda *args, **kwargs: (args, kwargs), 1), ((1,), {})),
    ],
)
def test_read_from_a_file_it_does_nothing(without, args, expected):
    owner = Owner()
    read = pickle.loads(pickle.dumps(Hook(owner.method, without)))
    assert read(*args) == expected
