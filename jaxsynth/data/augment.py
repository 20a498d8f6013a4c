"""Symmetries of a patch that leave its statistics as they are: flips and quarter turns in the image plane.

Brightness, noise and scale are left alone here: a diffusion model learns whatever distribution it is shown.
"""

import jax
import jax.numpy as jnp


def draw_symmetry(key: jax.Array, ndim: int) -> jax.Array:
    """One element of the symmetry group.

    Args:
      key: typed PRNG key.
      ndim: D, 2 or 3.

    Returns:
      bool [D + 1]: flip along each axis, then whether Y and X are swapped.
    """
    return jax.random.bernoulli(key, shape=(ndim + 1,))


def apply_symmetry(patch: jax.Array, symmetry: jax.Array) -> jax.Array:
    """Flips along each axis and swaps Y with X; z never trades places, since its voxels are of another size.

    The swap is left out where the patch is not square in the plane.

    Args:
      patch: [*S].
      symmetry: bool [D + 1], from `draw_symmetry`.
    """
    for axis in range(patch.ndim):
        patch = jnp.where(symmetry[axis], jnp.flip(patch, axis), patch)
    if patch.shape[-1] == patch.shape[-2]:
        patch = jnp.where(symmetry[-1], jnp.swapaxes(patch, -1, -2), patch)
    return patch
