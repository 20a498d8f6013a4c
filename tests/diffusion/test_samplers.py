"""The sampler on Gaussian data, where the best denoiser and every moment of the output are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsynth.diffusion import gaussian, samplers
from jaxsynth.diffusion.schedule import make_schedule
from jaxsynth.errors import InputError

MEAN = 0.2
SHAPE = (256, 256, 1)


@pytest.fixture(scope="module")
def schedule():
    return make_schedule("cosine", 1000)


def exact_denoiser(schedule, std):
    """The noise expected given x_t, for data N(MEAN, std^2)."""
    alphas_bar = jnp.asarray(schedule.alphas_bar, jnp.float32)

    def denoise(x, t, cond):
        a = alphas_bar[t]
        gain = std**2 * jnp.sqrt(a) / (a * std**2 + 1 - a)
        x0 = MEAN + gain * (x - jnp.sqrt(a) * MEAN)
        return (x - jnp.sqrt(a) * x0) / jnp.sqrt(1 - a)

    return denoise


def sample(schedule, std, t_start, **options):
    """Samples from data noised to t_start."""
    data = MEAN + std * jax.random.normal(jax.random.key(1), SHAPE)
    key = jax.random.key(2)
    plan = samplers.ddpm_plan(schedule, t_start, **options)
    start = samplers.start(key, data, t_start, schedule)
    run = jax.jit(lambda x: samplers.ddpm(exact_denoiser(schedule, std), key, x, plan, clip=False))
    return np.asarray(run(start), np.float64)


def moments(schedule, std, t_start, num_steps, variance):
    """Mean and variance of the output of the textbook recursion, written from Ho et al. 2020, eq. 6-7.

    Respaced: beta between visited indices, as in Nichol and Dhariwal 2021, section 4.
    """
    visited = np.round(np.linspace(t_start - 1, 0, num_steps)).astype(int)[::-1]
    bars = schedule.alphas_bar[visited]
    mean, var = np.sqrt(bars[-1]) * MEAN, bars[-1] * std**2 + 1 - bars[-1]
    for i in reversed(range(num_steps)):
        bar, before = bars[i], bars[i - 1] if i else 1.0
        beta = 1 - bar / before
        gain = std**2 * np.sqrt(bar) / (bar * std**2 + 1 - bar)
        to_x0 = np.sqrt(before) * beta / (1 - bar)
        to_xt = np.sqrt(1 - beta) * (1 - before) / (1 - bar)
        noise = {"fixed_large": beta, "fixed_small": beta * (1 - before) / (1 - bar)}[variance] if i else 0.0
        mean = to_x0 * (MEAN + gain * (mean - np.sqrt(bar) * MEAN)) + to_xt * mean
        var = (to_x0 * gain + to_xt) ** 2 * var + noise
    return mean, var


@pytest.mark.parametrize("std", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("t_start", [400, 1000])
def test_all_steps_recover_the_data(schedule, std, t_start):
    """Mean and spread of Gaussian data come back, to 1 % of the spread."""
    out = sample(schedule, std, t_start)
    assert abs(out.mean() - MEAN) < 0.01 * std + 4 * std / 256
    assert abs(out.std() / std - 1) < 0.015


@pytest.mark.parametrize("variance", samplers.VARIANCES)
@pytest.mark.parametrize(("t_start", "num_steps"), [(400, 400), (400, 100), (400, 20), (1000, 50), (7, 1)])
def test_moments_are_those_of_the_recursion(schedule, variance, t_start, num_steps):
    std = 0.1
    mean, var = moments(schedule, std, t_start, num_steps, variance)
    out = sample(schedule, std, t_start, num_steps=num_steps, variance=variance)
    count = out.size
    assert abs(out.mean() - mean) < 5 * np.sqrt(var / count)
    assert abs(out.var() / var - 1) < 5 * np.sqrt(2 / count)


def test_skipping_steps_keeps_the_spread(schedule):
    """The one-step posterior over every fourth step would give 0.287 here (a trap of the published programs)."""
    out = sample(schedule, 0.1, 400, num_steps=100)
    assert abs(out.std() - 0.1) < 0.004


def test_in_pieces_is_the_same(schedule):
    """Running the plan in two pieces, or from a jitted piece with traced ends, gives the volume of one run."""
    key = jax.random.key(0)
    plan = samplers.ddpm_plan(schedule, 40, num_steps=10)
    denoise = exact_denoiser(schedule, 0.3)
    x = jax.random.normal(key, (16, 16, 1))
    piece = jax.jit(lambda x, first, last: samplers.ddpm(denoise, key, x, plan, first=first, last=last))
    whole = piece(x, 0, 10)
    np.testing.assert_array_equal(piece(piece(x, 0, 3), 3, 10), whole)
    assert piece._cache_size() == 1


def test_x0_is_clipped_before_the_mean(schedule):
    """A denoiser that points far outside [-1, 1] must still end within it."""
    key = jax.random.key(0)
    plan = samplers.ddpm_plan(schedule, 400, num_steps=20)
    out = samplers.ddpm(lambda x, t, c: jnp.full_like(x, -50.0), key, jnp.zeros((8, 8, 1)), plan)
    np.testing.assert_allclose(out, 1.0, atol=1e-6)


def test_start_has_the_forward_process_moments(schedule):
    t_start = 300
    out = samplers.start(jax.random.key(3), jnp.full(SHAPE, 0.7), t_start, schedule)
    bar = schedule.alphas_bar[t_start - 1]
    assert abs(float(out.mean()) - np.sqrt(bar) * 0.7) < 5 * np.sqrt(1 - bar) / 256
    assert abs(float(out.std()) / np.sqrt(1 - bar) - 1) < 0.02


def test_predict_x0_inverts_noising(schedule):
    key = jax.random.key(0)
    x0, noise = jax.random.normal(key, (2, 5, 6, 7, 1))
    for t in (0, 399, 900):
        t = jnp.full((5,), t)
        xt = gaussian.noise_to(x0, t, noise, schedule)
        np.testing.assert_allclose(gaussian.predict_x0(xt, t, noise, schedule), x0, atol=2e-5)


def test_loss_of_the_exact_denoiser(schedule):
    """For Gaussian data the least loss at t is the posterior variance of the noise, a std^2 / (a std^2 + 1 - a)."""
    std, batch = 0.3, 8
    x0 = MEAN + std * jax.random.normal(jax.random.key(0), (batch, 64, 64, 1))
    noise = jax.random.normal(jax.random.key(1), x0.shape)
    for t in (50, 400, 800):
        a = schedule.alphas_bar[t]
        exact = exact_denoiser(schedule, std)
        losses = gaussian.noise_loss(
            lambda x, t, cond, exact=exact: exact(x, t[0], cond), x0, jnp.full((batch,), t), noise, schedule
        )
        best = a * std**2 / (a * std**2 + 1 - a)
        assert losses.shape == (batch,)
        np.testing.assert_allclose(losses.mean(), best, rtol=0.03)


@pytest.mark.parametrize(
    "options", [{"t_start": 0}, {"t_start": 1001}, {"t_start": 10, "num_steps": 11}, {"t_start": 10, "variance": "big"}]
)
def test_bad_plans_are_named(schedule, options):
    with pytest.raises(InputError, match=r"t_start|num_steps|variance"):
        samplers.ddpm_plan(schedule, options.pop("t_start"), **options)
