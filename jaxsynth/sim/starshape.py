"""Star-shaped bodies as tables of radii over the directions from their centre.

A body is star-shaped where every ray from its centre meets its surface once. In 3D its radii lie on an octahedral map:
the unit sphere is pushed onto the octahedron |x| + |y| + |z| = 1, whose lower half is folded out into the corners of a
square, K x K nodes with the square's border included. In 2D they lie on a ring of K nodes, evenly spaced along the
diamond |x| + |y| = 1. Finding a direction's place in either takes absolute values and one division, no trigonometry.

A border node of the square stands for the same direction as its mirror image on that side, so a table whose entries
are a function of `directions` joins up with itself, and no lookup ever has to wrap in 3D. Sums and products of such
tables are such tables.
"""

import math

import jax
import jax.numpy as jnp

from jaxsynth.sim import grid, raster

TINY = 1e-20  # keeps the centre itself, which lies in no direction, free of 0 / 0
REFINE = 6  # bisections of a boundary found to half a voxel


def num_nodes(size: int, ndim: int) -> int:
    """Nodes of a table: K in 2D, K * K in 3D."""
    if ndim not in (2, 3) or size < 2:
        raise ValueError(f"a table of radii has 2 or more nodes along an edge in 2 or 3 dimensions, not {size}, {ndim}")
    return size ** (ndim - 1)


def _octahedron(size: int, ndim: int) -> jax.Array:
    """The nodes with |x| + |y| (+ |z|) = 1: float32 [K, K, 3] or [K, 2]."""
    num_nodes(size, ndim)
    if ndim == 2:
        place = 4 * jnp.arange(size, dtype=jnp.float32) / size
        x = jnp.abs(place - 2) - 1
        return jnp.stack([jnp.where(place <= 2, 1.0, -1.0) * (1 - jnp.abs(x)), x], axis=-1)
    line = 2 * jnp.arange(size, dtype=jnp.float32) / (size - 1) - 1
    y, x = jnp.meshgrid(line, line, indexing="ij")
    z = 1 - jnp.abs(y) - jnp.abs(x)
    below = z < 0
    folded_y = jnp.where(y < 0, -1.0, 1.0) * (1 - jnp.abs(x))
    folded_x = jnp.where(x < 0, -1.0, 1.0) * (1 - jnp.abs(y))
    return jnp.stack([z, jnp.where(below, folded_y, y), jnp.where(below, folded_x, x)], axis=-1)


def directions(size: int, ndim: int) -> jax.Array:
    """The unit vectors of a table's nodes, (y, x) or (z, y, x): float32 [K, 2] or [K, K, 3].

    An odd K has nodes on all the axes.
    """
    nodes = _octahedron(size, ndim)
    return nodes / jnp.linalg.norm(nodes, axis=-1, keepdims=True)


def weights(size: int, ndim: int) -> jax.Array:
    """Each node's share of the full (solid) angle, float32 [K] or [K, K], sum 1: the mean of f is sum(weights * f).

    The volume of a body is 4/3 pi times the mean of its radii cubed, its area in 2D pi times that of their squares.
    """
    share = jnp.linalg.norm(_octahedron(size, ndim), axis=-1) ** -ndim
    if ndim == 3:
        # Half of a border node's cell, and three quarters of a corner's, belong to its mirror images.
        half = jnp.ones(size).at[jnp.array([0, -1])].set(0.5)
        share = share * half[:, None] * half
    return share / jnp.sum(share)


def lookup(table: jax.Array, index: jax.Array, offset: tuple[jax.Array, ...]) -> jax.Array:
    """The radius of body `index` in the direction of `offset`, bilinear between the nodes (linear in 2D).

    Args:
      table: float32 [N, K] or [N, K, K].
      index: int32 in [0, N - 1], not checked; broadcasts against the offsets.
      offset: D arrays float32 that broadcast against each other, of any length; the zero vector gets the radius
        along the last axis in 2D and along the first in 3D.

    Returns:
      float32 of the broadcast shape, in the table's unit; elementwise, differentiable in the table.
    """
    size = table.shape[-1]
    # The sum is taken first, so that axes of size 1 broadcast only once.
    scale = 1 / jnp.maximum(sum(jnp.abs(part) for part in offset), TINY)

    def node(place):
        return table.reshape(-1).at[place].get(mode="promise_in_bounds")

    if table.ndim == 2:
        y, x = offset
        turn = jnp.where(y < 0, 3 + x * scale, 1 - x * scale) * (size / 4)
        low = jnp.minimum(turn.astype(jnp.int32), size - 1)
        share = turn - low
        high = jnp.where(low == size - 1, 0, low + 1)
        start = index * size
        return node(start + low) * (1 - share) + node(start + high) * share
    z, y, x = offset
    y, x = y * scale, x * scale
    folded_y = jnp.where(y < 0, -1.0, 1.0) * (1 - jnp.abs(x))
    folded_x = jnp.where(x < 0, -1.0, 1.0) * (1 - jnp.abs(y))
    below = z < 0
    row = (jnp.where(below, folded_y, y) + 1) * ((size - 1) / 2)
    column = (jnp.where(below, folded_x, x) + 1) * ((size - 1) / 2)
    # Rounding may put a direction a hair outside of the square.
    top, left = (jnp.clip(place.astype(jnp.int32), 0, size - 2) for place in (row, column))
    down, right = row - top, column - left
    first = (index * size + top) * size + left
    upper = node(first) * (1 - right) + node(first + 1) * right
    lower = node(first + size) * (1 - right) + node(first + size + 1) * right
    return upper * (1 - down) + lower * down


def value(table: jax.Array, rotation: jax.Array | None = None) -> raster.Value:
    """(|offset| / radius)^2 for `raster.owners`: 1 on the surface, less inside, elementwise.

    Args:
      table: float32 [N, K] or [N, K, K], the radii in micrometres.
      rotation: optional, float32 [N, D, D]; rows are the bodies' own axes in volume coordinates, as in `Cells`.
    """

    def inside(cell: jax.Array, offset: tuple[jax.Array, ...]) -> jax.Array:
        if rotation is not None:
            axes = range(len(offset))
            offset = tuple(sum(rotation[cell, own, axis] * offset[axis] for axis in axes) for own in axes)
        return sum(part * part for part in offset) / jnp.maximum(lookup(table, cell, offset), TINY**0.5) ** 2

    return inside


def box_um(table: jax.Array, rotation: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """The least and greatest offsets from the centre that each body reaches: twice float32 [N, D], the table's unit.

    Between nodes a body reaches at most as far as the largest radius times the farthest unit vector of the nodes
    round that place; arcs between nodes bulge by a share below 8 / (K - 1)^2. So the box holds the body whole, and is
    larger than it needs to be by about the distance between two nodes' radii.

    Args:
      table: float32 [N, K] or [N, K, K].
      rotation: as in `value`.
    """
    ndim, size = table.ndim, table.shape[-1]
    units = directions(size, ndim)
    if rotation is None:
        units = units[None]
    else:
        units = jnp.einsum("...d,nde->n...e", units, rotation, precision="highest")

    def most(x):
        """Of each node and the next ones along the table's axes."""
        if ndim == 2:
            return jnp.maximum(x, jnp.roll(x, -1, axis=1))
        x = jnp.maximum(x[:, 1:], x[:, :-1])
        return jnp.maximum(x[:, :, 1:], x[:, :, :-1])

    radius = most(table)[..., None] * (1 + 8 / max(size - 1, 2) ** 2)
    places = tuple(range(1, ndim))
    return -jnp.max(radius * most(-units), axis=places), jnp.max(radius * most(units), axis=places)


def reach_um(table: jax.Array, rotation: jax.Array | None = None) -> jax.Array:
    """Half edges of boxes round the bodies' centres that hold them whole (`box_um`): float32 [N, D]."""
    low, high = box_um(table, rotation)
    return jnp.maximum(-low, high)


def rasterise(
    centre_um: jax.Array,
    table: jax.Array,
    valid: jax.Array,
    shape: tuple[int, ...],
    spacing_um: jax.Array,
    *,
    rotation: jax.Array | None = None,
    **options,
) -> tuple[jax.Array, jax.Array]:
    """The instance map of N star-shaped bodies: a voxel is inside where it is nearer to the centre than the radius in
    its direction; where several bodies meet, the smallest (distance / radius) owns it.

    The published code fills a Delaunay triangulation of the boundary points, which fills the convex hull (12.8 % too
    much on a peanut); here dents stay.

    Args:
      centre_um: float32 [N, D].
      table: float32 [N, K] or [N, K, K], radii in micrometres (`harmonics.table`, `shape_model.table`).
      valid: bool [N].
      shape, spacing_um, options: as in `raster.owners`.
      rotation: as in `value`.

    Returns:
      labels int32 [*S] and overflow bool [], as `raster.owners`.
    """
    reach = reach_um(table, rotation)
    return raster.owners(value(table, rotation), centre_um, reach, valid, shape, spacing_um, **options)


def centroid_um(mask: jax.Array, spacing_um: jax.Array) -> jax.Array:
    """The mean position of a mask's voxels, float32 [D], micrometres; the volume's middle where there are none."""
    ndim = mask.ndim
    mask = mask.astype(bool)
    total = jnp.sum(mask, dtype=jnp.int32)
    means = []
    for axis, at in enumerate(grid.axes_um(mask.shape, jnp.asarray(spacing_um, jnp.float32))):
        along = jnp.sum(mask, axis=tuple(other for other in range(ndim) if other != axis), dtype=jnp.int32)
        share = jnp.where(total > 0, along / jnp.maximum(total, 1), 1 / mask.shape[axis])
        means.append(jnp.sum(share * at.reshape(-1)))
    return jnp.stack(means)


def radii_from_mask(
    mask: jax.Array, spacing_um: jax.Array, directions: jax.Array, origin_um: jax.Array | None = None
) -> jax.Array:
    """How far a mask reaches from a point along rays.

    The boundary is where the mask, interpolated linearly between voxel centres, crosses one half, found to less than a
    hundredth of a voxel; outside of the volume is background. Where a ray crosses it more than once, as in bodies that
    are not star-shaped about the origin, the farthest crossing is taken, so such bodies come back filled up along the
    rays, but never beyond. A ray that meets the body nowhere gets 0; with the origin inside there is none.

    Args:
      mask: bool (or a number, not 0 inside) [*S].
      spacing_um: float32 [D].
      directions: float32 [..., D], unit vectors.
      origin_um: float32 [D], within the volume; the centroid where None.

    Returns:
      float32 [...], micrometres.
    """
    mask = mask.astype(bool)
    spacing_um = jnp.asarray(spacing_um, jnp.float32)
    origin_um = centroid_um(mask, spacing_um) if origin_um is None else jnp.asarray(origin_um, jnp.float32)
    start = origin_um / spacing_um - 0.5
    step = directions / spacing_um
    # Steps of half a voxel, whatever the spacing.
    pace = 0.5 / jnp.linalg.norm(step, axis=-1)
    padded = jnp.pad(mask, 1).astype(jnp.float32)

    def inside(distance):
        at = start + distance[..., None] * step + 1
        low = jnp.floor(at)
        share = at - low
        total = jnp.zeros(distance.shape)
        for corner in range(2**mask.ndim):
            weight, place = 1.0, []
            for axis in range(mask.ndim):
                bit = corner >> axis & 1
                weight = weight * (share[..., axis] if bit else 1 - share[..., axis])
                # Beyond the padding all is background, as the padding is.
                place.append(jnp.clip(low[..., axis].astype(jnp.int32) + bit, 0, padded.shape[axis] - 1))
            total = total + weight * padded[tuple(place)]
        return total >= 0.5

    def walk(count, last):
        return jnp.where(inside(count * pace), count, last)

    num_steps = 2 * math.ceil(math.dist((0,) * mask.ndim, mask.shape)) + 2
    last = jax.lax.fori_loop(0, num_steps, walk, jnp.full(directions.shape[:-1], -1))

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        within = inside(middle)
        return jnp.where(within, middle, low), jnp.where(within, high, middle)

    low, high = jax.lax.fori_loop(0, REFINE, halve, (last * pace, (last + 1) * pace))
    return jnp.where(last < 0, 0.0, (low + high) / 2)
