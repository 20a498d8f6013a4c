"""Exact Euclidean distances on a voxel grid, in micrometres, for any rank and any spacing.

Distances are measured from voxel centre to voxel centre, as SciPy's `distance_transform_edt` does. So the least
distance to another label is one voxel, and a flat wall between two labels, halfway between their centres, lies half a
voxel nearer than the distance says.

The squared distance is separable: after the distance along the last axis, each further axis takes the least of
D(x + k) + (k s)^2 over the offsets k = 1, 2, ... and stops as soon as (k s)^2 exceeds all that is left to improve, so
near distances, and distances up to a limit, cost few passes. Work goes slab by slab, which keeps it in the cache and
the extra memory small.
"""

import math

import jax
import jax.numpy as jnp

OFFSETS = 4  # offsets per pass over a slab
SLAB_VOXELS = {"cpu": 2**18}  # of one slab
SLAB_VOXELS_ELSEWHERE = 2**23


def to_other_um(
    labels: jax.Array, spacing_um: jax.Array, limit_um: jax.Array | float | None = None, edge: bool = False
) -> jax.Array:
    """The distance of every voxel to the nearest voxel of another label, background included, as one of them.

    Args:
      labels: int32 [*S] (or bool).
      spacing_um: float [D], micrometres per voxel.
      limit_um: distances beyond are given as this; may be traced. A low limit saves time.
      edge: static; whether what lies outside the volume counts as another label. If not, cells go on unseen.

    Returns:
      float32 [*S], micrometres, at least the smallest spacing; the limit, or inf, where there is no other label.
    """
    return _transform(labels, spacing_um, limit_um, edge, many=True)


def to_mask_um(mask: jax.Array, spacing_um: jax.Array, limit_um: jax.Array | float | None = None) -> jax.Array:
    """The distance of every voxel to the nearest one where `mask` (bool [*S]) holds: 0 there, the limit, or inf,
    where there is none. Arguments and result as in `to_other_um`."""
    return _transform(mask, spacing_um, limit_um, edge=False, many=False)


def signed_um(mask: jax.Array, spacing_um: jax.Array, limit_um: jax.Array | float | None = None) -> jax.Array:
    """The distance to the nearest voxel on the other side, positive where `mask` holds and negative elsewhere.

    Centre to centre, so no value lies between minus and plus one voxel, and the depth below a flat face is half a
    voxel less. An empty mask gives -inf, a full one inf, or the limit. Arguments and result as in `to_other_um`.
    The published programs measure at quarter resolution and forget to scale by 4.
    """
    distance = to_other_um(mask, spacing_um, limit_um)
    return jnp.where(mask, distance, -distance)


def _transform(x: jax.Array, spacing_um: jax.Array, limit_um, edge: bool, many: bool) -> jax.Array:
    """Distance to another value of `x` (many) or to where `x` is True (not many)."""
    if len(spacing_um) != x.ndim:
        raise ValueError(f"spacing_um: expected {x.ndim} values for labels of shape {x.shape}, got {len(spacing_um)}")
    spacing = jnp.asarray(spacing_um, jnp.float32)
    limit = jnp.float32(jnp.inf) if limit_um is None else jnp.asarray(limit_um, jnp.float32) ** 2
    if x.size == 0:
        return jnp.zeros(x.shape, jnp.float32)
    if many and x.dtype == bool:
        x = x.astype(jnp.int8)  # leaves room for a value of its own outside the volume

    def within(x, squared, labels):
        # All axes but the first; slabs are cut across it, so they do not see each other.
        squared = _along_last(x, spacing[-1], edge, many)
        squared = jnp.minimum(squared, limit)
        for axis in range(x.ndim - 2, 0, -1):
            squared = _along(squared, labels, axis, spacing[axis], edge)
        return squared

    def across(x, squared, labels):
        return _along(squared, labels, 0, spacing[0], edge)

    if x.ndim == 1:
        return jnp.sqrt(within(x, None, x if many else None))
    # Written over slab by slab, so the values do not matter; XLA would share a constant between several distance maps,
    # and copy it for each.
    squared = x.astype(jnp.float32)
    squared = _by_slabs(within, x, squared, many, axis=0)
    squared = _by_slabs(across, x, squared, many, axis=1)
    return jnp.sqrt(squared)


def _by_slabs(work, x: jax.Array, squared: jax.Array, many: bool, axis: int) -> jax.Array:
    """`work` on slabs cut across `axis`, the result written in place of `squared`."""
    size = x.shape[axis]
    room = SLAB_VOXELS.get(jax.default_backend(), SLAB_VOXELS_ELSEWHERE)
    number = math.ceil(size / max(room * size // x.size, 1))
    width = math.ceil(size / number)
    if number == 1:
        return work(x, squared, x if many else None)

    def one(slab, squared):
        start = jnp.minimum(slab * width, size - width)
        part = jax.lax.dynamic_slice_in_dim(x, start, width, axis)
        old = jax.lax.dynamic_slice_in_dim(squared, start, width, axis)
        new = work(part, old, part if many else None)
        # The last slab may overlap the one before, whose result must not go through the pass again.
        index = jax.lax.broadcasted_iota(jnp.int32, old.shape, axis)
        new = jnp.where(start + index < slab * width, old, new)
        return jax.lax.dynamic_update_slice_in_dim(squared, new, start, axis)

    return jax.lax.fori_loop(0, number, one, squared)


def _along_last(x: jax.Array, step: jax.Array, edge: bool, many: bool) -> jax.Array:
    """Squared distance along the last axis only, from the nearest source on either side."""
    axis = x.ndim - 1
    index = jax.lax.broadcasted_iota(jnp.float32, x.shape, axis)
    if many:
        change = x[..., 1:] != x[..., :-1]
        outer = jnp.full((*x.shape[:-1], 1), edge)
        first, last, add = jnp.concatenate([outer, change], -1), jnp.concatenate([change, outer], -1), 1.0
    else:
        first = last = x
        add = 0.0
    before = jax.lax.cummax(jnp.where(first, index, -jnp.inf), axis=axis)
    after = jax.lax.cummin(jnp.where(last, index, jnp.inf), axis=axis, reverse=True)
    return ((jnp.minimum(index - before, after - index) + add) * step) ** 2


def _along(squared: jax.Array, labels: jax.Array | None, axis: int, step: jax.Array, edge: bool) -> jax.Array:
    """The least of `squared` plus (k step)^2 at offset k along `axis`; another label is a source at distance 0."""
    size = squared.shape[axis]
    if size == 1 and not edge:
        return squared
    margin = size + OFFSETS
    pads = [(margin, margin) if d == axis else (0, 0) for d in range(squared.ndim)]
    far = jnp.pad(squared, pads, constant_values=jnp.inf)
    least = jnp.min(squared)
    if labels is not None:
        # Beyond the edge stands either the voxel's own label, infinitely far, or no label at all.
        wide = jnp.pad(labels, pads, constant_values=-1) if edge else jnp.pad(labels, pads, mode="edge")
        split = jnp.any(jnp.diff(labels.astype(jnp.int32), axis=axis) != 0) | edge
        least = jnp.where(split, 0.0, least)

    def shifted(array, offset):
        return jax.lax.dynamic_slice_in_dim(array, margin + offset, size, axis)

    def improve(carry):
        number, best = carry
        for k in range(OFFSETS):
            offset = number + k
            cost = (offset.astype(jnp.float32) * step) ** 2
            for way in (offset, -offset):
                value = shifted(far, way)
                if labels is not None:
                    value = jnp.where(shifted(wide, way) == labels, value, 0.0)
                best = jnp.minimum(best, value + cost)
        return number + OFFSETS, best

    def unfinished(carry):
        number, best = carry
        return (number <= size) & ((number.astype(jnp.float32) * step) ** 2 + least < jnp.max(best))

    return jax.lax.while_loop(unfinished, improve, (jnp.int32(1), squared))[1]
