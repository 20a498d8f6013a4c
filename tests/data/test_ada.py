"""Augmentation of what the critic sees: what each change does, how often it is made, and what decides that."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsynth import keys
from jaxsynth.data import ada

NONE = ada.Augmentations(scale=(1, 1), noise_std=0, shuffle_vox=0, inpaint_vox=0, far=(1, 1))
SMALL = ada.Augmentations(shuffle_vox=5, inpaint_vox=3)
FLAT, DEEP = (14, 18), (9, 10, 12)
MANY = 400


def picture(shape):
    return jnp.asarray(np.random.default_rng(0).uniform(0.1, 1, shape), jnp.float32)


@functools.cache
def program(limits):
    """Augments one image under many keys."""
    return jax.jit(jax.vmap(lambda key, image, p: ada.augment(key, image, p, limits), (0, None, None)))


def many(limits, shape, probability=1.0, count=MANY):
    return np.asarray(program(limits)(jax.random.split(keys.root(0), count), picture(shape), probability))


def boxes(changed):
    """The smallest box about all that is True, [N, *S] -> first and last index along each axis, int [N, D] each."""
    found = [np.argwhere(one) for one in changed]
    return np.array([f.min(0) for f in found]), np.array([f.max(0) for f in found])


def test_the_papers_numbers():
    paper = ada.Augmentations()
    assert paper.scale == (0.6, 1.2) and paper.noise_std == 0.1
    assert paper.shuffle_vox == 25 and paper.inpaint_vox == 15


@pytest.mark.parametrize("shape", [FLAT, DEEP])
def test_probability_0_gives_the_image_back(shape):
    found = many(SMALL, shape, 0.0)
    np.testing.assert_array_equal(found, np.broadcast_to(picture(shape), found.shape))


def test_scale_is_one_number_for_an_image():
    found = many(ada.Augmentations((0.6, 1.2), 0, 0, 0, (1, 1)), FLAT)
    scale = found / picture(FLAT)
    np.testing.assert_allclose(scale, np.broadcast_to(scale[:, :1, :1], scale.shape), rtol=1e-5)
    scale = scale[:, 0, 0]
    assert scale.min() >= 0.6 and scale.max() <= 1.2 + 1e-6
    assert scale.mean() == pytest.approx(0.9, abs=4 * 0.6 / np.sqrt(12 * MANY))
    assert scale.max() > 1.18 and scale.min() < 0.62


def test_noise_is_gaussian_of_that_deviation():
    noise = many(ada.Augmentations((1, 1), 0.1, 0, 0, (1, 1)), DEEP) - picture(DEEP)
    assert noise.mean() == pytest.approx(0, abs=5 * 0.1 / np.sqrt(noise.size))
    assert noise.std() == pytest.approx(0.1, rel=5 / np.sqrt(2 * noise.size))
    assert np.mean(np.abs(noise) < 0.1) == pytest.approx(0.6827, abs=0.01)
    assert np.abs(noise.mean(0)).max() < 0.1 * 6 / np.sqrt(MANY)  # another one in every image
    assert (noise + picture(DEEP)).max() > 1  # not clipped


@pytest.mark.parametrize("shape", [FLAT, DEEP])
def test_shuffling_keeps_the_voxels_of_one_box(shape):
    image = np.asarray(picture(shape))
    found = many(ada.Augmentations((1, 1), 0, 5, 0, (1, 1)), shape)
    low, high = boxes(found != image)
    assert (high - low).max() == 4  # the box, all of which moved
    np.testing.assert_array_equal(
        np.sort(found.reshape(MANY, -1)), np.broadcast_to(np.sort(image.ravel()), (MANY, image.size))
    )
    assert np.all(low.min(0) == 0) and np.all(high.max(0) == np.array(shape) - 1)  # up to the edges
    # Uniform: a voxel of a box of n stays where it is in one case of n.
    kept = 5 ** len(shape) - (found != image).reshape(MANY, -1).sum(1)
    assert kept.mean() == pytest.approx(1, abs=5 / np.sqrt(MANY))


@pytest.mark.parametrize("shape", [FLAT, DEEP])
def test_inpainting_takes_the_mean_around_one_box(shape):
    image = np.asarray(picture(shape))
    found = many(ada.Augmentations((1, 1), 0, 0, 3, (1, 1)), shape)
    low, high = boxes(found != image)
    assert np.all(high - low == 2)
    for one, start in zip(found[:20], low, strict=False):
        box = tuple(slice(s, s + 3) for s in start)
        rim = image[tuple(slice(s - 1, s + 4) for s in start)]
        assert rim.shape == (5,) * len(shape)
        colour = (rim.sum() - image[box].sum()) / (rim.size - image[box].size)
        np.testing.assert_allclose(one[box], colour, rtol=1e-5)
    assert np.all(low.min(0) == 1) and np.all(high.max(0) == np.array(shape) - 2)


@pytest.mark.parametrize("shape", [FLAT, DEEP])
def test_intensity_falls_along_any_axis_in_either_direction(shape):
    share = many(ada.Augmentations((1, 1), 0, 0, 0, (0.2, 0.9)), shape) / picture(shape)
    far, ways = [], []
    for one in share:
        change = [np.abs(np.diff(one, axis=axis)).max() for axis in range(one.ndim)]
        axis = int(np.argmax(change))
        assert np.delete(change, axis).max() < 1e-5  # along one axis alone
        profile = np.moveaxis(one, axis, 0).reshape(shape[axis], -1)[:, 0]
        backwards = bool(profile[0] < profile[-1])
        profile = profile[::-1] if backwards else profile
        np.testing.assert_allclose(profile, np.linspace(1, profile[-1], len(profile)), atol=1e-5)
        far.append(profile[-1])
        ways.append((axis, backwards))
    assert min(far) >= 0.2 - 1e-6 and max(far) <= 0.9 + 1e-6 and np.ptp(far) > 0.6
    assert np.mean(far) == pytest.approx(0.55, abs=4 * 0.7 / np.sqrt(12 * MANY))
    chance = 1 / (2 * len(shape))
    for axis in range(len(shape)):
        for backwards in (False, True):
            assert ways.count((axis, backwards)) / MANY == pytest.approx(chance, abs=4 * np.sqrt(chance / MANY))


@pytest.mark.parametrize("probability", [0.3, 0.8])
def test_every_change_is_drawn_on_its_own(probability):
    # A change draws the same whether the others are in use or not, so each can be watched alone under the same keys.
    each = {"scale": (0.6, 1.2), "noise_std": 0.1, "shuffle_vox": 6, "inpaint_vox": 3, "far": (0.2, 0.9)}
    made = []
    for name, value in each.items():
        only = ada.Augmentations(**{**vars(NONE), name: value})
        found = many(only, FLAT, probability, 2000)
        made.append(np.any(found != picture(FLAT), axis=(1, 2)))
    made = np.array(made)
    assert made.mean(1) == pytest.approx(probability, abs=4 * np.sqrt(0.25 / 2000))
    together = np.corrcoef(made) - np.eye(len(made))
    assert np.abs(together).max() < 5 / np.sqrt(2000)


def test_changes_do_not_depend_on_the_image():
    # A real and a generated image under the same key are changed alike: f(a) - f(b) is linear in a - b.
    key, a = keys.root(3), picture(DEEP)
    change = jax.jit(lambda x: ada.augment(key, x, 1.0, SMALL))
    zero = change(jnp.zeros(DEEP))
    np.testing.assert_allclose(change(3 * a) - zero, 3 * (change(a) - zero), atol=2e-5)
    np.testing.assert_allclose(change(a + 0.5) - change(a), change(jnp.full(DEEP, 0.5)) - zero, atol=1e-5)


@pytest.mark.parametrize("shape", [FLAT, DEEP])
@pytest.mark.parametrize("name", ["scale", "noise_std", "shuffle_vox", "inpaint_vox", "far", None])
def test_gradients_are_those_of_an_affine_map(shape, name):
    limits = SMALL if name is None else ada.Augmentations(**{**vars(NONE), name: getattr(SMALL, name)})
    rng = np.random.default_rng(1)
    image = picture(shape)
    steps, cotangent = jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32)

    @jax.jit
    def both(key):
        change = functools.partial(ada.augment, key, probability=1.0, limits=limits)
        made, back = jax.vjp(change, image)
        return change(image + steps) - made, back(cotangent)[0]

    for seed in range(3):
        forward, gradient = both(keys.root(seed))
        # <cotangent, J steps> = <J^T cotangent, steps>, exact at any size of step for an affine map
        assert float(jnp.vdot(cotangent, forward)) == pytest.approx(float(jnp.vdot(gradient, steps)), abs=2e-3)
        assert float(jnp.abs(gradient).max()) > 0.1


def test_the_gradient_of_shuffling_is_the_inverse_permutation():
    image, limits = picture(DEEP), ada.Augmentations((1, 1), 0, 5, 0, (1, 1))

    @jax.jit
    def there_and_back(key):
        made, back = jax.vjp(lambda x: ada.augment(key, x, 1.0, limits), image)
        return made, back(made)[0]

    made, returned = there_and_back(keys.root(0))
    assert np.any(made != image)
    np.testing.assert_array_equal(returned, image)


def test_a_penalty_on_gradients_can_be_trained():
    # A gradient of a gradient through the permutation, as of R1 on augmented images.
    image, limits = picture(FLAT), ada.Augmentations((1, 1), 0, 5, 0, (1, 1))

    @jax.jit
    def slope(weight):
        inner = jax.grad(lambda x: (weight * ada.augment(keys.root(0), x, 1.0, limits) ** 2).sum())
        return (inner(image) ** 2).sum()

    made = ada.augment(keys.root(0), image, 1.0, limits)
    weight = picture(FLAT) + 1
    np.testing.assert_allclose(jax.grad(slope)(weight), 8 * weight * made**2, rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 40), (2, 16, 30)])
def test_boxes_are_clipped_to_small_patches(shape):
    found = many(ada.Augmentations((1, 1), 0, 25, 0, (1, 1)), shape, count=20)
    np.testing.assert_array_equal(
        np.sort(found.reshape(20, -1)), np.broadcast_to(np.sort(picture(shape).ravel()), (20, found[0].size))
    )
    found = many(ada.Augmentations((1, 1), 0, 0, 15, (1, 1)), shape, count=20)
    painted = (found != picture(shape)).reshape(20, -1).sum(1)
    assert np.all(painted == np.prod([min(15, n) for n in shape]))


def test_all_changes_of_the_smallest_patches():
    for shape in ((1, 1), (4,)):
        found = many(ada.PAPER, shape, count=20)
        assert found.shape == (20, *shape) and np.isfinite(found).all()


def test_a_patch_smaller_than_the_box_becomes_its_mean():
    image = picture((5, 6))
    found = many(ada.Augmentations((1, 1), 0, 0, 15, (1, 1)), (5, 6), count=3)
    np.testing.assert_allclose(found, np.broadcast_to(image.mean(), found.shape), rtol=1e-5)


@pytest.mark.parametrize("shape", [FLAT, DEEP])
def test_a_batch_is_its_images_one_by_one(shape):
    own = jax.random.split(keys.root(5), 4)
    images = jnp.stack([picture(shape) * share for share in (1, 0.5, 0.2, 0.9)])
    together = jax.jit(jax.vmap(lambda key, x, p: ada.augment(key, x, p, SMALL), (0, 0, None)))(own, images, 0.7)
    single = [ada.augment(key, x, jnp.float32(0.7), SMALL) for key, x in zip(own, images, strict=True)]
    np.testing.assert_allclose(together, np.stack(single), atol=1e-6)


def test_r_is_the_mean_sign_and_not_of_the_size_of_logits():
    record = ada.observe(ada.start(), jnp.sign(jnp.array([-100.0, 0.1, 0.2, 0.3])))
    assert float(record.r) == pytest.approx(0.5)
    record = ada.observe(record, jnp.sign(-jnp.ones((2, 3, 3, 1))))
    assert float(record.r) == pytest.approx(-0.25) and int(record.count) == 2
    # Means of micro-batches, as of all of it.
    signs = jnp.sign(jnp.asarray(np.random.default_rng(0).normal(size=(4, 25)), jnp.float32))
    assert float(ada.observe(ada.start(), signs.mean(1)).r) == pytest.approx(float(signs.mean()), abs=1e-6)


def test_probability_reacts_to_overfitting():
    advance = jax.jit(lambda record, logits: ada.update(ada.observe(record, jnp.sign(logits))))
    sure, unsure = jnp.full((2, 4, 4, 1), 3.0), jnp.linspace(-1, 1, 8)
    record, course = ada.start(), []
    for logits in [sure] * 22 + [unsure] * 22:
        record = advance(record, logits)
        course.append(float(record.probability))
    rise = np.minimum(0.05 * np.arange(1, 23), 1)
    np.testing.assert_allclose(course, np.concatenate([rise, np.maximum(1 - 0.05 * np.arange(1, 23), 0)]), atol=1e-5)
    assert int(record.count) == 0 and float(record.signs) == 0


def test_the_target_divides_rising_from_falling():
    start = ada.start(0.5)
    for share, expected in ((0.81, 0.55), (0.79, 0.45)):  # r = 2 share - 1 = 0.62 and 0.58
        signs = jnp.where(jnp.arange(100) < 100 * share - 0.5, 1.0, -1.0)
        assert float(ada.update(ada.observe(start, signs)).probability) == pytest.approx(expected)
    seen = ada.observe(start, jnp.ones(3))
    assert float(ada.update(seen, target=0.9, step=0.2).probability) == pytest.approx(0.7)
    assert float(ada.update(ada.observe(start, jnp.array(0.25)), target=0.25).probability) == 0.5


def test_nothing_observed_changes_nothing():
    record = ada.update(ada.start(0.35))
    assert float(record.probability) == pytest.approx(0.35) and float(record.r) == 0
    leaves = jax.tree.leaves(record)
    assert [x.dtype for x in leaves] == [jnp.float32, jnp.float32, jnp.int32] and all(x.shape == () for x in leaves)
