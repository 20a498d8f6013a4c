"""Named random streams: every draw of a run is addressed by a path of names and counts under one root key.

A stream depends on its path alone, so a result does not depend on batch size, number of devices, tile order
or a restart.
"""

import zlib

import jax


def root(seed: int) -> jax.Array:
    """The root key of a run: a typed PRNG key, shape []."""
    return jax.random.key(seed)


def stream(key: jax.Array, *path: str | int | jax.Array) -> jax.Array:
    """The key at `path` under `key`.

    Args:
      key: typed PRNG key, shape [].
      path: names (folded in by their CRC-32, stable over processes and versions) and integer counts such as the
        training step or a tile's index; counts may be traced.

    Returns:
      Typed PRNG key, shape [].
    """
    for part in path:
        key = jax.random.fold_in(key, zlib.crc32(part.encode()) if isinstance(part, str) else part)
    return key
