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
    render = functools.partial(picture, labels=jnp.asarray(labels), brightness=jnp.array([0.0, 1.0]),
                               spacing_um=spacing, **optics, **PLAIN)  # fmt: skip
    render = jax.jit(render)
    images = np.stack([render(key) for key in jax.random.split(jax.random.key(0), 300)])
    light = ndimage.gaussian_filter(labels.astype(float), [0.6 / s for s in spacing], mode="reflect")
    photons = 100 * light + 5
    np.testing.assert_allclose((images.mean(0) - 100) / 2, photons, atol=5 * np.sqrt((105 + 2.56) / 300))
    # Photon noise and read noise add up: variance = expected + 1.6^2 photons.
    np.testing.assert_allclose((images.var(0) / 4).mean(), (photons + 1.6**2).mean(), rtol=0.03)


def picture(key, labels, brightness, spacing_um, *, grain_um=1.2, contrast=0.3, nucleoli=0.5, **optics):
    """The microscope's picture of labelled nuclei, as `views.light` and the commands take it."""
    light = microscope.light(
        key, labels, brightness, spacing_um, grain_um=grain_um, contrast=contrast, nucleoli=nucleoli
    )
    return microscope.image(key, light, spacing_um, **optics)


def test_cells_have_a_texture_that_the_sketch_has_not():
    labels = jnp.zeros((128, 128), jnp.int32).at[16:112, 16:112].set(1)
    brightness, inside = jnp.array([0.0, 1.0]), (slice(24, 104), slice(24, 104))

    @jax.jit
    def render(contrast, nucleoli):
        return picture(jax.random.key(0), labels, brightness, (0.4, 0.4), haze=0.0, shading=0.0,
                                 contrast=contrast, nucleoli=nucleoli)  # fmt: skip

    textured, plain = np.asarray(render(0.3, 0.5))[inside], np.asarray(render(0.0, 0.0))[inside]

    def smooth_spread(image):
        image = ndimage.gaussian_filter(image, 1.5)
        return image.std() / image.mean()

    assert smooth_spread(textured) > 4 * smooth_spread(plain)


def test_brighter_cells_are_brighter_and_counts_fit_16_bits():
    labels = jnp.repeat(jnp.arange(5, dtype=jnp.int32), 30)[None].repeat(60, 0)
    render = jax.jit(functools.partial(picture, spacing_um=(0.5, 0.5), shading=0.0))
    image = np.asarray(render(jax.random.key(0), labels, jnp.array([0, 0.0, 0.3, 0.6, 1.0])))
    means = ndimage.mean(image, np.asarray(labels), range(5))
    assert (np.diff(means) > 0).all()
    assert image.min() >= 0 and image.max() < 65535 and (image == 0).mean() < 1e-3


# ---- light and optics apart ----


def test_light_of_overlapping_cells_adds_up():
    one = jnp.zeros((12, 12), jnp.int32).at[:, :8].set(1)
    two = jnp.zeros((12, 12), jnp.int32).at[:, 4:].set(2)
    key, brightness, plain = jax.random.key(0), jnp.array([0.0, 0.4, 1.0]), {"contrast": 0.0, "nucleoli": 0.0}
    light = jax.jit(lambda labels: microscope.light(key, labels, brightness, (0.5, 0.5), dimmest=0.0, **plain))
    both = light(jnp.stack([one, two]))
    np.testing.assert_allclose(both[3], [0.4] * 4 + [1.4] * 4 + [1.0] * 4, rtol=1e-6)
    assert both.shape == (12, 12)


IDEAL = {"haze": 0.0, "shading": 0.0, "read_noise": 0.0, "offset": 0.0, "gain": 1.0}


def test_an_impulse_becomes_the_psf():
    """So much light that photon noise is nothing; a PSF that is not symmetric, with even and odd sizes."""
    rng = np.random.default_rng(0)
    psf = rng.uniform(0.5, 1, (4, 5, 7)).astype(np.float32)
    psf /= psf.sum()
    light = jnp.zeros((12, 16, 20)).at[6, 7, 9].set(1.0)
    image = jax.jit(functools.partial(microscope.image, spacing_um=(1.0, 0.5, 0.5), photons=1e8, background=0.0,
                                      **IDEAL))  # fmt: skip
    seen = np.asarray(image(jax.random.key(0), light, psf=jnp.asarray(psf))) / 1e8
    np.testing.assert_allclose(seen[4:8, 5:10, 6:13], psf, atol=4e-5)  # 5 standard deviations
    assert seen.sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (4, 5), (8, 3), (40, 9)])
@pytest.mark.parametrize("shape", [(21, 18), (16, 1)])
def test_convolution_equals_scipy(size, shape):
    """Even and odd kernels, smaller and larger than the volume."""
    rng = np.random.default_rng(1)
    x, kernel = rng.normal(size=shape).astype(np.float32), rng.uniform(size=size).astype(np.float32)
    # SciPy's centre of an even kernel is the same, P // 2.
    expected = ndimage.convolve(x.astype(np.float64), kernel.astype(np.float64), mode="reflect")
    np.testing.assert_allclose(microscope.convolve(x, kernel), expected, atol=1e-5 * kernel.sum())


@pytest.mark.parametrize("spacing", [(0.5, 0.4), (1.0, 0.4, 0.4)])
def test_a_measured_gaussian_is_the_gaussian(spacing):
    shape, sigma_um = (9, 30, 26)[-len(spacing) :], (1.2, 0.6, 0.8)[-len(spacing) :]
    sigma = [s / step for s, step in zip(sigma_um, spacing, strict=True)]
    spot = np.zeros([2 * int(4 * s + 0.5) + 1 for s in sigma])
    spot[tuple(n // 2 for n in spot.shape)] = 1
    psf = jnp.asarray(ndimage.gaussian_filter(spot, sigma, mode="constant"), jnp.float32)
    light = jax.random.uniform(jax.random.key(0), shape)

    @jax.jit
    def three(light):
        batch = jax.vmap(microscope.convolve, (0, None))(jnp.stack([light, 2 * light]), psf)
        return microscope.blur(light, tuple(sigma)), *batch

    blurred, seen, twice = three(light)
    np.testing.assert_allclose(seen, blurred, atol=1e-5)
    np.testing.assert_allclose(twice, 2 * blurred, atol=2e-5)
    np.testing.assert_allclose(jnp.sum(seen), jnp.sum(light), rtol=1e-5)


def test_a_psf_of_another_rank_is_refused():
    with pytest.raises(ValueError, match=r"rank of the volume, 3; got shape \(3, 3\)"):
        microscope.convolve(jnp.zeros((4, 5, 6)), jnp.ones((3, 3)))


def test_light_decays_along_z():
    spacing, length = (0.5, 1.0, 1.0), 4.0
    image = jax.jit(functools.partial(microscope.image, spacing_um=spacing, photons=1e6, psf_sigma_um=(0.0, 1.0, 1.0),
                                      background=50.0, **IDEAL))  # fmt: skip
    planes = np.asarray(image(jax.random.key(0), jnp.ones((16, 20, 20)), absorption_um=length)).mean((1, 2))
    np.testing.assert_allclose(planes, 50 + 1e6 * np.exp(-(np.arange(16) + 0.5) * 0.5 / length), rtol=1e-3)


def test_a_plane_has_no_depth():
    image = jax.jit(functools.partial(microscope.image, spacing_um=(1.0, 1.0)))
    light = jnp.ones((20, 20))
    np.testing.assert_array_equal(image(jax.random.key(0), light, absorption_um=2.0), image(jax.random.key(0), light))
