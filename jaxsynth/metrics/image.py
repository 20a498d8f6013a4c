"""Scores of a pair of images of equal shape; rank-free (2D and 3D), float32, jit-able.

All take `metric(reference, image, *, data_range=None)`: arrays [*S] of any real dtype, and the width of the
intensity range, a number or a float array []. `data_range=None` is the reference's own max - min (scikit-image
takes the dtype's range for integers instead). The papers scale images to [0, 1] and use `data_range=1`. Metrics
that do not depend on a range accept the argument and ignore it, so that all can be called alike. Two arrays of
different shape raise InputError.
"""

import jax
import jax.numpy as jnp

from jaxsynth.errors import InputError


def psnr(reference, image, *, data_range=None) -> jax.Array:
    """Peak signal-to-noise ratio in dB, 10 log10(data_range^2 / MSE): float32 [], infinite for equal images."""
    x, y = _pair(reference, image)
    return 10 * jnp.log10(_range(x, data_range) ** 2 / _mean((x - y) ** 2))


def mae(reference, image, *, data_range=None) -> jax.Array:
    """Mean absolute error in the images' own unit (not divided by `data_range`): float32 []."""
    x, y = _pair(reference, image)
    return _mean(jnp.abs(x - y))


def nrmse(reference, image, *, data_range=None) -> jax.Array:
    """Root mean square error over the reference's root mean square ("euclidean" in scikit-image): float32 []."""
    x, y = _pair(reference, image)
    return jnp.sqrt(_mean((x - y) ** 2) / _mean(x**2))


def zncc(reference, image, *, data_range=None) -> jax.Array:
    """Zero-normalised cross-correlation (Pearson's r over voxels), in [-1, 1]: float32 [].

    Unchanged by a * image + b with a > 0. NaN where one of the images is constant.
    """
    x, y = (v - _mean(v) for v in _pair(reference, image))
    # The mean of a pedestal is only as exact as float32 allows; what is left of it is taken off a second time.
    x, y = x - _mean(x), y - _mean(y)
    return _mean(x * y) / (jnp.sqrt(_mean(x**2)) * jnp.sqrt(_mean(y**2)))


def ssim(reference, image, *, data_range=None, window: int = 7) -> jax.Array:
    """Mean structural similarity (Wang et al. 2004) as scikit-image's default computes it: float32 [].

    A uniform window of `window` voxels along every axis, sample covariances, K1 = 0.01, K2 = 0.03, the mean over
    those voxels whose window lies inside the image. InputError where the image is smaller than the window.
    """
    x, y = _pair(reference, image)
    if min(x.shape, default=0) < window:
        raise InputError(f"ssim: expected images of at least {window} voxels along every axis, got shape {x.shape}")
    width = _range(x, data_range)
    voxels = window**x.ndim
    c1, c2 = (0.01 * width) ** 2, (0.03 * width) ** 2
    mean_x, var_x = _window_moments(x, window)
    mean_y, var_y = _window_moments(y, window)
    _, var_difference = _window_moments(x - y, window)
    sample = voxels / (voxels - 1)
    # 2ab = a^2 + b^2 - (a - b)^2 turns both factors into one minus a small term: nothing cancels on a pedestal.
    luminance = 1 - (mean_x - mean_y) ** 2 / (mean_x**2 + mean_y**2 + c1)
    structure = 1 - sample * var_difference / (sample * (var_x + var_y) + c2)
    return _mean(luminance * structure)


METRICS = {"psnr": psnr, "ssim": ssim, "mae": mae, "nrmse": nrmse, "zncc": zncc}


def _pair(reference, image):
    x, y = jnp.asarray(reference, jnp.float32), jnp.asarray(image, jnp.float32)
    if x.shape != y.shape:
        raise InputError(f"metric: expected two images of one shape, got {x.shape} and {y.shape}")
    return x, y


def _range(reference, data_range):
    return reference.max() - reference.min() if data_range is None else jnp.asarray(data_range, jnp.float32)


def _mean(x):
    """Mean over all voxels; chunks first, as one long float32 sum of a large volume loses digits."""
    flat = x.reshape(-1)
    size = flat.size
    chunk = 1 << max(size.bit_length() // 2, 1)
    flat = jnp.pad(flat, (0, -size % chunk)).reshape(-1, chunk)
    return jnp.sum(jnp.sum(flat, 1)) / size


def _window_moments(x, window):
    """Mean and population variance in every whole window, [*(S - window + 1)].

    One axis at a time by the law of total variance: the variance over a window is the mean of its lines' variances
    plus the variance of its lines' means. Every difference is taken from a local mean, so unlike E[x^2] - E[x]^2
    it is exact on a pedestal in float32.
    """
    mean, variance = x, jnp.zeros_like(x)
    for axis in range(x.ndim):
        size = x.shape[axis] - window + 1
        shifts = [jax.lax.slice_in_dim(mean, i, i + size, axis=axis) for i in range(window)]
        within = sum(jax.lax.slice_in_dim(variance, i, i + size, axis=axis) for i in range(window)) / window
        mean = sum(shifts) / window
        variance = within + sum((shift - mean) ** 2 for shift in shifts) / window
    return mean, variance
