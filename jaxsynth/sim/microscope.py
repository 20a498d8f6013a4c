"""Labels -> a microscope's picture: texture, optics, photons, camera.

The embedded stand-in for real images, and the classical baseline. It has what sketches lack (chromatin texture, dark
nucleoli, blur, haze, noise), so that a network trained on it has something to learn, and its truth is known.

`light` says how much light comes from where, `image` what a microscope makes of it; `render` is one after the other.
"""

import math

import jax
import jax.numpy as jnp
from scipy.fft import next_fast_len

from jaxsynth import keys
from jaxsynth.sim import deform, grid
from jaxsynth.sim.sketch import blur, decay


def light(
    key: jax.Array,
    labels: jax.Array,
    brightness: jax.Array,
    spacing_um: tuple[float, ...],
    *,
    dimmest: float = 0.15,
    grain_um: float = 1.2,
    contrast: float = 0.3,
    nucleoli: float = 0.5,
) -> jax.Array:
    """The light that labelled nuclei send out.

    Args:
      key: typed PRNG key.
      labels: int32 [*S], 0 = background; or where cells overlap a stack of them, [M, *S], whose light adds up.
      brightness: float32 [N + 1], relative, in [0, 1], indexed by label.
      spacing_um: D floats, micrometres per voxel, static.
      dimmest: light of a cell of brightness 0, relative to one of brightness 1.
      grain_um: size of the chromatin's grains; drawn no finer than two voxels.
      contrast: standard deviation of the chromatin's log density.
      nucleoli: how much darker nucleoli are than the chromatin around them, 0 (as bright) to 1 (black).

    Returns:
      float32 [*S], about 1 in a cell of brightness 1, 0 in the background.
    """
    ndim = len(spacing_um)
    density = _texture(key, labels.shape[-ndim:], spacing_um, grain_um, contrast, nucleoli)
    emitted = (dimmest + (1 - dimmest) * jnp.clip(brightness, 0.0, 1.0)).at[0].set(0.0)[labels]
    return (jnp.sum(emitted, axis=0) if labels.ndim > ndim else emitted) * density


def image(
    key: jax.Array,
    light: jax.Array,
    spacing_um: tuple[float, ...],
    *,
    psf_sigma_um: tuple[float, ...] | float = 0.3,
    psf: jax.Array | None = None,
    absorption_um: jax.Array | float | None = None,
    photons: float = 120.0,
    background: float = 4.0,
    read_noise: float = 1.6,
    gain: float = 8.0,
    offset: float = 100.0,
    haze: float = 0.12,
    haze_um: float = 14.4,
    shading: float = 0.12,
) -> jax.Array:
    """A fluorescence image of any distribution of light: nuclei (`light`), or membranes in a range of 0 to 1.

    Args:
      key: typed PRNG key.
      light: float32 [*S], not negative; at the volume's edge it is taken to go on as its mirror image.
      spacing_um: D floats, micrometres per voxel, static.
      psf_sigma_um: standard deviation of the Gaussian PSF, one for all axes or one per axis, static.
      psf: a measured PSF instead, float32 [*P] of rank D, at the image's voxel size, centred on voxel P // 2, sum 1;
        see `data.psf.read_psf`.
      absorption_um: micrometres along z over which light falls to 1 / e; None for no decay. Plane 0 faces the
        objective. Without effect in 2D; the background does not decay.
      photons: expected photons of a voxel deep inside a structure of light 1.
      background: expected photons where there is no light.
      read_noise: standard deviation of the camera's read noise, photons.
      gain, offset: camera counts per photon, and counts at no light.
      haze, haze_um: share of the light that comes from out of focus, and over how many micrometres it is spread.
      shading: unevenness of the illumination, standard deviation.

    Returns:
      float32 [*S], camera counts, not below 0 and without an upper limit.
    """
    ndim = light.ndim
    if absorption_um is not None and ndim == 3:
        light = light * decay(grid.axes_um(light.shape, spacing_um)[0], absorption_um)
    if psf is None:
        sigma_um = (psf_sigma_um,) * ndim if isinstance(psf_sigma_um, int | float) else psf_sigma_um
        light = blur(light, tuple(sigma / step for sigma, step in zip(sigma_um, spacing_um, strict=True)))
    else:
        light = jnp.maximum(convolve(light, psf), 0.0)  # below 0 by rounding
    light = (1 - haze) * light + haze * _out_of_focus(light, spacing_um, haze_um)
    uneven = deform.smooth_noise(keys.stream(key, "shading"), light.shape, tuple(s * 0.6 for s in light.shape))
    expected = (photons * light + background) * jnp.exp(shading * uneven - shading**2 / 2)
    seen = poisson(keys.stream(key, "photons"), expected)
    seen = seen + read_noise * jax.random.normal(keys.stream(key, "read"), light.shape)
    return jnp.maximum(offset + gain * seen, 0.0)


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution by FFT, the volume mirrored at its edges: `scipy.ndimage.convolve(x, kernel, mode="reflect")`.

    Args:
      x: float [*S].
      kernel: float [*P] of the same rank, centred on voxel P // 2 whether P is odd or even; larger than S or not.

    Returns:
      float32 [*S], right to about 1e-6 of the largest value. A symmetric kernel of sum 1 keeps the sum of x.
    """
    if kernel.ndim != x.ndim:
        raise ValueError(f"kernel: expected the rank of the volume, {x.ndim}; got shape {kernel.shape}")
    x, kernel = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
    wide = jnp.pad(x, [(p - 1 - p // 2, p // 2) for p in kernel.shape], mode="symmetric")
    lengths = tuple(next_fast_len(n, real=True) for n in wide.shape)
    product = jnp.fft.rfftn(wide, lengths) * jnp.fft.rfftn(kernel, lengths)
    whole = jnp.fft.irfftn(product, lengths)
    return whole[tuple(slice(p - 1, p - 1 + s) for p, s in zip(kernel.shape, x.shape, strict=True))]


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
