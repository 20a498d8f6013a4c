"""The cartographic projection of an embryo: shells under its surface <-> flat maps (paper 000, Tribolium castaneum).

A map has the axes (radius, azimuth, polar angle). Its rows run once round the embryo, its columns from pole to pole,
its planes outwards, one concentric shell each. Points are taken as "map micrometres", (i + 1/2) * spacing like those
of any volume: true micrometres along the radius, and along the other two true where the spacing is chosen to be so,
on the equator as a rule. Towards the poles the map stretches cells along the rows by 1 / sin(polar angle).

Paper 000 writes (x, y) = (theta, phi) for a map of (2450, 1700, 13) voxels and does not say which angle is which.
Here the 2450 rows are the azimuth. The voxels of a sphere's equator are then 1.5 : 1, and square on an embryo about
1.5 times as long as wide; with the angles exchanged they would be 3.2 : 1, and worse on such an embryo.
"""

import math

import jax
import jax.numpy as jnp
from flax import struct
from jax.scipy.ndimage import map_coordinates

Axes = tuple[jax.Array, jax.Array, jax.Array]


@struct.dataclass
class Projection:
    """An ellipsoidal embryo in a volume, its poles along x, and the map of its surface.

    Attributes:
      centre_um: float32 [3], (z, y, x), micrometres from the volume's corner.
      semi_axes_um: float32 [3], (z, y, x), of the surface, which runs through the middle of the map's depth.
      size_um: float32 [3], extent of the map in map micrometres: its shape times its spacing.
      pole_margin: share of the polar angle left off at each pole, static; below 1/2.
    """

    centre_um: jax.Array
    semi_axes_um: jax.Array
    size_um: jax.Array
    pole_margin: float = struct.field(pytree_node=False, default=0.05)


def make_projection(
    centre_um: jax.Array,
    semi_axes_um: jax.Array,
    shape: tuple[int, int, int],
    spacing_um: jax.Array,
    pole_margin: float = 0.05,
) -> Projection:
    """The projection onto a map of that shape; arguments as in `Projection`.

    Paper 000 has 13 consecutive radii, so a spacing of one voxel of the 500^3 space along the radius: with a surface
    at 230 and nuclei of radius 5 to 6 on it, the 13 shells take in the nuclei from bottom to top.

    Args:
      shape: (radii, azimuths, polar angles), static.
      spacing_um: float [3]; `equator_spacing_um` for cells that are undistorted on the equator.

    Raises:
      ValueError: pole_margin outside [0, 1/2), or a shape that is not 3D.
    """
    if not 0 <= pole_margin < 0.5:
        raise ValueError(f"pole_margin: expected a share in [0, 0.5); got {pole_margin}")
    if len(shape) != 3:
        raise ValueError(f"shape: expected (radii, azimuths, polar angles); got {tuple(shape)}")
    size = jnp.asarray(shape, jnp.float32) * jnp.asarray(spacing_um, jnp.float32)
    centre, semi_axes = (jnp.asarray(x, jnp.float32) for x in (centre_um, semi_axes_um))
    return Projection(centre, semi_axes, size, pole_margin)


def equator_spacing_um(
    radius_um: float, shape: tuple[int, int, int], shell_um: float = 1.0, pole_margin: float = 0.05
) -> tuple[float, float, float]:
    """The map's spacing at which a sphere of that radius is shown true to scale on its equator, micrometres.

    (1.0, 0.590, 0.382) for the paper's map, (13, 2450, 1700) and radius 230.
    """
    return shell_um, 2 * math.pi * radius_um / shape[1], (1 - 2 * pole_margin) * math.pi * radius_um / shape[2]


def positions(projection: Projection, axes: Axes) -> Axes:
    """Where points of the map lie in the embryo: map micrometres (radius, azimuth, polar) -> (z, y, x) micrometres.

    Elementwise: the arrays broadcast against each other, and sines and cosines are taken of the arguments as they
    come, so of the short axes where `grid.axes_um` made them. Serves as `transform` of `raster.owners`, which then
    draws cells straight onto the map, those on the seam on both sides of it. In the middle of the map its axes are
    parallel to those of the volume, so nothing is mirrored: there it looks at the embryo's top, +z.
    """
    radius, azimuth, polar = axes
    depth, girth, length = projection.size_um
    share = jnp.maximum(1 + (radius - depth / 2) / _mean(projection.semi_axes_um), 0.0)
    alpha = 2 * math.pi * (azimuth / girth - 0.5)
    beta = math.pi * (projection.pole_margin + (1 - 2 * projection.pole_margin) * polar / length)
    (a_z, a_y, a_x), (c_z, c_y, c_x) = projection.semi_axes_um, projection.centre_um
    across = share * jnp.sin(beta)
    return (
        c_z + across * (a_z * jnp.cos(alpha)),
        c_y + across * (a_y * jnp.sin(alpha)),
        c_x - share * a_x * jnp.cos(beta),
    )


def coordinates(projection: Projection, points_um: Axes) -> Axes:
    """Where points of the embryo lie on the map, the inverse of `positions`: (z, y, x) -> map micrometres.

    Elementwise. The azimuth is in [0, size); radius and polar angle lie outside 0 to size for points that are not on
    the map. At the centre, which has no direction, the azimuth is that of +z.
    """
    depth, girth, length = projection.size_um
    z, y, x = ((p - c) / a for p, c, a in zip(points_um, projection.centre_um, projection.semi_axes_um, strict=True))
    across = jnp.hypot(z, y)
    share = jnp.hypot(across, x)
    turn = jnp.arctan2(y, z) / (2 * math.pi) + 0.5
    polar = jnp.arctan2(across, -x) / math.pi
    return (
        depth / 2 + (share - 1) * _mean(projection.semi_axes_um),
        girth * jnp.where(turn >= 1, 0.0, turn),
        length * (polar - projection.pole_margin) / (1 - 2 * projection.pole_margin),
    )


def unroll(
    volume: jax.Array,
    projection: Projection,
    shape: tuple[int, int, int],
    spacing_um: jax.Array,
    *,
    order: int = 1,
) -> jax.Array:
    """The map of a volume; 0 where the map reaches out of it.

    Args:
      volume: [Z, Y, X], any dtype.
      shape: of the map, static.
      spacing_um: float [3], of the volume.
      order: 0 takes the nearest voxel, as labels need; 1 interpolates.

    Returns:
      [*shape], dtype of the volume.
    """
    radius, azimuth, polar = _axes(projection.size_um, shape)

    def shell(r):
        return _sample(volume, positions(projection, (r, azimuth[:, None], polar[None, :])), spacing_um, order)

    return jax.lax.map(shell, radius)


def roll(
    flat: jax.Array,
    projection: Projection,
    shape: tuple[int, int, int],
    spacing_um: jax.Array,
    *,
    order: int = 1,
) -> jax.Array:
    """The volume of a map, the inverse of `unroll`; 0 outside the mapped shells and in the caps round the poles.

    Args:
      flat: the map, [radii, azimuths, polar angles], any dtype; its first and last rows are neighbours.
      shape, spacing_um: of the volume.
      order: as in `unroll`.

    Returns:
      [*shape], dtype of the map.
    """
    step = projection.size_um / jnp.asarray(flat.shape, jnp.float32)
    closed = jnp.pad(flat, ((0, 0), (1, 1), (0, 0)), mode="wrap")
    z, y, x = _axes(jnp.asarray(shape, jnp.float32) * jnp.asarray(spacing_um, jnp.float32), shape)

    def plane(height):
        r, a, p = coordinates(projection, jnp.broadcast_arrays(height, y[:, None], x[None, :]))
        return _sample(closed, (r, a + step[1], p), step, order)

    return jax.lax.map(plane, z)


def _mean(semi_axes_um: jax.Array) -> jax.Array:
    """Shells are similar ellipsoids; a micrometre of depth is one on a sphere of the same volume."""
    return jnp.cbrt(jnp.prod(semi_axes_um))


def _axes(size_um: jax.Array, shape: tuple[int, ...]) -> Axes:
    """Voxel centres along each axis, D arrays float32 [S_d]."""
    return tuple((jnp.arange(n, dtype=jnp.float32) + 0.5) * (size_um[d] / n) for d, n in enumerate(shape))


def _sample(volume: jax.Array, points_um: Axes, spacing_um: jax.Array, order: int) -> jax.Array:
    """The volume's values at points, 0 outside of its box; within half a voxel of the edge the edge's value."""
    points_um = jnp.broadcast_arrays(*points_um)
    spacing_um = jnp.asarray(spacing_um, jnp.float32)
    at = [point / spacing_um[d] for d, point in enumerate(points_um)]
    inside = jnp.ones(at[0].shape, bool)
    for x, size in zip(at, volume.shape, strict=True):
        inside = inside & (x >= 0) & (x < size)
    values = map_coordinates(volume, [x - 0.5 for x in at], order, mode="nearest")
    return jnp.where(inside, values, 0).astype(volume.dtype)
