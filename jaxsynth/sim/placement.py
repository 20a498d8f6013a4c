"""Where cells may lie and where they are put.

A foreground is a box to draw from and a test of the points drawn. Its test sees one point per cell slot, so it may
depend on the cell (a large cell may have its centre further outside the image and still show).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsynth import keys


class Foreground(NamedTuple):
    """The region that centres are drawn from. Made and used inside one jitted function.

    Attributes:
      low_um, high_um: float32 [D], corners of a box around the region.
      contains: points_um float32 [N, D], point i a proposed centre of cell i -> bool [N].
    """

    low_um: jax.Array
    high_um: jax.Array
    contains: Callable[[jax.Array], jax.Array]


def whole_image(size_um: jax.Array, radii_um: jax.Array, rotation: jax.Array, reach: float = 0.8) -> Foreground:
    """The image and a rim around it, so that cells are cut by its edge as in real images.

    A centre outside the image is taken only where the image's nearest point lies inside the cell, at a normalised
    distance below `reach`; so no cell is placed that cannot be seen.

    Args:
      size_um: float32 [D], edge lengths of the image.
      radii_um, rotation: [N, D] and [N, D, D], as in `records.Cells`.
      reach: 0 keeps all centres inside the image, 1 lets a cell touch it from outside.
    """
    margin = reach * jnp.max(radii_um)

    def contains(points_um: jax.Array) -> jax.Array:
        gap = jnp.clip(points_um, 0.0, size_um) - points_um
        own = jnp.einsum("nij,nj->ni", rotation, gap) / radii_um
        return jnp.sum(own**2, axis=-1) <= reach**2

    return Foreground(jnp.zeros_like(size_um) - margin, size_um + margin, contains)


def ellipsoid(centre_um: jax.Array, semi_axes_um: jax.Array) -> Foreground:
    """An axis-aligned ellipsoid (ellipse in 2D); both arguments float32 [D]."""
    return Foreground(
        centre_um - semi_axes_um,
        centre_um + semi_axes_um,
        lambda points_um: jnp.sum(((points_um - centre_um) / semi_axes_um) ** 2, axis=-1) <= 1.0,
    )


def discs(centres_um: jax.Array, radius_um: jax.Array, valid: jax.Array) -> Foreground:
    """The union of M discs (balls in 3D): centres [M, D], one radius, and bool [M], which of them count."""

    def contains(points_um: jax.Array) -> jax.Array:
        squared = jnp.sum((points_um[:, None, :] - centres_um[None]) ** 2, axis=-1)
        return jnp.any((squared <= radius_um**2) & valid, axis=-1)

    far = jnp.where(valid[:, None], centres_um, jnp.inf)
    near = jnp.where(valid[:, None], centres_um, -jnp.inf)
    return Foreground(jnp.min(far, axis=0) - radius_um, jnp.max(near, axis=0) + radius_um, contains)


def mask(mask: jax.Array, spacing_um: jax.Array) -> Foreground:
    """The voxels where `mask` (bool [*S]) holds; the test is nearest-voxel, outside the volume nothing is foreground.

    The box is the whole volume: for a mask that fills little of it, raise `rounds` of `random_centres`.
    """
    size = jnp.asarray(mask.shape, jnp.float32) * spacing_um

    def contains(points_um: jax.Array) -> jax.Array:
        index = jnp.floor(points_um / spacing_um).astype(jnp.int32)
        inside = jnp.all((points_um >= 0) & (points_um < size), axis=-1)
        index = jnp.clip(index, 0, jnp.asarray(mask.shape) - 1)
        return mask[tuple(jnp.moveaxis(index, -1, 0))] & inside

    return Foreground(jnp.zeros_like(size), size, contains)


def both(first: Foreground, second: Foreground) -> Foreground:
    """The intersection of two foregrounds."""
    return Foreground(
        jnp.maximum(first.low_um, second.low_um),
        jnp.minimum(first.high_um, second.high_um),
        lambda points_um: first.contains(points_um) & second.contains(points_um),
    )


def random_centres(
    key: jax.Array,
    foreground: Foreground,
    clearance_um: jax.Array,
    num_cells: jax.Array | int,
    rounds: int = 1000,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Random centres that keep their distance, by parallel dart throwing.

    In every round each unplaced cell proposes a point; it stays if it lies in the foreground, away from every cell
    placed before, and away from every sound proposal of a lower slot in the same round. The lowest sound proposal
    always stays, so a round is never wasted, and cell i's proposals depend on the key and i alone.

    Args:
      key: typed PRNG key.
      foreground: the region.
      clearance_um: float32 [N]; cells i and j are at least clearance_i + clearance_j apart.
      num_cells: int32 [], how many of the N slots to fill (the first ones); may be traced.
      rounds: bound on the number of rounds; most fields are full after a few.

    Returns:
      centres_um float32 [N, D], placed bool [N] (a subset of the first num_cells slots), overflow bool []: fewer
      were placed than asked for, for want of room or of slots.
    """
    capacity, ndim = clearance_um.shape[0], foreground.low_um.shape[0]
    wanted = jnp.arange(capacity) < num_cells
    apart = (clearance_um[:, None] + clearance_um[None, :]) ** 2
    lower = jnp.arange(capacity)[None, :] < jnp.arange(capacity)[:, None]
    span = foreground.high_um - foreground.low_um

    def clash(points: jax.Array, others: jax.Array, count: jax.Array) -> jax.Array:
        # One term per axis, so that the [N, N, D] differences are never stored.
        squared = sum((points[:, None, d] - others[None, :, d]) ** 2 for d in range(ndim))
        return jnp.any((squared < apart) & count, axis=1)

    def throw(carry):
        number, centres, placed = carry
        draw = jax.random.uniform(keys.stream(key, "dart", number), (capacity, ndim))
        points = foreground.low_um + draw * span
        sound = wanted & ~placed & foreground.contains(points) & ~clash(points, centres, placed[None, :])
        keep = sound & ~clash(points, points, sound[None, :] & lower)
        return number + 1, jnp.where(keep[:, None], points, centres), placed | keep

    def unfinished(carry):
        number, _, placed = carry
        return (number < rounds) & jnp.any(wanted & ~placed)

    start = (jnp.int32(0), jnp.zeros((capacity, ndim), jnp.float32), jnp.zeros(capacity, bool))
    _, centres, placed = jax.lax.while_loop(unfinished, throw, start)
    return centres, placed, jnp.sum(placed) < num_cells
