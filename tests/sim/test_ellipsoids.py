"""Rasterised ellipsoids against closed forms and a voxel-by-voxel NumPy oracle."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsynth.records import Cells
from jaxsynth.sim import deform, ellipsoids, grid


def population(centres, radii, rotation=None, valid=None) -> Cells:
    centres, radii = jnp.asarray(centres, jnp.float32), jnp.asarray(radii, jnp.float32)
    num, ndim = centres.shape
    rotation = jnp.tile(jnp.eye(ndim), (num, 1, 1)) if rotation is None else rotation
    valid = jnp.ones(num, bool) if valid is None else jnp.asarray(valid)
    return Cells(centres, radii, rotation, jnp.ones(num), valid, jnp.bool_(False))


def random_population(seed, num, shape, spacing, low, high) -> Cells:
    rng, size = np.random.default_rng(seed), np.array(shape) * np.array(spacing)
    return population(
        rng.uniform(-0.1, 1.1, (num, len(shape))) * size,
        rng.uniform(low, high, (num, len(shape))),
        grid.random_rotation(jax.random.key(seed), num, len(shape)),
        rng.random(num) < 0.9,
    )


def oracle(cells: Cells, shape, spacing, warp=None) -> tuple[np.ndarray, np.ndarray]:
    """Labels in float64 with every cell tested at every voxel; and where rounding could change them."""
    axes = [(np.arange(size) + 0.5) * step for size, step in zip(shape, spacing, strict=True)]
    at = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    at = at if warp is None else at + np.stack(warp, -1)
    value = np.full((len(cells.valid) + 1, *shape), np.inf)
    value[0] = 1.0
    for i in np.flatnonzero(np.asarray(cells.valid)):
        own = (at - np.asarray(cells.centre_um[i], np.float64)) @ np.asarray(cells.rotation[i], np.float64).T
        value[i + 1] = ((own / np.asarray(cells.radii_um[i], np.float64)) ** 2).sum(-1)
    two = np.partition(value, 1, axis=0)[:2]
    return value.argmin(0), two[1] - two[0] < 1e-4


rasterise = jax.jit(ellipsoids.rasterise, static_argnames=("shape", "per_block"))


@pytest.mark.parametrize(
    ("shape", "spacing", "num", "low", "high"),
    [
        ((70, 90), (1.0, 1.0), 40, 3, 9),
        ((33, 65), (0.5, 0.25), 1, 2, 4),
        ((20, 50, 70), (1.0, 0.3, 0.3), 70, 1, 4),
        ((1, 40, 40), (2.0, 1.0, 1.0), 9, 3, 9),
    ],
)
def test_labels_equal_the_oracle(shape, spacing, num, low, high):
    cells = random_population(3, num, shape, spacing, low, high)
    labels, overflow = rasterise(cells, shape=shape, spacing_um=jnp.array(spacing))
    expected, doubtful = oracle(cells, shape, spacing)
    assert labels.dtype == jnp.int32 and labels.shape == shape and not overflow
    assert doubtful.mean() < 0.01
    np.testing.assert_array_equal(np.asarray(labels)[~doubtful], expected[~doubtful])
    assert num == 1 or len(np.unique(labels)) > num / 3


@pytest.mark.parametrize(("shape", "spacing"), [((120, 120), (0.5, 0.5)), ((44, 72, 72), (1.0, 0.6, 0.6))])
@pytest.mark.parametrize("seed", [0, 1])
def test_volume_is_that_of_the_ellipsoid(shape, spacing, seed):
    ndim = len(shape)
    centre = np.array(shape) * spacing / 2
    radii = [19.0, 9.0, 13.0][:ndim]
    cells = population([centre], [radii], grid.random_rotation(jax.random.key(seed), 1, ndim))
    labels, _ = rasterise(cells, shape=shape, spacing_um=jnp.array(spacing))
    volume = float((labels > 0).sum()) * math.prod(spacing)
    assert volume == pytest.approx({2: math.pi, 3: 4 / 3 * math.pi}[ndim] * math.prod(radii), rel=0.01)


def test_cells_are_cut_by_the_edge():
    """A disc centred on an edge shows half of itself, on a corner a quarter, and beyond the edge a cap."""
    shape, radius = (200, 200), 30.0
    cells = population([[0, 100], [200, 200], [100, 210]], [[radius] * 2] * 3)
    labels, _ = rasterise(cells, shape=shape, spacing_um=jnp.ones(2))
    area = np.bincount(np.ravel(labels), minlength=4)[1:]
    disc, beyond = math.pi * radius**2, 10.0
    cap = radius**2 * math.acos(beyond / radius) - beyond * math.sqrt(radius**2 - beyond**2)
    np.testing.assert_allclose(area, [disc / 2, disc / 4, cap], rtol=0.02)


def test_contested_voxels_do_not_depend_on_the_order_of_cells():
    shape, spacing = (80, 80), (1.0, 1.0)
    cells = random_population(5, 40, shape, spacing, 6, 12)
    order = np.random.default_rng(0).permutation(40)
    shuffled = jax.tree.map(lambda x: x[order] if x.ndim else x, cells)
    labels, _ = rasterise(cells, shape=shape, spacing_um=jnp.array(spacing))
    other, _ = rasterise(shuffled, shape=shape, spacing_um=jnp.array(spacing))
    back = np.concatenate([[0], order + 1])[np.asarray(other)]
    assert (back != np.asarray(labels)).mean() < 1e-3  # exact ties alone may fall either way


def test_a_small_cell_inside_a_large_one_is_not_swallowed():
    for order in ([0, 1], [1, 0]):
        cells = population(np.array([[32.0, 32.0], [40.0, 32.0]])[order], np.array([[20.0, 20.0], [3.0, 3.0]])[order])
        labels, _ = rasterise(cells, shape=(64, 64), spacing_um=jnp.ones(2))
        assert set(np.unique(labels)) == {0, 1, 2}
        assert labels[40, 32] == order.index(1) + 1


def test_crowded_block_is_reported_and_harmless_once_there_is_room():
    rng = np.random.default_rng(0)
    cells = population(rng.uniform(0, 32, (40, 2)), rng.uniform(1, 3, (40, 2)))
    _, overflow = rasterise(cells, shape=(32, 32), spacing_um=jnp.ones(2), per_block=8)
    assert overflow
    labels, overflow = rasterise(cells, shape=(32, 32), spacing_um=jnp.ones(2), per_block=40)
    expected, doubtful = oracle(cells, (32, 32), (1, 1))
    assert not overflow
    np.testing.assert_array_equal(np.asarray(labels)[~doubtful], expected[~doubtful])


def test_no_cells_and_invalid_cells_leave_background():
    cells = population([[8.0, 8.0]], [[4.0, 4.0]], valid=[False])
    labels, overflow = rasterise(cells, shape=(16, 16), spacing_um=jnp.ones(2))
    assert not labels.any() and not overflow


def test_warped_labels_equal_the_oracle():
    shape, spacing = (50, 60), (0.5, 0.5)
    cells = random_population(1, 30, shape, spacing, 1.5, 4)
    warp = deform.random_warp(jax.random.key(0), shape, (6.0, 6.0), 0.8)
    labels, _ = jax.jit(functools.partial(ellipsoids.rasterise, shape=shape))(
        cells, spacing_um=jnp.array(spacing), warp_um=warp
    )
    expected, doubtful = oracle(cells, shape, spacing, [np.asarray(part, np.float64) for part in warp])
    np.testing.assert_array_equal(np.asarray(labels)[~doubtful], expected[~doubtful])


def test_vmap_gives_each_population_its_own_labels():
    shape, spacing = (40, 48), jnp.ones(2)
    one, two = (random_population(seed, 20, shape, (1, 1), 3, 6) for seed in (0, 1))
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), one, two)
    labels, _ = jax.jit(jax.vmap(lambda cells: ellipsoids.rasterise(cells, shape, spacing)))(both)
    for index, cells in enumerate((one, two)):
        alone, _ = rasterise(cells, shape=shape, spacing_um=spacing)
        assert (np.asarray(labels[index]) != np.asarray(alone)).mean() < 1e-3
