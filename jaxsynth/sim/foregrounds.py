"""The regions that cells lie in, and how deep below their surface a point is.

A foreground is a box to draw from and a test of coordinates, elementwise, so that it serves single points and whole
volumes alike.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.scipy.ndimage import map_coordinates

from jaxsynth import keys
from jaxsynth.sim import deform, grid, starshape

Axes = tuple[jax.Array, ...]
NODES = 64  # of a depth field along each axis
HALVINGS = 6  # of a step, to find where a line of nodes crosses the surface
NODES_AT_A_TIME = 8
CLOSE = 1.5  # steps: nearer to the surface it is taken as flat


class Foreground(NamedTuple):
    """A region. Made and used inside one jitted function.

    Attributes:
      low_um, high_um: float32 [D], corners of a box around it.
      contains: D arrays of coordinates (micrometres) that broadcast against each other -> bool of their shape.
    """

    low_um: jax.Array
    high_um: jax.Array
    contains: Callable[[Axes], jax.Array]


def _form(coords: Axes, centre_um: jax.Array, semi_axes_um: jax.Array) -> jax.Array:
    """Sum over the axes of ((x - centre) / semi_axis)^2."""
    return sum(((x - centre_um[d]) / semi_axes_um[d]) ** 2 for d, x in enumerate(coords))


def whole_image(size_um: jax.Array, radii_um: jax.Array, rotation: jax.Array, reach: float = 0.8) -> Foreground:
    """The image and a rim around it, so that cells are cut by its edge as in real images.

    A centre outside the image is taken only where the image's nearest point lies inside the cell, at a normalised
    distance below `reach`; so no cell is placed that cannot be seen. The test is that of the N cells: coordinates are
    [..., N].

    Args:
      size_um: float32 [D], edge lengths of the image.
      radii_um, rotation: [N, D] and [N, D, D], as in `records.Cells`.
      reach: 0 keeps all centres inside the image, 1 lets a cell touch it from outside.
    """
    margin = reach * jnp.max(radii_um)

    def contains(coords: Axes) -> jax.Array:
        gap = [jnp.clip(x, 0.0, size_um[d]) - x for d, x in enumerate(coords)]
        own = [sum(rotation[:, i, d] * x for d, x in enumerate(gap)) / radii_um[:, i] for i in range(len(gap))]
        return sum(x * x for x in own) <= reach**2

    return Foreground(jnp.zeros_like(size_um) - margin, size_um + margin, contains)


def ellipsoid(centre_um: jax.Array, semi_axes_um: jax.Array) -> Foreground:
    """An axis-aligned ellipsoid (ellipse in 2D); both arguments float32 [D]."""
    return Foreground(
        centre_um - semi_axes_um, centre_um + semi_axes_um, lambda coords: _form(coords, centre_um, semi_axes_um) <= 1.0
    )


def shell(centre_um: jax.Array, semi_axes_um: jax.Array, inner: jax.Array | float) -> Foreground:
    """What lies between an ellipsoid and the similar one of `inner` times its size, 0 to 1."""
    low, high = centre_um - semi_axes_um, centre_um + semi_axes_um

    def contains(coords: Axes) -> jax.Array:
        form = _form(coords, centre_um, semi_axes_um)
        return (form <= 1.0) & (form >= inner**2)

    return Foreground(low, high, contains)


def hollow_egg(
    size_um: jax.Array, flatness: float = 0.4, elongation: float = 2.0, shrink: float = 0.3, fill: float = 0.95
) -> Foreground:
    """The hollow body of an insect's egg (003, code), in the middle of a volume and as large as fits.

    Args:
      size_um: float32 [D], the volume's edges. In 2D the egg is cut lengthwise.
      flatness: how much shorter it is along z than across, a share.
      elongation: how much longer it is along x than across.
      shrink: its wall, as a share of the outer semi-axes; the inner ellipsoid has 1 - shrink of them.
      fill: share of the volume's edge that it takes up.
    """
    unit = jnp.stack([jnp.asarray(x, jnp.float32) for x in (1 - flatness, 1.0, elongation)])[-size_um.shape[0] :]
    semi_axes = unit * jnp.min(fill * size_um / 2 / unit)
    return shell(size_um / 2, semi_axes, 1 - shrink)


def discs(centres_um: jax.Array, radius_um: jax.Array, valid: jax.Array) -> Foreground:
    """The union of M discs (balls in 3D): centres [M, D], one radius, and bool [M], which of them count."""

    def contains(coords: Axes) -> jax.Array:
        squared = sum((x[..., None] - centres_um[:, d]) ** 2 for d, x in enumerate(jnp.broadcast_arrays(*coords)))
        return jnp.any((squared <= radius_um**2) & valid, axis=-1)

    far = jnp.where(valid[:, None], centres_um, jnp.inf)
    near = jnp.where(valid[:, None], centres_um, -jnp.inf)
    return Foreground(jnp.min(far, axis=0) - radius_um, jnp.max(near, axis=0) + radius_um, contains)


def disc_clusters(key: jax.Array, size_um: jax.Array, number: tuple[int, int], radius_um: float) -> Foreground:
    """The union of random discs, `number` of them, least and most, with centres anywhere in the image (000, HeLa)."""
    low, most = number
    if not 1 <= low <= most:
        raise ValueError(f"number: expected 1 <= least <= most; got {number}")
    drawn = jax.random.randint(keys.stream(key, "number"), (), low, most + 1)
    centres = jax.random.uniform(keys.stream(key, "centres"), (most, size_um.shape[0])) * size_um
    return discs(centres, radius_um, jnp.arange(most) < drawn)


def star(centre_um: jax.Array, table: jax.Array) -> Foreground:
    """A star-shaped body: its centre, [D], and its table of radii (`starshape`), [K] or [K, K], micrometres."""
    bodies = table[None]
    reach = starshape.reach_um(bodies)[0]
    value = starshape.value(bodies)

    def contains(coords: Axes) -> jax.Array:
        offset = tuple(x - centre_um[d] for d, x in enumerate(coords))
        return value(jnp.zeros((1,) * offset[0].ndim, jnp.int32), offset) <= 1.0

    return Foreground(centre_um - reach, centre_um + reach, contains)


def mask(mask: jax.Array, spacing_um: jax.Array) -> Foreground:
    """The voxels where `mask` (bool [*S]) holds; the test is nearest-voxel, outside the volume nothing is foreground.

    The box is the mask's own; one that fills very little of it may get fewer cells than it has room for.
    """
    size = jnp.asarray(mask.shape, jnp.float32) * spacing_um
    low, high = [], []
    for d, length in enumerate(mask.shape):
        filled = jnp.any(mask, axis=tuple(e for e in range(mask.ndim) if e != d))
        low.append(jnp.argmax(filled))
        high.append(length - jnp.argmax(filled[::-1]))

    def contains(coords: Axes) -> jax.Array:
        inside, index = True, []
        for d, x in enumerate(coords):
            inside = inside & (x >= 0) & (x < size[d])
            index.append(jnp.clip(jnp.floor(x / spacing_um[d]).astype(jnp.int32), 0, mask.shape[d] - 1))
        return mask[tuple(index)] & inside

    return Foreground(jnp.stack(low) * spacing_um, jnp.stack(high) * spacing_um, contains)


def both(first: Foreground, second: Foreground) -> Foreground:
    """The intersection of two foregrounds."""
    return Foreground(
        jnp.maximum(first.low_um, second.low_um),
        jnp.minimum(first.high_um, second.high_um),
        lambda coords: first.contains(coords) & second.contains(coords),
    )


def bent(foreground: Foreground, bend: deform.Bend) -> Foreground:
    """A foreground seen through a bend of the coordinates (`deform.bend`), which takes points back to where they were
    before the body was bent."""
    reach = deform.reach_um(bend)
    return Foreground(
        foreground.low_um - reach,
        foreground.high_um + reach,
        lambda coords: foreground.contains(deform.bend(bend, coords)),
    )


def voxels(foreground: Foreground, shape: tuple[int, ...], spacing_um: jax.Array) -> jax.Array:
    """Which voxels' centres lie in the foreground: bool [*shape]."""
    inside = foreground.contains(grid.axes_um(shape, spacing_um))
    return jnp.broadcast_to(inside, shape)


@struct.dataclass
class Depth:
    """How deep points lie below the surface of a body, on a coarse regular grid.

    Attributes:
      values: float32 [K, ..., K], micrometres, positive inside; node i of an axis is at low_um + i * step_um.
      low_um, step_um: float32 [D].
    """

    values: jax.Array
    low_um: jax.Array
    step_um: jax.Array


def depth_field(foreground: Foreground, nodes: int = NODES) -> Depth:
    """The depth below a foreground's surface, on `nodes` nodes per axis of its box, grown by two steps.

    Where the grid's lines cross the surface is found by bisection, so depths are right to about a tenth of the finest
    step, also in boxes much longer than wide; less so (half a step) at tips no wider than a few steps. What is thinner
    than a step may be missed. Depths stop at the box's diagonal, so that without any surface they are finite.
    """
    if nodes < 8:
        raise ValueError(f"nodes: expected 8 or more along each axis, not {nodes}")
    span = foreground.high_um - foreground.low_um
    step = span / (nodes - 5)
    low = foreground.low_um - 2 * step
    ndim = span.shape[0]
    lines = jnp.meshgrid(*[jnp.arange(nodes, dtype=jnp.float32)] * ndim, indexing="ij", sparse=True)

    def contains(index):
        within = foreground.contains(tuple(low[d] + x * step[d] for d, x in enumerate(index)))
        return jnp.broadcast_to(within, jnp.broadcast_shapes(*(x.shape for x in index)))

    inside = contains(lines)
    along = [_along_lines(contains, lines, inside, axis) * step[axis] for axis in range(ndim)]
    # Far off, the nearest crossing of any line. Those of one axis lie on that axis's lines, so one least sum per other
    # axis gives the exact distance to them.
    far = jnp.linalg.norm(span) ** 2
    for axis, distance in enumerate(along):
        squared = distance**2
        for other in range(ndim):
            if other != axis:
                squared = _least_over(squared, other, step[other])
        far = jnp.minimum(far, squared)
    far = jnp.sqrt(far)
    # Close by, the plane through the nearest crossings along the axes: crossings alone lie too far apart.
    plane = 1 / jnp.sqrt(sum(1 / jnp.maximum(x, 1e-12) ** 2 for x in along))
    depth = jnp.where(far < CLOSE * jnp.min(step), jnp.minimum(plane, far), far)
    return Depth(jnp.where(inside, depth, -depth), low, step)


def _along_lines(contains: Callable, lines: Axes, inside: jax.Array, axis: int) -> jax.Array:
    """How many steps it is from each node to the nearest crossing of the surface along one axis; inf without one."""
    size = inside.shape[axis]
    first = jax.lax.slice_in_dim(inside, 0, size - 1, axis=axis)
    crosses = first != jax.lax.slice_in_dim(inside, 1, size, axis=axis)
    start = jax.lax.slice_in_dim(lines[axis], 0, size - 1, axis=axis)

    def halve(number, place):
        # `place` is the last point known to be on the first node's side.
        middle = place + 0.5 ** (number + 1)
        same = contains((*lines[:axis], middle, *lines[axis + 1 :])) == first
        return jnp.where(same, middle, place)

    place = jax.lax.fori_loop(0, HALVINGS, halve, jnp.broadcast_to(start, first.shape)) + 0.5 ** (HALVINGS + 1)
    sides = [(1, 0) if d == axis else (0, 0) for d in range(inside.ndim)]
    before = jnp.pad(jnp.where(crosses, place, -jnp.inf), sides, constant_values=-jnp.inf)
    after = jnp.pad(jnp.where(crosses, place, jnp.inf), [pair[::-1] for pair in sides], constant_values=jnp.inf)
    before = jax.lax.cummax(before, axis=axis)
    after = jax.lax.cummin(after, axis=axis, reverse=True)
    return jnp.minimum(lines[axis] - before, after - lines[axis])


def _least_over(squared: jax.Array, axis: int, step: jax.Array) -> jax.Array:
    """The least over the nodes k of an axis of squared(k) + ((i - k) step)^2, for every node i."""
    size = squared.shape[axis]
    index = jnp.arange(size).reshape([-1 if d == axis else 1 for d in range(squared.ndim)])

    def improve(chunk, best):
        # Some at a time: whole planes are added and compared, which vectorises, and takes few launches on a GPU.
        for k in range(NODES_AT_A_TIME):
            node = jnp.minimum(chunk * NODES_AT_A_TIME + k, size - 1)
            plane = jax.lax.dynamic_index_in_dim(squared, node, axis=axis)
            best = jnp.minimum(best, plane + ((index - node) * step) ** 2)
        return best

    return jax.lax.fori_loop(0, -(-size // NODES_AT_A_TIME), improve, squared)


def depth_um(depth: Depth, points_um: jax.Array) -> jax.Array:
    """Depths of points [N, D] by linear interpolation: float32 [N]; beyond the grid, that of its edge."""
    at = [(points_um[:, d] - depth.low_um[d]) / depth.step_um[d] for d in range(points_um.shape[1])]
    return map_coordinates(depth.values, at, 1, mode="nearest")


def inward_normal(depth: Depth, points_um: jax.Array) -> jax.Array:
    """Unit vectors towards greater depth at points [N, D]: float32 [N, D]; zero where the depth is flat."""
    columns = []
    for d in range(points_um.shape[1]):
        shift = jnp.zeros(points_um.shape[1]).at[d].set(depth.step_um[d])
        rise = depth_um(depth, points_um + shift) - depth_um(depth, points_um - shift)
        columns.append(rise / (2 * depth.step_um[d]))
    gradient = jnp.stack(columns, -1)
    length = jnp.linalg.norm(gradient, axis=-1, keepdims=True)
    return jnp.where(length > 1e-6, gradient / jnp.maximum(length, 1e-6), 0.0)


def depth_map(depth: Depth, shape: tuple[int, ...], spacing_um: jax.Array) -> jax.Array:
    """The depth of every voxel by linear interpolation: float32 [*shape], micrometres; one matrix product per axis."""

    def along(field: jax.Array, axis: int, of: int) -> jax.Array:
        """`field` interpolated along its axis `axis`, which is axis `of` of the volume."""
        centres = (jnp.arange(shape[of]) + 0.5) * spacing_um[of]
        at = jnp.clip((centres - depth.low_um[of]) / depth.step_um[of], 0, field.shape[axis] - 1)
        hats = jnp.maximum(1 - jnp.abs(at[:, None] - jnp.arange(field.shape[axis])), 0.0)
        return jnp.moveaxis(jnp.tensordot(hats, field, axes=(1, axis), precision="highest"), 0, axis)

    def plane(field: jax.Array) -> jax.Array:
        for axis in range(field.ndim):
            field = along(field, axis, axis + 1)
        return field

    # Plane by plane, as a transposed copy of the volume would double the memory.
    return jax.lax.map(plane, along(depth.values, 0, 0))
