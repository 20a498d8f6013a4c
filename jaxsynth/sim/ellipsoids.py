"""Cells -> labels: rotated ellipsoids on a voxel grid (paper 000, eq. 1), any rank, any spacing.

A voxel inside several cells belongs to the one it is closest to in that cell's own metric (the smallest quadratic
form), so the result does not depend on the order of the cells, and no cell is swallowed because it came first.

The volume is cut into blocks. Each block gets a short list of the cells whose bounding box meets it, and the
quadratic form runs over that list only, elementwise in volume order, which XLA fuses into one pass over the volume.
"""

import math

import jax
import jax.numpy as jnp

from jaxsynth.records import Cells
from jaxsynth.sim import grid

WORD = 32  # cells per word of the blocks' bit sets
CHUNK = 8  # cells per pass over the volume


def quadratic_form(cells: Cells) -> jax.Array:
    """The matrices A of (x - c)^T A (x - c) <= 1: float32 [N, D, D], symmetric, 1 / um^2."""
    own = cells.rotation / cells.radii_um[..., None]
    return jnp.einsum("nki,nkj->nij", own, own)


def extent_um(cells: Cells) -> jax.Array:
    """Half edge lengths of each cell's bounding box, float32 [N, D], micrometres."""
    return jnp.sqrt(jnp.sum((cells.rotation * cells.radii_um[..., None]) ** 2, axis=1))


def rasterise(
    cells: Cells,
    shape: tuple[int, ...],
    spacing_um: jax.Array,
    *,
    warp_um: tuple[jax.Array, ...] | None = None,
    per_block: int = 64,
) -> tuple[jax.Array, jax.Array]:
    """The instance map of a population.

    Args:
      cells: N cells. Cell i is drawn as label i + 1 where `valid`.
      shape: S, static.
      spacing_um: float32 [D], micrometres per voxel.
      warp_um: optional displacement, D arrays float32 [*S] (`deform.random_warp`), added to the coordinates.
      per_block: static, a multiple of 8; the most cells that may meet one block (32 voxels wide in the last two axes,
        8 in depth). The passes made are as many as the fullest block needs, so a generous number costs little.

    Returns:
      labels int32 [*S], 0 = background, and overflow bool []: some block met more than `per_block` cells, so cells
      may be missing. The caller reads it outside jit and calls again with a larger `per_block`.
    """
    counts = tuple(math.ceil(size / edge) for size, edge in zip(shape, _edges(len(shape)), strict=True))
    # Even blocks: as many as needed, and no larger than the axis asks for.
    edges = tuple(math.ceil(size / count) for size, count in zip(shape, counts, strict=True))
    padded = tuple(count * edge for count, edge in zip(counts, edges, strict=True))
    spacing_um = jnp.asarray(spacing_um, jnp.float32)
    slack = 0.0 if warp_um is None else jnp.stack([jnp.max(jnp.abs(part)) for part in warp_um])
    listed, most = _block_lists(cells, counts, edges, spacing_um, slack, per_block)

    def blocked(x: jax.Array) -> jax.Array:
        """[S] or [1, .., S_d, .., 1] -> count and edge axes interleaved, the volume's own memory order."""
        width = [
            (0, 0 if size == 1 and full != 1 else pad - size)
            for size, full, pad in zip(x.shape, shape, padded, strict=True)
        ]
        x = jnp.pad(x, width)
        split = [
            (1, 1) if size == 1 else (count, edge) for size, count, edge in zip(x.shape, counts, edges, strict=True)
        ]
        return x.reshape([part for pair in split for part in pair])

    def per_voxel(x: jax.Array) -> jax.Array:
        """[*counts] -> broadcast over the voxels of each block."""
        return x.reshape([part for count in counts for part in (count, 1)])

    position = [blocked(axis) for axis in grid.axes_um(padded, spacing_um)]
    if warp_um is not None:
        position = [axis + blocked(part) for axis, part in zip(position, warp_um, strict=True)]
    form, ndim = quadratic_form(cells), len(shape)

    def consider(slot, nearest):
        best, owner = nearest
        index = jax.lax.dynamic_index_in_dim(listed, slot, axis=-1, keepdims=False)
        cell = jnp.maximum(index, 0)
        offset = [position[d] - per_voxel(cells.centre_um[cell, d]) for d in range(ndim)]
        value = sum(
            per_voxel(form[cell, i, j] * (1.0 if i == j else 2.0)) * offset[i] * offset[j]
            for i in range(ndim)
            for j in range(i, ndim)
        )
        nearer = (value <= best) & per_voxel(index >= 0)
        return jnp.where(nearer, value, best), jnp.where(nearer, per_voxel(index + 1), owner)

    def consider_some(chunk, nearest):
        # Unrolled, so that one pass over the volume serves CHUNK cells.
        for slot in range(CHUNK):
            nearest = consider(chunk * CHUNK + slot, nearest)
        return nearest

    interleaved = [part for pair in zip(counts, edges, strict=True) for part in pair]
    start = (jnp.ones(interleaved, jnp.float32), jnp.zeros(interleaved, jnp.int32))
    _, labels = jax.lax.fori_loop(0, (jnp.minimum(most, per_block) + CHUNK - 1) // CHUNK, consider_some, start)
    return labels.reshape(padded)[tuple(slice(size) for size in shape)], most > per_block


def _edges(ndim: int) -> tuple[int, ...]:
    return (8, 32, 32)[-ndim:]


def _block_lists(cells, counts, edges, spacing_um, slack_um, per_block) -> tuple[jax.Array, jax.Array]:
    """The first `per_block` cells that meet each block: int32 [*counts, per_block], -1 = none; and the largest
    number of cells that meets one block, int32 [].

    Every cell is tested against every block, but the answers are kept as bits, 32 cells to a word, and the k-th set
    bit is found by counting: no list over all cells is ever sorted or stored per block.
    """
    num_cells, ndim = cells.valid.shape[0], len(counts)
    words = math.ceil(num_cells / WORD)
    pad = words * WORD - num_cells
    half = jnp.asarray(edges, jnp.float32) / 2 * spacing_um
    reach = extent_um(cells) + half + slack_um
    meets = jnp.pad(cells.valid, (0, pad)).reshape([1] * ndim + [words, WORD])
    for d in range(ndim):
        middle = (jnp.arange(counts[d], dtype=jnp.float32) * 2 + 1) * half[d]
        close = jnp.abs(middle[:, None] - cells.centre_um[None, :, d]) <= reach[None, :, d]
        close = jnp.pad(close, ((0, 0), (0, pad)))
        meets = meets & close.reshape([counts[d] if other == d else 1 for other in range(ndim)] + [words, WORD])
    bit = jnp.uint32(1) << jnp.arange(WORD, dtype=jnp.uint32)
    packed = jnp.sum(jnp.where(meets, bit, jnp.uint32(0)), axis=-1, dtype=jnp.uint32).reshape(-1, words)

    total = jnp.cumsum(jax.lax.population_count(packed).astype(jnp.int32), axis=-1)
    rank = jnp.arange(per_block)
    # The word that holds the rank-th set bit is the first whose running total exceeds the rank.
    word = jax.vmap(lambda row: jnp.searchsorted(row, rank, side="right", method="scan"))(total)
    found = word < words
    word = jnp.minimum(word, words - 1)
    before = jnp.where(word > 0, jnp.take_along_axis(total, jnp.maximum(word - 1, 0), axis=1), 0)
    chosen = jnp.take_along_axis(packed, word, axis=1)[..., None]
    # A bit's rank within its word is the number of set bits below it.
    below = jax.lax.population_count(chosen & (bit - 1)).astype(jnp.int32)
    wanted = ((chosen & bit) != 0) & (below == (rank[None, :] - before)[..., None])
    index = word * WORD + jnp.argmax(wanted, axis=-1)
    listed = jnp.where(found, index, -1).astype(jnp.int32)
    return listed.reshape(*counts, per_block), jnp.max(total[:, -1])
