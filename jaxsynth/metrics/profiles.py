"""Intensity profiles and spectra of the central xz slice, by which paper 003 compares real and synthetic images.

Kernels of one image [*S], (Z, Y, X) or (Y, X), of any real dtype. Like `data.intensity.normalise` they take NumPy (and
compile nothing: images of a set differ in size) or jax arrays (jit-able, for `vmap`), and return the same, float32. The
slice of a 2D image is the image itself, its Y in the place of Z.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsynth.errors import InputError

FLOOR = 1e-12  # power below which nothing is told: -120 dB


def central_xz(image):
    """The xz slice through the middle of Y, [Z, X] of the image's dtype; a 2D image as it is."""
    if image.ndim not in (2, 3):
        raise InputError(f"profile: expected an image (Y, X) or (Z, Y, X), got shape {image.shape}")
    return image[:, image.shape[1] // 2] if image.ndim == 3 else image


def profile(image):
    """Brightness along x: the central xz slice averaged over z (in 2D the image over y), [X] in the image's unit.

    Paper 003, section 4.1, integrates over z. The mean is that over the number of voxels, so that images of different
    depth can be compared.
    """
    return _float32(central_xz(image)).mean(0)


def depth_profile(image):
    """Brightness along z: the mean of every plane of [Z, Y, X], [Z] in the image's unit: how light fades with depth."""
    if image.ndim != 3:
        raise InputError(f"depth_profile: expected an image (Z, Y, X), got shape {image.shape}")
    return _float32(image).mean((1, 2))


def power_spectrum(image):
    """Power of the central xz slice at every frequency, [H, W] of the slice, frequency 0 at [H // 2, W // 2].

    The mean is taken off and a Hann window laid over the slice, lest its borders draw a cross. Scaled such that white
    noise of variance v has v everywhere; frequency [i, k] is ((i - H // 2) / H, (k - W // 2) / W) cycles per voxel. The
    unit is the image's squared.
    """
    image = _float32(central_xz(image))
    xp = jnp if isinstance(image, jax.Array) else np
    # Half-voxel Hann: positive everywhere, so that even an axis of one voxel keeps its content.
    one, other = (np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2 for size in image.shape)
    window = np.outer(one, other).astype(np.float32)
    # The mean of a pedestal is only as exact as float32 allows; what is left of it is taken off by the second.
    image = image - image.mean()
    image = (image - (image * window).sum() / window.sum()) * window
    return (xp.abs(xp.fft.fftshift(xp.fft.fft2(image))) ** 2 / (window**2).sum()).astype(xp.float32)


def spectrum(image):
    """`power_spectrum` in dB, as pictures of spectra show it (figures 7, 9 and 11), [H, W], at least -120."""
    return decibel(power_spectrum(image))


def decibel(power):
    """10 log10 of a power, of the same shape; what is below FLOOR counts as FLOOR."""
    xp = jnp if isinstance(power, jax.Array) else np
    return 10 * xp.log10(xp.maximum(power, FLOOR))


def frequencies(num_bins: int = 32, spacing_um=None) -> np.ndarray:
    """Centres of the bins of `radial_spectrum`: float64 [num_bins], cycles per um, without spacing per voxel."""
    return (np.arange(num_bins) + 0.5) * _nyquist(spacing_um) / num_bins


def radial_spectrum(image, num_bins: int = 32, spacing_um=None):
    """`power_spectrum` averaged over all directions in (z, x), frequency 0 left out: [num_bins].

    Args:
      image: [*S].
      num_bins: equal bins between 0 and the highest frequency of the finest axis of the slice (`frequencies`).
      spacing_um: [D] micrometres per voxel, (z, y, x) or (y, x), so that slices are read as the specimen was; without,
        voxels count as cubes.

    Returns:
      Power in the image's unit squared, flat for white noise; NaN in a bin that no frequency of the slice falls into.
    """
    power = power_spectrum(image)
    if spacing_um is not None and len(spacing_um) != image.ndim:
        raise InputError(f"spacing_um: expected {image.ndim} numbers for an image {image.shape}, got {spacing_um}")
    steps = (1.0, 1.0) if spacing_um is None else (spacing_um[0], spacing_um[-1])
    axes = [np.fft.fftshift(np.fft.fftfreq(size, step)) for size, step in zip(power.shape, steps, strict=True)]
    radius = np.hypot(axes[0][:, None], axes[1]) / _nyquist(spacing_um)
    # Rounding must not move the outermost frequency of an axis, radius 1, out of the last bin.
    index = np.where(radius <= 1 + 1e-9, np.minimum(np.floor(radius * num_bins), num_bins - 1), num_bins)
    index[power.shape[0] // 2, power.shape[1] // 2] = num_bins  # the mean, taken off: what is left there is rounding
    index = index.astype(np.int32).ravel()
    modes = np.bincount(index, minlength=num_bins + 1)[:num_bins]
    if isinstance(power, jax.Array):
        total = jnp.bincount(index, weights=power.ravel(), length=num_bins + 1)[:num_bins]
        return jnp.where(modes > 0, total / np.maximum(modes, 1), jnp.nan)
    total = np.bincount(index, weights=power.ravel(), minlength=num_bins + 1)[:num_bins]
    return np.where(modes > 0, total / np.maximum(modes, 1), np.nan).astype(np.float32)


def _nyquist(spacing_um):
    return 0.5 if spacing_um is None else 0.5 / min(spacing_um[0], spacing_um[-1])


def profile_distance(real, other):
    """Relative distance of two profiles of one length, sum |other - real| / sum |real|: float32 [], >= 0.

    1 where the other is zero, 0 for equal ones even if zero, infinite where only the real one is zero.
    """
    if real.shape != other.shape:
        raise InputError(f"profile_distance: expected two profiles of one shape, got {real.shape} and {other.shape}")
    real, other = _float32(real), _float32(other)
    xp = jnp if isinstance(real, jax.Array) or isinstance(other, jax.Array) else np
    difference, scale = xp.abs(other - real).sum(), xp.abs(real).sum()
    infinite = xp.where(difference > 0, xp.inf, 0.0)
    return xp.where(scale > 0, difference / xp.where(scale > 0, scale, 1.0), infinite).astype(xp.float32)[()]


def spectral_distance_db(real, other):
    """Root mean square difference of two radial spectra [num_bins] in dB, the log-spectral distance: float32 [], >= 0.

    Bins that are NaN in one of them are passed over; NaN where all are.
    """
    if real.shape != other.shape:
        raise InputError(f"spectral_distance_db: expected spectra of one shape, got {real.shape} and {other.shape}")
    difference = decibel(_float32(other)) - decibel(_float32(real))
    xp = jnp if isinstance(difference, jax.Array) else np
    known = ~xp.isnan(difference)
    count = known.sum()
    mean = xp.where(known, difference**2, 0.0).sum() / xp.maximum(count, 1)
    return xp.where(count > 0, xp.sqrt(mean), xp.nan).astype(xp.float32)[()]


def over_position(values: np.ndarray, num_positions: int) -> np.ndarray:
    """A profile [N] at the centres of `num_positions` equal parts of its axis, linear between voxels: float32."""
    places = (np.arange(num_positions) + 0.5) / num_positions
    return np.interp(places, (np.arange(len(values)) + 0.5) / len(values), values).astype(np.float32)


def on_grid(power: np.ndarray, num: int) -> np.ndarray:
    """A power spectrum [H, W] on a grid of num x num equal parts of the band, so that slices of any size can be pooled.

    Every part has the mean of the frequencies in it by the area that they share, each frequency standing for the band
    of 1 / N cycles per voxel around it. `num` odd has frequency 0 in the middle: float32 [num, num].
    """
    edges = np.linspace(-0.5, 0.5, num + 1)
    low, high = edges[:-1, None], edges[1:, None]
    for size in power.shape:
        places, half = np.fft.fftshift(np.fft.fftfreq(size)), 0.5 / size
        # The band is periodic: what the lowest frequency covers below -0.5 lies below +0.5.
        share = sum(
            np.clip(np.minimum(high, places + turn + half) - np.maximum(low, places + turn - half), 0, None)
            for turn in (0, 1)
        )
        power = (share / share.sum(1, keepdims=True) @ power).T
    return power.astype(np.float32)


def _float32(values):
    xp = jnp if isinstance(values, jax.Array) else np
    return xp.asarray(values).astype(xp.float32)
