"""Labels -> a microscope's picture: texture, optics, photons, camera.

The embedded stand-in for real images. It has what sketches lack (chromatin texture, dark nucleoli, blur, haze,
noise), so that a network trained on it has something to learn, and its truth is known.
"""

import math

import jax
import jax.numpy as jnp

from jaxsynth import keys
from jaxsynth.sim import deform
from jaxsynth.sim.sketch import blur


def render(
    key: jax.Array,
    labels: jax.Array,
    brightness: jax.Array,
    spacing_um: tuple[float, ...],
    *,
    psf_sigma_um: tuple[float, ...] | float = 0.3,
    photons: float = 120.0,
    background: float = 4.0,
    read_noise: float = 1.6,
    gain: float = 8.0,
    offset: float = 100.0,
    dimmest: float = 0.15,
    grain_um: float = 1.2,
    contrast: float = 0.3,
    nucleoli: float = 0.5,
    haze: float = 0.12,
    shading: float = 0.12,
) -> jax.Array:
    """A fluorescence image of labelled nuclei.

    Args:
      key: typed PRNG key.
      labels: int32 [*S], 0 = background.
      brightness: float32 [N + 1], relative, in [0, 1], indexed by label.
      spacing_um: D floats, micrometres per voxel, static.
      psf_sigma_um: standard deviation of the Gaussian PSF, one for all axes or one per axis, static.
      photons: expected photons of a voxel deep inside a cell of brightness 1.
      background: expected photons outside all cells.
      read_noise: standard deviation of the camera's read noise, photons.
      gain, offset: camera counts per photon, and counts at no light.
      dimmest: light of a cell of brightness 0, relative to one of brightness 1.
      grain_um: size of the chromatin's grains; drawn no finer than two voxels.
      contrast: standard deviation of the chromatin's log density.
      nucleoli: how much darker nucleoli are than the chromatin around them, 0 (as bright) to 1 (black).
      haze: share of the light that comes from out of focus, spread over several cells.
      shading: unevenness of the illumination, standard deviation.

    Returns:
      float32 [*S], camera counts, not below 0. With the defaults cells lie below 3000 counts, background near 130.
    """
    ndim = labels.ndim
    sigma_um = (psf_sigma_um,) * ndim if isinstance(psf_sigma_um, int | float) else psf_sigma_um
    sigma_vox = tuple(sigma / step for sigma, step in zip(sigma_um, spacing_um, strict=True))
    density = _texture(key, labels.shape, spacing_um, grain_um, contrast, nucleoli)
    light = (dimmest + (1 - dimmest) * jnp.clip(brightness, 0.0, 1.0)).at[0].set(0.0)[labels] * density
    light = blur(light, sigma_vox)
    light = (1 - haze) * light + haze * _out_of_focus(light, spacing_um, 12 * grain_um)
    uneven = deform.smooth_noise(keys.stream(key, "shading"), labels.shape, tuple(s * 0.6 for s in labels.shape))
    expected = (photons * light + background) * jnp.exp(shading * uneven - shading**2 / 2)
    seen = poisson(keys.stream(key, "photons"), expected)
    seen = seen + read_noise * jax.random.normal(keys.stream(key, "read"), labels.shape)
    return jnp.maximum(offset + gain * seen, 0.0)


def poisson(key: jax.Array, expected: jax.Array) -> jax.Array:
    """Poisson counts as float32, several times faster than rejection sampling on a large volume.

    Below an expectation of 16 by inversion: a uniform draw passed through the exact distribution function, of which 48
    terms miss less than 1e-10. Above, a normal draw with the first skewness correction (Cornish and Fisher 1938),
    rounded, so that the variance exceeds the Poisson distribution's by less than 1 %.

    Args:
      expected: float32 [*S], not negative.
    """
    uniform = jax.random.uniform(key, expected.shape, minval=1e-7, maxval=1.0)
    few = jnp.minimum(expected, 16.0)
    term = jnp.exp(-few)
    below, count = term, jnp.zeros_like(few)
    for number in range(1, 49):
        count = count + (uniform > below)
        term = term * few / number
        below = below + term
    z = jax.scipy.special.ndtri(uniform)
    many = jnp.round(expected + jnp.sqrt(expected) * z + (z * z - 1) / 6)
    return jnp.where(expected < 16.0, count, jnp.maximum(many, 0.0))


def _texture(key, shape, spacing_um, grain_um, contrast, nucleoli) -> jax.Array:
    """Relative density of the dye, mean about 1: float32 [*S]."""

    def knots(size_um: float) -> tuple[float, ...]:
        return tuple(max(size_um / step, 2.0) for step in spacing_um)

    fine = deform.smooth_noise(keys.stream(key, "fine"), shape, knots(grain_um))
    coarse = deform.smooth_noise(keys.stream(key, "coarse"), shape, knots(3 * grain_um))
    holes = deform.smooth_noise(keys.stream(key, "nucleoli"), shape, knots(2 * grain_um))
    chromatin = jnp.exp(contrast * (0.6 * fine + 0.8 * coarse) - contrast**2 / 2)
    # The highest 5 % of a smooth field are round spots about one knot wide.
    return chromatin * (1 - nucleoli * jax.nn.sigmoid(8 * (holes - 1.65)))


def _out_of_focus(light: jax.Array, spacing_um: tuple[float, ...], width_um: float) -> jax.Array:
    """Light spread over about `width_um`: block means as control points of a B-spline. float32 [*S]."""
    shape, rank = light.shape, light.ndim
    knots = tuple(min(max(round(width_um / step), 1), size) for step, size in zip(spacing_um, shape, strict=True))
    counts = tuple(math.ceil(size / knot) for size, knot in zip(shape, knots, strict=True))
    fill = [(0, count * knot - size) for count, knot, size in zip(counts, knots, shape, strict=True)]
    blocks = jnp.pad(light, fill, mode="reflect")
    blocks = blocks.reshape([part for pair in zip(counts, knots, strict=True) for part in pair])
    means = jnp.mean(blocks, axis=tuple(range(1, 2 * rank, 2)))
    # A block's mean belongs to its middle, so the spline is read half a knot later, which takes two more control
    # points on either side.
    bases = tuple(
        deform.bspline_basis(size + knot, knot)[knot // 2 :][:size] for size, knot in zip(shape, knots, strict=True)
    )
    return deform.bspline_field(jnp.pad(means, 2, mode="edge"), bases)
