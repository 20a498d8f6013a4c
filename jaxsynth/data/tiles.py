"""Volumes in tiles: one network evaluation of a volume as many of its tiles, merged so that no seam is left.

Tiles are merged at every evaluation (not after the whole sampling, which loses noise variance in the overlaps), so
a sampler that uses a tiled denoiser keeps one noise field for the volume and never knows of the tiles.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxsynth.errors import InputError

STRIDE = 8  # three halvings in the network: tiles at multiples of 8 see the same grid as the whole volume


@struct.dataclass
class TileGrid:
    """Overlapping tiles over a padded volume; all fields are static tuples of D ints, voxels.

    Tile i of an axis begins at i * stride, the last one where the padded volume leaves it room.

    Attributes:
      shape: the volume's. padded: the same, rounded up to a multiple of 8.
      tile: a tile's. stride: from tile to tile. counts: tiles per axis.
    """

    shape: tuple[int, ...] = struct.field(pytree_node=False)
    padded: tuple[int, ...] = struct.field(pytree_node=False)
    tile: tuple[int, ...] = struct.field(pytree_node=False)
    stride: tuple[int, ...] = struct.field(pytree_node=False)
    counts: tuple[int, ...] = struct.field(pytree_node=False)

    @property
    def num_tiles(self) -> int:
        """Tiles in all."""
        return int(np.prod(self.counts))

    @property
    def overhead(self) -> float:
        """Evaluated voxels over the volume's voxels."""
        return self.num_tiles * float(np.prod(self.tile)) / float(np.prod(self.shape))


def _plan_axis(size: int, tile: int, overlap: int) -> tuple[int, int, int, int]:
    """(padded, tile, stride, count) of one axis: as few tiles as possible, and these as small as possible."""
    padded = _round_up(size)
    overlap = _round_up(overlap)
    tile = tile // STRIDE * STRIDE
    if padded <= tile:
        return padded, padded, padded, 1
    # Over a longer overlap three tiles would meet; `merge` is written for two.
    if tile < max(2 * overlap, STRIDE):
        raise InputError(
            f"tiles of {tile} voxels are too small for an overlap of {overlap}: "
            "a tile must be at least twice its overlap, both in multiples of 8"
        )
    count = -(-(padded - overlap) // (tile - overlap))
    tile = max(_round_up(-(-(padded + (count - 1) * overlap) // count)), 2 * overlap)
    return padded, tile, tile - overlap, count


def _round_up(size: int) -> int:
    return -(-size // STRIDE) * STRIDE


def plan_tiles(shape: tuple[int, ...], tile: tuple[int, ...], overlap: tuple[int, ...]) -> TileGrid:
    """The fewest tiles of at most `tile` that overlap by `overlap` voxels, each no larger than that needs.

    Args:
      shape: the volume, D ints. An axis that fits into one tile is not cut.
      tile, overlap: D ints, voxels.

    Raises:
      InputError: wrong number of axes, or tiles too small for their overlap.
    """
    if not len(shape) == len(tile) == len(overlap):
        raise InputError(f"tile {tile} and overlap {overlap} must have one number per axis of the volume {shape}")
    axes = [_plan_axis(*numbers) for numbers in zip(shape, tile, overlap, strict=True)]
    padded, tile, stride, counts = zip(*axes, strict=True)
    return TileGrid(shape=tuple(shape), padded=padded, tile=tile, stride=stride, counts=counts)


def _window(length: int, stride: int) -> np.ndarray:
    """Weights along one axis: a linear ramp over the middle half of the overlap, so that neighbours add up to 1.

    The outer quarter at a tile's end, where the network sees the zeros around the tile, does not count at all.
    float32 [length].
    """
    overlap = length - stride
    ramp = np.clip(2 * (np.arange(overlap) + 0.5) / max(overlap, 1) - 0.5, 0, 1)
    window = np.ones(length)
    window[:overlap], window[length - overlap :] = ramp, ramp[::-1]
    return window.astype(np.float32)


def split(volume: jax.Array, grid: TileGrid) -> Callable[[jax.Array], jax.Array]:
    """A function from tile numbers, int32 [B], to tiles [B, *tile, ...].

    The far ends are padded by reflection, as the network pads.

    Args:
      volume: [*shape, ...]; axes after the first D are kept whole.
    """
    ndim = len(grid.shape)
    pad = [(0, p - s) for p, s in zip(grid.padded, grid.shape, strict=True)]
    padded = jnp.pad(volume, pad + [(0, 0)] * (volume.ndim - ndim), mode="reflect")

    def cut(number):
        index = jnp.stack(jnp.unravel_index(number, grid.counts))
        most = [p - t for p, t in zip(grid.padded, grid.tile, strict=True)]
        begin = [jnp.minimum(index[axis] * grid.stride[axis], most[axis]) for axis in range(ndim)]
        begin += [0] * (volume.ndim - ndim)
        return jax.lax.dynamic_slice(padded, begin, grid.tile + volume.shape[ndim:])

    return jax.vmap(cut)


def merge(tiles: jax.Array, grid: TileGrid) -> jax.Array:
    """The volume of which these are the tiles; overlaps are blended linearly. The inverse of `split`.

    No scatter: along each axis a tile is its stride's worth and an overhang into the next, so the volume is the
    strides side by side plus the overhangs side by side, moved on by one.

    Args:
      tiles: float [num_tiles, *tile, ...], in row-major order.

    Returns:
      [*shape, ...].
    """
    ndim = len(grid.shape)
    rest = tiles.shape[1 + ndim :]
    merged = tiles.reshape(grid.counts + grid.tile + rest)
    for axis in range(ndim):
        count, length, stride = grid.counts[axis], grid.tile[axis], grid.stride[axis]
        # Leading are the counts, then the lengths, of the axes still to come; finished axes gather at the end.
        merged = jnp.moveaxis(merged, (0, ndim - axis), (-2, -1))
        if count == 1:
            merged = merged[..., 0, :]
        else:
            window = _window(length, stride)
            first, last = np.ones(length, np.float32), np.ones(length, np.float32)
            first[stride:], last[: length - stride] = window[stride:], window[: length - stride]
            weights = np.stack([first, *[window] * (count - 2), last])
            # The last tile was pulled in to end with the volume: back to its place in the row, what hangs over is 0.
            pulled = (count - 1) * stride + length - grid.padded[axis]
            ending = jnp.pad(merged[..., -1:, pulled:], [(0, 0)] * (merged.ndim - 1) + [(0, pulled)])
            merged = jnp.concatenate([merged[..., :-1, :], ending], axis=-2) * weights
            main, over = merged[..., :stride], merged[..., stride:]
            over = jnp.pad(over, [(0, 0)] * (over.ndim - 1) + [(0, 2 * stride - length)])
            none = [(0, 0)] * (merged.ndim - 2)
            total = jnp.pad(main, [*none, (0, 1), (0, 0)]) + jnp.pad(over, [*none, (1, 0), (0, 0)])
            merged = total.reshape((*total.shape[:-2], -1))
        merged = merged[..., : grid.shape[axis]]
    return jnp.moveaxis(merged, range(-ndim, 0), range(ndim))


def tiled(
    evaluate: Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array],
    grid: TileGrid,
    batch_size: int = 1,
    constrain: Callable[[jax.Array], jax.Array] = lambda tiles: tiles,
) -> Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]:
    """A function of a whole volume that evaluates `evaluate` tile by tile, in bounded memory.

    Args:
      evaluate: (x: [B, *tile, C], t: int32 [B], cond: [B, *tile, K] or None) -> [B, *tile, C].
      batch_size: tiles evaluated at once; the result does not depend on it.
      constrain: applied to every batch of tiles, to place it on the devices.

    Returns:
      (x: [*shape, C], t: int32 [], cond: [*shape, K] or None) -> [*shape, C].
    """
    num_batches = -(-grid.num_tiles // batch_size)
    # The last batch is filled up with the last tile again; the surplus is dropped before merging.
    numbers = np.minimum(np.arange(num_batches * batch_size), grid.num_tiles - 1).reshape(num_batches, batch_size)

    def whole(x, t, cond):
        cut = split(x, grid)
        cut_cond = split(cond, grid) if cond is not None else lambda _: None

        def batch(numbers):
            return evaluate(constrain(cut(numbers)), jnp.broadcast_to(t, (batch_size,)), cut_cond(numbers))

        tiles = jax.lax.map(batch, jnp.asarray(numbers))
        return merge(tiles.reshape((-1, *tiles.shape[2:]))[: grid.num_tiles], grid)

    return whole
