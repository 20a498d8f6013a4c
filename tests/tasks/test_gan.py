"""The GAN's task: whose gradient goes where, when what is updated, and that it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import ndimage

from jaxsynth import cli, devices, keys
from jaxsynth.data import ada
from jaxsynth.data.intensity import SCORES
from jaxsynth.errors import InputError
from jaxsynth.tasks import gan, gan_input

ROOT = keys.root(0)


def make(**overrides):
    # Without what is tested where it is asked for.
    plain = {"model.noise_channel": False, "gan.residual": False, "gan.critic_norm": "", "gan.r1": 0.0}
    plain |= {"gan.critic_gain": 1.0, "gan.r1_every": 16, "gan.mask": "cells", "gan.sigma": 0.0}
    plain |= {"gan.critic_mask": False, "gan.critic_rate": 1.0, "gan.clouds_vox": 0.0, "gan.critic_shift": 0}
    values = {"model.features": 4, "gan.critic_features": 4, "optim.learning_rate": 1e-3} | plain | overrides
    return cli.read_config("configs/gan_nuclei.py", [f"--config.{name}={value}" for name, value in values.items()])


def begin(parts, shape):
    """The state before the first step, in one program: on its own each of its operations would be compiled."""
    return jax.jit(lambda: gan.init(parts, ROOT, shape))()


def example(shape, count=2):
    """Boxes, and images in which other boxes are bright on a noisy ground."""
    rng = np.random.default_rng(0)
    masks = np.zeros((2, count, *shape, 1), np.float32)
    for mask in masks.reshape(-1, *shape):
        for _ in range(3):
            mask[tuple(slice(low, low + 6) for low in rng.integers(0, np.array(shape) - 6))] = 1
    position = np.tanh((masks - 0.5) / 2)
    image = -0.6 + 1.1 * masks[1] + rng.normal(0, 0.05, masks[1].shape)
    named = {"mask": masks[0], "position": position[0], "image": image, "image_position": position[1]}
    named["image_mask"] = masks[1]
    return {name: jnp.asarray(array, jnp.float32) for name, array in named.items()}


def plain_losses(parts, params, batch, key, probability):
    """The two losses written down as in the paper, each evaluated for itself: (generator's, critic's)."""
    own = jax.vmap(lambda row: keys.stream(key, "example", row))(jnp.arange(batch["image"].shape[0]))
    y, x = jax.random.randint(keys.stream(key, "corner"), (2,), 0, parts.critic_shift + 1)
    places = (jnp.arange(24 - parts.critic_shift) + start for start in (y, x))
    part = (slice(None), *jnp.ix_(*places))

    def judge(images, maps, name):
        changed = jax.vmap(lambda k, x: ada.augment(keys.stream(k, name), x, probability))(own, images[..., 0])
        return parts.critic.apply({"params": params["critic"]}, jnp.concatenate([changed[..., None], maps], -1)[part])

    def draw(first, position):
        return parts.net.apply({"params": params["generator"]}, jnp.concatenate([first, position], -1))

    real, fake = (batch["image"] + 1) / 2, draw(batch["mask"], batch["position"])
    told_real = judge(real, jnp.concatenate([batch["image_position"], batch["image_mask"]], -1), "real")
    told_fake = judge(fake, jnp.concatenate([batch["position"], batch["mask"]], -1), "fake")
    same = draw(real, batch["image_position"])

    def bce(x, y):
        return jnp.mean(jnp.log1p(jnp.exp(-x if y else x)))

    own_loss = bce(told_fake, 1) + parts.identity * jnp.abs(real - same).mean()
    return own_loss, (bce(told_real, 1) + bce(told_fake, 0)) / 2


def descending(parts, state):
    """The same with plain gradient descent, whose steps are the gradients."""
    parts = dataclasses.replace(parts, optimiser=optax.sgd(1.0))
    plain = {name: parts.optimiser.init(own) for name, own in state.params.items()}
    return parts, state.replace(opt_state=plain | {"ada": state.opt_state["ada"]})


def close(found, wanted):
    """Two pytrees, to a ten-thousandth of the largest number."""
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(wanted))
    assert largest > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * largest), found, wanted)


WORDS = {"gan.identity": 0.7, "gan.ada_start": 0.8, "model.norm": "none", "gan.critic_mask": True}
WORDS |= {"gan.critic_shift": 5}


@pytest.fixture(scope="module")
def stepped():
    """(parts, state, batch, state and scalars after a step of plain gradient descent)"""
    parts, batch = gan.build(make(**WORDS)), example((24, 24), 4)
    parts, state = descending(parts, begin(parts, (4, 24, 24, 1)))
    return parts, state, batch, *jax.jit(lambda s, b: gan.step(parts, s, b, ROOT))(state, batch)


def test_each_network_descends_its_own_loss(stepped):
    parts, state, batch, after, scalars = stepped
    key = keys.stream(ROOT, "step", state.step)

    def losses(generator, critic, batch):
        return plain_losses(parts, {"generator": generator, "critic": critic}, batch, key, 0.8)

    def expected(params, batch):
        given = params["generator"], params["critic"], batch
        of_generator = jax.grad(lambda *given: losses(*given)[0], argnums=0)
        of_critic = jax.grad(lambda *given: losses(*given)[1], argnums=1)
        return losses(*given), {"generator": of_generator(*given), "critic": of_critic(*given)}

    told, wanted = jax.jit(expected)(state.params, batch)
    np.testing.assert_allclose((scalars["loss"], scalars["loss_critic"]), told, rtol=1e-5)
    for name, own in wanted.items():
        close(jax.tree.map(jnp.subtract, state.params[name], after.params[name]), own)


def test_micro_batches_on_two_devices_make_the_same_step(stepped):
    """Each with the augmentation of its own examples."""
    parts, state, batch, after, scalars = stepped
    mesh = devices.make_mesh(jax.devices()[:2])
    state = jax.device_put(state, devices.replicated(mesh))
    batch = jax.device_put(batch, devices.split_space(mesh, 2))
    step = jax.jit(lambda s, b: gan.step(dataclasses.replace(parts, accumulate=2), s, b, ROOT))
    found, told = step(state, batch)
    for name, value in scalars.items():
        np.testing.assert_allclose(told[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    moved, wanted = (
        jax.tree.map(jnp.subtract, jax.device_get(x.params), jax.device_get(state.params)) for x in (found, after)
    )
    close(moved, wanted)


def test_losses_are_those_of_their_names():
    x = np.linspace(-3, 3, 13)
    sure = 1 / (1 + np.exp(-x))
    wanted = {"logistic": (-np.log(sure), -np.log(1 - sure), -np.log(sure)),
              "least_squares": ((x - 1) ** 2, x**2, (x - 1) ** 2),
              "hinge": (np.maximum(0, 1 - x), np.maximum(0, 1 + x), -x)}  # fmt: skip
    assert gan.LOSSES.keys() == wanted.keys()
    for name, losses in gan.LOSSES.items():
        np.testing.assert_allclose([loss(jnp.asarray(x)) for loss in losses], wanted[name], rtol=1e-4, atol=1e-6)


def test_the_penalty_is_the_critics_alone_and_comes_when_due():
    batch, parts = example((32, 32)), gan.build(make(**{"gan.r1": 3.0, "gan.r1_every": 2, "model.norm": "none"}))
    parts, state = descending(parts, begin(parts, (2, 32, 32, 1)))
    plain = dataclasses.replace(parts, r1=0.0)

    def penalty(params, batch):
        def total(images):
            x = jnp.concatenate([(images + 1) / 2, batch["image_position"]], -1)
            return parts.critic.apply({"params": params}, x).sum()

        # By an image in [-1, 1], half as large as by one in [0, 1]; over two images of 2 x 2 logits.
        return 3.0 * 2 / 2 * jnp.square(2 * jax.grad(total)(batch["image"])).sum() / 8

    with_penalty, without = (jax.jit(lambda s, b, p=p: gan.step(p, s, b, ROOT)[0].params) for p in (parts, plain))
    for at in (0, 1):
        now = state.replace(step=jnp.int32(at))
        found, usual = with_penalty(now, batch), without(now, batch)
        if at:
            jax.tree.map(np.testing.assert_array_equal, found, usual)
            continue
        jax.tree.map(np.testing.assert_array_equal, found["generator"], usual["generator"])
        moved = jax.tree.map(jnp.subtract, usual["critic"], found["critic"])
        close(moved, jax.jit(jax.grad(penalty))(state.params["critic"], batch))


def test_the_critic_sees_sketches_at_the_contrast_of_images():
    """As masks, seen by a critic whose kernel for them is so much the weaker."""
    batch = example((24, 24))
    sketches = batch | {name: jnp.where(batch[name] > 0, 0.5, 0.2) for name in ("mask", "image_mask")}
    told = []
    for words, own in (
        ({"gan.levels": (0.2, 0.5)}, batch),
        ({"gan.mask": "sketch", "gan.levels": (0.2, 0.3, 0.9)}, sketches),
    ):
        parts = gan.build(make(**WORDS | {"gan.critic_gain": 2.0} | words))
        state = begin(parts, (2, 24, 24, 1))
        if own is batch:
            kernel = state.params["critic"]["conv1"]["kernel"]
            state.params["critic"]["conv1"]["kernel"] = kernel.at[..., 2, :].multiply(2 * 0.3)
        told.append(jax.jit(lambda s, b, p=parts: gan.step(p, s, b, ROOT)[1])(state, own))
    first, second = ({name: float(x) for name, x in own.items() if name != "grad_norm_critic"} for own in told)
    assert first == pytest.approx(second, rel=1e-4)


def test_the_critic_has_a_rate_of_its_own(stepped):
    parts, state, batch, after, _ = stepped
    slow = dataclasses.replace(parts, critic_rate=0.25)
    found = jax.jit(lambda s, b: gan.step(slow, s, b, ROOT)[0])(state, batch)
    whole, part = (jax.tree.map(jnp.subtract, state.params["critic"], x.params["critic"]) for x in (after, found))
    close(part, jax.tree.map(lambda x: 0.25 * x, whole))
    close(found.params["generator"], after.params["generator"])


def test_an_untrained_residual_generator_returns_its_mask_with_grain():
    """That of the images at each grey value: bright cells have less."""
    grain = tuple(tuple((sd * SCORES).tolist()) for sd in (0.08, 0.06, 0.04, 0.03, 0.02))
    words = {"gan.residual": True, "model.noise_channel": True, "gan.grain": grain, "gan.levels": (0.25, 0.75)}
    parts, batch = gan.build(make(**words)), example((32, 32), 4)
    params = begin(parts, (4, 32, 32, 1)).params["generator"]
    maps = jnp.concatenate([batch["mask"], batch["position"]], -1)
    made = (jax.jit(lambda own: gan.generate(parts, params, own, maps))(jax.random.split(ROOT, 4)) + 1) / 2
    dark, bright = made[batch["mask"] == 0], made[batch["mask"] == 1]
    assert float(dark.mean()) == pytest.approx(0.25, abs=0.04) and float(bright.mean()) == pytest.approx(0.75, abs=0.04)
    # The untrained layers add a little.
    assert 0.055 < float(dark.std()) < 0.075 and 0.025 < float(bright.std()) < 0.04
    # Without noise images pass nearly as they are.
    image = (batch["image"] + 1) / 2
    same = jax.jit(parts.net.apply)({"params": params}, jnp.concatenate([image, batch["position"], 0 * image], -1))
    assert float(jnp.abs(same - image).mean()) < 0.04


def test_the_critic_sees_images_with_more_contrast_about_their_background(stepped):
    """A gain is what a critic's first kernel times it and a fitting bias would be."""
    parts, state, *_ = stepped
    gained = dataclasses.replace(parts, critic_gain=4.0, drawn=dataclasses.replace(parts.drawn, background=0.25))
    critic = jax.tree.map(lambda x: x, state.params["critic"])
    kernel = critic["conv1"]["kernel"]
    image = jnp.zeros((1, 48, 48, 1)).at[0, 20:28, 20:28].set(0.9)
    maps = jnp.zeros((1, 48, 48, 2))
    found = gan._logits(gained, critic, image, maps)
    critic["conv1"]["kernel"] = kernel.at[..., 0, :].multiply(4.0)
    wanted = gan._logits(dataclasses.replace(gained, critic_gain=1.0), critic, image, maps)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert float(jnp.abs(found - gan._logits(parts, state.params["critic"], image, maps)).max()) > 1e-3


def test_masks_are_drawn_from_at_the_grey_values_of_images():
    """Blurred; sketches have their grey values already."""
    batch = example((32, 32))
    maps = jnp.concatenate([batch["mask"], batch["position"]], -1)
    soft = ndimage.gaussian_filter(np.asarray(batch["mask"], np.float64), (0, 1.5, 1.5, 0), mode="reflect")
    for kind, levels, grey in (("cells", (0.2, 0.6), 0.2 + 0.4 * soft), ("sketch", (0.2, 0.3, 0.6), soft)):
        words = {"gan.mask": kind, "gan.levels": levels, "gan.sigma": 1.5, "model.noise_channel": True}
        x = gan_input.generator_input(gan.build(make(**words)).drawn, jax.random.split(ROOT, 2), maps)
        np.testing.assert_allclose(x[..., :1], grey, atol=1e-5)
        np.testing.assert_array_equal(x[..., 1:2], batch["position"])
        assert float(x[..., 2].std()) == pytest.approx(1.0, rel=0.1)


def test_masks_have_the_grain_of_their_grey_value():
    """Normal where the table is straight; where it is bent as skewed as that says."""
    straight, bent = SCORES, np.where(SCORES > 0, 2 * SCORES, 0.0)
    grain = tuple(
        tuple((sd * row).tolist()) for sd, row in ((0.05, straight), (0.11, straight), (0.02, bent), (0.03, bent))
    )
    grey, noise = jnp.asarray([0.3, 0.5, 2 / 3, 0.9]), jnp.asarray([-1.0, 0.25, 2.0, 9.0])
    rows = [[np.interp(z, SCORES, row) for row in grain] for z in noise]
    wanted = [np.interp(x, np.linspace(0, 1, 4), row) for x, row in zip(grey, rows, strict=True)]
    np.testing.assert_allclose(gan_input.grain_of(grain, grey, noise), wanted, atol=1e-6)
    words = {"gan.mask": "sketch", "gan.residual": True, "gan.grain": grain, "model.noise_channel": True}
    maps = jnp.zeros((1, 64, 64, 2)).at[..., 0].set(jnp.repeat(grey, 16))
    x = gan_input.generator_input(gan.build(make(**words)).drawn, ROOT[None], maps)
    noisy = maps[..., 0] + gan_input.grain_of(grain, maps[..., 0], x[..., 2])
    np.testing.assert_allclose(x[..., 0], jnp.clip(noisy, 0, 1), atol=1e-6)
    assert 0.85 < float(x[..., 2].std()) < 1.15
    assert float((x[..., 0] - maps[..., 0])[0, :, 40:].min()) >= -0.02  # no dark side there


def test_grain_correlates_as_it_is_told_to():
    words = {"model.noise_channel": True, "gan.grain_correlation": (0.6, 0.0)}
    drawn = gan.build(make(**words)).drawn
    noise = np.asarray(gan_input.generator_input(drawn, jax.random.split(ROOT, 20), jnp.zeros((20, 64, 64, 2))))[..., 2]
    assert noise.std() == pytest.approx(1, rel=0.02)
    for axis, wanted in ((1, 0.6), (2, 0.0)):
        beside = np.roll(noise, 1, axis)
        assert (noise * beside).mean() == pytest.approx(wanted, abs=0.02)
    assert noise[:, [0, -1]].std() == pytest.approx(1, rel=0.05)  # also at the ends
    for wrong in ((0.9, 0.0), (-0.1, 0.0), ("a", "b"), ((0.1,), (0.1,))):
        with pytest.raises(InputError, match=r"gan.grain_correlation: expected 0..0.7 for each axis"):
            gan.build(make(**words | {"gan.grain_correlation": wrong}))


def test_clouds_are_smooth_noise_of_its_own_for_every_image():
    parts = gan.build(make(**{"gan.clouds_vox": 8.0, "model.noise_channel": True}))
    x = np.asarray(gan_input.generator_input(parts.drawn, jax.random.split(ROOT, 40), jnp.zeros((40, 32, 32, 2))))
    grain, clouds = x[..., 2], x[..., 3]
    for noise, beside in ((grain, 0.0), (clouds, 0.95)):
        assert noise.std() == pytest.approx(1.0, rel=0.1)
        assert (noise[:, 1:] * noise[:, :-1]).mean() == pytest.approx(beside, abs=0.08)
    assert abs((clouds[1:] * clouds[:-1]).mean()) < 0.15 and abs((grain * clouds).mean()) < 0.05
    # Laid on the masks before their grain, distributed as the table says.
    rows = ((-0.3, -0.2, -0.1), (-0.1, 0, 0.3), (0.1, 0.2, 0.4))  # outside of the organism, within, on masks
    words = {"gan.clouds_vox": 8.0, "model.noise_channel": True, "gan.levels": (0.4, 0.45), "gan.mask": "boundary"}
    words |= {"gan.clouds": rows, "gan.residual": True, "gan.grain": ((0.0, 0.0), (-0.02, 0.02))}
    position = np.where(np.arange(32) < 16, -0.01, 0.3)[:, None] * np.ones((1, 32))
    # Walls: where the organism ends, one voxel as there is no neighbour, and between cells two.
    mask = np.isin(np.arange(32), (16, 23, 24)).astype(float)[:, None] * np.ones((1, 32))
    for sigma in (0.0, 1.5):
        drawn = gan.build(make(**words | {"gan.sigma": sigma})).drawn
        maps = jnp.asarray(np.stack([mask, position], -1)[None], jnp.float32)
        x = np.asarray(gan_input.generator_input(drawn, ROOT[None], maps))[0].astype(np.float64)
        out, within, on = (np.interp(x[..., 3], [SCORES[0], 0, SCORES[-1]], row) for row in rows)
        share, soft = (ndimage.gaussian_filter(y, sigma, mode="reflect") for y in ((position > 0).astype(float), mask))
        shown = np.minimum(soft / soft[23, 0], 1)
        grey = 0.4 + 0.05 * soft + (1 - share) * out + share * ((1 - shown) * within + shown * on)
        np.testing.assert_allclose(x[..., 0], grey + gan_input.grain_of(drawn.grain, grey, x[..., 2]), atol=1e-5)
        assert np.ptp(grey) > 0.2
    plain = gan.build(make(**{"gan.clouds_vox": 8.0}))  # goes with the channel of noise
    assert gan_input.generator_input(plain.drawn, ROOT[None], jnp.zeros((1, 32, 32, 2))).shape[-1] == 2


def test_generators_of_earlier_versions_are_refused():
    """Those whose weights fit, but mean something else: grain was a number, before that nothing, outputs were smoothed.
    Others open."""
    for grain in (None, 0.05):
        config = make(**{"gan.residual": True})
        with config.unlocked():
            del config.gan.grain
            if grain:
                config.gan.grain = grain
        with pytest.raises(InputError, match="a residual GAN of an earlier version"):
            gan.build(config)
        config.gan.residual = False
        assert gan.build(config).drawn.grain == ()
    for smooth in (False, True):
        config = make()
        with config.unlocked():
            config.gan.smooth = smooth
            del config.gan.smooth_doublings
        if smooth:
            with pytest.raises(InputError, match="which is no more"):
                gan.build(config)
        else:
            assert not gan.build(config).net.smooth


def test_augmentation_follows_the_critic():
    """A critic that is sure of the real images is told less of them, one that is not, more."""
    batch = example((32, 32))
    parts = gan.build(make(**{"gan.ada_every": 2, "gan.ada_step": 0.25, "gan.ada_start": 0.5, "model.norm": "none"}))
    state = begin(parts, (2, 32, 32, 1))
    step = jax.jit(lambda s, b: gan.step(parts, s, b, ROOT))
    for bias, later in ((50.0, [0.5, 0.75, 0.75, 1.0, 1.0]), (-50.0, [0.5, 0.25, 0.25, 0.0, 0.0])):
        critic = jax.tree.map(lambda x: x, state.params["critic"])
        critic["conv6"]["bias"] = jnp.full((1,), bias)
        now, told = state.replace(params=state.params | {"critic": critic}), []
        for _ in later:
            now, scalars = step(now, batch)
            told.append((float(now.opt_state["ada"].probability), float(scalars["ada_r"])))
        np.testing.assert_allclose([probability for probability, _ in told], later)
        assert all(r == np.sign(bias) for _, r in told)


def test_it_learns_an_example():
    """Drawing anew, from a channel of noise."""
    words = {"optim.ema_decay": 0.9, "model.noise_channel": True, "gan.critic_norm": "instance"}
    parts = gan.build(make(**words))
    batch = example((24, 24), 4)
    state = begin(parts, (4, 24, 24, 1))
    step = jax.jit(lambda s, b: gan.step(parts, s, b, ROOT))
    validate = jax.jit(lambda s, b: gan.validate(parts, s, b, ROOT))
    before = validate(state, batch)
    for _ in range(120):
        state, scalars = step(state, batch)
    after = validate(state, batch)
    assert float(after["loss"]) < 0.65 * float(before["loss"])
    assert float(after["loss"]) == pytest.approx(float(after["intensity"] + after["spectrum_db"] / 100))
    assert float(scalars["identity"]) < 0.25
    elsewhere = validate(state, batch | {"image_position": batch["position"] - 0.3})
    assert float(elsewhere["position"]) == pytest.approx(0.3, rel=1e-4)
    own = jax.random.split(ROOT, 4), jnp.concatenate([batch["mask"], batch["position"]], -1)
    fake, other = (gan.generate(parts, state.ema_params, *drawn) for drawn in (own, (own[0][::-1], own[1])))
    assert float(jnp.abs(fake - other).mean()) > 0.01  # its grain is that of its noise
    in_parts, x = gan.stages(parts, state.ema_params), gan_input.generator_input(parts.drawn, *own)
    joined = in_parts.grow(x, in_parts.deepen(in_parts.shrink(x, 0, None), 0), 0, None)
    np.testing.assert_allclose(joined, fake, atol=1e-5)


@pytest.mark.parametrize("shape", [(32, 32), (16, 32, 32)])
def test_2d_and_3d_are_alike(shape):
    parts, batch = gan.build(make()), example(shape)
    state = jax.eval_shape(lambda: gan.init(parts, ROOT, batch["image"].shape))
    after, scalars = jax.eval_shape(lambda s: gan.step(parts, s, batch, ROOT), state)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert {"loss", "grad_norm", "ada_probability"} <= scalars.keys()
    shown = jax.eval_shape(lambda s: gan.preview(parts, s, batch, ROOT), state)
    assert all(volume.shape == shape for volume in shown.values())
    assert all(
        value.shape == () for value in jax.eval_shape(lambda s: gan.validate(parts, s, batch, ROOT), state).values()
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("gan.loss", "wasserstein", "unknown gan.loss"),
        ("gan.identity", -1.0, "gan.identity must be at least 0"),
        ("gan.levels", (1.5, 0.2), "gan.levels: expected grey values of background, cells in 0..1"),
        ("gan.levels", (0.2, 0.3, 0.4), "gan.levels: expected grey values of background, cells in 0..1"),
        ("gan.grain", (0.1, 0.7), "gan.grain: expected rows of equally many numbers in -1..1"),
        ("gan.grain", ((0.1, 0.7),), "gan.grain: expected rows of equally many numbers in -1..1"),
        ("gan.grain", ((0.1, 1.7), (0.0, 0.1)), "gan.grain: expected rows of equally many numbers in -1..1"),
        ("gan.clouds", ((-0.1, 0.1), (-0.1, 0.1), (-0.1, 0.1)), "gan.clouds are made of the noise of gan.clouds_vox"),
        ("gan.sigma", -1.0, "gan.sigma must lie in 0..100 voxels"),
        ("gan.critic_rate", -1.0, "gan.critic_rate must be at least 0"),
        ("gan.critic_shift", -1, "gan.critic_shift must be at least 0"),
        ("gan.ada_every", 0, "gan.ada_every must be at least 1"),
        ("gan.ada_start", 1.5, "gan.ada_start in 0..1"),
    ],
)
def test_mistakes_are_named(name, value, message):
    with pytest.raises(InputError, match=message):
        gan.build(make(**{name: value}))


def test_a_shift_leaves_the_critic_something_to_see():
    patch = {"data.patch": (24, 48, 48)}
    gan.build(make(**patch | {"gan.critic_shift": 23}))
    with pytest.raises(InputError, match=r"gan.critic_shift: expected less than the edges of data.patch"):
        gan.build(make(**patch | {"gan.critic_shift": 24}))
    patch = {"data.patch": (18, 18), "model.norm": "instance"}
    gan.build(make(**patch | {"gan.critic_shift": 1}))
    with pytest.raises(InputError, match=r"needs more than 16 voxels .* beside gan.critic_shift, got \(18, 18\) and 2"):
        gan.build(make(**patch | {"gan.critic_shift": 2}))


def test_clouds_that_make_no_sense_are_named():
    words = {"gan.clouds_vox": 8.0, "model.noise_channel": True}
    good = (-0.1, 0.1)
    for clouds in (
        (0.1,),
        (good,),
        (good,) * 4,
        ((),) * 3,
        ((0.1,),) * 3,
        (good, good, (-0.1, 1.5)),
        (good, good, (0.1,)),
    ):
        with pytest.raises(InputError, match=r"gan.clouds: expected three rows of equally many numbers in -1..1"):
            gan.build(make(**words | {"gan.clouds": clouds}))
    with pytest.raises(InputError, match=r"gan.grain: expected rows of equally many numbers"):
        gan.build(make(**words | {"gan.grain": ((), ())}))
    other = (-0.2, 0.3)
    for earlier, now in ((good, (good,) * 3), ((good, other), (good, other, other))):  # of earlier versions
        old, new = (gan.build(make(**words | {"gan.clouds": clouds})).drawn for clouds in (earlier, now))
        assert old == new
