"""Where random points may be: in a volume, in the shell of an ellipsoid, near any surface."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsynth import keys
from jaxsynth.sim import foregrounds

OVERSAMPLE = 16  # points of the box drawn for each that is wanted
NEWTON = 3  # steps along the normal to a wanted depth


class Source(NamedTuple):
    """Where points may be. Made and used inside one jitted function.

    Attributes:
      propose: (key, num) -> points_um float32 [num, D], and bool [num, 1] or [num, N]: whether a point will do, for
        any cell or for each of the N.
      confine: (new_um, old_um), both [N, D], one point per cell -> [N, D]: the new points, moved back to where they
        may be; old ones are allowed.
    """

    propose: Callable[[jax.Array, int], tuple[jax.Array, jax.Array]]
    confine: Callable[[jax.Array, jax.Array], jax.Array]


def uniform(foreground: foregrounds.Foreground, oversample: int = OVERSAMPLE) -> Source:
    """Points spread uniformly over a foreground, from a box around it.

    Where the foreground is the same for all cells, `oversample` points of the box are drawn for each that is wanted,
    so that thin shells and scattered masks do not cost more rounds.
    """
    ndim = foreground.low_um.shape[0]

    def propose(key, num):
        one_for_all = _inside_shape(foreground, num, ndim) == (num, 1)
        drawn = num * oversample if one_for_all else num
        draw = jax.random.uniform(key, (drawn, ndim))
        points = foreground.low_um + draw * (foreground.high_um - foreground.low_um)
        sound = inside(foreground, points)
        return _first(points, sound[:, 0], num) if drawn > num else (points, sound)

    def confine(new, old):
        half = (new + old) / 2
        halfway = jnp.where(foreground.contains(tuple(half.T))[:, None], half, old)
        return jnp.where(foreground.contains(tuple(new.T))[:, None], new, halfway)

    return Source(propose, confine)


def shell(centre_um: jax.Array, semi_axes_um: jax.Array, inner: jax.Array | float) -> Source:
    """Points spread uniformly over the volume of `foregrounds.shell`, however thin it is: no point drawn is wasted.

    Cells pushed out of it come back along the line to its centre.
    """
    ndim = semi_axes_um.shape[0]

    def propose(key, num):
        way = _unit(jax.random.normal(keys.stream(key, "way"), (num, ndim)))
        share = jax.random.uniform(keys.stream(key, "radius"), (num, 1), minval=inner**ndim, maxval=1.0)
        return centre_um + semi_axes_um * way * share ** (1 / ndim), jnp.ones((num, 1), bool)

    def confine(new, old):
        own = (new - centre_um) / semi_axes_um
        return centre_um + semi_axes_um * _unit(own) * jnp.clip(jnp.linalg.norm(own, axis=1, keepdims=True), inner, 1.0)

    return Source(propose, confine)


def near_surface(depth: foregrounds.Depth, low_depth_um: jax.Array | float, high_depth_um: jax.Array | float) -> Source:
    """Points between two depths below a surface, spread evenly along it.

    Points from a band of two steps of the depth's grid on either side of a random depth are moved there along the
    normal. So the density is even to first order in the curvature times the band's width.

    Args:
      depth: of the organism (`foregrounds.depth_field`).
      low_depth_um, high_depth_um: scalars, or [N], each cell's own; may be equal. Depths are kept within
        `tolerance_um(depth)`.
    """
    ndim = depth.values.ndim
    nodes = jnp.asarray(depth.values.shape, jnp.float32)
    band, tolerance = 2 * jnp.min(depth.step_um), tolerance_um(depth)
    low, high = jnp.atleast_1d(low_depth_um), jnp.atleast_1d(high_depth_um)

    def settle(points, target):
        def step(_, points):
            lack = target - foregrounds.depth_um(depth, points)
            return points + lack[:, None] * foregrounds.inward_normal(depth, points)

        points = jax.lax.fori_loop(0, NEWTON, step, points)
        return points, jnp.abs(foregrounds.depth_um(depth, points) - target) <= tolerance

    def propose(key, num):
        drawn = num * OVERSAMPLE
        points = depth.low_um + jax.random.uniform(keys.stream(key, "box"), (drawn, ndim)) * (nodes - 1) * depth.step_um
        share = jax.random.uniform(keys.stream(key, "depth"), (drawn, 1))
        target = jnp.min(low) + share * (jnp.max(high) - jnp.min(low))
        near = jnp.abs(foregrounds.depth_um(depth, points) - target[:, 0]) <= band
        chosen, sound = _first(jnp.concatenate([points, target], axis=1), near, num)
        points, settled = settle(chosen[:, :ndim], chosen[:, ndim])
        # Each target is within all the cells' ranges together, and a cell takes only those within its own.
        target = chosen[:, ndim:]
        return points, sound & settled[:, None] & (target >= low) & (target <= high)

    def confine(new, old):
        moved, settled = settle(new, jnp.clip(foregrounds.depth_um(depth, old), low, high))
        return jnp.where(settled[:, None], moved, old)

    return Source(propose, confine)


def tolerance_um(depth: foregrounds.Depth) -> jax.Array:
    """How far from the depth asked for a point may lie, by the depth's own measure: 5 % of its grid's step."""
    return 0.05 * jnp.min(depth.step_um)


def inside(foreground, points):
    """Whether points [M, D] lie inside: bool [M, 1], or [M, N] where that depends on the cell."""
    return foreground.contains(tuple(points[:, d, None] for d in range(points.shape[1])))


def _inside_shape(foreground, num, ndim):
    return jax.eval_shape(lambda points: inside(foreground, points), jnp.zeros((num, ndim))).shape


def _first(points, sound, num):
    """The first `num` sound points: [num, D], and bool [num, 1], False where there are not so many."""
    total = jnp.cumsum(sound)
    index = jnp.searchsorted(total, jnp.arange(1, num + 1))
    return points[jnp.minimum(index, points.shape[0] - 1)], (jnp.arange(num) < total[-1])[:, None]


def _unit(way):
    return way / jnp.maximum(jnp.linalg.norm(way, axis=1, keepdims=True), 1e-12)
