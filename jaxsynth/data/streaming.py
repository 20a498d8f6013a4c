"""Volumes larger than the device's memory, or the host's: one network evaluation by tiles of a host array.

As `tiles.tiled`, but the volume and what the coarse levels make of it stay on the host, in memory or in files mapped
into it; the device holds two batches of tiles. These are merged as `tiles.merge` has it, on the host, so the result is
that of `tiles.tiled` to rounding.
"""

import dataclasses
import functools
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsynth.data import tile_grid, tiles, writing
from jaxsynth.errors import InputError
from jaxsynth.sim import sketch

TRUNCATE = 4.0  # a blur's kernel ends at this many sigma, as in `sketch.blur`

DEEP_WEIGHT = 5  # a coarse voxel in `deepen` takes so much memory as voxels in `grow`, at the most

_blur = jax.jit(sketch.blur, static_argnames=("sigma", "truncate"))


def open_array(shape: tuple[int, ...], dtype=np.float32, folder: str | os.PathLike | None = None) -> np.ndarray:
    """An array of zeros: in memory, or mapped from a file in `folder` that vanishes with the array.

    The file has no name, so nothing is left of it however the program ends. Its room on the disk is taken at once.

    Raises:
      InputError: `folder` does not exist, cannot be written to or has no room.
    """
    if folder is None:
        return np.zeros(shape, dtype)
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    with writing.room(folder, num_bytes), tempfile.TemporaryFile(dir=folder) as file:
        writing.reserve(file.fileno(), num_bytes)
        return np.memmap(file, dtype, mode="w+", shape=shape)


def slabs(shape: tuple[int, ...], max_voxels: int) -> Iterator[tuple[int, int]]:
    """(first, count) of the slabs, rows of the first axis, of at most `max_voxels` (but at least a row) each."""
    count = max(1, max_voxels // math.prod(shape[1:]))
    for first in range(0, shape[0], count):
        yield first, min(count, shape[0] - first)


def pipelined(results: Iterable[tuple[Any, Any]], store: Callable[[Any, Any], None]) -> None:
    """store(where, arrays) for all (where, arrays) of `results`, one behind: the device computes while it is stored."""
    waiting = None
    for now in results:
        for array in jax.tree.leaves(now[1]):
            array.copy_to_host_async()
        if waiting is not None:
            store(*waiting)
        waiting = now
    if waiting is not None:
        store(*waiting)


def blurred(volume: np.ndarray, sigma: float | tuple[float, ...], first: int, count: int) -> jax.Array:
    """Rows first..first+count-1 of `sketch.blur(volume, sigma)`, from these rows and as many around as that needs.

    Args:
      volume: float [*S], in memory or mapped.
      sigma: voxels, one for all axes or one per axis.

    Returns:
      float32 [count, *S[1:]].
    """
    along_first = sigma if isinstance(sigma, int | float) else sigma[0]
    radius = int(TRUNCATE * along_first + 0.5)
    size = volume.shape[0]
    rows = np.arange(first - radius, first + count + radius) % (2 * size)
    slab = np.asarray(volume[np.minimum(rows, 2 * size - 1 - rows)], np.float32)  # mirrored at the volume's ends
    return _blur(slab, sigma, truncate=TRUNCATE)[radius : radius + count]


def compiled(stages_of: Callable[[Any], tiles.Stages], params: Any) -> tiles.Stages:
    """The stages that `stages_of` makes of `params`, each compiled once per shape of its arguments.

    The parameters stay arguments of what is compiled; a jitted closure over them would hold them as constants.
    """

    def bind(name):
        run = jax.jit(lambda params, *inputs: getattr(stages_of(params), name)(*inputs))
        return functools.partial(run, params)

    return dataclasses.replace(stages_of(params), **{name: bind(name) for name in ("shrink", "deepen", "grow")})


def plan_deep_tiles(stages: tiles.Stages, grid: tile_grid.TileGrid) -> tile_grid.TileGrid | None:
    """Tiles of the coarse volume for `deepen`, as `tiles.tiled` wants them, of about the memory of one tile of `grid`.

    They are blended over as many voxels of the volume as those of `grid`. None where the whole coarse volume takes no
    more than that memory.
    """
    coarse = grid.coarse(stages.factor).shape
    if DEEP_WEIGHT * math.prod(coarse) <= math.prod(grid.tile):
        return None
    shrunk = DEEP_WEIGHT ** (-1 / len(coarse))
    overlap = tuple(2 * stages.deep_margin + blended // stages.factor for blended in grid.blended)
    tile = tuple(max(int(size * shrunk), 2 * length) for size, length in zip(grid.tile, overlap, strict=True))
    return tile_grid.plan_tiles(coarse, tile, overlap, margin=stages.deep_margin, multiple=2)


def streamed(
    stages: tiles.Stages,
    grid: tile_grid.TileGrid,
    *,
    batch_size: int = 1,
    deep_grid: tile_grid.TileGrid | None = None,
    place: Callable[[np.ndarray], jax.Array] = jnp.asarray,
    folder: str | os.PathLike | None = None,
) -> Callable[[np.ndarray, int, np.ndarray | None, np.ndarray], None]:
    """A function that evaluates the network on a whole volume of the host, tile by tile.

    Args:
      stages: the network, see `compiled`.
      grid: tiles of the volume.
      batch_size: tiles on the device at once; the result does not depend on it.
      deep_grid: tiles of the coarse volume, see `plan_deep_tiles`; None: the whole at once.
      place: puts a batch of tiles, [batch_size, ...], on the devices.
      folder: where the coarse arrays are mapped from; None: they are kept in memory.

    Returns:
      denoise(x: float32 [*S, C], t, cond: float32 [*S, K] or None, out: [*S, C_out]), which fills `out`, an array
      other than `x`.

    Raises:
      InputError: a grid whose margin is shorter than the network's, or a folder without room.
    """
    factor = stages.factor
    coarse = grid.coarse(factor).shape
    for needed, given in ((stages.margin, grid), (stages.deep_margin, deep_grid)):
        if given is not None and given.num_tiles > 1 and given.margin < needed:
            raise InputError(f"margin: this network needs tiles with {needed} voxels of it, got {given.margin}")

    @functools.cache
    def arrays(num_channels: int, has_cond: bool):
        # What the shrunk and the deep volume hold is learnt from the stages; both are opened once.
        like = [jax.ShapeDtypeStruct((1, *grid.tile, n), jnp.float32) for n in (num_channels, 1)]
        t = jax.ShapeDtypeStruct((1,), jnp.int32)
        shrunk = jax.eval_shape(stages.shrink, like[0], t, like[1] if has_cond else None)
        deep = jax.eval_shape(stages.deepen, shrunk, t)
        return [open_array((*coarse, array.shape[-1]), array.dtype, folder) for array in (shrunk, deep)]

    def denoise(x, t, cond, out):
        shrunk, deep = arrays(x.shape[-1], cond is not None)
        steps = place(np.full(batch_size, t, np.int32))

        def by_tiles(function, grid, sources, out, out_grid):
            _by_tiles(function, grid, sources, out, out_grid, batch_size, place)

        here, second = (x, 1), (cond, 1)
        by_tiles(lambda x, cond: stages.shrink(x, steps, cond), grid, [here, second], shrunk, grid.coarse(factor))
        if deep_grid is None:
            deep[:] = np.asarray(stages.deepen(shrunk[None], np.full(1, t, np.int32)))[0]
        else:
            by_tiles(lambda h: stages.deepen(h, steps), deep_grid, [(shrunk, 1)], deep, deep_grid)
        by_tiles(
            lambda x, deep, cond: stages.grow(x, deep, steps, cond), grid, [here, (deep, factor), second], out, grid
        )

    return denoise


def _by_tiles(function, grid, sources, out, out_grid, batch_size, place) -> None:
    """Fills `out` with function(*tiles of the sources), merged as by `tiles.merge`.

    Args:
      sources: (array or None, its scale: how many of the grid's voxels make one of the array's).
      out_grid: the same tiles at the resolution of `out`.
    """
    numbers = list(np.ndindex(*grid.counts))
    parts = [_axis_parts(out_grid, axis) for axis in range(len(grid.shape))]
    blends = max(out_grid.blended) > 0
    if blends:
        out[...] = 0

    def cut(array, number, scale):
        begin = [grid.begins(axis)[i] // scale for axis, i in enumerate(number)]
        return _cut(array, begin, *([n // scale for n in sizes] for sizes in (grid.tile, grid.padded)))

    def results():
        for first in range(0, len(numbers), batch_size):
            batch = numbers[first : first + batch_size]
            filled = batch + batch[-1:] * (batch_size - len(batch))  # every batch has the shape that was compiled
            inputs = [
                None if array is None else place(np.stack([cut(array, number, scale) for number in filled]))
                for array, scale in sources
            ]
            yield batch, function(*inputs)

    def store(batch, result):
        for number, tile in zip(batch, np.asarray(result), strict=False):
            target, source, weights = zip(*(part[i] for part, i in zip(parts, number, strict=True)), strict=True)
            if blends:
                out[target] += tile[source] * functools.reduce(np.multiply, np.ix_(*weights))[..., None]
            else:
                out[target] = tile[source]

    pipelined(results(), store)


def _axis_parts(grid: tile_grid.TileGrid, axis: int) -> list[tuple[slice, slice, np.ndarray]]:
    """What the tiles along one axis make of the volume: (where in the volume, where in the tile, weights float32)."""
    blended, last = grid.blended[axis], grid.counts[axis] - 1
    begins, ramp = grid.begins(axis), tiles.ramp(blended)
    parts = []
    for i, begin in enumerate(begins):
        low = i * grid.stride[axis] + grid.margin if i > 0 else 0
        high = (i + 1) * grid.stride[axis] + grid.margin + blended if i < last else grid.padded[axis]
        weights = np.ones(high - low, np.float32)
        if i > 0:
            weights[: len(ramp)] = ramp
        if i < last:
            weights[len(weights) - len(ramp) :] = ramp[::-1]
        high = min(high, grid.shape[axis])
        parts.append((slice(low, high), slice(low - begin, high - begin), weights[: high - low]))
    return parts


def _cut(volume: np.ndarray, begin: list[int], size: list[int], padded: list[int]) -> np.ndarray:
    """The window [*size, C] at `begin` of a volume [*S, C] that is extended to `padded` by reflection."""
    index = [
        np.pad(np.arange(n), (0, end - n), mode="reflect")[b : b + s]
        for n, end, b, s in zip(volume.shape, padded, begin, size, strict=False)
    ]
    piece = volume[tuple(slice(rows.min(), rows.max() + 1) for rows in index)]
    for axis, rows in enumerate(index):
        if rows[-1] - rows[0] != len(rows) - 1:  # reaches beyond the end
            piece = np.take(piece, rows - rows.min(), axis)
    return piece
