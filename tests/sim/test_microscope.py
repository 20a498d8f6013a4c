"""The microscope: photon statistics, optics, and a range a camera can hold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from jaxsynth.sim import microscope

PLAIN = {"contrast": 0.0, "nucleoli": 0.0, "haze": 0.0, "shading": 0.0}


@pytest.mark.parametrize("expected", [0.0, 0.3, 4.0, 15.9, 16.1, 60.0, 900.0])
def test_photons_are_poisson(expected):
    num = 200_000
    drawn = np.asarray(microscope.poisson(jax.random.key(0), jnp.full(num, expected, jnp.float32)), np.float64)
    assert (drawn >= 0).all() and (drawn == np.round(drawn)).all()
    assert drawn.mean() == pytest.approx(expected, abs=4.5 * np.sqrt(expected / num) + 1e-9)
    assert drawn.var() == pytest.approx(expected, rel=0.02)
    # The distribution function, within what so many draws can tell and a little for the normal approximation.
    at = np.arange(int(expected + 6 * np.sqrt(expected) + 6))
    empirical = np.searchsorted(np.sort(drawn), at, side="right") / num
    assert np.abs(empirical - stats.poisson(expected).cdf(at)).max() < 0.006


@pytest.mark.parametrize("spacing", [(0.5, 0.5), (1.0, 0.4, 0.4)])
def test_mean_image_is_the_blurred_cell(spacing):
    """Without texture, haze and shading the mean over many pictures is the PSF's image of the labels."""
    shape = (9, 18, 18)[-len(spacing) :]
    labels = np.zeros(shape, np.int32)
    labels[tuple(slice(n // 3, n // 3 * 2) for n in shape)] = 1
    optics = {"psf_sigma_um": 0.6, "photons": 100.0, "background": 5.0, "gain": 2.0}
    render = functools.partial(microscope.render, labels=jnp.asarray(labels), brightness=jnp.array([0.0, 1.0]),
                               spacing_um=spacing, **optics, **PLAIN)  # fmt: skip
    render = jax.jit(render)
    images = np.stack([render(key) for key in jax.random.split(jax.random.key(0), 300)])
    light = ndimage.gaussian_filter(labels.astype(float), [0.6 / s for s in spacing], mode="reflect")
    photons = 100 * light + 5
    np.testing.assert_allclose((images.mean(0) - 100) / 2, photons, atol=5 * np.sqrt((105 + 2.56) / 300))
    # Photon noise and read noise add up: variance = expected + 1.6^2 photons.
    np.testing.assert_allclose((images.var(0) / 4).mean(), (photons + 1.6**2).mean(), rtol=0.03)


def test_cells_have_a_texture_that_the_sketch_has_not():
    labels = jnp.zeros((128, 128), jnp.int32).at[16:112, 16:112].set(1)
    brightness, inside = jnp.array([0.0, 1.0]), (slice(24, 104), slice(24, 104))

    @jax.jit
    def render(contrast, nucleoli):
        return microscope.render(jax.random.key(0), labels, brightness, (0.4, 0.4), haze=0.0, shading=0.0,
                                 contrast=contrast, nucleoli=nucleoli)  # fmt: skip

    textured, plain = np.asarray(render(0.3, 0.5))[inside], np.asarray(render(0.0, 0.0))[inside]

    def smooth_spread(image):
        image = ndimage.gaussian_filter(image, 1.5)
        return image.std() / image.mean()

    assert smooth_spread(textured) > 4 * smooth_spread(plain)


def test_brighter_cells_are_brighter_and_counts_fit_16_bits():
    labels = jnp.repeat(jnp.arange(5, dtype=jnp.int32), 30)[None].repeat(60, 0)
    render = jax.jit(functools.partial(microscope.render, spacing_um=(0.5, 0.5), shading=0.0))
    image = np.asarray(render(jax.random.key(0), labels, jnp.array([0, 0.0, 0.3, 0.6, 1.0])))
    means = ndimage.mean(image, np.asarray(labels), range(5))
    assert (np.diff(means) > 0).all()
    assert image.min() >= 0 and image.max() < 65535 and (image == 0).mean() < 1e-3
