"""Where the organism is that labelled cells belong to: their union, the gaps between them closed and holes filled."""

import math

import jax
import jax.numpy as jnp

from jaxsynth.sim import distance

MOST_VOX = 32.0  # voxels along x: no farther are gaps bridged from either side


def closed(labels: jax.Array, spacing_um: tuple[float, ...], walls: jax.Array | None = None) -> jax.Array:
    """The voxels of the organism, bool [*S].

    The union of the cells is closed by a ball: what no such ball reaches from outside belongs to the organism, as does
    what is enclosed. Its radius is the diameter of a typical cell, so gaps of up to two cells' diameters are bridged
    between nuclei, while cells that touch keep their common surface but for its grooves. Beyond the volume's edge
    cells go on as they are on it.

    Args:
      labels: int32 [*S], cells or nuclei; 0 = background. Of one label for all, the ball has at most MOST_VOX, too.
      spacing_um: D micrometres per voxel, static.
      walls: bool [*S], voxels that belong to the organism beside those of labels.
    """
    spacing = jnp.asarray(spacing_um, jnp.float32)
    most = MOST_VOX * spacing[-1]
    cells = labels > 0
    depth = distance.to_other_um(labels, spacing, most)
    mean = jnp.sum(jnp.where(cells, depth, 0)) / jnp.maximum(jnp.sum(cells), 1)
    # Within a ball of radius r the mean depth is r / (D + 1).
    reach = jnp.minimum(2 * (labels.ndim + 1) * mean, most)
    limit = reach + jnp.min(spacing)  # what is as far as this lies beyond reach
    body = cells if walls is None else cells | walls
    # Beyond the edge as on it, so that what comes near the edge does not grow together with it.
    pads = [math.ceil(MOST_VOX * spacing_um[-1] / step) for step in spacing_um]
    near = distance.to_mask_um(jnp.pad(body, [(n, n) for n in pads], mode="edge"), spacing, limit) <= reach
    whole = distance.to_mask_um(~near, spacing, limit) > reach
    return fill_holes(whole[tuple(slice(n, n + size) for n, size in zip(pads, labels.shape, strict=True))])


def fill_holes(mask: jax.Array) -> jax.Array:
    """`mask` with all that has no way to the volume's edge through faces of voxels outside it; bool [*S]."""
    open_ = ~mask
    at_edge = jnp.zeros(mask.shape, bool)
    for axis, size in enumerate(mask.shape):
        index = jax.lax.broadcasted_iota(jnp.int32, mask.shape, axis)
        at_edge |= (index == 0) | (index == size - 1)

    def sweep(carry):
        outside, _ = carry
        before = outside
        for axis in range(mask.ndim):
            for reverse in (False, True):
                outside = _along(outside, open_, axis, reverse)
        return outside, jnp.any(outside != before)

    outside, _ = jax.lax.while_loop(lambda carry: carry[1], sweep, (open_ & at_edge, jnp.bool_(True)))
    return ~outside


def _along(outside: jax.Array, open_: jax.Array, axis: int, reverse: bool) -> jax.Array:
    """What is open and has, towards one end of the axis, some voxel outside nearer than any that is not open."""
    index = jax.lax.broadcasted_iota(jnp.int32, outside.shape, axis)
    index = outside.shape[axis] - index if reverse else index + 1

    def last(mask):
        return jax.lax.cummax(jnp.where(mask, index, 0), axis=axis, reverse=reverse)

    return open_ & (last(outside) > last(~open_))
