"""Which of the cells found are to be believed.

Each filter says of every label whether it stays: bool [capacity + 1], True for labels that are not there, without
meaning for the background. Labels are int32 [*S], 0 = background and 1..capacity, which is static.
"""

import jax
import jax.numpy as jnp

from jaxsynth.seg import flows

# Cellpose's default is 0.4. On real label images whose flows were blurred and given correlated noise, that lost small
# cells, and more in 3D; 0.6 kept them and still dropped what noise had made up, with both kinds of flow.
MAX_FLOW_ERROR = 0.6
BLOCKS = 1024  # of voxels, summed apart from each other


def by_size(labels: jax.Array, least: jax.Array | int, capacity: int) -> jax.Array:
    """Whether a cell has at least so many voxels."""
    size = _sums(jnp.ones(labels.shape, jnp.int32), labels, capacity)
    return (size >= least) | (size == 0)


def by_foreground(labels: jax.Array, foreground: jax.Array, least: jax.Array | float, capacity: int) -> jax.Array:
    """Whether the mean of `foreground`, float32 [*S], over a cell's voxels is at least so much."""
    size = _sums(jnp.ones(labels.shape, jnp.int32), labels, capacity)
    return _sums(foreground, labels, capacity) >= least * size


def by_flow(labels: jax.Array, output: jax.Array, most: jax.Array | float, kind: str, capacity: int) -> jax.Array:
    """Whether a cell's shape explains the flows it was found by (Stringer et al. 2021).

    The squared difference between the flows told and those of the cell found, `flows.targets`, may be at most so much
    of the latter's own square, summed over the cell. As the flows of kind "heat" have length 1 that is Cellpose's
    flow error, and the measure is the same for both kinds. Flows in random directions have an error of 2.

    Args:
      output: float32 [*S, 1 + D], the network's.
      kind: static, of flow.
    """
    wanted = flows.targets(labels, kind, capacity)[..., 1:]
    error = _sums(jnp.sum((output[..., 1:] - wanted) ** 2, axis=-1), labels, capacity)
    # A cell of one voxel has no flow at all; it may err as much as any other voxel.
    return error <= most * jnp.maximum(_sums(jnp.sum(wanted**2, axis=-1), labels, capacity), 1)


def apply(labels: jax.Array, keep: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Drops labels and numbers the rest anew, in order.

    Args:
      keep: bool [capacity + 1].

    Returns:
      labels int32 [*S], of which those there at all need not be without gaps; the highest there can be, int32 [].
    """
    keep = keep.at[0].set(False)
    number = jnp.cumsum(keep.astype(jnp.int32))
    return jnp.where(keep, number, 0)[labels], number[-1]


def _sums(x: jax.Array, labels: jax.Array, capacity: int) -> jax.Array:
    """The sum of x, [*S], over every label: [capacity + 1]; by blocks, as a long float32 sum loses what it adds."""
    blocks = max(1, min(BLOCKS, labels.size // (capacity + 1)))  # no more sums than voxels
    block = jnp.arange(labels.size) // max(1, -(-labels.size // blocks))
    sums = jax.ops.segment_sum(x.reshape(-1), block * (capacity + 1) + labels.reshape(-1), blocks * (capacity + 1))
    return sums.reshape(blocks, capacity + 1).sum(0)
