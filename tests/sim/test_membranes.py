"""Walls, interiors, seeds and merged cells against SciPy, scikit-image and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage.segmentation import find_boundaries

from jaxsynth.sim import membranes

CASES = [((14, 40, 44), (1.0, 0.5, 0.5)), ((64, 72), (0.5, 0.5))]
NUM, CAPACITY = 14, 20
open_interiors = jax.jit(membranes.open_interiors, static_argnames="max_cells")
seeds = jax.jit(membranes.seeds, static_argnames="max_cells")
merge = jax.jit(membranes.merge_neighbours, static_argnames="max_cells")


@functools.cache
def tissue(shape, spacing, seed=0):
    """A Voronoi partition of an ellipsoid that the volume's last edge cuts; labels 1 to NUM."""
    rng = np.random.default_rng(seed)
    size = np.array(shape) * spacing
    points = np.moveaxis(np.indices(shape) + 0.5, 0, -1) * spacing
    centre = size * np.append(np.full(len(shape) - 1, 0.5), 0.7)
    labels = cKDTree(rng.random((NUM, len(shape))) * size).query(points)[1] + 1
    inside = np.linalg.norm((points - centre) / (0.45 * size), axis=-1) < 1
    return np.where(inside, labels, 0).astype(np.int32)


def own_depth(labels, spacing):
    """Distance to the nearest voxel of another label, one label at a time."""
    depth = np.zeros(labels.shape)
    for label in np.unique(labels[labels > 0]):
        own = labels == label
        depth[own] = ndimage.distance_transform_edt(own, sampling=spacing)[own]
    return depth


@pytest.mark.parametrize("shape, spacing", CASES)
def test_boundary(shape, spacing):
    labels = tissue(shape, spacing)
    expected = find_boundaries(labels, connectivity=1, mode="thick")
    np.testing.assert_array_equal(membranes.boundary(jnp.asarray(labels)), expected)
    wide = find_boundaries(np.pad(labels, 1, constant_values=-1), connectivity=1, mode="thick")
    inner = tuple(slice(1, -1) for _ in shape)
    np.testing.assert_array_equal(membranes.boundary(jnp.asarray(labels), edge=True), wide[inner])


def test_signed_distance_is_positive_in_cells():
    shape, spacing = CASES[0]
    labels = tissue(shape, spacing)
    signed = np.asarray(membranes.signed_distance_um(jnp.asarray(labels), spacing))
    outside = ndimage.distance_transform_edt(labels == 0, sampling=spacing)
    np.testing.assert_allclose(signed, own_depth(labels, spacing) - outside, rtol=1e-6)


def test_position_map_of_a_half_space():
    """tanh(dist / alpha) inside, tanh(-dist / beta) outside; far away it is 1 to rounding."""
    mask = jnp.broadcast_to(jnp.arange(60) < 40, (3, 60))
    found = np.asarray(membranes.position_map(mask, (1.0, 0.5), 2.0, 0.25))
    inside, outside = (40 - np.arange(40)) * 0.5, (np.arange(40, 60) - 39) * 0.5
    expected = np.concatenate([np.tanh(inside / 2.0), np.tanh(-outside / 0.25)])
    np.testing.assert_allclose(found, np.tile(expected, (3, 1)), atol=1e-6)
    np.testing.assert_allclose((found[0, 0], found[0, -1]), (1, -1), atol=1e-6)
    same = membranes.position_map(mask, (1.0, 0.5), 2.0)
    np.testing.assert_allclose(same[0, 40:], np.tanh(-outside / 2.0), atol=1e-6)


@pytest.mark.parametrize("thickness_vox", [2, 3.5, 6])
def test_a_flat_wall_is_as_thick_as_asked(thickness_vox):
    """Half of it on either side in whole voxels; the volume's edge is no wall, rounding leaves flat walls alone."""
    spacing = (0.5, 0.5)
    labels = np.where(np.arange(72) < 40, 3, 7)[None].repeat(64, 0).astype(np.int32)
    for rounding in (0.0, 1.5):
        found = open_interiors(labels, spacing, thickness_vox * 0.5, rounding, CAPACITY)
        side = round(thickness_vox / 2)
        wall = (np.arange(72) >= 40 - side) & (np.arange(72) < 40 + side)
        np.testing.assert_array_equal(found.membrane, np.tile(wall, (64, 1)))
        np.testing.assert_array_equal(found.labels, np.where(wall, 0, labels))
        assert not found.unopened and not found.lost


@pytest.mark.parametrize("shape, spacing", [*CASES, ((1, 40, 44), (1.0, 0.5, 0.5))])
def test_interiors_are_the_opening_of_the_shrunken_cells(shape, spacing):
    labels, thickness, rounding = tissue(shape, spacing), 1.2, 1.5
    found = jax.tree.map(np.asarray, open_interiors(labels, spacing, thickness, rounding, CAPACITY))
    depth, half = own_depth(labels, spacing), min(spacing) / 2
    expected = np.zeros_like(labels)
    unopened = lost = 0
    for label in np.unique(labels[labels > 0]):
        own = labels == label
        shrunken, core = own & (depth >= thickness / 2 + half), own & (depth >= thickness / 2 + half + rounding)
        lost += not shrunken.any()
        unopened += shrunken.any() and not core.any()
        if core.any():
            shrunken &= ndimage.distance_transform_edt(~core, sampling=spacing) <= rounding + half
        expected[shrunken] = label
    np.testing.assert_array_equal(found.labels, expected)
    assert (found.unopened, found.lost) == (unopened, lost) and not found.overflow
    assert not (found.membrane & (found.labels > 0)).any() and not (found.membrane & (labels == 0)).any()
    # Walls touch interiors, but for those of cells too small to open.
    opened = [
        v for v in np.unique(expected[expected > 0]) if depth[labels == v].max() >= thickness / 2 + half + rounding
    ]
    reach = ndimage.distance_transform_edt(expected == 0, sampling=spacing)
    assert len(opened) >= 5
    assert reach[found.membrane & np.isin(labels, opened)].max() <= thickness + 2 * half + 1e-3


def test_corners_are_rounded():
    """A square loses (4 - pi) r^2 at its corners inside, and its wall's outer corners are rounded, too."""
    labels = np.zeros((64, 72), np.int32)
    labels[4:60, 8:64] = 5
    found = open_interiors(labels, (0.5, 0.5), 2.0, 6.0, CAPACITY)
    area = np.count_nonzero(found.labels) * 0.25
    assert abs(area - (26.0**2 - (4 - np.pi) * 6.0**2)) < 5
    assert not found.membrane[4, 8] and not found.labels[4, 8] and found.membrane[4, 30]


def test_cells_too_small_to_open_or_to_show_are_not_silently_dropped():
    labels = np.zeros((64, 72), np.int32)
    labels[4:60, 8:64] = 1
    labels[10:17, 10:17] = 2  # seven wide: five are left without its walls, too few for the ball
    labels[30:32, 20:40] = 9  # two wide: all wall
    found = open_interiors(labels, (0.5, 0.5), 1.0, 3.0, CAPACITY)
    assert (int(found.unopened), int(found.lost)) == (1, 1)
    kept = np.zeros_like(labels, bool)
    kept[11:16, 11:16] = True
    np.testing.assert_array_equal(np.asarray(found.labels) == 2, kept)
    assert np.asarray(found.membrane)[labels == 9].all() and not found.overflow
    assert open_interiors(labels, (0.5, 0.5), 1.0, 3.0, 8).overflow


def test_no_cells_and_one_cell_everywhere():
    shape, spacing = CASES[1]
    none = open_interiors(np.zeros(shape, np.int32), spacing, 1.0, 1.0, CAPACITY)
    assert not none.labels.any() and not none.membrane.any() and not none.unopened and not none.lost
    one = open_interiors(np.full(shape, 4, np.int32), spacing, 1.0, 1.0, CAPACITY)
    assert (np.asarray(one.labels) == 4).all() and not one.membrane.any()


def test_interiors_in_a_batch_equal_single_ones():
    shape, spacing = CASES[1]
    batch = np.stack([tissue(shape, spacing, seed) for seed in range(2)])
    run = functools.partial(membranes.open_interiors, thickness_um=1.0, rounding_um=1.5, max_cells=CAPACITY)
    together = jax.jit(jax.vmap(lambda labels: run(labels, jnp.array(spacing))))(batch)
    for index in range(2):
        alone = open_interiors(batch[index], spacing, 1.0, 1.5, CAPACITY)
        for several, one in zip(together, alone, strict=True):
            np.testing.assert_array_equal(several[index], one)


@pytest.mark.parametrize("shape, spacing", CASES)
def test_seeds_are_each_cells_deepest_voxel(shape, spacing):
    labels = tissue(shape, spacing)
    markers, position, has, overflow = map(np.asarray, seeds(labels, spacing, CAPACITY))
    depth = own_depth(labels, spacing)
    present = np.isin(np.arange(1, CAPACITY + 1), labels)
    np.testing.assert_array_equal(has, present)
    assert not overflow and np.count_nonzero(markers) == present.sum() and not position[~present].any()
    for label in np.flatnonzero(present) + 1:
        (where,) = np.argwhere(markers == label)
        assert labels[tuple(where)] == label
        np.testing.assert_allclose(depth[tuple(where)], depth[labels == label].max(), rtol=1e-6)
        np.testing.assert_allclose((where + 0.5) * spacing, position[label - 1], rtol=1e-6)
    # Balls end at their cell's boundary.
    markers = np.asarray(seeds(labels, spacing, CAPACITY, 1.6)[0])
    points = np.moveaxis(np.indices(shape) + 0.5, 0, -1) * spacing
    away = np.linalg.norm(points - position[labels - 1], axis=-1)
    np.testing.assert_array_equal(markers, np.where((labels > 0) & (away <= 1.6), labels, 0))


def test_seeds_of_no_cells():
    markers, _, has, _ = seeds(np.zeros((64, 72), np.int32), (0.5, 0.5), CAPACITY)
    assert not markers.any() and not has.any()


def test_the_share_of_merged_cells():
    """Cells in a row: two inner neighbours miss each other with probability (1 - rate / 2)^2, one at the end chooses
    for certain; each wall that falls leaves one cell less."""
    num, rate, draws = 24, 0.3, 400
    labels = jnp.asarray(np.repeat(np.arange(1, num + 1), 2)[None].repeat(3, 0).astype(np.int32))
    keys = jax.random.split(jax.random.key(0), draws)
    rows = np.asarray(jax.jit(jax.vmap(lambda key: membranes.merge_neighbours(key, labels, rate, num)[0]))(keys))[:, 0]
    left = 1 + (np.diff(rows, axis=1) != 0).sum(1)
    inner, end = 1 - (1 - rate / 2) ** 2, 1 - (1 - rate / 2) * (1 - rate)
    expected = num - (num - 3) * inner - 2 * end
    assert abs(left.mean() - expected) < 4 * left.std() / draws**0.5
    # Each run of merged cells bears the smallest of its labels, the first.
    start = np.concatenate([np.ones((draws, 1), bool), np.diff(rows, axis=1) != 0], 1)
    np.testing.assert_array_equal(rows[start], np.broadcast_to(labels[0], rows.shape)[start])


@pytest.mark.parametrize("shape, spacing", CASES)
def test_merging_joins_touching_cells_only(shape, spacing):
    labels = tissue(shape, spacing)
    np.testing.assert_array_equal(merge(jax.random.key(1), labels, 0.0, CAPACITY)[0], labels)
    merged, overflow = map(np.asarray, merge(jax.random.key(1), labels, 1.0, CAPACITY))
    assert not overflow and ((merged > 0) == (labels > 0)).all()
    for label in np.unique(merged[merged > 0]):
        parts = np.unique(labels[merged == label])
        assert parts.min() == label and len(parts) > 1
        # One piece, as far as its parts are.
        assert ndimage.label(merged == label)[1] <= 1 + sum(ndimage.label(labels == part)[1] - 1 for part in parts)
    assert merge(jax.random.key(1), labels, 1.0, 5)[1]


def test_a_cell_alone_stays_alone():
    labels = np.zeros((64, 72), np.int32)
    labels[5:20, 5:20], labels[30:40, 30:40] = 2, 3
    np.testing.assert_array_equal(merge(jax.random.key(0), labels, 1.0, CAPACITY)[0], labels)
