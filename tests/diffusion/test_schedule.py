"""Forward processes against their formulas."""

import numpy as np
import pytest

from jaxsynth.diffusion.schedule import SCHEDULES, make_schedule
from jaxsynth.errors import InputError


def test_cosine_follows_the_paper():
    """Paper 001, eq. 8: alpha_bar is f(t) / f(0) wherever no beta is clipped."""
    steps = 1000
    f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    schedule = make_schedule("cosine", steps)
    np.testing.assert_allclose(schedule.alphas_bar[:-1], (f[1:] / f[0])[:-1], rtol=1e-10)
    assert schedule.betas[-1] == 0.9999


def test_lower_clip_changes_the_first_thirteen_betas_only():
    free, clipped = make_schedule("cosine", 1000), make_schedule("cosine", 1000, beta_min=1e-4)
    np.testing.assert_array_equal(np.flatnonzero(free.betas != clipped.betas), np.arange(13))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [50, 1000])
def test_noise_grows_to_the_end(name, steps):
    schedule = make_schedule(name, steps)
    assert schedule.betas.shape == schedule.alphas_bar.shape == (steps,)
    assert np.all(np.diff(schedule.betas) >= 0)
    np.testing.assert_allclose(schedule.alphas_bar, np.cumprod(1 - schedule.betas), rtol=1e-12)
    assert schedule.alphas_bar[0] > 0.99
    assert schedule.alphas_bar[-1] < 0.01


def test_ramps_pass_through_their_middle():
    linear, quadratic, sigmoid = (make_schedule(name, 1001).betas for name in ("linear", "quadratic", "sigmoid"))
    low, high = linear[0], linear[-1]
    np.testing.assert_allclose(linear[500], (low + high) / 2)
    np.testing.assert_allclose(np.sqrt(quadratic[500]), (np.sqrt(low) + np.sqrt(high)) / 2)
    np.testing.assert_allclose(sigmoid[500], (low + high) / 2)


@pytest.mark.parametrize(
    ("name", "steps", "clip", "message"),
    [
        ("cosin", 100, {}, "cosine"),
        ("cosine", 1, {}, "num_steps"),
        ("cosine", 100, {"beta_min": 0.5, "beta_max": 0.1}, "beta_min"),
    ],
)
def test_bad_arguments_are_named(name, steps, clip, message):
    with pytest.raises(InputError, match=message):
        make_schedule(name, steps, **clip)
