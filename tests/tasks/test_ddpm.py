"""The diffusion task: one step in every arrangement of devices and micro-batches, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from jaxsynth import devices, keys
from jaxsynth.diffusion import gaussian, samplers
from jaxsynth.errors import InputError
from jaxsynth.tasks import ddpm

SHAPE = (8, 16, 16, 1)


def small(**overrides):
    config = common.get_config()
    config.model.features = 4
    config.train.num_steps = 100
    config.optim.schedule = "constant"
    config.update_from_flattened_dict(overrides)
    return config


@pytest.fixture(scope="module")
def batch():
    return 0.3 * jax.random.normal(jax.random.key(5), SHAPE)


def init(parts):
    return jax.jit(lambda key: ddpm.init(parts, key, SHAPE))(keys.root(0))


def run_step(config, batch, place=lambda x: x, replicate=lambda x: x):
    parts = ddpm.build(config)
    key = keys.root(0)
    state = replicate(init(parts))
    step = jax.jit(lambda s, b: ddpm.step(parts, s, b, key))
    return step(state, place(batch)), step


def close(one, other, rtol=1e-4, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, other)


@pytest.fixture(scope="module")
def plain(batch):
    """One step with RAdam on one device: the reference of the other arrangements."""
    return run_step(small(), batch)[0]


def test_eight_devices_equal_one(batch, plain):
    mesh = devices.make_mesh()
    assert mesh.size == 8
    (state, scalars), _ = run_step(
        small(),
        batch,
        lambda x: jax.device_put(x, devices.split(mesh)),
        lambda tree: jax.device_put(tree, devices.replicated(mesh)),
    )
    close(scalars, plain[1])
    # The first RAdam steps move by the momentum alone, so parameters differ no more than gradients do.
    close(state.params, plain[0].params, atol=1e-5)


def test_work_is_split_over_devices(batch):
    """The compiled step of each device has about an eighth of the one-device step's operations."""
    mesh = devices.make_mesh()
    parts, key = ddpm.build(small()), keys.root(0)
    state = jax.eval_shape(lambda k: ddpm.init(parts, k, SHAPE), key)

    def flops(split, replicated):
        step = jax.jit(lambda s, b: ddpm.step(parts, s, b, key), in_shardings=(replicated, split))
        return step.lower(state, batch).compile().cost_analysis()["flops"]

    alone = devices.make_mesh(jax.devices()[:1])
    whole = flops(devices.split(alone), devices.replicated(alone))
    assert flops(devices.split(mesh), devices.replicated(mesh)) < whole / 5


def test_micro_batches_equal_the_whole(batch, plain):
    state, scalars = run_step(small(**{"optim.accumulate": 4}), batch)[0]
    close(scalars, plain[1])
    close(state.params, plain[0].params, atol=1e-5)


def test_the_second_step_does_not_recompile(batch):
    (state, _), step = run_step(small(), batch)
    state, _ = step(state, batch)
    step(state, batch)
    assert step._cache_size() == 1


@pytest.mark.parametrize(
    ("name", "prediction", "weighting"), [("radam", "noise", "none"), ("adamw", "x0", "edm"), ("adamw", "v", "none")]
)
def test_training_lowers_the_held_out_loss(batch, name, prediction, weighting):
    """All are held to the error of the noise. For voxels from N(0, 0.3^2) none can fall below that of the posterior."""
    config = small(
        **{
            "diffusion.prediction": prediction,
            "diffusion.weighting": weighting,
            "optim.name": name,
            "optim.learning_rate": 1e-2,
            "optim.ema_decay": 0.9,
            "model.noise_channel": prediction == "v",
        }
    )
    parts, key = ddpm.build(config), keys.root(0)
    state = init(parts)
    step = jax.jit(lambda s, b: ddpm.step(parts, s, b, key))
    validate = jax.jit(lambda s: ddpm.validate(parts, s, batch, key))
    before = validate(state)["loss"]
    for _ in range(100):
        state, scalars = step(state, batch)
        assert np.isfinite(scalars["loss"])
    after = validate(state)
    data = 0.3**2 * parts.schedule.alphas_bar[[99, 399, 899]]
    least = np.mean(data / (data + 1 - parts.schedule.alphas_bar[[99, 399, 899]]))
    assert 0.95 * least < after["loss"] < least + 0.9 * (before - least)
    assert set(after) == {"loss", "loss_t99", "loss_t399", "loss_t899"}


def test_draws_differ_from_step_to_step_and_follow_the_counter(batch):
    parts, key = ddpm.build(small(**{"optim.learning_rate": 0.0})), keys.root(0)
    state = init(parts)
    step = jax.jit(lambda s, b: ddpm.step(parts, s, b, key))
    next_state, first = step(state, batch)
    _, second = step(next_state, batch)
    _, again = step(state.replace(step=jnp.int32(1)), batch)
    assert first["loss"] != second["loss"]
    assert again["loss"] == second["loss"]


def test_the_average_forgets_its_start():
    """With constant parameters the average reaches them; the warm-up decay is the stated one."""
    from jaxsynth.optimiser import update_ema

    average = jnp.float32(100.0)
    expected = 100.0
    for step in range(300):
        average = update_ema(average, jnp.float32(1.0), jnp.int32(step), 0.99)
        decay = min(0.99, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay)
    np.testing.assert_allclose(average, expected, rtol=1e-4)
    assert abs(expected - 1) < 0.1


@pytest.mark.parametrize("name", ["adamw", "radam"])
def test_an_optimiser_without_momentum_forgets_the_gradients_before(name):
    """With beta1 = 0 the direction of a step is that of its own gradient, whatever the gradients before."""
    from jaxsynth.optimiser import make_optimiser

    first = jnp.asarray([3.0, -3.0])
    for beta1, follows in ((0.0, True), (0.9, False)):
        optimiser = make_optimiser(name, 1.0, num_steps=10, beta1=beta1, beta2=0.5)
        state = optimiser.init(first)
        for gradient in (first, first, -0.1 * first):
            update, state = optimiser.update(gradient, state, first)
        assert bool((jnp.sign(update) == jnp.sign(first)).all()) == follows
    with pytest.raises(InputError, match=r"optim.beta2 must lie in \[0, 1\), got 1"):
        make_optimiser(name, 1.0, num_steps=10, beta2=1.0)


def test_preview_shows_real_and_sampled_patches(batch):
    parts = ddpm.build(small(**{"diffusion.t_max": 50}))
    state = init(parts)
    volumes = jax.jit(lambda s, b: ddpm.preview(parts, s, b, keys.root(0)))(state, batch)
    np.testing.assert_array_equal(volumes["real"], batch[0, ..., 0])
    assert len(volumes) == 4
    assert all(volume.shape == SHAPE[1:-1] and bool(jnp.isfinite(volume).all()) for volume in volumes.values())


@pytest.mark.parametrize(
    "override",
    [
        {"diffusion.t_max": 0},
        {"diffusion.t_max": 1001},
        {"diffusion.schedule": "cos"},
        {"diffusion.prediction": "epsilon"},
        {"diffusion.weighting": "snr"},
        {"diffusion.snr_cap": -1.0},
        {"optim.name": "sgd"},
        {"optim.schedule": "step"},
    ],
)
def test_senseless_configurations_are_named(override):
    ((_, value), *_) = override.items()
    with pytest.raises(InputError, match=str(value)):
        ddpm.build(small(**override))


def test_validation_tells_the_error_of_the_noise(batch):
    """Of a network that predicts v, whose noise is s x_t + a v."""
    parts = ddpm.build(small(**{"diffusion.prediction": "v"}))
    state, key = init(parts), keys.root(0)
    noise = jax.random.normal(keys.stream(key, "validate"), batch.shape)
    bar = parts.schedule.alphas_bar[399]
    a, s = np.float32(np.sqrt(bar)), np.float32(np.sqrt(1 - bar))
    xt = a * batch + s * noise

    def both(state):
        v = ddpm.denoiser(parts, state.ema_params)(xt, jnp.full(8, 399), None)
        return ddpm.validate(parts, state, batch, key)["loss_t399"], jnp.square(s * xt + a * v - noise).mean()

    np.testing.assert_allclose(*jax.jit(both)(state), rtol=1e-4)


@pytest.mark.parametrize("weighting", ["min_snr", "edm"])
def test_weights_are_those_of_the_papers(batch, weighting):
    """The loss of any network is w(SNR) times the error of the image it implies, whatever it predicts."""
    parts = ddpm.build(small())
    schedule, t = parts.schedule, jnp.array([0, 10, 100, 300, 500, 700, 900, 990])
    noise = jax.random.normal(keys.root(2), batch.shape)
    snr = schedule.alphas_bar[t] / (1 - schedule.alphas_bar[t])
    weights = {"min_snr": np.minimum(snr, 3.0), "edm": snr + 4.0}[weighting]
    xt = gaussian.noise_to(batch, t, noise, schedule)
    for prediction in gaussian.PREDICTIONS:
        kind = {"prediction": prediction, "weighting": weighting, "snr_cap": 3.0}
        loss = gaussian.loss(lambda x, t, cond: jnp.tanh(x), batch, t, noise, schedule, **kind)
        x0 = gaussian.predict_x0(xt, t, jnp.tanh(xt), schedule, prediction)
        np.testing.assert_allclose(loss, weights * jnp.square(x0 - batch).mean(axis=(1, 2, 3)), rtol=2e-3)


def test_equal_weighting_gives_equal_gradients(batch):
    """A linear model of the image, put into the words of each prediction, is pulled the same way."""
    schedule = ddpm.build(small()).schedule
    t = jnp.arange(8) * 120
    noise = jax.random.normal(keys.root(2), batch.shape)

    def gradient(prediction):
        def denoise(params, x, t, cond):
            image = params["slope"] * x + params["offset"]
            a = gaussian.at(np.sqrt(schedule.alphas_bar), t, x.ndim)
            s = gaussian.at(np.sqrt(1 - schedule.alphas_bar), t, x.ndim)
            noise = (x - a * image) / s
            return {"noise": noise, "x0": image, "v": a * noise - s * image}[prediction]

        def loss(params):
            model = lambda *inputs: denoise(params, *inputs)  # noqa: E731
            kind = {"prediction": prediction, "weighting": "min_snr"}
            return gaussian.loss(model, batch, t, noise, schedule, **kind).mean()

        return jax.grad(loss)({"slope": jnp.float32(0.4), "offset": jnp.float32(0.1)})

    of_x0 = gradient("x0")
    close(gradient("noise"), of_x0, rtol=1e-3)
    close(gradient("v"), of_x0, rtol=1e-3)


def test_configurations_of_earlier_versions_build():
    config = common.get_config()
    with config.unlocked():
        for name in ("prediction", "weighting", "snr_cap"):
            del config.diffusion[name]
        del config.distill
    parts = ddpm.build(config)
    assert (parts.prediction, parts.weighting) == ("noise", "none")


@pytest.mark.parametrize("noise_channel", [False, True])
def test_stages_are_the_network(batch, noise_channel):
    parts = ddpm.build(small(**{"model.noise_channel": noise_channel}))
    params = init(parts).params
    t = jnp.arange(8) * 100
    cond = ddpm.condition(parts, keys.root(1), batch.shape)
    stages = ddpm.stages(parts, params)

    def in_parts(x):
        return stages.grow(x, stages.deepen(stages.shrink(x, t, cond), t), t, cond)

    whole = jax.jit(lambda x: ddpm.denoiser(parts, params)(x, t, cond))(batch)
    np.testing.assert_allclose(jax.jit(in_parts)(batch), whole, rtol=1e-5, atol=1e-5)


def test_the_condition_is_drawn_by_rows():
    parts, key = ddpm.build(small(**{"model.noise_channel": True})), keys.root(1)
    whole = ddpm.condition(parts, key, (12, 5, 1))
    assert whole.std() > 0.7
    rows = samplers.rows_of_noise(keys.stream(key, "condition"), 4, (3, 5, 1))
    np.testing.assert_array_equal(rows, whole[4:7])
    assert ddpm.condition(ddpm.build(small()), key, (12, 5, 1)) is None
