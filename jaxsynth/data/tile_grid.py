"""Where a volume is cut into tiles, and how large these can be."""

import dataclasses
import os
from pathlib import Path

import jax
import numpy as np

from jaxsynth.errors import InputError

STRIDE = 8  # three halvings in the network: tiles at multiples of 8 see the same grid as the whole volume
MARGIN = 16  # voxels at a tile's inner end in which the fine levels of nn/unet.py differ from the whole
# What evaluating a tile takes, in float32 numbers per voxel and feature of nn/unet.py: as compiled for CPU it is 6.6
# and 8.5, for 8 to 32 features, with any norm, whatever the size.
TILE_NUMBERS = {2: 8, 3: 10}
# What sampling in tiles holds of the whole volume, per voxel: so many numbers, and so many per feature, which are the
# coarse levels'. As compiled for CPU it is 21.5 and 38 in 2D, 14.2 and 20.4 in 3D, for 16 and 32 features.
VOLUME_NUMBERS = {2: (5.5, 1.05), 3: (8.5, 0.4)}
VOLUME_SHARE = 0.75  # of the memory, at the most, for what is held of the volume
MOST_OVERHEAD = 1.3  # beyond it a volume is not cut for the sake of using more devices


@dataclasses.dataclass(frozen=True)
class TileGrid:
    """Overlapping tiles over a padded volume; tuples of D ints, voxels. Static for jit.

    Tile i of an axis begins at i * stride, the last one where the padded volume leaves it room.

    Attributes:
      shape: the volume's. padded: the same, rounded up to a multiple of 8.
      tile: a tile's. stride: from tile to tile. counts: tiles per axis.
      margin: int, voxels at a tile's inner ends that do not count.
    """

    shape: tuple[int, ...]
    padded: tuple[int, ...]
    tile: tuple[int, ...]
    stride: tuple[int, ...]
    counts: tuple[int, ...]
    margin: int

    @property
    def num_tiles(self) -> int:
        """Tiles in all."""
        return int(np.prod(self.counts))

    @property
    def blended(self) -> tuple[int, ...]:
        """Voxels per axis over which neighbours are blended; 0 where they meet in a hard cut, or there are none."""
        sizes = zip(self.tile, self.stride, self.counts, strict=True)
        return tuple(tile - stride - 2 * self.margin if count > 1 else 0 for tile, stride, count in sizes)

    def begins(self, axis: int) -> list[int]:
        """The first voxels of the tiles along one axis."""
        last = self.padded[axis] - self.tile[axis]
        return [min(i * self.stride[axis], last) for i in range(self.counts[axis])]

    @property
    def overhead(self) -> float:
        """Evaluated voxels over the volume's voxels."""
        return self.num_tiles * float(np.prod(self.tile)) / float(np.prod(self.shape))

    def work(self, shrink: float, deepen: float) -> float:
        """Operations of `tiles.tiled` over those of the untiled network, of which two of its parts are these shares.

        Several tiles compute `shrink` twice; the coarse volume is computed once.
        """
        again = shrink if self.num_tiles > 1 else 0.0
        return self.overhead * (1 - deepen + again) + deepen * float(np.prod(self.padded)) / float(np.prod(self.shape))

    def coarse(self, factor: int) -> "TileGrid":
        """The same tiles over the padded volume at 1 / factor of the resolution."""
        padded, tile, stride = (tuple(n // factor for n in sizes) for sizes in (self.padded, self.tile, self.stride))
        return TileGrid(padded, padded, tile, stride, self.counts, self.margin // factor)


def plan_tiles(
    shape: tuple[int, ...],
    tile: tuple[int, ...],
    overlap: tuple[int, ...] | None = None,
    *,
    margin: int = MARGIN,
    multiple: int = STRIDE,
) -> TileGrid:
    """The fewest tiles of at most `tile` that overlap by `overlap` voxels, each no larger than that needs.

    Args:
      shape: the volume, D ints. An axis that fits into one tile is not cut.
      tile: D ints, voxels.
      overlap: D ints, voxels; default and least 2 * margin, where one tile ends and the next begins with a hard cut.
        In what is longer they are blended, which hides the steps in brightness that an instance norm makes.
      margin: voxels at a tile's inner ends that do not count.
      multiple: padded volume, tiles and strides are multiples of it.

    Raises:
      InputError: wrong number of axes, an overlap below 2 * margin, or tiles too small for their overlap.
    """
    overlap = (2 * margin,) * len(shape) if overlap is None else overlap
    if not len(shape) == len(tile) == len(overlap):
        raise InputError(f"tile {tile} and overlap {overlap} must have one number per axis of the volume {shape}")
    axes = [_plan_axis(*numbers, margin, multiple) for numbers in zip(shape, tile, overlap, strict=True)]
    padded, tile, stride, counts = zip(*axes, strict=True)
    return TileGrid(tuple(shape), padded, tile, stride, counts, margin)


def longest_overlap(tile: int, margin: int = MARGIN, multiple: int = STRIDE) -> int:
    """The longest overlap, in voxels, that tiles of this length have room for; may be below 2 * margin."""
    tile = tile // multiple * multiple
    return min(tile // 2 + margin, tile - 1) // multiple * multiple


def _plan_axis(size: int, tile: int, overlap: int, margin: int, multiple: int) -> tuple[int, int, int, int]:
    """(padded, tile, stride, count) of one axis: as few tiles as possible, and these as small as possible."""

    def up(number):
        return -(-number // multiple) * multiple

    padded = up(size)
    tile = tile // multiple * multiple
    if padded <= tile:
        return padded, padded, padded, 1
    if overlap < 2 * margin:
        raise InputError(f"an overlap of {overlap} voxels is too short: expected {2 * margin} or more, or uncut axes")
    overlap = up(overlap)
    # Shorter tiles would let three meet in one place; `merge` is written for two.
    least = up(max(2 * (overlap - margin), overlap + 1))
    if tile < least:
        raise InputError(f"tiles of {tile} voxels are too small for an overlap of {overlap}: expected {least} or more")
    count = -(-(padded - overlap) // (tile - overlap))
    tile = max(up(-(-(padded + (count - 1) * overlap) // count)), least)
    return padded, tile, tile - overlap, count


def choose_tile(
    shape: tuple[int, ...],
    overlap: tuple[int, ...] | None = None,
    *,
    features: int = 16,
    num_devices: int = 1,
    memory: int | None = None,
    margin: int = MARGIN,
) -> tuple[int, ...]:
    """The tile with which a volume takes the least time: the fewest voxels per device, then the fewest tiles.

    One tile where that fits into the memory, unless several devices are faster together at an overhead below
    MOST_OVERHEAD. Assumes the network of nn/unet.py in float32 and batches of one tile per device.

    Args:
      shape: the volume, D ints. overlap, margin: as in `plan_tiles`.
      features: the network's.
      memory: bytes per device; default `memory_bytes(num_devices)`.

    Returns:
      D ints, voxels; where not even the smallest tile fits, that one.

    Raises:
      InputError: an overlap below 2 * margin, with which the volume cannot be cut as the memory needs it.
    """
    ndim = len(shape)
    overlap = (2 * margin,) * ndim if overlap is None else overlap
    memory = memory_bytes(num_devices) if memory is None else memory
    stays = stays_on_device(shape, features=features, memory=memory)
    room = memory - volume_bytes(shape, features) if stays else memory * (1 - VOLUME_SHARE)
    axes = [_cuts(size, length, margin) for size, length in zip(shape, overlap, strict=True)]
    counts, lengths = (np.stack(np.meshgrid(*column, indexing="ij")) for column in zip(*axes, strict=True))
    num_tiles, voxels = counts.prod(0), lengths.prod(0)
    fits = 4 * TILE_NUMBERS[ndim] * features * voxels <= room
    if not fits.any():
        # An axis of no more than 2 * margin + STRIDE is never cut.
        if any(o < 2 * margin and size > 2 * margin + STRIDE for size, o in zip(shape, overlap, strict=True)):
            raise InputError(
                f"--overlap {','.join(map(str, overlap))}: a volume of {shape} voxels does not fit into the memory "
                f"in one tile, and to be cut it needs {2 * margin} or more"
            )
        fits = voxels == voxels.min()
    total = num_tiles * voxels
    shared = np.where(total <= MOST_OVERHEAD * np.prod(shape), -(-num_tiles // num_devices) * voxels, total)
    work = np.where(fits, shared, np.inf)
    work[work > work.min()] = np.inf
    best = np.unravel_index(np.argmin(np.where(np.isfinite(work), num_tiles, np.inf)), work.shape)
    return tuple(int(length[best]) for length in lengths)


def _cuts(size: int, overlap: int, margin: int) -> tuple[np.ndarray, np.ndarray]:
    """The ways to cut one axis: (tiles, length of a tile), from one tile to the shortest tiles."""
    longest = size + STRIDE
    found = {}
    while True:
        try:
            _, tile, _, count = _plan_axis(size, longest, overlap, margin, STRIDE)
        except InputError:
            return tuple(np.array(column, float) for column in zip(*found.items(), strict=True))
        found[count] = min(tile, found.get(count, tile))
        longest = tile - STRIDE


def volume_bytes(shape: tuple[int, ...], features: int) -> float:
    """Bytes that sampling a volume in tiles holds on the device beside the tiles. Assumes what `choose_tile` does."""
    constant, per_feature = VOLUME_NUMBERS[len(shape)]
    return 4 * (constant + per_feature * features) * float(np.prod(shape, dtype=float))


def stays_on_device(shape: tuple[int, ...], *, features: int = 16, memory: int | None = None) -> bool:
    """Whether a volume is sampled on the device, with room left for its tiles, or kept on the host and streamed.

    Args:
      features: the network's. memory: bytes per device; default `memory_bytes()`.
    """
    return volume_bytes(shape, features) <= VOLUME_SHARE * (memory_bytes() if memory is None else memory)


def memory_bytes(num_devices: int = 1) -> int:
    """Memory to use per device: nine tenths of what an accelerator offers, half of the machine's for CPU.

    Of the whole, not of what is free just now, so that the tiles of a volume are the same on every run.

    Args:
      num_devices: in use; those of a CPU share its memory.
    """
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(0.9 * stats["bytes_limit"])
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = Path(file).read_text().strip() if Path(file).is_file() else ""
        total = min(total, int(limit)) if limit.isdigit() else total
    return total // 2 // num_devices
