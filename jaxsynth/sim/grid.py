"""Where voxels lie, in micrometres, and how cells are turned.

A volume of shape S and spacing s fills the box from 0 to S * s; voxel i of an axis covers [i s, (i + 1) s], so its
centre is at (i + 1/2) s. Axis order is (Z, Y, X) or (Y, X) everywhere.
"""

import jax
import jax.numpy as jnp


def axes_um(shape: tuple[int, ...], spacing_um: jax.Array) -> tuple[jax.Array, ...]:
    """Voxel-centre coordinates along each axis, shaped to broadcast against the volume.

    Args:
      shape: S, of rank D.
      spacing_um: float [D], micrometres per voxel.

    Returns:
      D arrays float32; the d-th has shape [1, ..., S_d, ..., 1].
    """
    rank = len(shape)
    return tuple(
        ((jnp.arange(size, dtype=jnp.float32) + 0.5) * spacing_um[axis]).reshape(
            [-1 if other == axis else 1 for other in range(rank)]
        )
        for axis, size in enumerate(shape)
    )


def size_um(shape: tuple[int, ...], spacing_um: jax.Array) -> jax.Array:
    """Edge lengths of the volume's box, float32 [D], micrometres."""
    return jnp.asarray(shape, jnp.float32) * jnp.asarray(spacing_um, jnp.float32)


def random_rotation(key: jax.Array, num: int, ndim: int) -> jax.Array:
    """Rotations drawn uniformly (Haar measure) from SO(2) or SO(3).

    Args:
      key: typed PRNG key.
      num: how many.
      ndim: 2 or 3.

    Returns:
      float32 [num, ndim, ndim], orthogonal with determinant +1.

    In 3D a normally distributed 4-vector, normalised, is a uniform unit quaternion; Euler angles drawn uniformly,
    as in paper 000, would crowd the poles.
    """
    if ndim == 2:
        angle = jax.random.uniform(key, (num,), maxval=2 * jnp.pi)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        return jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2)
    if ndim != 3:
        raise ValueError(f"ndim: rotations are known for 2 and 3 dimensions, not {ndim}")
    quaternion = jax.random.normal(key, (num, 4))
    w, x, y, z = jnp.moveaxis(quaternion / jnp.linalg.norm(quaternion, axis=-1, keepdims=True), -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)
