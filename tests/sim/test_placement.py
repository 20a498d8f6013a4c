"""Centres keep their distance, lie in the foreground, and a field too full says so."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import pdist, squareform

from jaxsynth.sim import grid, placement

UNIT = placement.Foreground(jnp.zeros(2), jnp.ones(2), lambda points: jnp.ones(points.shape[0], bool))


def test_centres_keep_the_sum_of_their_clearances():
    clearance = np.random.default_rng(0).uniform(0.01, 0.06, 64).astype(np.float32)
    centres, placed, overflow = jax.jit(functools.partial(placement.random_centres, foreground=UNIT))(
        jax.random.key(0), clearance_um=jnp.asarray(clearance), num_cells=60
    )
    assert placed.sum() == 60 and not placed[60:].any() and not overflow
    distance = squareform(pdist(np.asarray(centres[:60], np.float64)))
    np.fill_diagonal(distance, np.inf)
    assert (distance >= clearance[:60, None] + clearance[None, :60] - 1e-5).all()


def test_centres_without_clearance_are_uniform():
    centres, _, _ = placement.random_centres(jax.random.key(2), UNIT, jnp.zeros(2000), 2000)
    for axis in range(2):
        assert stats.kstest(np.asarray(centres[:, axis]), "uniform").pvalue > 1e-3


def test_full_field_is_reported_and_what_is_placed_keeps_apart():
    centres, placed, overflow = placement.random_centres(jax.random.key(0), UNIT, jnp.full(64, 0.2), 64, rounds=100)
    assert overflow and 2 <= placed.sum() < 64
    assert pdist(np.asarray(centres)[np.asarray(placed)]).min() >= 0.4 - 1e-6


def test_more_cells_than_capacity_is_an_overflow():
    _, placed, overflow = placement.random_centres(jax.random.key(0), UNIT, jnp.full(8, 0.01), 9)
    assert placed.all() and overflow


def test_no_cells():
    _, placed, overflow = placement.random_centres(jax.random.key(0), UNIT, jnp.full(8, 0.01), 0)
    assert not placed.any() and not overflow


def test_vmapped_fields_equal_single_ones():
    place = functools.partial(placement.random_centres, foreground=UNIT, clearance_um=jnp.full(32, 0.05), num_cells=30)
    keys = jax.random.split(jax.random.key(0), 3)
    centres, placed, _ = jax.vmap(lambda key: place(key))(keys)
    for index in range(3):
        alone, alone_placed, _ = place(keys[index])
        np.testing.assert_array_equal(placed[index], alone_placed)
        np.testing.assert_allclose(centres[index], alone, atol=1e-6)


def test_mask_foreground_is_its_voxels():
    mask = np.random.default_rng(1).random((6, 7, 8)) < 0.4
    spacing = jnp.array([2.0, 0.5, 1.0])
    foreground = placement.mask(jnp.asarray(mask), spacing)
    points = np.random.default_rng(2).uniform(-1, [13, 5, 9], (500, 3)).astype(np.float32)
    index = np.floor(points / np.asarray(spacing)).astype(int)
    inside = ((index >= 0) & (index < mask.shape)).all(1)
    expected = np.zeros(500, bool)
    expected[inside] = mask[tuple(index[inside].T)]
    np.testing.assert_array_equal(foreground.contains(jnp.asarray(points)), expected)
    assert expected.sum() > 50


def test_disc_and_ellipsoid_foregrounds():
    points = jnp.array([[0.0, 0.0], [2.9, 0.0], [0.0, 2.9], [10.0, 9.5], [20.0, 20.0]])
    discs = placement.discs(jnp.array([[0.0, 0.0], [10.0, 10.0], [20.0, 20.0]]), 1.0, jnp.array([True, True, False]))
    np.testing.assert_array_equal(discs.contains(points), [True, False, False, True, False])
    np.testing.assert_allclose(discs.low_um, [-1, -1])
    np.testing.assert_allclose(discs.high_um, [11, 11])
    ellipse = placement.ellipsoid(jnp.zeros(2), jnp.array([3.0, 1.0]))
    np.testing.assert_array_equal(ellipse.contains(points), [True, True, False, False, False])
    np.testing.assert_array_equal(placement.both(discs, ellipse).contains(points), [True, False, False, False, False])


@pytest.mark.parametrize("ndim", [2, 3])
def test_whole_image_reaches_beyond_the_edge_but_keeps_every_cell_in_sight(ndim):
    num, size = 400, jnp.full(ndim, 20.0)
    radii = jnp.tile(jnp.array([2.0, 6.0, 4.0])[:ndim], (num, 1))
    rotation = grid.random_rotation(jax.random.key(0), num, ndim)
    foreground = placement.whole_image(size, radii, rotation)
    centres, placed, _ = placement.random_centres(jax.random.key(1), foreground, jnp.zeros(num), num)
    centres = np.asarray(centres, np.float64)
    outside = ((centres < 0) | (centres > 20)).any(1)
    assert placed.all() and outside.sum() > 20
    # The nearest point of the image lies inside the cell.
    gap = np.clip(centres, 0, 20) - centres
    own = np.einsum("nij,nj->ni", np.asarray(rotation, np.float64), gap) / np.asarray(radii)
    assert (own**2).sum(1).max() <= 0.8**2 + 1e-4
