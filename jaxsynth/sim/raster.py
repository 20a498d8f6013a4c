"""Which cell owns a voxel: the one loop over voxels and cells that all cell shapes share.

The volume is cut into blocks, and every block gets a short list of the cells that may show in it. A shape's `value` is
then evaluated over that list only, elementwise in volume order, which XLA fuses into one pass over the voxels. On a
CPU the passes run slab by slab, so that the running minimum stays in the cache and slabs without cells cost nothing;
on an accelerator the volume is one slab.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

WORD = 32  # cells per word of the blocks' bit sets
CHUNK = 2  # cells per pass over the voxels
SLAB_VOXELS = 2**18  # of one slab on a CPU, where the volume's rows allow it

Axes = tuple[jax.Array, ...]
Value = Callable[[jax.Array, Axes], jax.Array]


@dataclass(frozen=True)
class Blocks:
    """How a volume is cut. Interleaved arrays have the shape [c_1, e_1, ..., c_D, e_D], the volume's memory order.

    Attributes:
      shape: S, the volume.
      counts: c, blocks along each axis.
      edges: e, voxels of a block along each axis; counts * edges cover the shape.
      num_slabs: the first axis is worked off in so many parts; divides counts[0].
    """

    shape: tuple[int, ...]
    counts: tuple[int, ...]
    edges: tuple[int, ...]
    num_slabs: int

    @property
    def padded(self) -> tuple[int, ...]:
        """The volume's shape filled up to whole blocks."""
        return tuple(count * edge for count, edge in zip(self.counts, self.edges, strict=True))

    def interleave(self, x: jax.Array) -> jax.Array:
        """[*S] or [1, .., S_d, .., 1] -> interleaved, with the axes of size 1 left so."""
        x = jnp.pad(x, [(0, 0 if n == 1 else p - n) for n, p in zip(x.shape, self.padded, strict=True)])
        pairs = [
            (1, 1) if n == 1 and p > 1 else (c, e)
            for n, p, c, e in zip(x.shape, self.padded, self.counts, self.edges, strict=True)
        ]
        return x.reshape([part for pair in pairs for part in pair])

    def per_voxel(self, x: jax.Array) -> jax.Array:
        """[*counts] -> interleaved, broadcasting over the voxels of each block."""
        return x.reshape([part for count in x.shape for part in (count, 1)])

    def restore(self, x: jax.Array) -> jax.Array:
        """Interleaved -> [*S]."""
        return x.reshape(self.padded)[tuple(slice(size) for size in self.shape)]


def make_blocks(shape: tuple[int, ...], edge: int = 32) -> Blocks:
    """Blocks about `edge` voxels wide in the last two axes, a quarter of that, or what a slab holds, in depth."""
    on_cpu = jax.default_backend() == "cpu"
    depth = max(edge // 4, 1)
    if on_cpu and len(shape) == 3:
        depth = min(max(SLAB_VOXELS // math.prod(shape[1:]), 1), depth)
    edges = (depth, edge, edge)[-len(shape) :]
    edges = tuple(_even(size, edge) for size, edge in zip(shape, edges, strict=True))
    counts = tuple(math.ceil(size / edge) for size, edge in zip(shape, edges, strict=True))
    return Blocks(tuple(shape), counts, edges, counts[0] if on_cpu else 1)


def _even(size: int, edge: int) -> int:
    """The edge nearest to `edge`, from half to twice of it, that divides the size and so saves padding; else one that
    pads little."""
    fitting = [e for e in range(max(edge // 2, 1), 2 * edge + 1) if size % e == 0]
    return min(fitting, key=lambda e: abs(math.log(e / edge))) if fitting else math.ceil(size / math.ceil(size / edge))


def coordinates(
    blocks: Blocks,
    spacing_um: jax.Array,
    transform: Callable[[Axes], Axes] | None = None,
    warp_um: Axes | None = None,
    slab: jax.Array | None = None,
) -> Axes:
    """The voxel centres' coordinates, interleaved and broadcasting.

    Args:
      blocks: of the volume.
      spacing_um: float [D].
      transform: applied to the grid's coordinates, elementwise; see `owners`.
      warp_um: added after that, D interleaved arrays, of the slab only where one is given.
      slab: int32 [], which part of the first axis; None for all of it.
    """
    per_slab = blocks.counts[0] // blocks.num_slabs
    axes = []
    for axis, (count, edge) in enumerate(zip(blocks.counts, blocks.edges, strict=True)):
        index = jnp.arange(count * edge)
        if axis == 0 and slab is not None:
            count = per_slab
            index = slab * (per_slab * edge) + jnp.arange(count * edge)
        place = [1] * (2 * len(blocks.counts))
        place[2 * axis : 2 * axis + 2] = count, edge
        axes.append(((index.astype(jnp.float32) + 0.5) * spacing_um[axis]).reshape(place))
    moved = tuple(axes) if transform is None else tuple(transform(tuple(axes)))
    return moved if warp_um is None else tuple(x + part for x, part in zip(moved, warp_um, strict=True))


def block_boxes(position: Axes) -> tuple[Axes, Axes]:
    """The least and greatest coordinates within each block: twice D arrays that broadcast to [*counts]."""
    within = tuple(range(1, position[0].ndim, 2))
    return tuple(jnp.min(x, axis=within) for x in position), tuple(jnp.max(x, axis=within) for x in position)


def block_lists(meets: jax.Array, per_block: int) -> tuple[jax.Array, jax.Array]:
    """The first `per_block` cells of each block.

    The answers are kept as bits, 32 cells to a word, and the k-th set bit is found by counting: no list over all cells
    is ever sorted or stored per block.

    Args:
      meets: bool [*counts, N], whether a cell may show in a block; fused into the packing, so never stored.
      per_block: static.

    Returns:
      int32 [*counts, per_block], -1 = none, and int32 [*counts], how many cells there are for each block.
    """
    counts, num_cells = meets.shape[:-1], meets.shape[-1]
    words = max(1, math.ceil(num_cells / WORD))
    meets = jnp.pad(meets, [(0, 0)] * len(counts) + [(0, words * WORD - num_cells)]).reshape(-1, words, WORD)
    bit = jnp.uint32(1) << jnp.arange(WORD, dtype=jnp.uint32)
    packed = jnp.sum(jnp.where(meets, bit, jnp.uint32(0)), axis=-1, dtype=jnp.uint32)
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
    return listed.reshape(*counts, per_block), total[:, -1].reshape(counts)


def sweep(
    value: Value,
    centre_um: jax.Array,
    listed: jax.Array,
    most: jax.Array,
    blocks: Blocks,
    spacing_um: jax.Array,
    *,
    transform: Callable[[Axes], Axes] | None = None,
    warp_um: Axes | None = None,
    limit: float = 1.0,
    layers: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """The listed cells of least value at every voxel; see `owners`.

    Args:
      listed, most: from `block_lists`.
      limit: values above it do not count.

    Returns:
      labels int32 [*S], or [layers, *S]; and bool [], whether somewhere more than `layers` cells lie within the limit
      (always False for one layer, which is meant to choose).
    """
    per_slab = blocks.counts[0] // blocks.num_slabs
    room = listed.shape[-1]
    fill = -room % CHUNK
    listed = jnp.pad(listed, [(0, 0)] * len(blocks.counts) + [(0, fill)], constant_values=-1)
    slabs = (
        jnp.arange(blocks.num_slabs),
        listed.reshape(blocks.num_slabs, per_slab, *listed.shape[1:]),
        jnp.max(jnp.minimum(most, room).reshape(blocks.num_slabs, -1), axis=-1),
        None
        if warp_um is None
        else tuple(
            wide.reshape(blocks.num_slabs, per_slab, *wide.shape[1:]) for wide in map(blocks.interleave, warp_um)
        ),
    )

    def work(slab):
        number, listed, most, warp = slab
        position = coordinates(blocks, spacing_um, transform, warp, number)

        def consider(slot, ranking):
            nearest, owners, spilled = ranking
            index = jax.lax.dynamic_index_in_dim(listed, slot, axis=-1, keepdims=False)
            cell = blocks.per_voxel(jnp.maximum(index, 0))
            offset = tuple(x - centre_um[:, d][cell] for d, x in enumerate(position))
            new = value(cell, offset)
            new = jnp.where((new <= limit) & (cell == blocks.per_voxel(index)), new, jnp.inf)
            label = cell + 1
            nearest, owners = list(nearest), list(owners)
            for layer in range(layers):
                # Of equal values the first stays, so the order of the layers does not depend on the block.
                nearer = new < nearest[layer]
                kept, kept_label = nearest[layer], owners[layer]
                nearest[layer], owners[layer] = jnp.where(nearer, new, kept), jnp.where(nearer, label, kept_label)
                new, label = jnp.where(nearer, kept, new), jnp.where(nearer, kept_label, label)
            if layers > 1:
                spilled = spilled | jnp.any(new <= limit)
            return tuple(nearest), tuple(owners), spilled

        def consider_some(chunk, ranking):
            # Unrolled, so that one pass over the voxels serves CHUNK cells.
            for slot in range(CHUNK):
                ranking = consider(chunk * CHUNK + slot, ranking)
            return ranking

        size = [part for pair in zip((per_slab, *blocks.counts[1:]), blocks.edges, strict=True) for part in pair]
        start = (
            (jnp.full(size, jnp.inf, jnp.float32),) * layers,
            (jnp.zeros(size, jnp.int32),) * layers,
            jnp.zeros((), bool),
        )
        _, owners, spilled = jax.lax.fori_loop(0, (most + CHUNK - 1) // CHUNK, consider_some, start)
        return owners, spilled

    owners, spilled = jax.lax.map(work, slabs)
    labels = tuple(map(blocks.restore, owners))
    return labels[0] if layers == 1 else jnp.stack(labels), jnp.any(spilled)


def owners(
    value: Value,
    centre_um: jax.Array,
    reach_um: jax.Array,
    valid: jax.Array,
    shape: tuple[int, ...],
    spacing_um: jax.Array,
    *,
    transform: Callable[[Axes], Axes] | None = None,
    warp_um: Axes | None = None,
    layers: int = 1,
    per_block: int = 64,
) -> tuple[jax.Array, jax.Array]:
    """The instance map of N cells, each with a region of its own.

    Args:
      value: (cell, offset) -> float32, elementwise: `cell` int32 indices and `offset`, D arrays of coordinates minus
        the cell's centre in micrometres, broadcast against each other; 1 on the cell's surface, less inside. A voxel
        inside several cells belongs to the one of least value, so the result does not depend on the cells' order, and
        no cell is swallowed because it came first.
      centre_um, reach_um: float32 [N, D], middle and half edges of each cell's bounding box.
      valid: bool [N]. Cell i is drawn as label i + 1 where valid.
      shape: S, static.
      spacing_um: float32 [D], micrometres per voxel.
      transform: optional, takes the D coordinates of the grid (micrometres, broadcasting) to the D coordinates in
        which the cells live, elementwise: a projection, a bend.
      warp_um: optional displacement, D arrays float32 [*S], added to the coordinates.
      layers: static; above 1, cells may overlap, as in projections: the `layers` nearest cells of every voxel are
        given, nearest first.
      per_block: static; the most cells that may meet one block. The passes made are as many as the fullest block
        of a slab needs, so a generous number costs little.

    Returns:
      labels int32 [*S], 0 = background, or [layers, *S]; and overflow bool []: some block met more than `per_block`
      cells, or some voxel lies in more than `layers` of overlapping cells, so that something may be missing. The
      caller reads it outside jit and calls again with more room.
    """
    spacing_um = jnp.asarray(spacing_um, jnp.float32)
    blocks = make_blocks(shape)
    low, high = block_boxes(coordinates(blocks, spacing_um, transform))
    slack = [0.0] * len(shape) if warp_um is None else [jnp.max(jnp.abs(part)) for part in warp_um]

    def row(box):
        # One row of blocks at a time: all blocks times all cells would outweigh the volume.
        meets = valid
        for d, (low, high) in enumerate(box):
            middle, half = (low + high)[..., None] / 2, (high - low)[..., None] / 2
            meets = meets & (jnp.abs(middle - centre_um[:, d]) <= reach_um[:, d] + half + slack[d])
        return block_lists(jnp.broadcast_to(meets, (*blocks.counts[1:], valid.shape[0])), per_block)

    def by_row(x):
        return jnp.broadcast_to(x, (blocks.counts[0], *x.shape[1:]))

    listed, most = jax.lax.map(row, [(by_row(a), by_row(b)) for a, b in zip(low, high, strict=True)])
    labels, spilled = sweep(
        value, centre_um, listed, most, blocks, spacing_um,
        transform=transform, warp_um=warp_um, layers=layers,
    )  # fmt: skip
    return labels, spilled | (jnp.max(most) > per_block)
