"""Symmetries of a patch that leave its statistics as they are: flips and quarter turns in the image plane.

Brightness, noise and scale are left alone here: a diffusion model learns whatever distribution it is shown.
"""

import jax
import jax.numpy as jnp


def draw_symmetry(key: jax.Array) -> jax.Array:
    """One of the eight symmetries of the square: bool [3], flip Y, flip X, swap Y with X."""
    return jax.random.bernoulli(key, shape=(3,))


def apply_symmetry(patch: jax.Array, symmetry: jax.Array) -> jax.Array:
    """Flips and turns in the plane; z stays, since light decays and blurs along it in one direction.

    The swap is left out where the patch is not square in the plane.

    Args:
      patch: [*S], (Y, X) or (Z, Y, X).
      symmetry: bool [3], from `draw_symmetry`.
    """
    for axis in (-2, -1):
        patch = jnp.where(symmetry[axis + 2], jnp.flip(patch, axis), patch)
    if patch.shape[-1] == patch.shape[-2]:
        patch = jnp.where(symmetry[2], jnp.swapaxes(patch, -1, -2), patch)
    return patch
