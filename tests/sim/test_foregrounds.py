"""Foregrounds against their formulas and volumes; depths and normals against distances to points of the surface."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import cKDTree

from jaxsynth.sim import deform, foregrounds, grid, starshape

SHAPE = {2: (60, 90), 3: (24, 40, 50)}
SPACING = {2: jnp.array([0.7, 0.4]), 3: jnp.array([1.5, 0.8, 0.7])}


def size(ndim):
    return grid.size_um(SHAPE[ndim], SPACING[ndim])


def points(ndim):
    """Every voxel's centre: float32 [V, D]."""
    axes = [np.ravel(x) for x in grid.axes_um(SHAPE[ndim], SPACING[ndim])]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, ndim)


def drawn(foreground, ndim):
    return np.asarray(jax.jit(lambda: foregrounds.voxels(foreground, SHAPE[ndim], SPACING[ndim]))())


def form(ndim, scale=1.0):
    return (((points(ndim) - size(ndim) / 2) / (scale * 0.45 * size(ndim))) ** 2).sum(-1).reshape(SHAPE[ndim])


def unit_ball(ndim):
    return math.pi ** (ndim / 2) / math.gamma(ndim / 2 + 1)


def everything(ndim):
    """One foreground of each kind, and the foreground as a formula over all voxel centres."""
    middle, axes = size(ndim) / 2, 0.45 * size(ndim)
    at, flat = points(ndim), SHAPE[ndim]
    discs = jax.random.uniform(jax.random.key(0), (5, ndim)) * size(ndim)
    some = jnp.array([True, True, False, True, False])
    near = (np.linalg.norm(at[:, None] - np.asarray(discs)[np.asarray(some)], axis=-1) <= 6).any(1).reshape(flat)
    user = np.random.default_rng(0).uniform(size=flat) < 0.3
    ellipsoid, shell = foregrounds.ellipsoid(middle, axes), foregrounds.shell(middle, axes, 0.6)
    ball = starshape.num_nodes(9, ndim) * [7.0]
    return {
        "ellipsoid": (ellipsoid, form(ndim) <= 1),
        "shell": (shell, (form(ndim) <= 1) & (form(ndim, 0.6) >= 1)),
        "discs": (foregrounds.discs(discs, 6.0, some), near),
        "mask": (foregrounds.mask(jnp.asarray(user), SPACING[ndim]), user),
        "both": (foregrounds.both(shell, foregrounds.discs(discs, 6.0, some)),
                 (form(ndim) <= 1) & (form(ndim, 0.6) >= 1) & near),
        "star": (foregrounds.star(middle, jnp.array(ball).reshape((9,) * (ndim - 1))),
                 (((at - middle) ** 2).sum(-1) <= 49).reshape(flat)),
    }  # fmt: skip


@pytest.mark.parametrize("ndim", [2, 3])
def test_every_foreground_is_its_formula_and_lies_in_its_box(ndim):
    cases = everything(ndim)
    all_drawn = jax.jit(lambda: {n: foregrounds.voxels(f, SHAPE[ndim], SPACING[ndim]) for n, (f, _) in cases.items()})()
    for name, (foreground, expected) in cases.items():
        inside = np.asarray(all_drawn[name])
        # Voxels on the surface itself may round to either side.
        assert (inside != expected).sum() <= 2, name
        assert inside.any() and not inside.all(), name
        at = points(ndim)[inside.ravel()]
        assert (at >= np.asarray(foreground.low_um) - 1e-4).all(), name
        assert (at <= np.asarray(foreground.high_um) + 1e-4).all(), name


def test_coordinates_broadcast_or_come_as_lists():
    shell = foregrounds.shell(jnp.array([5.0, 6, 7]), jnp.array([4.0, 5, 6]), 0.5)
    axes = tuple(jnp.linspace(0, 14, 9).reshape(shape) for shape in ((9, 1, 1), (9, 1), (9,)))
    full = jnp.broadcast_arrays(*axes)
    np.testing.assert_array_equal(shell.contains(axes).ravel(), shell.contains(tuple(x.ravel() for x in full)))


@pytest.mark.parametrize("ndim", [2, 3])
def test_egg_is_hollow_flat_long_and_as_large_as_fits(ndim):
    egg = foregrounds.hollow_egg(size(ndim), flatness=0.4, elongation=2.0, shrink=0.3, fill=0.95)
    semi_axes = np.asarray(egg.high_um - egg.low_um) / 2
    np.testing.assert_allclose(semi_axes / semi_axes[-2], [0.6, 1, 2][-ndim:], rtol=1e-5)
    np.testing.assert_allclose((2 * semi_axes / size(ndim)).max(), 0.95, rtol=1e-5)
    volume = drawn(egg, ndim).sum() * np.prod(SPACING[ndim])
    expected = unit_ball(ndim) * semi_axes.prod() * (1 - 0.7**ndim)
    np.testing.assert_allclose(volume, expected, rtol=0.03)
    assert not egg.contains(tuple(size(ndim) / 2))


def test_disc_clusters_take_every_number_and_lie_all_over():
    @jax.jit
    @jax.vmap
    def ends(key):
        clusters = foregrounds.disc_clusters(key, jnp.array([1e4, 1e4]), (2, 5), 20.0)
        return clusters.low_um + 20, clusters.high_um - 20

    low, high = ends(jax.random.split(jax.random.key(0), 400))
    assert low.min() >= -0.01 and high.max() <= 1e4 + 0.01
    # The least and the greatest of M uniform numbers lie 1 / (M + 1) from the ends, M uniform over 2 to 5.
    expected = np.mean([1 / (m + 1) for m in (2, 3, 4, 5)])
    np.testing.assert_allclose(low.mean() / 1e4, expected, atol=0.03)
    np.testing.assert_allclose(1 - high.mean() / 1e4, expected, atol=0.03)


def test_number_of_discs_is_checked():
    for number in ((0, 3), (4, 3)):
        with pytest.raises(ValueError, match="number"):
            foregrounds.disc_clusters(jax.random.key(0), jnp.ones(2), number, 1.0)


def test_nothing_lies_outside_a_mask():
    mask = foregrounds.mask(jnp.ones((3, 4), bool), jnp.array([2.0, 1.0]))
    y, x = jnp.array([-0.1, 0.1, 5.9, 6.1, 3.0]), jnp.array([1.0, 1.0, 3.9, 1.0, 4.1])
    np.testing.assert_array_equal(mask.contains((y, x)), [False, True, True, False, False])


@pytest.mark.parametrize("ndim", [2, 3])
def test_bent_body_keeps_to_its_box_and_a_bend_without_push_changes_nothing(ndim):
    body = foregrounds.ellipsoid(size(ndim) / 2, 0.3 * size(ndim))
    bend = deform.gaussian_bend(jax.random.key(3), size(ndim), 2)
    still = bend.replace(push_um=0 * bend.push_um)
    plain = drawn(body, ndim)
    np.testing.assert_array_equal(drawn(foregrounds.bent(body, still), ndim), plain)
    bent = foregrounds.bent(body, bend)
    inside = drawn(bent, ndim)
    assert (inside != plain).sum() > 0.02 * plain.sum()
    at = points(ndim)[inside.ravel()]
    assert (at >= np.asarray(bent.low_um)).all() and (at <= np.asarray(bent.high_um)).all()


@functools.partial(jax.jit, static_argnames="nodes")
def ellipsoid_depth(centre, semi_axes, nodes=32):
    return foregrounds.depth_field(foregrounds.ellipsoid(centre, semi_axes), nodes)


def on_surface(semi_axes, num):
    """Points of an ellipsoid about the origin and the unit vectors inwards there, float64 [num, D] each."""
    way = np.random.default_rng(0).normal(size=(num, len(semi_axes)))
    at = way / np.linalg.norm(way, axis=1, keepdims=True) * semi_axes
    normal = -at / np.square(semi_axes)
    return at, normal / np.linalg.norm(normal, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("semi_axes", "mean", "worst", "degrees"),
    [
        ((20.0, 20.0), 0.08, 0.2, 4),
        ((30.0, 50.0), 0.08, 0.2, 4),
        ((10.0, 10.0, 10.0), 0.08, 0.2, 4),
        ((230.0, 222.0, 219.0), 0.08, 0.2, 4),
        # Steps four times as long one way as the other, along which the tips are.
        ((6.0, 8.0, 24.0), 0.1, 0.4, 8),
    ],
)
def test_depths_and_normals_of_ellipsoids(semi_axes, mean, worst, degrees):
    """Errors in the finest step of the grid; the oracle is the distance to 200,000 points of the surface."""
    semi_axes = np.array(semi_axes)
    centre = 1.3 * semi_axes + 5
    depth = ellipsoid_depth(centre.astype(np.float32), semi_axes.astype(np.float32))
    step = float(depth.step_um.min())
    surface, normals = on_surface(semi_axes, 200_000)
    tree = cKDTree(surface)
    surface, normals = surface[:1500], normals[:1500]
    for number in (-1.0, 0.0, 0.5, 2.0, 4.0):
        at = surface + number * step * normals
        true = tree.query(at)[0] * np.sign(number)
        at = jnp.asarray(at + centre, jnp.float32)
        error = (np.asarray(foregrounds.depth_um(depth, at)) - true) / step
        assert abs(error).mean() < mean and abs(error).max() < worst
        found = np.asarray(foregrounds.inward_normal(depth, at), np.float64)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
        if abs(number) < 3:  # further in, the nearest surface of a flat body is another
            assert np.degrees(np.arccos(np.clip((found * normals).sum(1), -1, 1))).max() < degrees


def test_depth_in_the_middle_is_the_shortest_semi_axis():
    for semi_axes in ([10.0, 7.0, 12.0], [4.0, 4.0, 4.0]):
        depth = ellipsoid_depth(jnp.full(3, 20.0), jnp.array(semi_axes))
        middle = foregrounds.depth_um(depth, jnp.full((1, 3), 20.0))
        # A ridge between nodes is cut off by up to the half of a step's diagonal.
        lack = (min(semi_axes) - middle) / jnp.linalg.norm(depth.step_um)
        assert -0.05 < lack < 0.55


def test_hollow_of_a_shell_and_the_outside_have_negative_depth():
    depth = jax.jit(lambda: foregrounds.depth_field(foregrounds.shell(jnp.zeros(2), jnp.full(2, 10.0), 0.5)))()
    # Away from the ridges, which are in the middle and half-way through the wall.
    at = jnp.array([[0.0, 4.0], [8.5, 0.0], [0.0, -6.0], [0.0, 10.3], [3.0, 0.0]])
    np.testing.assert_allclose(foregrounds.depth_um(depth, at), [-1, 1.5, 1, -0.3, -2], atol=0.03)
    inwards = foregrounds.inward_normal(depth, at)
    np.testing.assert_allclose(inwards, [[0, 1], [-1, 0], [0, -1], [0, -1], [1, 0]], atol=0.05)


def test_depth_of_a_mask_is_that_below_its_voxels_faces():
    mask = jnp.zeros((12, 20), bool).at[3:9, 4:16].set(True)
    depth = jax.jit(lambda: foregrounds.depth_field(foregrounds.mask(mask, jnp.array([2.0, 1.0]))))()
    # Faces at y = 6 and 18, x = 4 and 16 micrometres.
    at = jnp.array([[9.0, 10.0], [7.0, 10.0], [12.0, 5.0], [12.0, 3.8], [6.0, 10.0]])
    np.testing.assert_allclose(foregrounds.depth_um(depth, at), [3, 1, 1, -0.2, 0], atol=0.03)


def test_a_foreground_without_a_surface_has_finite_depth():
    nothing = foregrounds.mask(jnp.zeros((4, 4), bool), jnp.ones(2))
    depth = jax.jit(lambda: foregrounds.depth_field(nothing, 8))()
    np.testing.assert_allclose(depth.values, -4 * math.sqrt(2), rtol=1e-5)
    at = jnp.array([[1.0, 2.0], [0.0, 9.0]])
    np.testing.assert_allclose(foregrounds.depth_um(depth, at), -4 * math.sqrt(2), rtol=1e-5)
    np.testing.assert_array_equal(foregrounds.inward_normal(depth, at), jnp.zeros((2, 2)))


def test_depth_needs_some_nodes():
    with pytest.raises(ValueError, match="nodes"):
        ellipsoid_depth(jnp.zeros(2), jnp.ones(2), nodes=5)


@pytest.mark.parametrize("shape", [(24, 40, 50), (1, 40, 50)])
def test_depth_map_is_the_depth_of_every_voxel(shape):
    depth = ellipsoid_depth(size(3) / 2, 0.4 * size(3))
    found = jax.jit(foregrounds.depth_map, static_argnums=1)(depth, shape, SPACING[3])
    axes = [np.ravel(x) for x in grid.axes_um(shape, SPACING[3])]
    at = jnp.asarray(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3))
    np.testing.assert_allclose(found.ravel(), foregrounds.depth_um(depth, at), atol=1e-3)


def test_depths_by_vmap_equal_those_by_loop():
    centre = jnp.array([[9.0, 9.0], [12.0, 11.0], [10.0, 14.0]])
    semi_axes = jnp.array([[5.0, 8.0], [3.0, 3.0], [9.0, 4.0]])
    together = jax.vmap(ellipsoid_depth)(centre, semi_axes)
    for index in range(3):
        alone = ellipsoid_depth(centre[index], semi_axes[index])
        np.testing.assert_allclose(together.values[index], alone.values, atol=1e-4)
