"""Flow targets: every voxel of a cell says where the cell's centre lies. Label images become images to be learnt.

Channel 0 is the foreground, 0 or 1. The others are the flow, a component per axis in axis order, (y, x) or (z, y, x),
and point TOWARDS the centre. The published network's point away (`from_published`).

Two kinds of flow:
- "centroid" (paper 003): -tanh((coordinate - centroid) / (extent / 3)) per axis, for cells that are near convex.
- "heat" (Stringer et al. 2021, Cellpose): the direction in which heat let in at the centre and lost at the boundary
  grows. It bends with the cell, so cells may be crescents.
"""

import math

import jax
import jax.numpy as jnp

KINDS = ("heat", "centroid")
SPLIT = 6  # bits; coordinates are summed in two parts, lest sums over large cells overflow
TIE = 1e-2  # squared voxels; voxels this much farther from the centroid than the nearest one are centres as well


def targets(labels: jax.Array, kind: str, capacity: int, iterations: int = 64) -> jax.Array:
    """What the network shall say of a label image.

    Args:
      labels: int32 [*S], 0 = background; labels in [1, capacity], of which any may be missing. Others are not seen.
      kind: static, "heat" or "centroid".
      capacity: static, the largest label there can be.
      iterations: static; of the heat, which gets that many voxels far from the centre. Voxels of a cell beyond, and
        parts of it apart from the centre's, point straight at the centre.

    Returns:
      float32 [*S, 1 + D]: foreground in {0, 1}, flow in [-1, 1] per axis, 0 in the background. Flows of kind "heat"
      have length 1, or 0 at a centre where heat is level.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    labels = jnp.where((labels > 0) & (labels <= capacity), labels, 0).astype(jnp.int32)
    flow = (_centroid if kind == "centroid" else _heat)(labels, capacity, iterations)
    inside = (labels > 0).astype(jnp.float32)
    return jnp.stack([inside, *(inside * component for component in flow)], axis=-1)


def from_published(output: jax.Array) -> jax.Array:
    """The published network's channels as ours: float [*S, 1 + D], its flows point away from the centre.

    Its "x, y, z" are the array's axes in their order, as here.
    """
    return jnp.concatenate([output[..., :1], -output[..., 1:]], axis=-1)


def to_published(output: jax.Array) -> jax.Array:
    """Our channels as the published network's; the same turn, backwards."""
    return from_published(output)


def _coordinates(shape: tuple[int, ...]) -> list[jax.Array]:
    return [jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in range(len(shape))]


def _offsets(labels: jax.Array, capacity: int) -> list[jax.Array]:
    """Every voxel's offset from the centroid of its cell: D arrays float32 [*S].

    Sums are whole numbers and the whole part of the centroid goes first, so cells far from the corner are as exact.
    They do not overflow in cells of less than 2^25 voxels whose number times mean coordinate is below 2^37.
    """

    def total(x):
        return jax.ops.segment_sum(x.reshape(-1), labels.reshape(-1), capacity + 1)

    count = jnp.maximum(total(jnp.ones_like(labels)), 1)
    offsets = []
    for place in _coordinates(labels.shape):
        high, low = total(place >> SPLIT), total(place & (2**SPLIT - 1))
        rest = ((high % count) << SPLIT) + low % count
        whole = ((high // count) << SPLIT) + low // count + rest // count
        offsets.append((place - whole[labels]).astype(jnp.float32) - ((rest % count) / count)[labels])
    return offsets


def _centroid(labels: jax.Array, capacity: int, iterations: int) -> list[jax.Array]:
    flat = labels.reshape(-1)
    places = jnp.stack([place.reshape(-1) for place in _coordinates(labels.shape)], axis=-1)
    # Highest of the coordinate and of its negative: both ends of the bounding box in one pass.
    ends = jax.ops.segment_max(jnp.concatenate([places, -places], axis=-1), flat, capacity + 1)
    ndim = labels.ndim
    extent = (ends[:, :ndim] + ends[:, ndim:] + 1)[labels].astype(jnp.float32)
    return [-jnp.tanh(offset * 3 / extent[..., d]) for d, offset in enumerate(_offsets(labels, capacity))]


def _heat(labels: jax.Array, capacity: int, iterations: int) -> list[jax.Array]:
    centre, straight = _centres(labels, capacity)
    # With a border of background and all axes laid end to end, a step along an axis is a shift by its stride, and no
    # step out of the image meets anything but background.
    padded = jnp.pad(labels, 1)
    strides = [math.prod(padded.shape[axis + 1 :]) for axis in range(labels.ndim)]
    flat = padded.reshape(-1)
    # 1 where a voxel and the next one along the axis are of one cell.
    links = [
        jnp.pad(((flat[:-s] == flat[s:]) & (flat[:-s] > 0)).astype(jnp.float32), (0, s), constant_values=0)
        for s in strides
    ]
    source = jnp.pad(centre, 1).reshape(-1).astype(jnp.float32)

    def neighbours(heat, link, s):
        """Heat before and behind along an axis, 0 from any other cell; the first and last s voxels are left out."""
        size = len(heat)
        return link[s : size - s] * heat[2 * s :], link[: size - 2 * s] * heat[: size - 2 * s]

    def spread(heat, axis):
        s = strides[axis]
        behind, before = neighbours(heat, links[axis], s)
        return jnp.pad((heat[s:-s] + behind + before) * (1 / 3), s)

    def both_ways(_, heat):
        for order in (range(labels.ndim), reversed(range(labels.ndim))):  # so that no axis is favoured
            heat = heat + source
            for axis in order:
                heat = spread(heat, axis)
        return heat

    heat = jax.lax.fori_loop(0, (iterations + 1) // 2, both_ways, jnp.zeros_like(source))
    inner = (slice(1, -1),) * labels.ndim
    slope = []
    for link, s in zip(links, strides, strict=True):
        behind, before = neighbours(heat, link, s)
        slope.append(jnp.pad(behind - before, s).reshape(padded.shape)[inner])
    # Heat falls by many powers of ten, so the scale goes before the squares.
    largest = jnp.max(jnp.abs(jnp.stack(slope)), axis=0)
    reached = (heat.reshape(padded.shape)[inner] > 1e-30) & (largest > 0)
    flow = [jnp.where(reached, a / jnp.where(reached, largest, 1), b) for a, b in zip(slope, straight, strict=True)]
    length = jnp.sqrt(sum(component**2 for component in flow))
    return [component / jnp.maximum(length, 1e-6) for component in flow]


def _centres(labels: jax.Array, capacity: int) -> tuple[jax.Array, list[jax.Array]]:
    """The voxel of each cell that is nearest to its centroid, bool [*S], and every voxel's way to it, D float32 [*S].

    Where the centroid lies between voxels, all of those next to it that are as near are centres, for symmetry.
    """
    flat = labels.reshape(-1)
    squared = sum(offset**2 for offset in _offsets(labels, capacity)).reshape(-1)
    near = squared <= jax.ops.segment_min(squared, flat, capacity + 1)[flat] + TIE
    index = jnp.arange(flat.size)
    first = jax.ops.segment_min(jnp.where(near, index, flat.size - 1), flat, capacity + 1)
    first = jnp.stack(jnp.unravel_index(first, labels.shape), axis=-1)[labels]
    way = [first[..., d] - place for d, place in enumerate(_coordinates(labels.shape))]
    beside = jnp.all(jnp.stack([jnp.abs(w) <= 1 for w in way]), axis=0)
    centre = near.reshape(labels.shape) & beside & (labels > 0)
    return centre, [w.astype(jnp.float32) for w in way]
