"""From a network's output to the label image, on the host: `follow` and `filters` with shapes that fit.

Shapes are rounded up, so that images of like size share their compiled programs; the padding is never seen.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from jaxsynth.errors import InputError
from jaxsynth.seg import convexity, filters, flows, follow

LEAST_POINTS = 2**12
LEAST_CELLS = 2**6


@dataclasses.dataclass(frozen=True)
class Options:
    """What counts as a cell.

    Attributes:
      foreground: voxels with more than this, in [0, 1], belong to cells.
      flow_error: cells with a larger one are dropped, see `filters.by_flow`; None for
        `filters.MAX_FLOW_ERROR`, 0 drops none.
      overlap: cells whose mean foreground is lower are dropped.
      min_size: cells of fewer voxels of the image are dropped.
      num_steps: of one voxel of the output, see `follow.segment`.
      convexity: cells that fill a smaller share of their convex hull, `convexity.solidity`, are dropped; 0 drops none.
      fill_holes: whether background enclosed by a cell becomes the cell's; in 3D, enclosed on all sides.
    """

    foreground: float = 0.5
    flow_error: float | None = None
    overlap: float = 0.0
    min_size: int = 0
    num_steps: int = 100
    convexity: float = 0.0
    fill_holes: bool = True


def segment_image(
    output: jax.Array | np.ndarray, shape: Sequence[int], kind: str, options: Options | None = None
) -> np.ndarray:
    """The labels of an image of which a network tells foreground and flows.

    Args:
      output: float32 [*S, 1 + D], see `flows.targets`; of the image, or of the image resized to S.
      shape: of the image, F.
      kind: "heat" or "centroid", of flow.

    Returns:
      int32 [*F], 0 = background, cells 1, 2, ... without gaps.

    Raises:
      InputError: an output or a kind that is none.
    """
    options = options or Options()
    shape, size = tuple(shape), output.shape[:-1]
    if len(shape) not in (2, 3) or output.shape[-1:] != (1 + len(shape),) or len(size) != len(shape) or 0 in size:
        raise InputError(f"output: expected [*S, 1 + D] of an image of shape {shape}, got {output.shape}")
    if kind not in flows.KINDS:
        raise InputError(f"kind: expected one of {', '.join(flows.KINDS)}, got {kind!r}")
    if 0 in shape:
        return np.zeros(shape, np.int32)
    padding = [(0, rounded_up(n) - n) for n in size] + [(0, 0)]
    output = jnp.asarray(np.pad(np.asarray(output, np.float32), padding))
    scale = np.divide(size, shape).astype(np.float32)
    place = {"scale": scale, "size": np.asarray(size, np.int32)}
    fine, num_points = _foreground(
        output, options.foreground, **place, fine_size=np.asarray(shape), fine_shape=tuple(map(rounded_up, shape))
    )
    labels, count, _ = _segment(
        output,
        fine,
        **place,
        threshold=options.foreground,
        max_points=power_of_two(num_points, LEAST_POINTS),
        num_steps=options.num_steps,
    )
    limits = (options.min_size, options.overlap, options.flow_error)
    labels = _believed(output, fine, labels, scale, limits, kind, power_of_two(count, LEAST_CELLS))
    labels = np.asarray(labels)[tuple(map(slice, shape))]
    labels = fill_holes(labels) if options.fill_holes else labels.copy()
    return drop_bent(labels, options.convexity) if options.convexity > 0 else labels


@functools.partial(jax.jit, static_argnames="fine_shape")
def _foreground(output, threshold, scale, size, fine_size, fine_shape):
    """The foreground at the image's resolution, 0 in the padding, and how many voxels of it are above the threshold."""
    fine = follow.enlarge(output[..., 0], fine_shape, scale, size)
    for axis, number in enumerate(fine_shape):
        within = jnp.arange(number) < fine_size[axis]
        fine = fine * jnp.expand_dims(within, [d for d in range(fine.ndim) if d != axis])
    return fine, jnp.sum(fine > threshold)


_segment = jax.jit(follow.segment, static_argnames=("max_points", "num_steps"))


@functools.partial(jax.jit, static_argnames=("kind", "capacity"))
def _believed(output, fine, labels, scale, limits, kind, capacity):
    """The labels that pass the filters, numbered without gaps. The flows are judged at the output's resolution."""
    min_size, overlap, flow_error = limits
    keep = filters.by_size(labels, min_size, capacity) & filters.by_foreground(labels, fine, overlap, capacity)
    flow_error = filters.MAX_FLOW_ERROR if flow_error is None else jnp.where(flow_error > 0, flow_error, jnp.inf)
    coarse = follow.shrink(labels, output.shape[:-1], scale)
    keep &= filters.by_flow(coarse, output, flow_error, kind, capacity)
    return filters.apply(labels, keep)[0]


def fill_holes(labels: np.ndarray) -> np.ndarray:
    """Gives background that a cell encloses, in 3D on all sides, to the cell. Labels int32 [*S] as they are."""
    filled = labels.copy()
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is not None:
            hole = ndimage.binary_fill_holes(labels[box] == label) & (filled[box] == 0)
            filled[box][hole] = label
    return filled


def drop_bent(labels: np.ndarray, least: float) -> np.ndarray:
    """Labels int32 [*S] without cells whose `convexity.solidity` is lower, numbered anew in order."""
    keep = convexity.solidity(labels) >= least
    keep[0] = False
    return np.where(keep, np.cumsum(keep), 0).astype(np.int32)[labels]


def power_of_two(number: int, least: int) -> int:
    """The next power of two."""
    return max(least, 1 << max(int(number) - 1, 0).bit_length())


def rounded_up(number: int) -> int:
    """The next multiple of 8, from 64 on of 1, 5/4, 3/2 and 7/4 times a power of two: at most a quarter more."""
    step = max(8, 1 << max(number - 1, 0).bit_length() >> 3)
    return math.ceil(number / step) * step
