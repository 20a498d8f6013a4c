"""Every voxel goes to the cell of least distance^2 / weight, however the volume is cut into blocks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import cKDTree

from jaxsynth.sim import voronoi

CASES = [((20, 45, 70), (1.0, 0.5, 0.5)), ((97, 64), (0.5, 0.5)), ((1, 40, 64), (2.0, 0.5, 0.5))]
NUM, CAPACITY = 70, 80


@functools.partial(jax.jit, static_argnames=("shape", "per_block"))
def partition(centre, weight, valid, spacing, mask, shape, per_block=NUM):
    return voronoi.partition(centre, weight, valid, shape, spacing, mask, per_block=per_block)


def cells(shape, spacing, seed=0):
    """Centres inside and just outside; valid ones scattered over the slots."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(-0.1, 1.1, (CAPACITY, len(shape))) * shape * spacing
    valid = rng.permutation(np.arange(CAPACITY) < NUM)
    return centre.astype(np.float32), rng.uniform(0.3, 2.0, CAPACITY).astype(np.float32), valid


def voxels_um(shape, spacing):
    return np.moveaxis(np.indices(shape) + 0.5, 0, -1) * spacing


@pytest.mark.parametrize("shape, spacing", CASES)
def test_equal_weights_give_the_nearest_centre(shape, spacing):
    spacing = np.array(spacing)
    centre, _, valid = cells(shape, spacing)
    everywhere = np.ones(shape, bool)
    labels, overflow = partition(centre, np.full(CAPACITY, 3.0), valid, spacing, everywhere, shape)
    distance, nearest = cKDTree(centre[valid]).query(voxels_um(shape, spacing))
    chosen = np.linalg.norm(voxels_um(shape, spacing) - centre[np.asarray(labels) - 1], axis=-1)
    assert not overflow and valid[np.asarray(labels) - 1].all()
    np.testing.assert_allclose(chosen, distance, rtol=1e-5)
    assert (np.asarray(labels) == np.flatnonzero(valid)[nearest] + 1).mean() > 0.9999


@pytest.mark.parametrize("shape, spacing", CASES)
def test_unequal_weights_and_a_foreground(shape, spacing):
    spacing = np.array(spacing)
    centre, weight, valid = cells(shape, spacing, seed=1)
    mask = np.linalg.norm((voxels_um(shape, spacing) / (shape * spacing) - 0.5) / 0.4, axis=-1) < 1
    labels, overflow = map(np.asarray, partition(centre, weight, valid, spacing, mask, shape))
    value = ((voxels_um(shape, spacing)[..., None, :] - centre) ** 2).sum(-1) / weight
    value[..., ~valid] = np.inf
    assert not overflow and not labels[~mask].any()
    chosen = np.take_along_axis(value, labels[..., None] - 1, -1)[..., 0]
    np.testing.assert_allclose(chosen[mask], value.min(-1)[mask], rtol=1e-5)
    assert (labels[mask] == value.argmin(-1)[mask] + 1).mean() > 0.9999


def test_too_many_cells_for_a_block_are_reported():
    shape, spacing = CASES[1]
    centre, weight, valid = cells(shape, np.array(spacing))
    assert partition(centre, weight, valid, np.array(spacing), None, shape, per_block=3)[1]
    assert not partition(centre, weight, valid, np.array(spacing), None, shape)[1]
    # Blocks without foreground need no cells.
    nothing = np.zeros(shape, bool)
    labels, overflow = partition(centre, weight, valid, np.array(spacing), nothing, shape, per_block=3)
    assert not overflow and not labels.any()


def test_none_one_and_no_slot():
    shape, spacing = CASES[1]
    centre, weight, valid = cells(shape, np.array(spacing))
    labels, overflow = partition(centre, weight, np.zeros(CAPACITY, bool), np.array(spacing), None, shape)
    assert not labels.any() and not overflow
    labels, overflow = partition(centre, weight, np.arange(CAPACITY) == 4, np.array(spacing), None, shape)
    assert (np.asarray(labels) == 5).all() and not overflow
    labels, overflow = voronoi.partition(centre[:0], weight[:0], valid[:0], shape, spacing)
    assert labels.shape == shape and not labels.any() and not overflow


def test_spacing_and_position_scale_together():
    shape, spacing = CASES[1]
    centre, weight, valid = cells(shape, np.array(spacing))
    first, _ = partition(centre, weight, valid, np.array(spacing), None, shape)
    second, _ = partition(centre * 4, weight, valid, np.array(spacing) * 4, None, shape)
    np.testing.assert_array_equal(first, second)


def test_batch_equals_loop():
    shape, spacing = CASES[1]
    populations = [cells(shape, np.array(spacing), seed) for seed in range(3)]
    batch = [np.stack(part) for part in zip(*populations, strict=True)]
    together, _ = jax.jit(jax.vmap(lambda *p: voronoi.partition(*p, shape, jnp.array(spacing), per_block=NUM)))(*batch)
    for labels, one in zip(together, populations, strict=True):
        np.testing.assert_array_equal(labels, partition(*one, np.array(spacing), None, shape)[0])


def test_nearest_neighbours_are_those_of_a_tree():
    centre, _, valid = cells((97, 64), np.array([0.5, 0.5]))
    nearest = np.asarray(voronoi.nearest_neighbour_um(jnp.asarray(centre), jnp.asarray(valid)))
    np.testing.assert_allclose(nearest[valid], cKDTree(centre[valid]).query(centre[valid], 2)[0][:, 1], rtol=1e-4)
    assert np.isposinf(nearest[~valid]).all()
    alone = voronoi.nearest_neighbour_um(jnp.zeros((3, 2)), jnp.array([False, True, False]))
    assert np.isposinf(alone).all()
    assert voronoi.nearest_neighbour_um(jnp.zeros((0, 3)), jnp.zeros(0, bool)).shape == (0,)


def test_weights_divide_the_line_between_centres_in_proportion():
    """At power 2 the wall lies where the distances to both centres are as their distances to their next cells."""
    nearest = jnp.array([1.0, 3.0, jnp.inf])
    np.testing.assert_array_equal(voronoi.weights(nearest, 0.0), [1, 1, 1])
    gamma = np.asarray(voronoi.weights(nearest, 2.0))
    np.testing.assert_allclose(gamma, [0.25, 2.25, 1.0])
    centre = np.array([[0.5, 10.0], [0.5, 50.0]])
    labels, _ = voronoi.partition(jnp.asarray(centre), gamma[:2], jnp.ones(2, bool), (1, 60), jnp.ones(2))
    # 10 is a quarter of the way from 10 to 50; the smaller cell's wall closes on its other side at 10 - 20.
    np.testing.assert_array_equal(labels[0], np.where(np.arange(60) + 0.5 <= 20, 1, 2))
    coinciding = voronoi.weights(voronoi.nearest_neighbour_um(jnp.zeros((2, 2)), jnp.ones(2, bool)))
    assert (np.asarray(coinciding) > 0).all() and np.isfinite(coinciding).all()


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"mask: expected the shape \(4, 5\)"):
        voronoi.partition(
            jnp.zeros((1, 2)), jnp.ones(1), jnp.ones(1, bool), (4, 5), jnp.ones(2), jnp.ones((5, 4), bool)
        )
