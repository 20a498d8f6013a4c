"""The forward process and what a noise prediction says about the image (paper 001, eq. 3-6).

Time is the integer index 0..T-1; x_t at index t carries t + 1 steps of noise. Arrays are batched, [B, *S, C].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxsynth.records import Schedule

Denoise = Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]
"""denoise(xt: [..., C], t: int32, cond) -> predicted noise, the shape of xt."""


def _at(table: np.ndarray, t: jax.Array, ndim: int) -> jax.Array:
    """Entries `t` ([B] or []) of a float64 host table as float32, with axes added to reach rank `ndim`."""
    values = jnp.asarray(table, jnp.float32)[t]
    return values.reshape(values.shape + (1,) * (ndim - values.ndim))


def noise_to(x0: jax.Array, t: jax.Array, noise: jax.Array, schedule: Schedule) -> jax.Array:
    """x_t for given noise: sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) noise (eq. 3).

    Args:
      x0, noise: float32, equal shapes.
      t: int32 [B] or [], index 0..T-1.
    """
    signal = _at(np.sqrt(schedule.alphas_bar), t, x0.ndim)
    return signal * x0 + _at(np.sqrt(1 - schedule.alphas_bar), t, x0.ndim) * noise


def predict_x0(xt: jax.Array, t: jax.Array, noise: jax.Array, schedule: Schedule) -> jax.Array:
    """The image that `noise` implies: (x_t - sqrt(1 - alpha_bar_t) noise) / sqrt(alpha_bar_t). Not clipped."""
    ratio = _at(np.sqrt(1 / schedule.alphas_bar - 1), t, xt.ndim)
    return _at(np.sqrt(1 / schedule.alphas_bar), t, xt.ndim) * xt - ratio * noise


def noise_loss(
    denoise: Denoise, x0: jax.Array, t: jax.Array, noise: jax.Array, schedule: Schedule, cond: jax.Array | None = None
) -> jax.Array:
    """Mean squared error of the predicted noise per example (eq. 4).

    Args:
      x0, noise: float32 [B, *S, C].
      t: int32 [B].

    Returns:
      float32 [B].
    """
    predicted = denoise(noise_to(x0, t, noise, schedule), t, cond)
    return jnp.mean(jnp.square(predicted - noise), axis=tuple(range(1, x0.ndim)))
