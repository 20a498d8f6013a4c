"""The embryo's map: round trips, closed forms on the sphere, and cells drawn straight onto it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsynth.sim import cartography, grid, raster

SHAPE = (5, 96, 64)
VOLUME, VOXEL = (48, 50, 52), (1.0, 1.0, 1.0)


def sphere(radius=18.0, shape=SHAPE, shell_um=1.0, margin=0.05):
    """A sphere in the middle of VOLUME; equator and meridian of the map true to scale."""
    spacing = cartography.equator_spacing_um(radius, shape, shell_um, margin)
    centre = jnp.asarray(VOLUME, jnp.float32) / 2
    return cartography.make_projection(centre, jnp.full(3, radius), shape, jnp.asarray(spacing), margin), spacing


def embryo():
    return cartography.make_projection((24.0, 25.0, 26.0), (17.0, 18.0, 22.0), SHAPE, (1.0, 1.2, 0.9), 0.05)


def test_coordinates_invert_positions():
    projection = embryo()
    axes = jnp.broadcast_arrays(*grid.axes_um(SHAPE, projection.size_um / jnp.asarray(SHAPE)))
    back = cartography.coordinates(projection, cartography.positions(projection, axes))
    for new, old in zip(back, axes, strict=True):
        np.testing.assert_allclose(new, old, atol=2e-4)


def test_positions_invert_coordinates_off_the_map_too():
    projection = embryo()
    points = np.random.default_rng(0).uniform(0, 50, (3, 500)).astype(np.float32)
    back = cartography.positions(projection, cartography.coordinates(projection, tuple(points)))
    np.testing.assert_allclose(np.stack(back), points, atol=2e-4)


def test_the_middle_shell_is_the_surface_and_shells_are_as_far_apart_as_the_spacing():
    projection = embryo()
    point = cartography.positions(projection, grid.axes_um(SHAPE, projection.size_um / jnp.asarray(SHAPE)))
    own = [(p - c) / a for p, c, a in zip(point, projection.centre_um, projection.semi_axes_um, strict=True)]
    share = np.sqrt(sum(np.asarray(x, np.float64) ** 2 for x in jnp.broadcast_arrays(*own)))
    mean = np.cbrt(17.0 * 18.0 * 22.0)
    expected = 1 + (np.arange(5) - 2) / mean
    np.testing.assert_allclose(share, np.broadcast_to(expected[:, None, None], SHAPE), atol=1e-5)


def test_middle_of_the_map_is_parallel_to_the_volume():
    projection, _ = sphere()
    middle = projection.size_um / 2
    jacobian = jax.jacfwd(lambda at: jnp.stack(cartography.positions(projection, tuple(at))))(middle)
    np.testing.assert_allclose(jacobian, np.eye(3), atol=1e-5)
    np.testing.assert_allclose(jnp.stack(cartography.positions(projection, tuple(middle))), (42, 25, 26), atol=1e-4)


def test_volume_element_is_that_of_spherical_coordinates():
    projection, _ = sphere()
    rng = np.random.default_rng(1)
    at = jnp.asarray(rng.random((50, 3)), jnp.float32) * projection.size_um
    jacobian = jax.vmap(jax.jacfwd(lambda x: jnp.stack(cartography.positions(projection, tuple(x)))))(at)
    polar = np.pi * (0.05 + 0.9 * at[:, 2] / projection.size_um[2])
    share = 1 + (at[:, 0] - projection.size_um[0] / 2) / 18
    np.testing.assert_allclose(jnp.linalg.det(jacobian), share**2 * np.sin(polar), rtol=1e-4)


@pytest.mark.parametrize("margin", [0.0, 0.05, 0.2])
def test_map_covers_the_sphere_but_for_the_margins(margin):
    projection, spacing = sphere(shape=(1, 200, 300), margin=margin)
    _, _, polar = grid.axes_um((1, 200, 300), jnp.asarray(spacing))
    area = np.sum(np.sin(np.pi * (margin + (1 - 2 * margin) * polar / projection.size_um[2]))) * 200
    z, y, x = cartography.positions(projection, grid.axes_um((1, 200, 300), jnp.asarray(spacing)))
    np.testing.assert_allclose((z - 24) ** 2 + (y - 25) ** 2 + (x - 26) ** 2, 18.0**2, rtol=1e-4)
    # Zone of a sphere: 4 pi r^2 cos(margin pi).
    assert area * spacing[1] * spacing[2] == pytest.approx(4 * np.pi * 18**2 * np.cos(margin * np.pi), rel=1e-4)
    assert float(jnp.min(x)) == pytest.approx(26 - 18 * np.cos(np.pi * (margin + (1 - 2 * margin) / 600)), abs=1e-3)


def drawn(centres, radius=3.0, shape=(5, 240, 160)):
    projection, spacing = sphere(shape=shape, shell_um=0.5)
    centres = jnp.asarray(centres, jnp.float32)
    labels, overflow = jax.jit(
        lambda projection, centres: raster.owners(
            lambda cell, offset: sum(x * x for x in offset) / radius**2,
            centres,
            jnp.full(centres.shape, radius),
            jnp.ones(len(centres), bool),
            shape,
            jnp.asarray(spacing),
            transform=lambda axes: cartography.positions(projection, axes),
        )
    )(projection, centres)
    assert not overflow
    return np.asarray(labels), spacing


def on_sphere(azimuth, polar, radius=18.0):
    """The point in VOLUME, azimuth from +z towards +y, polar angle from low x."""
    return (
        24 + radius * np.sin(polar) * np.cos(azimuth),
        25 + radius * np.sin(polar) * np.sin(azimuth),
        26 - radius * np.cos(polar),
    )


def test_a_ball_on_the_shell_is_stretched_towards_the_poles():
    polars = np.deg2rad([90.0, 60.0, 40.0, 25.0])
    labels, spacing = drawn([on_sphere(1.4 * turn - 2.1, polar) for turn, polar in enumerate(polars)])
    middle = labels[2]
    for label, polar in enumerate(polars, 1):
        rows, columns = np.nonzero(middle == label)
        # A chord of length r spans an angle of 2 arcsin(r / 2R); the ball's rim on the shell is a circle of that
        # angular radius, which spans sin(a) / sin(polar) in azimuth.
        rim = 2 * np.arcsin(3 / 36)
        width = 2 * 18 * np.arcsin(np.sin(rim) / np.sin(polar))
        assert np.ptp(rows) + 1 == pytest.approx(width / spacing[1], abs=1.6)
        assert np.ptp(columns) + 1 == pytest.approx(2 * 18 * rim / spacing[2], abs=1.6)
        # The map's solid angle, each voxel at its own weight, is that of a cap.
        weight = np.sin(np.pi * (0.05 + 0.9 * (columns + 0.5) / 160)) * spacing[1] * spacing[2]
        assert weight.sum() == pytest.approx(2 * np.pi * 18**2 * (1 - np.cos(rim)), rel=0.04)


def test_a_cell_on_the_seam_shows_on_both_sides():
    labels, _ = drawn([on_sphere(np.pi, np.pi / 2)])
    rows = np.nonzero(labels[2].any(1))[0]
    assert rows.min() == 0 and rows.max() == 239 and not labels[2, 60:180].any()


def test_cells_beyond_the_margin_do_not_show():
    labels, _ = drawn([on_sphere(0.0, 0.0), on_sphere(0.3, np.pi / 2)], radius=1.5)
    assert set(np.unique(labels)) == {0, 2}


@pytest.fixture(scope="module")
def unroll():
    return jax.jit(cartography.unroll, static_argnames=("shape", "order"))


@pytest.fixture(scope="module")
def roll():
    return jax.jit(cartography.roll, static_argnames=("shape", "order"))


def test_unroll_of_a_linear_volume_is_exact(unroll):
    projection = embryo()
    axes = grid.axes_um(VOLUME, jnp.ones(3))
    volume = axes[0] - 2 * axes[1] + 3 * axes[2]
    z, y, x = cartography.positions(projection, grid.axes_um(SHAPE, projection.size_um / jnp.asarray(SHAPE)))
    np.testing.assert_allclose(unroll(volume, projection, SHAPE, jnp.ones(3)), z - 2 * y + 3 * x, atol=1e-3)


def test_roll_of_a_map_of_directions_gives_them_back(unroll, roll):
    projection, _ = sphere()
    point = cartography.positions(projection, grid.axes_um(SHAPE, projection.size_um / jnp.asarray(SHAPE)))
    smooth = jnp.broadcast_to((point[0] + 2 * point[1]) / 10, SHAPE)
    volume = np.asarray(roll(smooth, projection, VOLUME, jnp.ones(3)))
    axes = jnp.broadcast_arrays(*grid.axes_um(VOLUME, jnp.ones(3)))
    radius, _, polar = cartography.coordinates(projection, axes)
    on_map = (radius > 0) & (radius < projection.size_um[0]) & (polar > 0) & (polar < projection.size_um[2])
    deep = (radius > 0.5) & (radius < 4.5) & (polar > 1) & (polar < projection.size_um[2] - 1)
    np.testing.assert_allclose(volume[deep], ((axes[0] + 2 * axes[1]) / 10)[deep], atol=0.02)
    assert (volume[~on_map] == 0).all() and (volume[on_map] != 0).all()
    # Where interpolation does not touch the map's rim, there and back again is the identity but for curvature.
    again = np.asarray(unroll(volume, projection, SHAPE, jnp.ones(3)))
    np.testing.assert_allclose(again[2, :, 4:-4], smooth[2, :, 4:-4], atol=0.05)


def test_labels_keep_their_values_there_and_back(unroll, roll):
    projection, _ = sphere()
    sectors = jnp.broadcast_to((1 + jnp.arange(96) // 24 * 3)[:, None], SHAPE).astype(jnp.int32)
    volume = roll(sectors, projection, VOLUME, jnp.ones(3), order=0)
    assert volume.dtype == jnp.int32 and set(np.unique(volume)) == {0, 1, 4, 7, 10}
    back = np.asarray(unroll(volume, projection, SHAPE, jnp.ones(3), order=0))[2]
    away = np.abs((np.arange(96) + 0.5) % 24 - 12) < 9  # from the borders between sectors
    assert (back[away, 12:-12] == sectors[2, away, 12:-12]).mean() > 0.99


def test_out_of_the_volume_is_background(unroll):
    projection = cartography.make_projection((0.0, 25.0, 26.0), (17.0, 18.0, 22.0), SHAPE, (1.0, 1.2, 0.9))
    flat = unroll(jnp.ones(VOLUME), projection, SHAPE, jnp.ones(3))
    z = cartography.positions(projection, grid.axes_um(SHAPE, projection.size_um / jnp.asarray(SHAPE)))[0]
    np.testing.assert_allclose(flat, jnp.broadcast_to(z >= 0, SHAPE), atol=1e-5)


def test_vmap_is_the_loop():
    flat = jnp.arange(2 * 3 * 8 * 6, dtype=jnp.float32).reshape(2, 3, 8, 6)
    projection = cartography.make_projection((4.0, 4.0, 4.0), (3.0, 3.0, 3.0), (3, 8, 6), (1.0, 2.0, 1.0))
    many = jax.vmap(lambda x: cartography.roll(x, projection, (8, 8, 8), jnp.ones(3)))(flat)
    for one, x in zip(many, flat, strict=True):
        alone = cartography.roll(x, projection, (8, 8, 8), jnp.ones(3))
        np.testing.assert_allclose(one, alone, rtol=1e-5, atol=1e-4)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="pole_margin"):
        sphere(margin=0.5)
    with pytest.raises(ValueError, match="shape"):
        cartography.make_projection((1.0,) * 3, (1.0,) * 3, (8, 8), (1.0, 1.0))
