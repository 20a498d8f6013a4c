"""Endless batches of training patches, normalised, on the device.

What fits in device memory stays there in the files' own dtype, and patches are cut inside jit: no host copy per
step. What does not is read by background threads. Both draw the same patches from the same key.
"""

import collections
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Sharding

from jaxsynth import keys
from jaxsynth.data import augment
from jaxsynth.data.intensity import Intensity, normalise
from jaxsynth.data.volumes import VolumeSet, load, read_patch

INT32_LIMIT = 2**31 - 1
PREFETCH = 4  # batches being read ahead, one thread each


@struct.dataclass
class Draw:
    """Where the patches of a batch lie.

    Attributes:
      index: int32 [B], the volume.
      start: int32 [B, D], first voxel; negative where the volume is smaller than the patch, which is then centred.
      symmetry: bool [B, 3], see `augment`.
    """

    index: jax.Array
    start: jax.Array
    symmetry: jax.Array


def draw(key: jax.Array, shapes: np.ndarray, patch: tuple[int, ...], batch_size: int) -> Draw:
    """Draws a batch of patches: volumes in proportion to their voxels, places uniform, symmetries uniform.

    Args:
      key: the batch's key.
      shapes: host int [N, D], the volumes.
      patch: D ints.
    """
    ndim = len(patch)
    share = np.cumsum(np.prod(shapes, axis=1, dtype=np.float64))
    # Made on the host and compared only, so that every backend draws the same.
    share = jnp.asarray(share / share[-1], jnp.float32)
    which = jax.random.uniform(keys.stream(key, "volume"), (batch_size,))
    index = jnp.minimum(jnp.searchsorted(share, which, side="right"), len(shapes) - 1).astype(jnp.int32)
    room = jnp.asarray(shapes - np.asarray(patch), jnp.int32)[index]
    place = jax.random.randint(keys.stream(key, "place"), (batch_size, ndim), 0, jnp.maximum(room, 0) + 1)
    start = jnp.where(room >= 0, place, room // 2)
    symmetry_keys = jax.random.split(keys.stream(key, "symmetry"), batch_size)
    symmetry = jax.vmap(augment.draw_symmetry)(symmetry_keys)
    return Draw(index=index, start=start, symmetry=symmetry)


def _reflect(index: jax.Array, size: jax.Array) -> jax.Array:
    """Indices folded back into 0..size-1 at the ends, the edge voxel not repeated (NumPy's `reflect`)."""
    period = jnp.maximum(2 * (size - 1), 1)
    folded = jnp.mod(index, period)
    return jnp.minimum(folded, period - folded) * (size > 1)


def _cut(flat: jax.Array, offset: jax.Array, shape: jax.Array, start: jax.Array, patch: tuple[int, ...]) -> jax.Array:
    """A patch of the volume of `shape` that lies in `flat` from `offset` on; [*patch]."""
    address = jnp.zeros(patch, jnp.int32)
    for axis, length in enumerate(patch):
        along = _reflect(start[axis] + jnp.arange(length), shape[axis])
        address = address * shape[axis] + along.reshape((-1,) + (1,) * (len(patch) - axis - 1))
    return flat[offset + address]


def fits_on_device(volumes: VolumeSet, limit_bytes: float) -> bool:
    """Whether the set may stay in device memory: within `limit_bytes`, and addressable in int32."""
    voxels = volumes.num_voxels
    return voxels <= INT32_LIMIT and voxels * volumes.dtype.itemsize <= limit_bytes


def batches(
    volumes: VolumeSet,
    intensity: Intensity,
    key: jax.Array,
    *,
    patch: tuple[int, ...],
    batch_size: int,
    resident: bool,
    first_step: int = 0,
    symmetries: bool = True,
    split: Sharding | None = None,
    replicated: Sharding | None = None,
) -> Iterator[jax.Array]:
    """Batches for steps first_step, first_step + 1, ...; batch i depends on `key` and i alone.

    Args:
      volumes: the training set.
      intensity: the normalisation.
      patch: D ints.
      resident: True keeps the set on the device, False reads patches on background threads.
      symmetries: whether patches are flipped and turned.
      split, replicated: where batches and the resident set lie; default the default device.

    Yields:
      float32 [B, *patch, 1] in [-1, 1].
    """
    shapes = np.asarray(volumes.shapes)
    patch = tuple(patch)

    def finish(patches: jax.Array, symmetry: jax.Array) -> jax.Array:
        patches = normalise(patches, intensity)
        if symmetries:
            patches = jax.vmap(augment.apply_symmetry)(patches, symmetry)
        return patches[..., None]

    def drawn(step):
        return draw(keys.stream(key, step), shapes, patch, batch_size)

    feed = _resident if resident else _streamed
    return feed(volumes, shapes, patch, drawn, finish, first_step, split, replicated)


def _resident(volumes, shapes, patch, drawn, finish, first_step, split, replicated) -> Iterator[jax.Array]:
    sizes = np.prod(shapes, axis=1)
    offsets = jnp.asarray(np.cumsum(sizes) - sizes, jnp.int32)
    flat = np.concatenate([load(volumes, i).ravel() for i in range(len(shapes))])
    flat = jax.device_put(flat, replicated)

    def batch(flat, step):
        at = drawn(step)
        cut = jax.vmap(lambda index, start: _cut(flat, offsets[index], jnp.asarray(shapes)[index], start, patch))
        return finish(cut(at.index, at.start), at.symmetry)

    batch = jax.jit(batch, out_shardings=split)
    step = first_step
    while True:
        yield batch(flat, step)
        step += 1


def _streamed(volumes, shapes, patch, drawn, finish, first_step, split, replicated) -> Iterator[jax.Array]:
    try:
        host = jax.devices("cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        host = jax.devices()[0]
    finish = jax.jit(finish, out_shardings=split)
    drawn = jax.jit(drawn)

    def read(step: int) -> tuple[np.ndarray, np.ndarray]:
        # On the host's own device: a draw must not queue behind the training steps.
        with jax.default_device(host):
            at = jax.device_get(drawn(step))
        parts = [read_patch(volumes, int(i), tuple(s), patch) for i, s in zip(at.index, at.start, strict=True)]
        return np.stack(parts), at.symmetry

    with ThreadPoolExecutor(PREFETCH, thread_name_prefix="patches") as pool:
        ahead: collections.deque = collections.deque()
        step = first_step
        try:
            while True:
                while len(ahead) < PREFETCH:
                    ahead.append(pool.submit(read, step))
                    step += 1
                yield finish(*jax.device_put(ahead.popleft().result(), split))
        finally:
            for future in ahead:
                future.cancel()
