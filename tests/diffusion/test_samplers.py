"""The samplers on Gaussian data, where the best denoiser and every moment of the output are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsynth.diffusion import gaussian, samplers
from jaxsynth.diffusion.schedule import make_schedule
from jaxsynth.errors import InputError

MEAN = 0.2
SHAPE = (256, 256, 1)
DETERMINISTIC = ("ddim", "dpmpp", "heun")


@pytest.fixture(scope="module")
def schedule():
    return make_schedule("cosine", 1000)


def exact_denoiser(schedule, std, prediction="noise"):
    """What is expected given x_t, for data N(MEAN, std^2)."""
    alphas_bar = jnp.asarray(schedule.alphas_bar, jnp.float32)

    def denoise(x, t, cond):
        a = alphas_bar[t]
        gain = std**2 * jnp.sqrt(a) / (a * std**2 + 1 - a)
        x0 = MEAN + gain * (x - jnp.sqrt(a) * MEAN)
        noise = (x - jnp.sqrt(a) * x0) / jnp.sqrt(1 - a)
        return {"noise": noise, "x0": x0, "v": jnp.sqrt(a) * noise - jnp.sqrt(1 - a) * x0}[prediction]

    return denoise


def sample(schedule, std, t_start, plan, prediction="noise"):
    """Samples from data noised to t_start, float64 [*SHAPE]."""
    data = MEAN + std * jax.random.normal(jax.random.key(1), SHAPE)
    key = jax.random.key(2)
    start = samplers.start(key, data, t_start, schedule)
    denoise = exact_denoiser(schedule, std, prediction)
    run = jax.jit(lambda x, plan: samplers.sample(denoise, key, x, plan, clip=False))
    return np.asarray(run(start, plan), np.float64)


def moments(schedule, std, t_start, plan):
    """Mean and standard deviation of the output, from the plan's recursion carried out on the moments: the state is a
    sum of independent unit normals (the start and every step's noise), the exact denoiser is linear."""
    table = jax.tree.map(lambda column: np.asarray(column, np.float64), plan)
    count = plan.num_evaluations
    bar = schedule.alphas_bar[t_start - 1]
    x, previous = np.zeros(count + 2), np.zeros(count + 2)  # mean, start, steps
    x[:2] = np.sqrt(bar) * MEAN, np.sqrt(bar * std**2 + 1 - bar)
    for k in range(count):
        bar = schedule.alphas_bar[plan.t[k]]
        gain = std**2 * np.sqrt(bar) / (bar * std**2 + 1 - bar)
        x0 = gain * x
        x0[0] += (1 - gain * np.sqrt(bar)) * MEAN
        x = table.from_x[k] * x + table.from_x0[k] * x0 + table.from_previous[k] * previous
        x[k + 2] += table.std[k]
        previous = x0
    return x[0], np.sqrt(np.sum(x[1:] ** 2))


@pytest.mark.parametrize("std", [0.1, 0.5])
@pytest.mark.parametrize("t_start", [400, 1000])
def test_all_steps_of_ddpm_recover_the_data(schedule, std, t_start):
    """Mean and spread of Gaussian data come back, to 1 % of the spread."""
    out = sample(schedule, std, t_start, samplers.make_plan("ddpm", schedule, t_start))
    assert abs(out.mean() - MEAN) < 0.01 * std + 4 * std / 256
    assert abs(out.std() / std - 1) < 0.015


# Sampler, evaluations, and how much of the spread may be missing or too much: what the docstring recommends. (The
# one-step posterior over every fourth of 400 steps would give 2.87 times the spread, a trap of the published programs.)
RECOMMENDED = [
    *(("dpmpp", count, allowed) for count, allowed in ((5, 0.08), (10, 0.03), (20, 0.02), (50, 0.02), (200, 0.02))),
    *(("dpmpp_sde", count, allowed) for count, allowed in ((5, 0.12), (10, 0.04), (20, 0.02), (50, 0.02))),
    *(("heun", count, allowed) for count, allowed in ((20, 0.04), (21, 0.04), (50, 0.02))),
    *(("ddpm", count, allowed) for count, allowed in ((50, 0.04), (100, 0.02), (200, 0.02))),
    *(("ddim", count, allowed) for count, allowed in ((50, 0.05), (200, 0.02))),
]


@pytest.mark.parametrize(("sampler", "count", "allowed"), RECOMMENDED)
def test_recommended_counts_recover_the_data(schedule, sampler, count, allowed):
    plan = samplers.make_plan(sampler, schedule, 400, count)
    assert plan.num_evaluations == count
    for std in (0.1, 0.2, 0.4):
        mean, spread = moments(schedule, std, 400, plan)
        assert abs(mean - MEAN) < 0.02 * std + 0.002
        assert abs(spread / std - 1) < allowed


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
@pytest.mark.parametrize(("t_start", "count"), [(400, 20), (1000, 50), (7, 1)])
def test_samples_have_the_moments_of_the_recursion(schedule, sampler, t_start, count):
    """The loop, its noise and its denoiser are those of the plan."""
    plan = samplers.make_plan(sampler, schedule, t_start, count)
    mean, spread = moments(schedule, 0.1, t_start, plan)
    out = sample(schedule, 0.1, t_start, plan)
    assert abs(out.mean() - mean) < 5 * spread / 256
    assert abs(out.std() / spread - 1) < 5 / np.sqrt(2 * out.size)


def solver_error(sampler, count, std=0.3, spacing="log_snr"):
    """Error of a deterministic sampler against the exact solution of the probability flow, from t_start to index 0, on
    a schedule so fine that the rounding of the times does not count."""
    schedule = make_schedule("cosine", 100_000)
    t_start = 60_000
    plan = samplers.make_plan(sampler, schedule, t_start, count, spacing=spacing)
    x = jnp.full((1, 1), 1.3)
    denoise = exact_denoiser(schedule, std)
    out, _ = samplers.run(denoise, jax.random.key(0), (x, x), plan, clip=False, last=plan.num_evaluations - 1)

    def spread(bar):
        return np.sqrt(bar * std**2 + 1 - bar)

    first, last = schedule.alphas_bar[t_start - 1], schedule.alphas_bar[0]
    exact = np.sqrt(last) * MEAN + spread(last) / spread(first) * (1.3 - np.sqrt(first) * MEAN)
    return abs(float(out[0, 0]) - exact)


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpmpp", 2), ("heun", 2)])
def test_error_shrinks_at_the_order_claimed(sampler, order):
    with jax.enable_x64(True):
        errors = [solver_error(sampler, count) for count in (41, 81, 161)]
    rates = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all(np.abs(rates - order) < 0.25 * order), (errors, rates)


def test_ddpm_is_the_textbook_posterior(schedule):
    """Ho et al. 2020, eq. 6-7, at every index; respaced with betas between those visited, as in Nichol and Dhariwal
    2021, section 4."""
    for count in (400, 20):
        plan = samplers.make_plan("ddpm", schedule, 400, count, spacing="uniform")
        visited = np.round(np.linspace(399, 0, count)).astype(int)
        np.testing.assert_array_equal(plan.t, visited)
        bars = schedule.alphas_bar[visited]
        before = np.append(bars[1:], 1.0)
        beta = 1 - bars / before
        np.testing.assert_allclose(plan.from_x0, np.sqrt(before) * beta / (1 - bars), rtol=1e-6)
        np.testing.assert_allclose(plan.from_x, np.sqrt(1 - beta) * (1 - before) / (1 - bars), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(plan.std[:-1], np.sqrt(beta)[:-1], rtol=1e-6)
        assert plan.std[-1] == 0


def test_ddim_with_eta_one_is_ddpm_with_the_posterior_variance(schedule):
    one = samplers.make_plan("ddim", schedule, 400, 30, eta=1.0, spacing="uniform")
    other = samplers.make_plan("ddpm", schedule, 400, 30, variance="fixed_small", spacing="uniform")
    for name in ("t", "from_x", "from_x0", "from_previous", "std"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prediction", ["x0", "v"])
@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp", "heun"])
def test_predictions_of_all_kinds_give_the_same(schedule, sampler, prediction):
    outs = [
        sample(schedule, 0.3, 400, samplers.make_plan(sampler, schedule, 400, 12, prediction=kind), kind)
        for kind in ("noise", prediction)
    ]
    np.testing.assert_allclose(*outs, atol=1e-4)


def test_consistency_takes_equal_jumps(schedule):
    """Each evaluation names the image; all but the last are noised again, to the next of equally spaced times."""
    plan = samplers.make_plan("consistency", schedule, 400, 4)
    np.testing.assert_array_equal(plan.t, [399, 299, 199, 99])
    np.testing.assert_allclose(plan.std[:-1] ** 2, 1 - schedule.alphas_bar[[299, 199, 99]], rtol=1e-5)
    np.testing.assert_array_equal(plan.from_x, 0)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_in_pieces_is_the_same(schedule, sampler):
    """Running the plan in two pieces, or from a jitted piece with traced ends, gives the volume of one run."""
    key = jax.random.key(0)
    plan = samplers.make_plan(sampler, schedule, 40, 10)
    denoise = exact_denoiser(schedule, 0.3)
    x = jax.random.normal(key, (16, 16, 1))
    piece = jax.jit(lambda state, first, last: samplers.run(denoise, key, state, plan, first=first, last=last))
    whole = piece((x, x), 0, 10)
    np.testing.assert_array_equal(piece(piece((x, x), 0, 3), 3, 10)[0], whole[0])
    assert piece._cache_size() == 1
    np.testing.assert_allclose(samplers.sample(denoise, key, x, plan), whole[0], atol=1e-6)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
@pytest.mark.parametrize("spacing", samplers.SPACINGS)
def test_every_number_of_evaluations_has_a_plan(schedule, sampler, spacing):
    for t_start in (1, 2, 9, 400):
        for count in {1, 2, 3, min(t_start, 8), t_start}:
            if count > t_start:
                continue
            plan = samplers.make_plan(sampler, schedule, t_start, count, spacing=spacing)
            assert plan.num_evaluations == count
            assert plan.t[0] == t_start - 1
            assert all(np.isfinite(column).all() for column in jax.tree.leaves(plan))
            falls = np.diff(np.asarray(plan.t))
            assert np.all(falls <= 0) and (sampler == "heun" or np.all(falls < 0))
            ends = count == 1 or spacing == "trailing" or (sampler == "heun" and count == 2)
            assert ends or plan.t[-1] == 0
            assert plan.std[-1] == 0 and plan.from_x[-1] in (0, 1)


def test_any_slab_gets_the_noise_of_the_whole():
    key = jax.random.key(5)
    for shape in ((20, 7, 1), (20, 5, 6, 1)):
        whole = samplers.step_noise(key, 3, 0, shape)
        np.testing.assert_array_equal(samplers.step_noise(key, 3, 6, (4, *shape[1:])), whole[6:10])
        assert abs(float(jnp.corrcoef(whole[0].ravel(), whole[1].ravel())[0, 1])) < 0.8
    big = samplers.rows_of_noise(key, 0, (256, 256))
    assert abs(float(big.mean())) < 5 / 256 and abs(float(big.std()) - 1) < 5 / 362
    assert abs(float(jnp.mean(big[1:] * big[:-1]))) < 5 / 256


def test_x0_is_clipped_before_the_step(schedule):
    """A denoiser that points far outside [-1, 1] must still end within it."""
    key = jax.random.key(0)
    for sampler in ("ddpm", *DETERMINISTIC):
        plan = samplers.make_plan(sampler, schedule, 400, 20)
        out = samplers.sample(lambda x, t, c: jnp.full_like(x, -50.0), key, jnp.zeros((8, 8, 1)), plan)
        np.testing.assert_allclose(out, 1.0, atol=1e-5)


def test_start_has_the_forward_process_moments(schedule):
    t_start = 300
    out = samplers.start(jax.random.key(3), jnp.full(SHAPE, 0.7), t_start, schedule)
    bar = schedule.alphas_bar[t_start - 1]
    assert abs(float(out.mean()) - np.sqrt(bar) * 0.7) < 5 * np.sqrt(1 - bar) / 256
    assert abs(float(out.std()) / np.sqrt(1 - bar) - 1) < 0.02


@pytest.mark.parametrize(
    "options",
    [
        {"t_start": 0},
        {"t_start": 1001},
        {"num_evaluations": 401},
        {"num_evaluations": 0},
        {"variance": "big"},
        {"spacing": "even"},
        {"eta": 1.5},
        {"prediction": "score"},
        {"sampler": "euler"},
    ],
)
def test_bad_plans_are_named(schedule, options):
    name = next(iter(options))
    options = {"sampler": "ddpm", "t_start": 400} | options
    with pytest.raises(InputError, match=name):
        samplers.make_plan(options.pop("sampler"), schedule, options.pop("t_start"), **options)


def test_predictions_invert_noising(schedule):
    key = jax.random.key(0)
    x0, noise = jax.random.normal(key, (2, 5, 6, 7, 1))
    for t in (0, 399, 900):
        t = jnp.full((5,), t)
        xt = gaussian.noise_to(x0, t, noise, schedule)
        for kind in gaussian.PREDICTIONS:
            predicted = gaussian.target(x0, t, noise, schedule, kind)
            np.testing.assert_allclose(gaussian.predict_x0(xt, t, predicted, schedule, kind), x0, atol=3e-5)
            # x0 says little of the noise where there is nearly none.
            limit = 1e-3 if kind == "x0" else 1e-5
            np.testing.assert_allclose(gaussian.predict_noise(xt, t, predicted, schedule, kind), noise, atol=limit)


@pytest.mark.parametrize("kind", gaussian.PREDICTIONS)
def test_loss_of_the_exact_denoiser(schedule, kind):
    """For Gaussian data the posterior variance of x0 is std^2 (1 - a) / (a std^2 + 1 - a); the least loss is that times
    the weight on the error of x0: SNR, 1 or SNR + 1, or what the weighting says."""
    std, batch = 0.3, 8
    x0 = MEAN + std * jax.random.normal(jax.random.key(0), (batch, 64, 64, 1))
    noise = jax.random.normal(jax.random.key(1), x0.shape)
    exact = exact_denoiser(schedule, std, kind)
    for t in (50, 400, 800):
        a = schedule.alphas_bar[t]
        snr = a / (1 - a)
        own = {"noise": snr, "x0": 1, "v": snr + 1}[kind]
        for weighting, weight in (("none", own), ("min_snr", min(snr, 5.0)), ("edm", snr + 4)):
            losses = gaussian.loss(
                lambda x, t, cond: exact(x, t[0], cond),
                x0,
                jnp.full((batch,), t),
                noise,
                schedule,
                prediction=kind,
                weighting=weighting,
            )
            assert losses.shape == (batch,)
            np.testing.assert_allclose(losses.mean(), weight * std**2 * (1 - a) / (a * std**2 + 1 - a), rtol=0.03)


def test_bad_weightings_are_named(schedule):
    for options, name in (({"weighting": "p2"}, "weighting"), ({"weighting": "min_snr", "snr_cap": 0}, "snr_cap")):
        with pytest.raises(InputError, match=name):
            gaussian.loss_weights(schedule, "noise", **options)
