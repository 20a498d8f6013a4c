"""The loop over voxels and cells: owners against a NumPy oracle, coordinates, layers, room."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsynth.sim import raster


def ball(radius):
    """The value of balls of radii [N]."""
    return lambda cell, offset: sum(x * x for x in offset) / radius[cell] ** 2


@functools.partial(jax.jit, static_argnames=("shape", "layers", "per_block", "transform"))
def owners(centre, radius, valid, shape, spacing, **options):
    reach = jnp.broadcast_to(radius[:, None], centre.shape)
    return raster.owners(ball(radius), centre, reach, valid, shape, spacing, **options)


def population(seed, num, shape, spacing, low, high):
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0, 1, (num, len(shape))) * np.array(shape) * spacing
    return centre.astype(np.float32), rng.uniform(low, high, num).astype(np.float32), rng.random(num) < 0.9


def values(centre, radius, valid, shape, spacing, transform=None):
    """Every cell's value at every voxel, [N, *S], inf where it is outside or not valid."""
    axes = [(np.arange(n) + 0.5) * step for n, step in zip(shape, spacing, strict=True)]
    at = np.meshgrid(*axes, indexing="ij")
    at = np.stack(at if transform is None else [np.asarray(x) for x in transform(at)])
    squared = ((at[None] - centre.reshape(*centre.shape, *[1] * len(shape))) ** 2).sum(1)
    found = squared / radius.reshape(-1, *[1] * len(shape)) ** 2
    found[~valid] = np.inf
    return np.where(found <= 1, found, np.inf)


# Sizes with and without a divisor near the usual edge of a block, and one voxel in depth.
@pytest.mark.parametrize("shape", [(67, 71), (64, 96), (1, 37, 64), (11, 41, 53)])
def test_owner_is_the_cell_of_least_value(shape):
    spacing = np.array([2.0, 0.5, 0.5][-len(shape) :])
    cells = population(0, 50, shape, spacing, 1.5, 4.0)
    labels, overflow = owners(*cells, shape, spacing)
    expected = values(*cells, shape, spacing)
    assert not overflow and labels.dtype == jnp.int32
    np.testing.assert_array_equal(labels > 0, np.isfinite(expected).any(0))
    two = np.sort(expected, axis=0)[:2]
    clear = np.isfinite(two[0]) & (two[1] - two[0] > 1e-4)
    assert clear.mean() > 0.2
    np.testing.assert_array_equal(np.asarray(labels)[clear], expected.argmin(0)[clear] + 1)


def test_layers_hold_all_cells_of_a_voxel_nearest_first():
    shape, spacing = (60, 66), np.ones(2)
    cells = population(1, 30, shape, spacing, 6.0, 12.0)
    expected = values(*cells, shape, spacing)
    depth = int(np.isfinite(expected).sum(0).max())
    assert depth >= 3
    labels, overflow = owners(*cells, shape, spacing, layers=depth)
    assert labels.shape == (depth, *shape) and not overflow
    for cell in range(30):
        np.testing.assert_array_equal((np.asarray(labels) == cell + 1).any(0), np.isfinite(expected[cell]))
    one, _ = owners(*cells, shape, spacing)
    np.testing.assert_array_equal(labels[0], one)
    listed = np.where(np.asarray(labels) > 0, np.take_along_axis(expected, np.maximum(labels - 1, 0), 0), np.inf)
    assert (np.diff(np.where(np.isfinite(listed), listed, 2.0), axis=0) >= -1e-5).all()
    assert owners(*cells, shape, spacing, layers=depth - 1)[1]


def swirl(axes):
    y, x = axes
    return y + 0.1 * x, x * 0.7 + 3.0


def test_transform_draws_the_cells_in_other_coordinates():
    shape, spacing = (60, 66), np.ones(2)
    cells = population(2, 30, shape, spacing, 3.0, 6.0)
    labels, overflow = owners(*cells, shape, spacing, transform=swirl)
    expected = values(*cells, shape, spacing, swirl)
    assert not overflow and (np.asarray(labels) > 0).mean() > 0.2
    differ = (np.asarray(labels) > 0) != np.isfinite(expected).any(0)
    assert differ.mean() < 1e-3  # rounding on the surface


def test_too_many_cells_for_a_block_are_reported():
    shape, spacing = (32, 32), np.ones(2)
    cells = population(3, 40, shape, spacing, 1.0, 3.0)
    assert owners(*cells, shape, spacing, per_block=8)[1]
    assert not owners(*cells, shape, spacing, per_block=40)[1]


def test_one_slab_or_many_give_the_same(monkeypatch):
    """On a CPU the volume is worked off in slabs, on an accelerator at once."""
    shape, spacing = (11, 41, 53), np.array([2.0, 0.5, 0.5])
    cells = population(4, 50, shape, spacing, 1.5, 4.0)
    many, _ = owners(*cells, shape, spacing)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert raster.make_blocks(shape).num_slabs == 1
    once, _ = jax.jit(lambda: owners.__wrapped__(*map(jnp.asarray, cells), shape, spacing))()
    np.testing.assert_array_equal(once, many)


@pytest.mark.parametrize("size", [1, 2, 13, 31, 35, 64, 97, 700, 708, 1024])
@pytest.mark.parametrize("edge", [1, 8, 32])
def test_blocks_cover_the_volume(size, edge):
    blocks = raster.make_blocks((size,), edge)
    (count,), (wide,) = blocks.counts, blocks.edges
    assert (count - 1) * wide < size <= count * wide and wide <= max(2 * edge, 1)
