"""B-spline fields against SciPy's splines and their stated bounds; bends fold nothing over and dents go where told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import BSpline

from jaxsynth.sim import deform, foregrounds, raster


@pytest.mark.parametrize(("size", "knot"), [(20, 4.0), (17, 2.5), (5, 9.0), (1, 2.0)])
def test_basis_is_the_cubic_b_spline(size, knot):
    basis = deform.bspline_basis(size, knot)
    at = np.arange(size) + 0.5
    for k in range(basis.shape[1]):
        spline = BSpline.basis_element((k - 1 + np.arange(-2, 3)) * knot, extrapolate=False)
        np.testing.assert_allclose(basis[:, k], np.nan_to_num(spline(at)), atol=1e-6)
    np.testing.assert_allclose(basis.sum(1), 1, atol=1e-6)


def test_field_of_linear_control_points_is_linear():
    shape, knots = (9, 14, 11), (3.0, 4.0, 2.5)
    bases = tuple(deform.bspline_basis(size, knot) for size, knot in zip(shape, knots, strict=True))
    grids = np.meshgrid(*[(np.arange(b.shape[1]) - 1) * k for b, k in zip(bases, knots, strict=True)], indexing="ij")
    field = deform.bspline_field(np.float32(grids[0] + 2 * grids[1] - 3 * grids[2]), bases)
    z, y, x = np.meshgrid(*[np.arange(size) + 0.5 for size in shape], indexing="ij")
    np.testing.assert_allclose(field, z + 2 * y - 3 * x, atol=1e-3)


def test_warp_stays_within_its_amplitude_and_its_axes_differ():
    y, x = deform.random_warp(jax.random.key(0), (60, 80), (5.0, 5.0), 2.0)
    assert 0.5 < np.abs(y).max() <= 2 and 0.5 < np.abs(x).max() <= 2
    assert abs(np.corrcoef(np.ravel(y), np.ravel(x))[0, 1]) < 0.2


def test_noise_has_unit_variance_everywhere():
    draw = jax.vmap(lambda key: deform.smooth_noise(key, (10, 13), (3.0, 4.0)))
    noise = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    assert abs(noise.mean(0)).max() < 0.08
    np.testing.assert_allclose(noise.var(0), 1, atol=0.12)


def where(cell, offset):
    """A value that tells where a cell is evaluated."""
    return jnp.stack(jnp.broadcast_arrays(*offset))


def scipy_bend(control, share):
    """The tensor-product quadratic spline of control points [3, ..., 3] at shares [V, D] of the window, [V]."""
    rows = [BSpline(np.arange(-2, 4), np.eye(3), 2)(np.clip(x, 0, 1)) for x in share.T]
    return np.einsum("vi,vj,ij->v" if len(rows) == 2 else "vi,vj,vk,ijk->v", *rows, control)


@pytest.mark.parametrize("ndim", [2, 3])
def test_cell_bend_is_the_quadratic_b_spline_of_its_own_cell(ndim):
    num, rng = 4, np.random.default_rng(0)
    reach = jnp.asarray(rng.uniform(2, 9, (num, ndim)), jnp.float32)
    control = deform.cell_bend(jax.random.key(0), num, ndim, 0.1)
    value, _ = deform.bent_value(where, reach, control)
    # Also beyond the window, where the warp is that of its border.
    cell = np.repeat(np.arange(num), 100)
    offset = np.float32(rng.uniform(-1.3, 1.3, (400, ndim)) * reach[cell])
    moved = np.asarray(jax.jit(value)(cell, tuple(offset.T))).T
    for index in range(num):
        mine = cell == index
        share = 0.5 + offset[mine] / (2 * reach[index])
        for d in range(ndim):
            bend = scipy_bend(np.asarray(control[index, d]), share)
            np.testing.assert_allclose(moved[mine, d], offset[mine, d] + 2 * reach[index, d] * bend, atol=1e-5)


@pytest.mark.parametrize("ndim", [2, 3])
def test_cell_bends_of_a_tenth_fold_nothing_over_and_keep_to_their_boxes(ndim):
    num = 40
    reach = jnp.linspace(3, 8, num * ndim).reshape(num, ndim)
    control = deform.cell_bend(jax.random.key(1), num, ndim, 0.1)
    assert 0.09 < abs(control).max() <= 0.1 and abs(control.mean()) < 0.01

    def ellipsoid(cell, offset):
        return sum((x / reach[:, d][cell]) ** 2 for d, x in enumerate(offset))

    move, _ = deform.bent_value(where, reach, control)
    value, grown = deform.bent_value(ellipsoid, reach, control)
    cell = jnp.repeat(jnp.arange(num), 300)
    offset = jax.random.uniform(jax.random.key(2), (cell.size, ndim), minval=-1.5, maxval=1.5) * reach[cell]
    jacobian = jax.jit(jax.vmap(jax.jacfwd(lambda x, cell: move(cell, tuple(x)))))(offset, cell)
    assert np.linalg.det(jacobian).min() > 0.1
    inside = np.asarray(value(cell, tuple(offset.T)) <= 1)
    beyond = (abs(offset) > reach[cell]).any(1)
    assert (inside & beyond).any(), "no cell leaves its own window, so the grown one is not tested"
    assert not (inside & (abs(offset) > grown[cell]).any(1)).any()


def test_a_constant_cell_bend_shifts_the_cell():
    reach, shape = jnp.array([[6.0, 4.0]]), (40, 40)
    centre, valid, spacing = jnp.array([[20.0, 20.0]]), jnp.array([True]), jnp.ones(2)

    def ellipse(cell, offset):
        return (offset[0] / 6) ** 2 + (offset[1] / 4) ** 2

    control = jnp.stack([jnp.full((3, 3), -0.25), jnp.full((3, 3), 0.25)])[None]
    bent, grown = deform.bent_value(ellipse, reach, control)
    plain, _ = raster.owners(ellipse, centre, reach, valid, shape, spacing)
    moved, _ = raster.owners(bent, centre, grown, valid, shape, spacing)
    # Displacing coordinates by -3 and 2 moves the body by 3 and -2.
    np.testing.assert_array_equal(moved, np.roll(plain, (3, -2), (0, 1)))
    assert plain.sum() > 60


def determinants(bend, points):
    return np.linalg.det(jax.vmap(jax.jacfwd(lambda x: jnp.stack(deform.bend(bend, tuple(x)))))(points))


@pytest.mark.parametrize("ndim", [2, 3])
def test_gaussian_bends_fold_nothing_over_and_stay_within_reach(ndim):
    size = jnp.array([14.0, 20.0, 90.0])[-ndim:]
    points = jax.random.uniform(jax.random.key(0), (500, ndim), minval=-0.2, maxval=1.2) * size

    @jax.jit
    @jax.vmap
    def judge(key):
        bend = deform.gaussian_bend(key, size, 3, strength=0.95)
        jacobian = jax.vmap(jax.jacfwd(lambda x: jnp.stack(deform.bend(bend, tuple(x)))))(points)
        moved = jnp.stack(deform.bend(bend, tuple(points.T)), -1) - points
        return bend, jnp.linalg.det(jacobian), moved, deform.reach_um(bend)

    bend, determinant, moved, reach = judge(jax.random.split(jax.random.key(1), 30))
    assert determinant.min() > 0.05
    assert (abs(moved) <= reach[:, None] + 1e-4).all()
    np.testing.assert_array_equal(moved[..., -1], 0)
    assert abs(moved[..., 0]).max() > 0.1 * size.min()
    slopes = np.linalg.norm(bend.push_um, axis=-1) / bend.width_um * np.exp(-0.5)
    assert slopes.sum(-1).max() <= 0.95 + 1e-5


def test_a_bump_is_one_to_one_up_to_its_bound_and_no_further():
    place = jnp.linspace(-4, 4, 801)[:, None] * jnp.array([1.0, 0.0])
    for share, folds in ((0.98, False), (1.02, True)):
        bend = deform.dent(jnp.zeros(2), jnp.array([1.0, 0.0]), share * 2 * np.exp(0.5), 2.0)
        assert (determinants(bend, place + bend.centre_um[0]) < 0).any() == folds


@pytest.mark.parametrize("ndim", [2, 3])
def test_bend_is_the_sum_of_its_bumps_and_broadcasts(ndim):
    size = jnp.array([14.0, 20.0, 30.0])[-ndim:]
    one, two = (deform.gaussian_bend(jax.random.key(seed), size, 2) for seed in (0, 1))
    axes = jnp.meshgrid(*[jnp.linspace(0, length, 7) for length in size], indexing="ij", sparse=True)
    moved = np.stack(deform.bend(deform.join(one, two), tuple(axes)))
    at = np.stack(np.meshgrid(*map(np.ravel, axes), indexing="ij"), -1).astype(np.float64)
    expected = at.copy()
    for bend in (one, two):
        for centre, push, width in zip(*map(np.asarray, (bend.centre_um, bend.push_um, bend.width_um)), strict=True):
            expected += push * np.exp(-((at - centre) ** 2).sum(-1, keepdims=True) / (2 * width**2))
    np.testing.assert_allclose(np.moveaxis(moved, 0, -1), expected, atol=1e-4)


@pytest.mark.parametrize("ndim", [2, 3])
def test_dents_reach_their_depth_and_leave_the_far_side(ndim):
    centre, semi_axes = jnp.array([9.0, 12.0, 20.0])[-ndim:], jnp.array([6.0, 8.0, 15.0])[-ndim:]
    body = foregrounds.ellipsoid(centre, semi_axes)

    @jax.jit
    @jax.vmap
    def judge(key):
        dents = deform.random_dents(key, centre, semi_axes, 1, 1.5, 2.0)
        inwards = -dents.push_um / 1.5
        along = jnp.array([[-2.0], [-0.02], [0.02], [2.0]]) * inwards + dents.centre_um
        surface = (dents.centre_um + dents.push_um)[0]
        opposite = (2 * centre - surface) + jnp.array([[-0.02], [0.02]]) * inwards
        dented = foregrounds.bent(body, dents)
        form = jnp.sum(((surface - centre) / semi_axes) ** 2)
        return dented.contains(tuple(along.T)), dented.contains(tuple(opposite.T)), form, surface, inwards[0]

    here, there, form, surface, inwards = judge(jax.random.split(jax.random.key(0), 20))
    np.testing.assert_array_equal(here, np.tile([False, False, True, True], (20, 1)))
    np.testing.assert_array_equal(there, np.tile([True, False], (20, 1)))
    np.testing.assert_allclose(form, 1, atol=1e-4)
    gradient = (surface - centre) / semi_axes**2
    np.testing.assert_allclose(inwards, -gradient / np.linalg.norm(gradient, axis=1, keepdims=True), atol=1e-4)


def test_a_bend_as_a_transform_of_the_raster_is_the_bent_foreground():
    shape, spacing = (20, 30, 40), jnp.array([1.0, 0.7, 0.8])
    centre, semi_axes = jnp.array([10.0, 10.5, 16.0]), jnp.array([6.0, 6.0, 11.0])

    def ellipsoid(cell, offset):
        return sum((x / semi_axes[d]) ** 2 for d, x in enumerate(offset))

    @jax.jit
    def both_ways():
        dents = deform.random_dents(jax.random.key(1), centre, semi_axes, 3, 1.0, 3.0)
        bend = deform.join(dents, deform.gaussian_bend(jax.random.key(0), jnp.array([20.0, 21, 32]), 2))
        labels, overflow = raster.owners(
            ellipsoid, centre[None], semi_axes[None], jnp.array([True]), shape, spacing,
            transform=lambda coords: deform.bend(bend, coords),
        )  # fmt: skip
        bent = foregrounds.bent(foregrounds.ellipsoid(centre, semi_axes), bend)
        return labels, overflow, foregrounds.voxels(bent, shape, spacing)

    labels, overflow, inside = both_ways()
    assert not overflow and inside.sum() > 1000
    assert ((labels > 0) != inside).sum() <= 2
