"""Centres keep their distance, lie where they may, fill what is to be filled, and a field too full says so."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist, squareform

from jaxsynth.sim import foregrounds, grid, placement


def square(side=1.0):
    def contains(coords):
        return (coords[0] >= 0) & (coords[0] <= side) & (coords[1] >= 0) & (coords[1] <= side)

    return foregrounds.Foreground(jnp.zeros(2), jnp.full(2, side), contains)


@functools.partial(jax.jit, static_argnames="attempts")
def unit_square(key, clearance_um, num_cells, side=1.0, attempts=12):
    return placement.random_centres(key, square(side), clearance_um, num_cells, attempts=attempts)


def nearest(points):
    return cKDTree(points).query(points, 2)[0][:, 1]


def chosen(centres, placed):
    return np.asarray(centres, np.float64)[np.asarray(placed)]


def test_centres_keep_the_sum_of_their_clearances():
    clearance = np.random.default_rng(0).uniform(0.01, 0.06, 64).astype(np.float32)
    centres, placed, overflow = unit_square(jax.random.key(0), clearance, 60)
    assert placed.sum() == 60 and not placed[60:].any() and not overflow
    distance = squareform(pdist(np.asarray(centres[:60], np.float64)))
    np.fill_diagonal(distance, np.inf)
    assert (distance >= clearance[:60, None] + clearance[None, :60] - 1e-6).all()


def test_centres_without_clearance_are_uniform():
    centres, placed, _ = unit_square(jax.random.key(2), jnp.zeros(2000), 2000, attempts=0)
    assert placed.all()
    for axis in range(2):
        assert stats.kstest(np.asarray(centres[:, axis]), "uniform").pvalue > 1e-3
    quadrant = (np.asarray(centres) > 0.5) @ [2, 1]
    assert stats.chisquare(np.bincount(quadrant)).pvalue > 1e-3


def test_every_slot_is_uniform_over_seeds():
    """Also with clearance, where lower slots are served first, no slot may prefer a place."""
    keys = jax.random.split(jax.random.key(5), 100)
    place = jax.jit(jax.vmap(lambda key: placement.random_centres(key, square(), jnp.full(16, 0.05), 16, attempts=0)))
    centres, placed, _ = place(keys)
    assert placed.all()
    for slot in (0, 15):
        quadrant = (np.asarray(centres[:, slot]) > 0.5) @ [2, 1]
        assert stats.chisquare(np.bincount(quadrant, minlength=4)).pvalue > 1e-3


@pytest.mark.parametrize("num_cells", [0, 1])
def test_none_and_one(num_cells):
    centres, placed, overflow = unit_square(jax.random.key(0), jnp.full(64, 0.01), num_cells)
    assert placed.sum() == num_cells and not overflow and np.isfinite(centres).all()


def test_more_cells_than_slots_is_an_overflow():
    _, placed, overflow = unit_square(jax.random.key(0), jnp.full(64, 0.01), 65)
    assert placed.all() and overflow


def test_too_many_cells_overflow_and_what_is_placed_keeps_apart():
    # The centres of 64 balls of radius 0.1 do not fit into the unit square; about 6 x 6 do.
    centres, placed, overflow = unit_square(jax.random.key(0), jnp.full(64, 0.1), 64)
    points = chosen(centres, placed)
    assert overflow and 26 <= len(points) <= 39
    assert nearest(points).min() >= 0.2 - 1e-6
    assert points.min() >= 0 and points.max() <= 1


def test_repulsion_completes_what_darts_cannot():
    # 66 % of the square, grown by a radius on each side; random sequential placement jams at 54.7 %.
    clearance, num = 0.0635, 66
    args = jax.random.key(1), jnp.full(96, clearance), num
    _, by_darts, jammed = unit_square(*args, attempts=0)
    centres, placed, overflow = unit_square(*args)
    assert jammed and 40 < by_darts.sum() < 60
    assert placed.sum() == num and not overflow
    assert nearest(chosen(centres, placed)).min() >= 2 * clearance - 1e-6
    assert num * np.pi * clearance**2 / (1 + 2 * clearance) ** 2 > 0.65


def test_no_room_at_all():
    _, placed, overflow = unit_square(jax.random.key(0), jnp.full(64, 0.01), 4, side=-1.0)
    assert not placed.any() and overflow


def test_vmapped_fields_equal_single_ones():
    # Crowded, so that repulsion has its part.
    clearance = jnp.full(64, 0.058)
    seeds = jax.random.split(jax.random.key(0), 3)
    centres, placed, _ = jax.jit(jax.vmap(unit_square, (0, None, None)))(seeds, clearance, 60)
    for index in range(3):
        alone, alone_placed, _ = unit_square(seeds[index], clearance, 60)
        np.testing.assert_array_equal(placed[index], alone_placed)
        np.testing.assert_allclose(centres[index], alone, atol=1e-5)


@pytest.mark.parametrize("ndim", [2, 3])
def test_whole_image_reaches_beyond_the_edge_but_keeps_every_cell_in_sight(ndim):
    num, size = 400, jnp.full(ndim, 20.0)
    radii = jnp.linspace(1, 3, num)[:, None] * jnp.array([1.0, 3.0, 2.0])[:ndim]
    rotation = grid.random_rotation(jax.random.key(0), num, ndim)
    foreground = foregrounds.whole_image(size, radii, rotation)
    centres, placed, _ = placement.random_centres(jax.random.key(1), foreground, jnp.zeros(num), num, attempts=0)
    centres = np.asarray(centres, np.float64)
    outside = ((centres < 0) | (centres > 20)).any(1)
    assert placed.all() and outside.sum() > 20
    # The nearest point of the image lies inside the cell, each in its own.
    gap = np.clip(centres, 0, 20) - centres
    own = np.einsum("nij,nj->ni", np.asarray(rotation, np.float64), gap) / np.asarray(radii)
    assert (own**2).sum(1).max() <= 0.8**2 + 1e-4


def test_three_thousand_cells_on_a_shell():
    centre, semi_axes = jnp.full(3, 250.0), jnp.array([219.0, 230.0, 225.0])
    centres, placed, overflow = jax.jit(
        lambda key: placement.shell_centres(key, centre, semi_axes, 0.999, jnp.full(3008, 5.5), 3000)
    )(jax.random.key(0))
    points = chosen(centres, placed)
    assert len(points) == 3000 and not overflow
    assert nearest(points).min() >= 11 - 1e-4
    own = (points - 250) / np.asarray(semi_axes)
    radius = np.linalg.norm(own, axis=1)
    assert radius.min() >= 0.999 - 1e-5 and radius.max() <= 1 + 1e-5
    # Uniform over the stretched sphere: every coordinate of the unit sphere is uniform (Archimedes). Cells that
    # keep apart are more even than independent ones, so this can only be too good.
    for axis in range(3):
        assert stats.kstest(own[:, axis] / radius, stats.uniform(-1, 2).cdf).pvalue > 1e-3


def ball_depth(radius, ndim, nodes=41):
    """The exact depth below a ball's surface, about the origin."""
    low, high = -1.2 * radius, 1.2 * radius
    axes = np.meshgrid(*[np.linspace(low, high, nodes)] * ndim, indexing="ij")
    values = radius - np.sqrt(sum(x**2 for x in axes))
    full = functools.partial(jnp.full, ndim)
    return foregrounds.Depth(jnp.asarray(values, jnp.float32), full(low), full((high - low) / (nodes - 1)))


def test_surface_centres_lie_at_the_depth_of_each_cell():
    low = jnp.linspace(1.0, 9.0, 256)
    centres, placed, overflow = jax.jit(
        lambda key: placement.surface_centres(key, ball_depth(50.0, 3), low, low + 2, jnp.full(256, 2.0), 250)
    )(jax.random.key(0))
    points = chosen(centres, placed)
    assert placed.sum() == 250 and not overflow
    assert nearest(points).min() >= 4 - 1e-5
    depth, low = 50 - np.linalg.norm(points, axis=1), np.asarray(low)[:250]
    assert (depth > low - 0.3).all() and (depth < low + 2.3).all()
    for axis in range(3):
        along = points[:, axis] / np.linalg.norm(points, axis=1)
        assert stats.kstest(along, stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_surface_centres_of_an_ellipse_are_even_along_it():
    """Also with a real depth field, in 2D, and where the curvature varies: counts follow the arc length."""
    body = foregrounds.ellipsoid(jnp.array([0.0, 0.0]), jnp.array([100.0, 40.0]))
    centres, placed, overflow = jax.jit(
        lambda key: placement.surface_centres(
            key, foregrounds.depth_field(body), 5.0, 5.0, jnp.zeros(1000), 1000, attempts=0
        )
    )(jax.random.key(3))
    points = chosen(centres, placed)
    assert len(points) == 1000 and not overflow
    t = np.linspace(0, 2 * np.pi, 20001)
    curve = np.stack([100 * np.cos(t), 40 * np.sin(t)], 1)
    normal = np.stack([40 * np.cos(t), 100 * np.sin(t)], 1)
    curve -= 5 * normal / np.linalg.norm(normal, axis=1, keepdims=True)
    away, index = cKDTree(curve).query(points)
    assert away.max() < 2.5  # the depth field's own error: its grid's step is 3.4
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    counts = np.histogram(length[index] / length[-1], 16, (0, 1))[0]
    np.testing.assert_allclose(counts / counts.mean(), 1, atol=0.45)


@functools.partial(jax.jit, static_argnames="ndim")
def layers_of_ball(key, ndim, distance_um, max_layers):
    return placement.layered_centres(key, ball_depth(60.0, ndim), 20.0, distance_um, 256, max_layers=max_layers)


@pytest.mark.parametrize("ndim", [2, 3])
def test_layers_lie_at_their_depths_and_are_full(ndim):
    centres, placed, layer, overflow = layers_of_ball(jax.random.key(0), ndim, 16.0, 16)
    number = int(placed.sum())
    assert not overflow and placed[:number].all() and (layer[number:] == -1).all()
    layer, points = np.asarray(layer)[:number], chosen(centres, placed)
    assert (np.diff(layer) >= 0).all() and layer[0] == 0 and layer[-1] >= 2
    depth = 60 - np.linalg.norm(points, axis=1)
    # Half of the first distance, then 0.9 of the last.
    middle = 10 + np.concatenate([[0], np.cumsum(20 * 0.9 ** np.arange(1, 16))])
    swing = 0.1 * layer * 20 * 0.9**layer
    assert (np.abs(depth - middle[layer]) <= swing + 0.3).all()
    assert np.abs(depth - middle[layer])[layer == 0].max() < 0.3
    # No two of all are closer than 0.8 of their mean distance; and in the outer layer nearly as far as asked.
    local = 16 * 0.9**layer
    distance = squareform(pdist(points))
    np.fill_diagonal(distance, np.inf)
    assert (distance >= 0.8 * (local[:, None] + local[None]) / 2 - 1e-4).all()
    assert 0.85 * 16 < nearest(points[layer == 0]).mean() < 1.15 * 16
    # Full: nowhere on the layer is there room for another.
    way = np.random.default_rng(0).normal(size=(2000, ndim))
    probes = 50 * way / np.linalg.norm(way, axis=1, keepdims=True)
    assert np.mean(cKDTree(points).query(probes)[0] >= 16) < 0.02


def test_layers_stop_where_told_and_say_when_slots_run_out():
    _, placed, layer, overflow = layers_of_ball(jax.random.key(0), 2, 8.0, 1)
    assert not overflow and layer.max() == 0 and 25 < placed.sum() < 50
    _, placed, layer, overflow = layers_of_ball(jax.random.key(0), 3, 8.0, 16)
    assert overflow and placed.all() and (layer == 0).all()


@jax.jit
def clusters(key, num_cells, probability):
    return placement.clustered_centres(key, square(), jnp.linspace(0.008, 0.012, 128), num_cells, probability)


def test_clustering_draws_cells_together():
    clearance = np.linspace(0.008, 0.012, 128)
    mean = []
    for probability in (0.0, 0.5, 1.0):
        centres, placed, overflow = clusters(jax.random.key(0), 100, probability)
        assert placed[:100].all() and not placed[100:].any() and not overflow
        distance = squareform(pdist(np.asarray(centres[:100], np.float64)))
        np.fill_diagonal(distance, np.inf)
        gap = distance - clearance[:100, None] - clearance[None, :100]
        assert gap.min() >= -1e-6
        touching = gap.min(axis=1) < 1e-4
        # A touching pair makes two cells touch, so more than the share p does.
        assert touching.mean() == 0 if probability == 0 else touching.mean() >= probability
        mean.append(distance.min(axis=1).mean())
    assert mean[0] > 1.2 * mean[1] > 1.2 * mean[2]


def test_probability_zero_is_a_random_field():
    keys = jax.random.split(jax.random.key(1), 20)
    apart, field = [], []
    for key in keys:
        apart.append(nearest(chosen(*clusters(key, 60, 0.0)[:2])))
        field.append(nearest(chosen(*unit_square(key, jnp.full(64, 0.0092), 60)[:2])))
    assert stats.ks_2samp(np.concatenate(apart), np.concatenate(field)).pvalue > 1e-3


def test_clusters_of_none_of_one_and_of_too_many():
    assert not clusters(jax.random.key(0), 0, 1.0)[1].any()
    assert clusters(jax.random.key(0), 1, 1.0)[1].sum() == 1
    _, placed, overflow = clusters(jax.random.key(0), 129, 1.0)
    assert placed.all() and overflow


def test_given_centres_fill_the_first_slots():
    points = np.arange(12.0).reshape(4, 3)
    centres, placed, overflow = placement.given_centres(jnp.asarray(points), 6)
    np.testing.assert_array_equal(centres[:4], points)
    np.testing.assert_array_equal(placed, [True] * 4 + [False] * 2)
    assert not overflow
    centres, placed, overflow = placement.given_centres(jnp.asarray(points), 3)
    np.testing.assert_array_equal(centres, points[:3])
    assert placed.all() and overflow
    assert not placement.given_centres(jnp.zeros((0, 2)), 3)[1].any()


def test_aligned_cells_are_random_about_their_axis():
    axis = np.random.default_rng(0).normal(size=(600, 3)) * [1, 5, 0.1]
    axis[:4] = [[1, 0, 0], [0, -2, 0], [0, 0, 3], [0, 0, 0]]
    rotation = np.asarray(placement.align(jax.random.key(0), jnp.asarray(axis)))
    np.testing.assert_allclose(rotation @ rotation.swapaxes(1, 2), np.tile(np.eye(3), (600, 1, 1)), atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-5)
    wanted = axis / np.maximum(np.linalg.norm(axis, axis=1, keepdims=True), 1e-12)
    wanted[3] = [1, 0, 0]
    np.testing.assert_allclose(rotation[:, 0], wanted, atol=1e-5)
    # The angle of the second row about the axis, against a fixed direction across it.
    fixed = np.cross(wanted, [0.3, 0.5, 0.8])
    fixed /= np.linalg.norm(fixed, axis=1, keepdims=True)
    second = rotation[:, 1]
    angle = np.arctan2(np.sum(np.cross(fixed, second) * wanted, axis=1), np.sum(fixed * second, axis=1))
    assert stats.kstest(angle, stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > 1e-3


def test_aligned_cells_in_the_plane():
    axis = np.random.default_rng(0).normal(size=(20, 2))
    rotation = np.asarray(placement.align(jax.random.key(0), jnp.asarray(axis)))
    np.testing.assert_allclose(rotation[:, 0], axis / np.linalg.norm(axis, axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-6)
