"""Volumes in tiles: a network evaluation of a volume as many of its tiles, equal to that of the whole.

The network comes in three parts (`Stages`). Its coarse levels, which see far but hold few voxels, are evaluated for
the whole volume at once; only the fine levels run in tiles, so that these need overlap by little.

Tiles are merged at every evaluation (not after the whole sampling, which loses noise variance in the overlaps), so
a sampler that uses a tiled denoiser keeps one noise field for the volume and never knows of the tiles.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxsynth.data.tile_grid import MARGIN, TileGrid, plan_tiles
from jaxsynth.errors import InputError


@dataclasses.dataclass(frozen=True)
class Stages:
    """A network in three parts, grow(x, deepen(shrink(x))), as functions of batches.

    Attributes:
      shrink: (x: [B, *S, C], t: int32 [B], cond: [B, *S, K] or None) -> [B, *S/factor, H].
      deepen: (what shrink returned, t) -> [B, *S/factor, G].
      grow: (x, what deepen returned, t, cond) -> [B, *S, C].
      factor: voxels per coarse voxel.
      margin: voxels at a tile's inner end in which shrink or grow, given the tile alone, differ from the whole; a
        multiple of `factor`.
      deep_margin: the same for deepen, in coarse voxels.
    """

    shrink: Callable
    deepen: Callable
    grow: Callable
    factor: int = 4
    margin: int = MARGIN
    deep_margin: int = 10


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
    """The volume of which these are the tiles, without the margins of their inner ends. The inverse of `split`.

    What overlaps beyond the margins is blended linearly.

    Args:
      tiles: float [num_tiles, *tile, ...], in row-major order.

    Returns:
      [*shape, ...].
    """
    ndim = len(grid.shape)
    rest = tiles.shape[1 + ndim :]
    merged = tiles.reshape(grid.counts + grid.tile + rest)
    for axis in range(ndim):
        # Leading are the counts, then the lengths, of the axes still to come; finished axes gather at the end.
        merged = jnp.moveaxis(merged, (0, ndim - axis), (-2, -1))
        joined = merged[..., 0, :] if grid.counts[axis] == 1 else _join(merged, grid, axis)
        merged = joined[..., : grid.shape[axis]]
    return jnp.moveaxis(merged, range(-ndim, 0), range(ndim))


def ramp(length: int) -> np.ndarray:
    """Weights float32 [length] with which a tile fades in; reversed, the tile before it fades out."""
    return ((np.arange(length) + 0.5) / max(length, 1)).astype(np.float32)


def _join(tiles: jax.Array, grid: TileGrid, axis: int) -> jax.Array:
    """One axis of `merge`, for two tiles or more: [..., count, length] -> [..., the axis' size or more].

    No scatter: with the margins off, a tile is its stride's worth and an overhang into the next, so the axis is the
    strides side by side plus the overhangs side by side, moved on by one.
    """
    count, length, stride, margin = grid.counts[axis], grid.tile[axis], grid.stride[axis], grid.margin
    # The last tile was pulled in to end with the volume: back to its place in the row, what hangs over is 0.
    pulled = (count - 1) * stride + length - grid.padded[axis]
    last = jnp.pad(tiles[..., -1:, pulled:], [(0, 0)] * (tiles.ndim - 1) + [(0, pulled)])
    tiles = jnp.concatenate([tiles[..., :-1, :], last], axis=-2)
    begin, core, end = jnp.split(tiles, [margin, length - margin], axis=-1)
    overhang = grid.blended[axis]
    if overhang:
        weights = np.ones((count, length - 2 * margin), np.float32)
        weights[1:, :overhang], weights[:-1, stride:] = ramp(overhang), ramp(overhang)[::-1]
        core = core * weights
    main, over = core[..., :stride], core[..., stride:]
    over = jnp.pad(over, [(0, 0)] * (over.ndim - 1) + [(0, stride - overhang)])
    none = [(0, 0)] * (core.ndim - 2)
    total = jnp.pad(main, [*none, (0, 1), (0, 0)]) + jnp.pad(over, [*none, (1, 0), (0, 0)])
    total = total.reshape((*total.shape[:-2], -1))[..., : count * stride + overhang]
    return jnp.concatenate([begin[..., 0, :], total, end[..., -1, :]], axis=-1)


def tiled(
    stages: Stages,
    grid: TileGrid,
    batch_size: int = 1,
    constrain: Callable[[jax.Array], jax.Array] = lambda tiles: tiles,
    deep_grid: TileGrid | None = None,
) -> Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]:
    """A function of a whole volume that evaluates a network tile by tile, in bounded memory.

    `shrink` runs on the tiles, `deepen` on the whole coarse volume or its own tiles, `grow` on the tiles again. One
    tile costs no more than the network; where there are several, `shrink` is computed twice.

    Args:
      batch_size: tiles evaluated at once; the result does not depend on it.
      constrain: applied to every batch of tiles, to place it on the devices.
      deep_grid: tiles for `deepen`: plan_tiles(grid.coarse(factor).shape, ..., margin=deep_margin, multiple=2);
        default: one for all.

    Returns:
      (x: [*shape, C], t: int32 [], cond: [*shape, K] or None) -> [*shape, C].

    Raises:
      InputError: a grid whose margin is shorter than the network's.
    """
    coarse = grid.coarse(stages.factor)
    if deep_grid is None:
        deep_grid = plan_tiles(coarse.shape, coarse.shape, margin=stages.deep_margin, multiple=2)
    for needed, given in ((stages.margin, grid), (stages.deep_margin, deep_grid)):
        if given.num_tiles > 1 and given.margin < needed:
            raise InputError(f"margin: this network needs tiles with {needed} voxels of it, got {given.margin}")

    def whole(x, t, cond):
        def cutter(volume, grid):
            if volume is None:
                return lambda numbers: None
            cut = split(volume, grid)
            return lambda numbers: constrain(cut(numbers)) if grid.num_tiles > 1 else cut(numbers)

        def each(function, grid, out):
            # One tile needs no loop and no company; the compiler then shares what shrink and grow both compute.
            size = batch_size if grid.num_tiles > 1 else 1
            # The last batch is filled up with the last tile again; the surplus is dropped before merging.
            numbers = np.arange(-(-grid.num_tiles // size) * size).clip(max=grid.num_tiles - 1).reshape(-1, size)
            steps = jnp.broadcast_to(t, (size,))
            if len(numbers) == 1:
                return merge(function(jnp.asarray(numbers[0]), steps)[: grid.num_tiles], out)
            tiles = jax.lax.map(lambda some: function(some, steps), jnp.asarray(numbers))
            return merge(tiles.reshape((-1, *tiles.shape[2:]))[: grid.num_tiles], out)

        fine, second = cutter(x, grid), cutter(cond, grid)
        small = each(lambda i, t: stages.shrink(fine(i), t, second(i)), grid, coarse)
        small = cutter(small, deep_grid)
        deep = cutter(each(lambda i, t: stages.deepen(small(i), t), deep_grid, deep_grid), coarse)
        return each(lambda i, t: stages.grow(fine(i), deep(i), t, second(i)), grid, grid)

    return whole
