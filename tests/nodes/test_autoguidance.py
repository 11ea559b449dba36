"""REG AutoGuider says when there is nothing between its models, or its prompts, to guide by."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

import torch

from pack.nodes.autoguidance import REGAutoGuider
from pack.tests.guiders import tiny


def models():
    return tiny.as_model(tiny.Network()), tiny.as_model(tiny.Network())


def test_twice_the_same_model_is_refused():
    model, _ = models()
    with pytest.raises(ValueError, match=r"REG: model and weak_model are the same model.* connect a smaller"):
        REGAutoGuider.execute(model, model, tiny.POSITIVE)


def test_a_negative_that_is_the_positive_is_refused():
    again = [[tensor.clone(), dict(more)] for tensor, more in tiny.POSITIVE]
    for negative in (tiny.POSITIVE, again):
        with pytest.raises(ValueError, match="REG: negative is the same prompt as positive"):
            REGAutoGuider.execute(*models(), tiny.POSITIVE, negative=negative)


def test_what_differs_is_taken():
    mask = {"mask": torch.ones(1, 4, 4)}
    elsewhere = [[tensor, {**more, **mask}] for tensor, more in tiny.POSITIVE]
    for negative in (None, tiny.NEGATIVE, elsewhere):
        assert REGAutoGuider.execute(*models(), tiny.POSITIVE, negative=negative).args[0].cfg == 2.0
