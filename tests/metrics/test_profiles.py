"""Profiles and spectra of xz slices against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsynth.errors import InputError
from jaxsynth.metrics import distribution
from jaxsynth.metrics import profiles as p


def noise(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_profiles_of_a_slab_whose_light_decays():
    """exp(-z / 8) in depth times a bump along x: each profile shows its own factor, times the other's mean."""
    z, x = np.exp(-np.arange(20) / 8), 1 + np.sin(np.pi * np.arange(30) / 30)
    slab = np.broadcast_to(z[:, None, None] * x, (20, 9, 30))
    np.testing.assert_allclose(p.profile(slab), z.mean() * x, rtol=1e-5)
    np.testing.assert_allclose(p.depth_profile(slab), z * x.mean(), rtol=1e-5)
    decay = np.polyfit(np.arange(20), np.log(p.depth_profile(slab)), 1)[0]
    np.testing.assert_allclose(decay, -1 / 8, rtol=1e-4)
    np.testing.assert_allclose(p.profile(slab[:, 4]), p.profile(slab))  # a 2D image is its own slice


@pytest.mark.parametrize("size", [6, 7])
def test_only_the_middle_of_y_counts_along_x(size):
    image = np.zeros((4, size, 5), np.uint16)
    image[:, 3] = np.arange(20).reshape(4, 5)
    np.testing.assert_array_equal(p.central_xz(image), np.arange(20).reshape(4, 5))
    np.testing.assert_allclose(p.profile(image), np.arange(20).reshape(4, 5).mean(0))
    np.testing.assert_allclose(p.depth_profile(image), image.mean((1, 2)))
    np.testing.assert_array_equal(p.power_spectrum(image), p.power_spectrum(image[:, 3]))


def test_power_of_a_wave_is_at_its_frequency_and_sums_to_its_variance():
    """A wave of amplitude a has variance a^2 / 2, by Parseval the mean of its power; half of that at either sign."""
    z, x = np.mgrid[:40, :64]
    wave = 3 * np.sin(2 * np.pi * (8 * z / 40 + 16 * x / 64)) + 1000
    power = p.power_spectrum(wave)
    assert power.shape == (40, 64) and power.dtype == np.float32
    places = np.unravel_index(np.argsort(power.ravel())[-2:], power.shape)
    assert sorted(zip(*places, strict=True)) == [(12, 16), (28, 48)]
    np.testing.assert_allclose(power.mean(), 4.5, rtol=1e-3)
    np.testing.assert_allclose(power[:20].sum(), power[21:].sum(), rtol=1e-3)
    brightness = 10 * np.log10(power[28, 48])
    np.testing.assert_allclose(p.spectrum(wave)[28, 48], brightness, rtol=1e-5)
    radial = p.radial_spectrum(wave, 20)
    assert abs(p.frequencies(20)[np.argmax(radial)] - np.hypot(0.2, 0.25)) <= 0.0125 + 1e-6


def test_parseval_with_the_window():
    image = noise((21, 34)) + 7
    window = np.outer(*(np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in image.shape))
    centred = (image - (image * window).sum() / window.sum()) * window
    np.testing.assert_allclose(p.power_spectrum(image).mean(), (centred**2).sum() / (window**2).sum(), rtol=1e-4)
    flat = p.spectrum(np.full((8, 9), 40_000, np.uint16))
    np.testing.assert_allclose(flat, -120)


def test_white_noise_is_flat_and_agrees_with_the_spectrum_of_whole_images():
    images = [5 * noise((80, 96), seed) for seed in range(16)]
    radial = np.mean([p.radial_spectrum(image, 12) for image in images], axis=0)
    np.testing.assert_allclose(radial[2:], 25, rtol=0.1)
    whole = np.mean([distribution.spectrum(image, 12) for image in images], axis=0)
    np.testing.assert_allclose(radial[1:], whole[1:], rtol=1e-4)  # the first bin holds frequency 0 there
    np.testing.assert_allclose(p.frequencies(12), distribution.frequencies(12))


def test_frequencies_in_micrometres_are_the_specimens():
    """The same wave in the specimen, 0.4 cycles per um along z, sampled at 1 um in z and 0.25 um in x, or turned."""
    z, x = np.arange(60) * 1.0, np.arange(80) * 0.25
    along_z = np.broadcast_to(np.sin(2 * np.pi * 0.4 * z)[:, None, None], (60, 5, 80))
    along_x = np.broadcast_to(np.sin(2 * np.pi * 0.4 * x), (60, 5, 80))
    spacing = (1.0, 0.25, 0.25)
    found = [p.frequencies(40, spacing)[np.nanargmax(p.radial_spectrum(i, 40, spacing))] for i in (along_z, along_x)]
    np.testing.assert_allclose(found, 0.4, atol=0.03)
    assert p.frequencies(40, spacing)[-1] < 2.0 < p.frequencies(40, spacing)[-1] + 0.05
    assert np.nanargmax(p.radial_spectrum(along_z, 40)) > 3 * np.nanargmax(p.radial_spectrum(along_x, 40))


def test_distances():
    one = np.array([1.0, 2, 3, 4], np.float32)
    assert p.profile_distance(one, one) == 0 and p.profile_distance(one, 0 * one) == 1
    np.testing.assert_allclose(p.profile_distance(one, 1.25 * one), 0.25)
    np.testing.assert_allclose(p.profile_distance(one, one[::-1]), 0.8)
    np.testing.assert_allclose(p.profile_distance(100 * one, 125 * one), 0.25)
    assert p.profile_distance(0 * one, 0 * one) == 0 and np.isposinf(p.profile_distance(0 * one, one))
    np.testing.assert_allclose(p.spectral_distance_db(one, 0.1 * one), 10, rtol=1e-6)
    np.testing.assert_allclose(p.spectral_distance_db(one, one * [10, 1, 1, 0.1]), np.sqrt(50), rtol=1e-6)
    gap = np.where(one == 2, np.nan, one)
    np.testing.assert_allclose(p.spectral_distance_db(gap, 0.01 * one), 20, rtol=1e-6)
    assert np.isnan(p.spectral_distance_db(one * np.nan, one))
    assert np.isfinite(p.spectral_distance_db(one, 0 * one))


@pytest.mark.parametrize("shape", [(24, 30), (12, 10, 30)])
def test_jax_arrays_give_what_numpy_gives_also_in_batches(shape):
    images = np.stack([noise(shape, seed) + 3 for seed in range(3)])
    for name in ("profile", "power_spectrum", "radial_spectrum", *(("depth_profile",) if len(shape) == 3 else ())):
        kernel = getattr(p, name)
        batch = jax.jit(jax.vmap(kernel))(images)
        assert isinstance(batch, jax.Array) and batch.dtype == jnp.float32
        np.testing.assert_allclose(batch, np.stack([kernel(image) for image in images]), rtol=2e-3, atol=1e-4)
    radial = [p.radial_spectrum(image) for image in images[:2]]
    np.testing.assert_allclose(jax.jit(p.spectral_distance_db)(*radial), p.spectral_distance_db(*radial), rtol=1e-4)
    lines = [p.profile(image) for image in images[:2]]
    np.testing.assert_allclose(jax.jit(p.profile_distance)(*lines), p.profile_distance(*lines), rtol=1e-4)


def test_small_slices_leave_bins_empty_but_no_distance():
    tiny = p.radial_spectrum(noise((4, 6, 5)), 32)
    assert np.isnan(tiny).any() and np.isfinite(tiny).any()
    np.testing.assert_allclose(p.spectral_distance_db(tiny, 10 * tiny), 10, rtol=1e-4)
    assert np.isfinite(p.radial_spectrum(noise((1, 6, 5)), 4)).any()
    # Frequency 0, alone in the first bin, is what rounding leaves of the mean: it must not count.
    assert np.isnan(tiny[0])


@pytest.mark.parametrize("shape", [(51, 128), (300, 77), (5, 8)])
def test_spectra_of_any_size_on_one_grid(shape):
    """Flat stays flat, the mean stays, a wave stays at its frequency."""
    np.testing.assert_allclose(p.on_grid(np.full(shape, 2.0), 33), 2, rtol=1e-6)
    power = p.power_spectrum(noise(shape))
    np.testing.assert_allclose(p.on_grid(power, 33).mean(), power.mean(), rtol=0.02)
    wave = np.zeros(shape)
    wave[shape[0] // 2 + shape[0] // 4, shape[1] // 2] = 1
    i, k = np.unravel_index(np.argmax(p.on_grid(wave, 33)), (33, 33))
    assert abs((i - 16) / 33 - (shape[0] // 4) / shape[0]) <= 0.5 / min(33, shape[0]) + 0.5 / 33
    assert abs(k - 16) <= 33 * 0.5 / shape[1] + 1


def test_profiles_over_position_are_the_same_line_at_any_size():
    for size in (20, 64, 500):
        line = (np.arange(size) + 0.5) / size
        found = p.over_position(line, 50)
        np.testing.assert_allclose(found[2:-2], ((np.arange(50) + 0.5) / 50)[2:-2], atol=1e-6)


def test_mistakes():
    with pytest.raises(InputError, match=r"depth_profile.*Z, Y, X.*\(4, 5\)"):
        p.depth_profile(np.zeros((4, 5)))
    with pytest.raises(InputError, match="expected an image"):
        p.profile(np.zeros(4))
    with pytest.raises(InputError, match="expected 3 numbers"):
        p.radial_spectrum(np.zeros((4, 5, 6)), spacing_um=(1, 1))
    with pytest.raises(InputError, match=r"\(3,\) and \(4,\)"):
        p.profile_distance(np.zeros(3), np.zeros(4))
    with pytest.raises(InputError, match=r"\(3,\) and \(4,\)"):
        p.spectral_distance_db(np.zeros(3), np.zeros(4))
