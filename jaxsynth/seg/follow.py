"""From a network's output to labels: voxels follow the flow to the centre of their cell, and those that meet are one.

All of it runs on the device, with shapes known beforehand (after Stringer et al. 2021, Cellpose, with another
clustering). The image may be finer than the network's output: its own voxels are what moves, so labels come out at its
own resolution.
"""

import itertools
import math

import jax
import jax.numpy as jnp

SLOW = 0.3  # flows shorter than this stay slower than one voxel a step: towards the centre they shrink and grow noisy
WINDOW = 2  # voxels; centres of cells are farther apart than this along some axis
CHUNK = 2**16  # points that move together


def segment(
    output: jax.Array,
    fine_foreground: jax.Array | None = None,
    scale: jax.Array | float | None = None,
    size: jax.Array | None = None,
    *,
    max_points: int,
    threshold: float = 0.5,
    num_steps: int = 100,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Labels of an image from foreground and flows.

    Args:
      output: float32 [*S, 1 + D], as `flows.targets` has it: foreground of about 0 to 1, flow in axis order towards
        the centres. Only directions count, and lengths where they are below `SLOW`.
      fine_foreground: float32 [*F], the foreground at the image's resolution; None where it is the output's.
      scale: float or [D], output voxels per image voxel and axis; None for S / F.
      size: int32 [D], the part of S that is the image, the rest being padding; None for all of it. The result is as
        if there were no padding, provided that the foreground there is 0.
      max_points: static; foreground voxels there is room for.
      threshold: foreground is more than this.
      num_steps: static; steps of at most one voxel of the output. Cells may be as wide as about 1.5 times that.

    Returns:
      labels int32 [*F], 0 = background and 1..count in the order of their centres; count int32 []; overflow bool []:
      there were more than max_points foreground voxels, and the last ones have no label.
    """
    shape = output.shape[:-1]
    fine = output[..., 0] if fine_foreground is None else fine_foreground
    scale, last = _scale(shape, fine.shape, scale), _last(shape, size)

    mask = (fine > threshold).reshape(-1)
    start = jnp.nonzero(mask, size=max_points, fill_value=mask.size)[0]
    valid = start < mask.size
    places = jnp.unravel_index(start, fine.shape)
    points = [_coarse(p, scale[d], last[d]) for d, p in enumerate(places)]
    ends = follow(_velocity(output, threshold), points, last, num_steps)
    labels, count = cluster(ends, valid, shape)
    labels = jnp.zeros(mask.size, jnp.int32).at[start].set(labels, mode="drop")
    return labels.reshape(fine.shape), count, jnp.sum(mask) > max_points


def enlarge(
    x: jax.Array, shape: tuple[int, ...], scale: jax.Array | float | None = None, size: jax.Array | None = None
) -> jax.Array:
    """`x` (float32 [*S]) at the image's resolution, linear between voxels: float32 [*shape].

    Args:
      shape: static.
      scale, size: as in `segment`.
    """
    scale, last = _scale(x.shape, shape, scale), _last(x.shape, size)
    for axis, number in enumerate(shape):
        place = _coarse(jnp.arange(number), scale[axis], last[axis])
        low = jnp.floor(place)
        part = jnp.expand_dims(place - low, [d for d in range(x.ndim) if d != axis])
        near, far = (jnp.minimum(low + k, last[axis]).astype(jnp.int32) for k in (0, 1))
        x = jnp.take(x, near, axis) * (1 - part) + jnp.take(x, far, axis) * part
    return x


def shrink(labels: jax.Array, shape: tuple[int, ...], scale: jax.Array | float | None = None) -> jax.Array:
    """The labels int32 [*F] under the voxels of the network's output, whose shape is `shape` (static): int32 [*shape].

    Args:
      scale: as in `segment`.
    """
    scale = _scale(shape, labels.shape, scale)
    for axis, number in enumerate(shape):
        place = jnp.floor((jnp.arange(number) + 0.5) / scale[axis]).astype(jnp.int32)
        labels = jnp.take(labels, place, axis, mode="fill", fill_value=0)
    return labels


def _scale(shape: tuple[int, ...], fine_shape: tuple[int, ...], scale: jax.Array | float | None) -> jax.Array:
    if scale is None:
        scale = [coarse / fine for coarse, fine in zip(shape, fine_shape, strict=True)]
    return jnp.broadcast_to(jnp.asarray(scale, jnp.float32), (len(shape),))


def _last(shape: tuple[int, ...], size: jax.Array | None) -> jax.Array:
    return jnp.asarray(shape if size is None else size, jnp.float32) - 1


def _coarse(place: jax.Array, scale: jax.Array, last: jax.Array) -> jax.Array:
    """Coordinates of the image's voxels in the output, between the centres of its first and its last voxel."""
    return jnp.clip((place + 0.5) * scale - 0.5, 0, last)


def follow(velocity: list[jax.Array], points: list[jax.Array], last: jax.Array, num_steps: int) -> list[jax.Array]:
    """Where points come to that move with a field, bilinear or trilinear between its voxels.

    Args:
      velocity: D arrays float32 [*S], voxels per step along each axis.
      points: D arrays float32 [P], in voxels, within [0, last].
      last: float32 [D], points stay at or below; at most S - 1.
      num_steps: static.

    Returns:
      D arrays float32 [P].
    """
    shape = velocity[0].shape
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    flat = [jnp.asarray(component).reshape(-1) for component in velocity]

    def step(_, points):
        low = [jnp.floor(p) for p in points]
        part = [p - b for p, b in zip(points, low, strict=True)]
        base = [b.astype(jnp.int32) for b in low]
        speed = [jnp.zeros_like(p) for p in points]
        for corner in itertools.product((0, 1), repeat=len(shape)):
            weight, index = 1.0, 0
            for axis, high in enumerate(corner):
                weight = weight * (part[axis] if high else 1 - part[axis])
                place = jnp.minimum(base[axis] + 1, shape[axis] - 1) if high else base[axis]
                index = index + place * strides[axis]
            speed = [s + weight * f.at[index].get(mode="promise_in_bounds") for s, f in zip(speed, flat, strict=True)]
        return [jnp.clip(p + s, 0, last[axis]) for axis, (p, s) in enumerate(zip(points, speed, strict=True))]

    def all_steps(points):
        return jax.lax.fori_loop(0, num_steps, step, points)

    number = len(points[0])
    if number <= CHUNK:
        return all_steps(points)
    pad = -number % CHUNK
    chunks = [jnp.pad(p, (0, pad)).reshape(-1, CHUNK) for p in points]
    return [p.reshape(-1)[:number] for p in jax.lax.map(all_steps, chunks)]


def cluster(ends: list[jax.Array], valid: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Which points have come to the same place.

    End points are counted per voxel and the counts summed over 3^D voxels. Every voxel then leads to the highest of
    the (2 WINDOW + 1)^D voxels around it, the first of equals; where that leads on, so on, up to a voxel that is the
    highest of its own. Points that lead to the same one are one cell.

    Args:
      ends: D arrays float32 [P], in voxels of `shape`.
      valid: bool [P]; others are no points.
      shape: static.

    Returns:
      labels int32 [P], 0 for points that are not valid, else 1..count in the order of the cells' places;
      count int32 [].
    """
    size = math.prod(shape)
    nearest = [jnp.round(e).astype(jnp.int32) for e in ends]
    index = jnp.where(valid, jnp.ravel_multi_index(nearest, shape, mode="clip"), size)
    counts = jnp.zeros(size, jnp.int32).at[index].add(1, mode="drop")
    top = _highest(_box_sum(counts.reshape(shape))).reshape(-1)
    # Doubling: after k rounds every voxel knows the voxel 2^k places on.
    top = jax.lax.while_loop(lambda t: jnp.any(t != t[t]), lambda t: t[t], top)
    root = top.at[index].get(mode="fill", fill_value=size)
    # Numbers only for those that some point leads to: every label is in use.
    number = jnp.cumsum(jnp.zeros(size, jnp.int32).at[root].set(1, mode="drop"))
    return number.at[root].get(mode="fill", fill_value=0), number[-1]


def _velocity(output: jax.Array, threshold: float) -> list[jax.Array]:
    """Voxels per step: one in the flow's direction, less where the flow is short. D arrays float32 [*S].

    The background next to a cell goes along with it, so that points that start at the boundary are not held back.
    """
    inside = output[..., 0] > threshold
    flow = [jnp.where(inside, output[..., 1 + d], 0) for d in range(inside.ndim)]
    length = jnp.sqrt(sum(component**2 for component in flow))
    flow = [component / jnp.maximum(length, SLOW) for component in flow]
    around = jnp.maximum(_box_sum(inside.astype(jnp.float32)), 1)
    return [jnp.where(inside, component, _box_sum(component) / around) for component in flow]


def _shifted(x: jax.Array, axis: int, reach: int, fill) -> list[jax.Array]:
    """`x` seen from -reach to reach voxels away along an axis, `fill` beyond the edge."""
    pads = [(reach, reach) if d == axis else (0, 0) for d in range(x.ndim)]
    wide = jnp.pad(x, pads, constant_values=fill)
    return [jax.lax.slice_in_dim(wide, k, k + x.shape[axis], axis=axis) for k in range(2 * reach + 1)]


def _box_sum(x: jax.Array) -> jax.Array:
    """The sum over the 3^D voxels around each voxel."""
    for axis in range(x.ndim):
        x = sum(_shifted(x, axis, 1, 0))
    return x


def _highest(height: jax.Array) -> jax.Array:
    """The linear index of the highest voxel in the window around each voxel, the first of equals: int32 [*S]."""
    index = jnp.arange(height.size, dtype=jnp.int32).reshape(height.shape)
    for axis in range(height.ndim):
        pairs = zip(_shifted(height, axis, WINDOW, -1), _shifted(index, axis, WINDOW, height.size), strict=True)
        (height, index), *others = pairs
        for other_height, other_index in others:
            ahead = (other_height > height) | ((other_height == height) & (other_index < index))
            height = jnp.where(ahead, other_height, height)
            index = jnp.where(ahead, other_index, index)
    return index
