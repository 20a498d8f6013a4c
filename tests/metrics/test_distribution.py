"""Distances of distributions against closed forms."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import norm

from jaxsynth.errors import InputError
from jaxsynth.metrics import distribution as d


def test_distances_of_two_gaussians():
    m1, s1, m2, s2 = 0.0, 1.0, 0.7, 1.4
    edges = d.bin_edges(-7, 8, 600)
    p, q = (np.diff(norm.cdf(edges, m, s)) for m, s in ((m1, s1), (m2, s2)))
    kl = np.log(s2 / s1) + (s1**2 + (m1 - m2) ** 2) / (2 * s2**2) - 0.5
    bd = 0.25 * (m1 - m2) ** 2 / (s1**2 + s2**2) + 0.5 * np.log((s1**2 + s2**2) / (2 * s1 * s2))
    np.testing.assert_allclose(d.kld(p, q), kl, rtol=1e-3)
    np.testing.assert_allclose(d.bhattacharyya(p, q), bd, rtol=1e-3)
    np.testing.assert_allclose(d.bhattacharyya(1e6 * q, p), bd, rtol=1e-3)
    assert d.kld(p, 5 * p) < 1e-12 and d.bhattacharyya(p, p) < 1e-12


def test_distances_of_disjoint_histograms_are_finite():
    assert 10 < d.kld([1, 0], [0, 1]) < np.log(1 / d.SMOOTHING) + 1
    assert 5 < d.bhattacharyya([1, 0], [0, 1]) < np.log(1 / d.SMOOTHING)
    with pytest.raises(InputError, match="at least one voxel"):
        d.kld([0, 0], [1, 0])


def test_histogram_counts_every_voxel_and_integers_evenly():
    image = np.tile(np.arange(180), (7, 1))
    edges = d.bin_edges(0, 179, 60, integer=True)
    assert np.allclose(edges % 1, 0.5) and edges[0] < 0 and edges[-1] > 179
    assert np.ptp(np.diff(edges)) <= 1
    counts = d.histogram(image, edges)
    assert counts.sum() == image.size
    np.testing.assert_array_equal(counts, 7 * np.diff(edges))
    assert len(d.bin_edges(3, 6, 256, integer=True)) == 5
    np.testing.assert_array_equal(d.histogram(np.array([-9.0, 0.1, 0.9, 50]), [0, 0.5, 1]), [2, 2])


def test_images_that_use_every_third_grey_value_are_compared_by_what_is_seen():
    rng = np.random.default_rng(0)
    fine = np.clip(rng.normal(40, 14, 200_000), 0, 200)
    stretched, smooth = np.floor(np.rint(fine / 3.35) * 3.35).astype(int), np.rint(fine).astype(int)
    levels = d.grey_levels(np.bincount(stretched))
    np.testing.assert_array_equal(levels[5:20], np.unique(stretched)[5:20])
    every, seen = d.bin_edges(0, 120, 100, integer=True), d.snap(np.linspace(0, 120, 101), levels)
    assert all(np.histogram(levels, seen)[0] >= 1)
    assert d.kld(*(d.histogram(x, every) for x in (stretched, smooth))) > 0.3
    assert d.kld(*(d.histogram(x, seen) for x in (stretched, smooth))) < 0.02
    # Where all are used, stray or not, nothing changes.
    np.testing.assert_array_equal(d.grey_levels(np.array([5, 9, 0, 7]), 100), [100, 101, 103])
    np.testing.assert_array_equal(d.snap(np.array([0.0, 1.4, 3.0]), np.arange(4.0)), [-0.5, 1.5, 3.5])


@pytest.mark.parametrize("shape", [(192, 160), (33, 48, 41)])
def test_spectrum_of_white_noise_is_flat_and_of_blurred_noise_is_the_transfer_function(shape):
    sigma = 0.8
    noises = 3.0 * np.random.default_rng(0).normal(size=(24, *shape)) + 500
    power = np.mean([d.spectrum(noise, 12) for noise in noises], axis=0)
    np.testing.assert_allclose(power[2:], 9, rtol=0.1)
    np.testing.assert_allclose(np.mean(power[4:]), 9, rtol=0.02)
    softened = [ndimage.gaussian_filter(noise, sigma, mode="wrap") for noise in noises]
    blurred = np.mean([d.spectrum(image, 12) for image in softened], axis=0)
    transfer = np.exp(-((2 * np.pi * sigma * d.frequencies(12)) ** 2))
    np.testing.assert_allclose(blurred[2:8] / power[2:8], transfer[2:8], rtol=0.1)
    np.testing.assert_allclose(d.spectral_difference(power, 4 * power), 10 * np.log10(4))
    np.testing.assert_allclose(d.spectral_distance(power, 0.1 * power), 10)


def test_spectrum_finds_a_wave_and_leaves_unreached_bins_empty():
    y, x = np.mgrid[:64, :80]
    power = d.spectrum(np.sin(2 * np.pi * (0.15 * x + 0.2 * y)), 20)
    assert abs(d.frequencies(20)[np.nanargmax(power)] - 0.25) <= 0.0125 + 1e-9
    tiny = d.spectrum(np.random.default_rng(0).normal(size=(6, 6)), 32)
    assert np.isnan(tiny).any() and np.isfinite(d.spectral_distance(tiny, 2 * tiny))


@pytest.mark.parametrize("shape", [(160, 160), (16, 64, 64)])
def test_background_noise_is_measured_beside_bright_cells(shape):
    rng = np.random.default_rng(1)
    clean = 100 + 400 * (ndimage.gaussian_filter(rng.normal(size=shape), 6) > 0.02).astype(float)
    found = d.statistics(clean + rng.normal(scale=5, size=shape))
    np.testing.assert_allclose(found["background_noise_sd"], 5, rtol=0.08)
    np.testing.assert_allclose(found["background_level"], 100, atol=1)
    assert abs(found["background_noise_correlation"]) < 0.15
    assert found["quantile_0.99"] > 490
    # Noise of the same power, but smooth: the standard deviation says less, the correlation why.
    soft = ndimage.gaussian_filter(rng.normal(size=shape), 1.0)
    smooth = d.statistics(clean + 5 * soft / soft.std())
    assert smooth["background_noise_correlation"] > 0.4


def test_background_noise_of_an_image_cut_off_at_zero_is_not_lost():
    """A detector without offset: three quarters of the voxels read 0, the rest still tell one noise from another."""
    noise = np.random.default_rng(3).normal(size=(128, 128))
    quiet, loud = (np.clip(np.rint(scale * noise - 0.7 * scale), 0, 255).astype(np.uint8) for scale in (4, 8))
    assert np.mean(quiet == 0) > 0.7
    low, high = (d.statistics(image)["background_noise_sd"] for image in (quiet, loud))
    assert 0.4 * quiet.std() < low < 1.1 * quiet.std()
    np.testing.assert_allclose(high / low, 2, rtol=0.1)


@pytest.mark.parametrize("sigma", [2.0, 4.0])
def test_texture_scale_is_the_blur_of_white_noise(sigma):
    noise = np.random.default_rng(2).normal(size=(256, 256))
    blurred = ndimage.gaussian_filter(noise, sigma, mode="wrap")
    np.testing.assert_allclose(d.statistics(blurred)["texture_scale_vox"], sigma, rtol=0.08)
    np.testing.assert_allclose(
        d.statistics(900 + 7 * blurred)["texture_scale_vox"], d.statistics(blurred)["texture_scale_vox"], rtol=1e-6
    )
