"""The world draws what its tables say, and the exact targets are what brute force finds."""

import numpy as np
import pytest
from scipy import stats

from pack.demo import world
from pack.research import target

DRAWS = 200_000


@pytest.fixture(scope="module")
def drawn():
    return world.sample_attributes(DRAWS, np.random.default_rng(3))


def test_the_world_draws_its_joint_distribution(drawn):
    counts = np.zeros(target.joint().shape)
    np.add.at(counts, tuple(drawn.discrete().T), 1)
    assert stats.chisquare(counts.flatten(), target.joint().flatten() * DRAWS).pvalue > 0.01


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_world_draws_its_continuous_densities(drawn, count):
    """Within the bounds at which the world clips."""
    chosen = drawn.count == count
    for values, mean, std in (
        (drawn.radius[chosen], world.RADIUS_MEAN[count], world.RADIUS_STD[count]),
        (drawn.centre[chosen, 0] - 32, 0, world.CENTRE_STD / (1 + count)),
        (drawn.centre[chosen, 1] - 32, 0, world.CENTRE_STD),
    ):
        found = np.quantile(values, [0.1, 0.5, 0.9])
        assert found == pytest.approx(stats.norm.ppf([0.1, 0.5, 0.9], mean, std), abs=0.03 * std)


@pytest.mark.parametrize("prompt", [{"colour": "gold"}, {"colour": "red", "background": "dark"}, {"shape": "star"}])
@pytest.mark.parametrize("w", [0.0, 1.0, 4.0])
def test_targets_are_what_weighted_draws_show(drawn, prompt, w):
    """Draws of p(x|y), weighted by p(y|x)^w; p(y|x) by Bayes' rule, picture by picture."""
    fits = np.all(
        [getattr(drawn, name) == world.ATTRIBUTES[name].index(value) for name, value in prompt.items()], axis=0
    )
    shape, hue, background = drawn.shape[fits], drawn.hue[fits], drawn.background[fits]
    likelihood = (
        world.P_COLOUR_GIVEN_SHAPE[shape]
        * world.P_BACKGROUND_GIVEN_COLOUR[:, background].T
        * stats.vonmises.pdf(hue[:, None], world.HUE_KAPPA, loc=world.HUE_CENTRE)
    )
    posterior = likelihood / likelihood.sum(1, keepdims=True)
    weights = np.ones(fits.sum())
    if "colour" in prompt:
        weights = posterior[:, world.COLOURS.index(prompt["colour"])] ** w
    weights = weights / weights.sum()
    exact = target.target(w, prompt)
    for name, values in (("shape", shape), ("background", background), ("count", drawn.count[fits])):
        found = np.bincount(values, weights, minlength=len(world.ATTRIBUTES[name]))
        assert exact.distribution(name).p == pytest.approx(found, abs=0.015)
    assert exact.distribution("colour").p == pytest.approx(weights @ posterior, abs=0.015)
    expected = exact.distribution("hue")
    moment = np.exp(1j * np.outer([1, 2, 3], expected.values)) @ expected.p
    assert np.exp(1j * np.outer([1, 2, 3], hue)) @ weights == pytest.approx(moment, abs=0.015)
    radius = exact.distribution("radius")
    assert weights @ drawn.radius[fits] == pytest.approx(radius.p @ radius.values, abs=0.1)


def test_w_of_minus_one_is_the_world_whatever_the_prompt():
    np.testing.assert_allclose(target.target(-1.0, {"colour": "gold"}).table, target.with_hue(target.joint()))


def test_prompts_that_every_picture_answers_have_the_conditional_for_target():
    plain, guided = (target.target(w, {"shape": "star", "count": 2}).table for w in (0.0, 5.0))
    np.testing.assert_allclose(plain, guided, atol=1e-12)


def test_guidance_by_a_colour_leaves_less_doubt_about_it():
    doubt = [1 - target.target(w, {"colour": "gold"}).distribution("colour").p[1] for w in (0.0, 1.0, 4.0)]
    assert doubt[0] > doubt[1] > doubt[2]


def test_prompts_the_world_does_not_have_are_refused():
    with pytest.raises(ValueError, match="colour = pink"):
        target.target(1.0, {"colour": "pink"})
