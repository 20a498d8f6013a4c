"""Weighted Voronoi partitions (paper 003, eq. 3): every voxel belongs to the cell of least distance^2 / weight.

Thousands of cells in a large volume never meet all voxels: each block of the volume lists the cells that can own one of
its voxels, those whose least value within the block does not exceed the least of all cells' greatest values there.
"""

import math

import jax
import jax.numpy as jnp

from jaxsynth.sim import raster

SLACK = 1e-4  # relative; far above float32 rounding, so that it never drops a voxel's owner from a block's list


def partition(
    centre_um: jax.Array,
    weight: jax.Array,
    valid: jax.Array,
    shape: tuple[int, ...],
    spacing_um: jax.Array,
    mask: jax.Array | None = None,
    *,
    per_block: int = 64,
) -> tuple[jax.Array, jax.Array]:
    """The instance map of cells that fill a volume, or a part of it, without gaps.

    Args:
      centre_um: float32 [N, D], inside the volume or not.
      weight: float32 [N], positive: gamma of eq. 3, no unit; only ratios count. Equal weights give flat walls; between
        unequal ones walls are spheres that bulge away from the heavier cell.
      valid: bool [N]; cell i is label i + 1 where valid.
      shape: S, static.
      spacing_um: float [D], micrometres per voxel.
      mask: bool [*S], the foreground; None for the whole volume.
      per_block: static; the most cells that can own voxels of one block. Blocks with no foreground need none.

    Returns:
      labels int32 [*S], 0 outside the mask and where there is no cell; and overflow bool []: some block needs more than
      `per_block` cells, so that some voxels may have the wrong owner. The caller reads it outside jit and calls again
      with more room.
    """
    shape = tuple(shape)
    if mask is not None and mask.shape != shape:
        raise ValueError(f"mask: expected the shape {shape}, got {mask.shape}")
    if centre_um.shape[0] == 0:
        return jnp.zeros(shape, jnp.int32), jnp.zeros((), bool)
    centre_um, spacing_um = jnp.asarray(centre_um, jnp.float32), jnp.asarray(spacing_um, jnp.float32)
    inverse = 1 / jnp.asarray(weight, jnp.float32)
    # About as wide as cells that fill the volume would be: wider blocks need long lists, narrower ones many.
    cell_vox = (math.prod(shape) / centre_um.shape[0]) ** (1 / len(shape))
    blocks = raster.make_blocks(shape, min(max(round(0.7 * cell_vox), 8), 32))
    low, high = raster.block_boxes(raster.coordinates(blocks, spacing_um))
    filled = None
    if mask is not None:
        wide = blocks.interleave(mask)
        filled = jnp.any(wide, axis=tuple(range(1, wide.ndim, 2)))

    def row(part):
        # One row of blocks at a time: all blocks times all cells would outweigh the volume.
        low_first, high_first, filled = part
        squared_least, squared_most = 0.0, 0.0
        for d in range(len(shape)):
            below = (low[d][0] if d else low_first)[..., None] - centre_um[:, d]
            above = centre_um[:, d] - (high[d][0] if d else high_first)[..., None]
            squared_least += jnp.maximum(jnp.maximum(below, above), 0.0) ** 2
            # The far end of a box lies beyond its middle, at the distance -min(below, above).
            squared_most += jnp.minimum(below, above) ** 2
        bound = jnp.min(jnp.where(valid, squared_most * inverse, jnp.inf), axis=-1, keepdims=True, initial=jnp.inf)
        meets = valid & (squared_least * inverse <= bound * (1 + SLACK))
        meets = jnp.broadcast_to(meets, (*blocks.counts[1:], valid.shape[0]))
        return raster.block_lists(meets if filled is None else meets & filled[..., None], per_block)

    listed, number = jax.lax.map(row, (low[0], high[0], filled))

    def value(cell, offset):
        return sum(x * x for x in offset) * inverse[cell]

    labels, _ = raster.sweep(value, centre_um, listed, number, blocks, spacing_um, limit=jnp.inf)
    if mask is not None:
        labels = jnp.where(mask, labels, 0)
    return labels, jnp.max(number) > per_block


def nearest_neighbour_um(centre_um: jax.Array, valid: jax.Array) -> jax.Array:
    """The distance from each cell's centre to the nearest other: [N, D], bool [N] -> float32 [N].

    Where a cell is not valid, or has no other beside it, inf. All pairs are looked at, one axis at a time and without
    storing them: right for thousands of cells.
    """
    count = centre_um.shape[0]
    squared = sum((x[:, None] - x[None, :]) ** 2 for x in jnp.moveaxis(centre_um, -1, 0))
    pairs = valid[:, None] & valid[None, :] & ~jnp.eye(count, dtype=bool)
    return jnp.sqrt(jnp.min(jnp.where(pairs, squared, jnp.inf), axis=1, initial=jnp.inf))


def weights(nearest_um: jax.Array, power: float = 1.0) -> jax.Array:
    """Weights that give cells with room around them more of it: gamma = (distance to the next cell / mean)^power.

    Args:
      nearest_um: float32 [N], from `nearest_neighbour_um`; inf where there is none, which counts as the mean.
      power: 0 for equal weights, so flat walls; 1 bends them; at 2 a wall divides the line between two centres as
        their distances to their next cells.

    Returns:
      float32 [N], positive. The papers only say that the weight follows the distance to the next cell; its form is
      our choice.
    """
    known = jnp.isfinite(nearest_um)
    mean = jnp.sum(jnp.where(known, nearest_um, 0.0)) / jnp.maximum(jnp.sum(known), 1)
    # Centres that coincide would have no weight at all.
    ratio = jnp.maximum(nearest_um / jnp.maximum(mean, 1e-6), 1e-3)
    return jnp.where(known, ratio, 1.0) ** power
