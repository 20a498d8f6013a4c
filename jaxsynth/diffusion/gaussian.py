"""The forward process, and what a network's prediction says about the image (paper 001, eq. 3-6).

Time is the integer index 0..T-1; x_t at index t carries t + 1 steps of noise. Arrays are batched, [B, *S, C].

A network predicts one of three things, which tell the same but weigh errors differently:

- `noise`: the noise in x_t, the papers' choice.
- `x0`: the image.
- `v` = sqrt(alpha_bar_t) noise - sqrt(1 - alpha_bar_t) x0 (Salimans and Ho 2022): stays informative at both ends.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxsynth.errors import InputError
from jaxsynth.records import Schedule

PREDICTIONS = ("noise", "x0", "v")
WEIGHTINGS = ("none", "min_snr", "edm")
SIGMA_DATA = 0.5  # of the EDM weighting: spread of the images in [-1, 1] (Karras et al. 2022)

Denoise = Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array]
"""denoise(xt: [..., C], t: int32, cond) -> the network's prediction, the shape of xt."""


def at(table: np.ndarray, t: jax.Array, ndim: int) -> jax.Array:
    """Entries `t` ([B] or []) of a float64 host table as float32, with axes added to reach rank `ndim`."""
    values = jnp.asarray(table, jnp.float32)[t]
    return values.reshape(values.shape + (1,) * (ndim - values.ndim))


def check_prediction(prediction: str) -> None:
    """Raises InputError unless `prediction` is one of PREDICTIONS."""
    if prediction not in PREDICTIONS:
        raise InputError(f"unknown prediction {prediction!r}: expected one of {', '.join(PREDICTIONS)}")


def noise_to(x0: jax.Array, t: jax.Array, noise: jax.Array, schedule: Schedule) -> jax.Array:
    """x_t for given noise: sqrt(alpha_bar_t) x0 + sqrt(1 - alpha_bar_t) noise (eq. 3).

    Args:
      x0, noise: float32, equal shapes.
      t: int32 [B] or [], index 0..T-1.
    """
    signal = at(np.sqrt(schedule.alphas_bar), t, x0.ndim)
    return signal * x0 + at(np.sqrt(1 - schedule.alphas_bar), t, x0.ndim) * noise


def target(x0: jax.Array, t: jax.Array, noise: jax.Array, schedule: Schedule, prediction: str) -> jax.Array:
    """What a network of this kind should predict of noise_to(x0, t, noise); arguments as there."""
    check_prediction(prediction)
    if prediction == "noise":
        return noise
    if prediction == "x0":
        return x0
    signal = at(np.sqrt(schedule.alphas_bar), t, x0.ndim)
    return signal * noise - at(np.sqrt(1 - schedule.alphas_bar), t, x0.ndim) * x0


def x0_tables(schedule: Schedule, prediction: str) -> tuple[np.ndarray, np.ndarray]:
    """(p, q), float64 [T] each, of x0 = p x_t + q prediction."""
    check_prediction(prediction)
    signal, noise = np.sqrt(schedule.alphas_bar), np.sqrt(1 - schedule.alphas_bar)
    if prediction == "noise":
        return 1 / signal, -noise / signal
    if prediction == "x0":
        return np.zeros_like(signal), np.ones_like(signal)
    return signal, -noise


def predict_x0(
    xt: jax.Array, t: jax.Array, predicted: jax.Array, schedule: Schedule, prediction: str = "noise"
) -> jax.Array:
    """The image that a prediction implies, (x_t - sqrt(1 - alpha_bar_t) noise) / sqrt(alpha_bar_t). Not clipped."""
    from_xt, from_prediction = x0_tables(schedule, prediction)
    return at(from_xt, t, xt.ndim) * xt + at(from_prediction, t, xt.ndim) * predicted


def predict_noise(
    xt: jax.Array, t: jax.Array, predicted: jax.Array, schedule: Schedule, prediction: str = "noise"
) -> jax.Array:
    """The noise that a prediction implies."""
    if prediction == "noise":
        return predicted
    # Written out for v: the way over x0 divides by sqrt(1 - alpha_bar), which is small near t = 0.
    signal, noise = np.sqrt(schedule.alphas_bar), np.sqrt(1 - schedule.alphas_bar)
    if prediction == "v":
        return at(noise, t, xt.ndim) * xt + at(signal, t, xt.ndim) * predicted
    return (xt - at(signal, t, xt.ndim) * predicted) / at(noise, t, xt.ndim)


def loss_weights(schedule: Schedule, prediction: str, weighting: str, snr_cap: float = 5.0) -> np.ndarray:
    """Factors on the mean squared error of the network's own prediction, per t: float64 [T].

    An error of the prediction is an error of x0 times r: r^2 = SNR (noise), 1 (x0), SNR + 1 (v), with
    SNR = alpha_bar / (1 - alpha_bar). On the error of x0 the weightings are:

    - `none`: r^2 itself, the plain mean squared error of the prediction.
    - `min_snr`: min(SNR, snr_cap) (Hang et al. 2023): nearly clean images count no more than those at the cap.
    - `edm`: SNR + 1 / SIGMA_DATA^2 (Karras et al. 2022, table 1).

    Raises:
      InputError: unknown prediction or weighting, or a cap that is not positive.
    """
    check_prediction(prediction)
    if weighting not in WEIGHTINGS:
        raise InputError(f"unknown weighting {weighting!r}: expected one of {', '.join(WEIGHTINGS)}")
    if not snr_cap > 0:
        raise InputError(f"snr_cap must be positive, got {snr_cap}")
    snr = schedule.alphas_bar / (1 - schedule.alphas_bar)
    own = {"noise": snr, "x0": np.ones_like(snr), "v": snr + 1}[prediction]
    wanted = {"none": own, "min_snr": np.minimum(snr, snr_cap), "edm": snr + SIGMA_DATA**-2}[weighting]
    return wanted / own


def loss(
    denoise: Denoise,
    x0: jax.Array,
    t: jax.Array,
    noise: jax.Array,
    schedule: Schedule,
    cond: jax.Array | None = None,
    *,
    prediction: str = "noise",
    weighting: str = "none",
    snr_cap: float = 5.0,
) -> jax.Array:
    """Weighted mean squared error of the network's prediction per example (eq. 4 where all is left as it is).

    Args:
      x0, noise: float32 [B, *S, C].
      t: int32 [B].
      prediction, weighting, snr_cap: see `loss_weights`.

    Returns:
      float32 [B].
    """
    predicted = denoise(noise_to(x0, t, noise, schedule), t, cond)
    error = jnp.square(predicted - target(x0, t, noise, schedule, prediction))
    weights = at(loss_weights(schedule, prediction, weighting, snr_cap), t, 1)
    return weights * jnp.mean(error, axis=tuple(range(1, x0.ndim)))
