"""Patches changed at random: where their voxels come from, and how their light changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxsynth import keys
from jaxsynth.data import augment, pairs

NONE = pairs.Augmentation(0, 0, False, 0, 0, 0, 0, 0)
ALL = pairs.Augmentation(0.5, 0.2, True, 1.0, 0.3, 0.1, 1.0, 0.15)


def test_without_limits_only_flips_are_left():
    for seed in range(6):
        matrix = np.asarray(augment.draw_affine(keys.root(seed), 3, NONE))
        np.testing.assert_allclose(np.abs(matrix), np.eye(3), atol=1e-6)
        assert matrix[0, 0] > 0  # never along z


def test_sizes_stay_within_the_limits():
    limits = pairs.Augmentation(0.5, 0.2, True, 0, 0, 0, 0, 0)
    sizes = [np.linalg.norm(augment.draw_affine(keys.root(seed), 3, limits), axis=0) for seed in range(40)]
    assert np.max(sizes) <= 1.5 * 1.2 + 1e-5 and np.min(sizes) >= 1 / 1.5 / 1.2 - 1e-5
    assert np.ptp(sizes) > 0.4


@pytest.mark.parametrize("shape", [(30, 41), (9, 20, 23)])
def test_interpolation_is_scipys(shape):
    rng = np.random.default_rng(0)
    image = rng.normal(size=shape).astype(np.float32)
    at = np.stack([rng.uniform(-3, n + 2, 200) for n in shape]).astype(np.float32)
    flat = np.concatenate([np.zeros(7, np.float32), image.ravel()])
    found = augment.interpolate(jnp.asarray(flat), jnp.int32(7), jnp.asarray(shape), jnp.asarray(at))
    np.testing.assert_allclose(found, ndimage.map_coordinates(image, at, order=1, mode="mirror"), atol=1e-5)


def test_a_patch_lies_within_the_image_where_there_is_room():
    at = augment.draw_places(keys.root(0), jnp.eye(2), (8, 9), jnp.array([8, 200]))
    assert at.shape == (2, 8, 9)
    np.testing.assert_array_equal(at[0, :, 0], np.arange(8))  # no room to choose
    ends = [np.asarray(augment.draw_places(keys.root(s), jnp.eye(2), (8, 9), jnp.array([40, 200]))) for s in range(30)]
    assert min(a.min() for a in ends) >= 0
    assert max(a[0].max() for a in ends) <= 39 and max(a[1].max() for a in ends) <= 199
    assert all((a == np.round(a)).all() for a in ends)  # cut, not interpolated
    small = augment.draw_places(keys.root(0), jnp.eye(2), (8, 8), jnp.array([4, 4]))
    assert float(small.mean()) == pytest.approx(1.5, abs=0.51)  # centred


def test_light_changes_within_its_limits():
    image = jnp.asarray(np.random.default_rng(0).uniform(size=(40, 40)), jnp.float32)
    np.testing.assert_allclose(augment.change_light(keys.root(0), image, NONE), image, atol=1e-5)
    changed = [augment.change_light(keys.root(seed), image, ALL) for seed in range(10)]
    assert all(np.isfinite(c).all() for c in changed)
    assert np.std([float(c.mean()) for c in changed]) > 0.02


def test_blur_is_a_gaussian():
    image = jnp.zeros((21, 21)).at[10, 10].set(1.0)
    found = augment._blur(image, jnp.float32(0.8))
    np.testing.assert_allclose(found, ndimage.gaussian_filter(np.asarray(image), 0.8, radius=3), atol=1e-6)


@pytest.mark.parametrize("shape", [(16, 24), (5, 16, 24)])
def test_symmetries_keep_the_voxels(shape):
    patch = jnp.arange(np.prod(shape)).reshape(shape)
    for symmetry in np.ndindex(2, 2, 2):
        turned = augment.apply_symmetry(patch, jnp.array(symmetry, bool))
        assert turned.shape == shape and set(np.unique(turned)) == set(np.unique(patch))


def test_all_of_it_runs_inside_jit():
    cut = jax.jit(pairs.cutter((12, 12), ALL))
    image = jnp.arange(30 * 30, dtype=jnp.float32) / 900
    got = cut(keys.root(0), image, jnp.ones(900, jnp.int32), jnp.int32(0), jnp.array([30, 30]))
    assert got["image"].shape == (12, 12, 1) and got["labels"].shape == (12, 12)
