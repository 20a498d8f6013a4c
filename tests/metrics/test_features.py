"""The Frechet distance of local features: closed forms, an independent oracle, and what it must notice."""

import numpy as np
import pytest
from scipy import linalg, ndimage

from jaxsynth.data import intensity, volumes
from jaxsynth.errors import InputError
from jaxsynth.metrics import features as f


def texture(shape, seed, sigma=2.0):
    """Blobs of several brightnesses on noise, in [-1, 1]."""
    rng = np.random.default_rng(seed)
    soft = ndimage.gaussian_filter(rng.normal(size=shape), sigma)
    return np.clip(0.5 * np.tanh(3 * soft / soft.std() - 2) + rng.normal(0, 0.08, shape), -1, 1)


def pooled(images, patch=None):
    return np.concatenate([f.features(image, patch) for image in images])


def test_two_gaussians_in_closed_form():
    """Independent features: |m1 - m2|^2 + sum (s1 - s2)^2, whatever the shrinkage, as it keeps variances."""
    rng = np.random.default_rng(0)
    white = rng.normal(size=(400, 5))
    white = np.linalg.qr(white - white.mean(axis=0))[0] * np.sqrt(399)  # sample covariance I, mean 0
    one = white * np.array([1, 2, 3, 0.5, 1])
    shift, width = np.array([0.5, 0, -1, 0, 2]), np.array([2, 2, 1.5, 0.1, 1])
    two = white * width + shift
    units = one.std(axis=0)
    expected = np.sum((shift / units) ** 2) + np.sum(((width - [1, 2, 3, 0.5, 1]) / units) ** 2 * 400 / 399)
    np.testing.assert_allclose(f.frechet(one, two, floor=0), expected, rtol=1e-3)
    assert f.frechet(one, one) < 1e-9


@pytest.mark.parametrize("counts", [(300, 200), (9, 30)])
def test_correlated_features_as_scipys_matrix_root_gives(counts):
    rng = np.random.default_rng(1)
    one = rng.normal(size=(counts[0], 8)) @ rng.normal(size=(8, 8)) + 3
    two = rng.normal(size=(counts[1], 8)) @ rng.normal(size=(8, 8))
    sd = one.std(axis=0)
    x, y = one / sd, two / sd
    share = 8 / (8 + min(counts))
    c, d = ((1 - share) * np.cov(rows.T) + share * np.diag(rows.var(axis=0, ddof=1)) for rows in (x, y))
    root = linalg.sqrtm(c @ d).real
    expected = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2) + np.trace(c + d - 2 * root)
    np.testing.assert_allclose(f.frechet(one, two, floor=0), expected, rtol=1e-6)


def test_the_distance_is_symmetric_and_free_of_units():
    rng = np.random.default_rng(2)
    one, two = rng.normal(1, 2, (60, 6)), rng.normal(0, 1, (40, 6))
    np.testing.assert_allclose(f.frechet(one, two, reference=one), f.frechet(two, one, reference=one), rtol=1e-9)
    gain, offset = np.array([1e-3, 1, 7, 100, 3, 1e4]), rng.normal(size=6)
    changed = (rows * gain + offset for rows in (one, two))
    np.testing.assert_allclose(f.frechet(*changed, floor=0), f.frechet(one, two, floor=0), rtol=1e-6)
    # What does not vary at all in the reference is far, not infinitely far; what varies nowhere counts nothing.
    one[:, 0], two[:, 0] = 0.3, 0.31
    np.testing.assert_allclose(
        f.frechet(one, two) - f.frechet(one[:, 1:], two[:, 1:]), (0.01 / f.FLOOR) ** 2, rtol=0.05
    )
    one[:, 0] = two[:, 0] = 0.3
    assert np.isfinite(f.frechet(one, two, floor=0))


@pytest.mark.parametrize("shape", [(192, 160), (24, 64, 80)])
def test_blur_noise_and_brightness_move_images_away_and_further(shape):
    real, other = ([texture(shape, seed + i) for i in range(3)] for seed in (0, 10))
    unit = pooled(real)
    assert unit.shape[1] == len(f.names(len(shape))) == {2: 25, 3: 21}[len(shape)]

    def distance(change):
        return f.frechet(unit, pooled([change(image) for image in other]), reference=unit)

    same = distance(lambda image: image)
    rng = np.random.default_rng(3)
    for change in (
        lambda image, much: ndimage.gaussian_filter(image, 0.5 + 0.3 * much),
        lambda image, much: image + rng.normal(0, 0.06 * much, shape),
        lambda image, much: image + 0.06 * much,
        lambda image, much: image * (1 + 0.12 * much),
    ):
        little, more = (distance(lambda image, m=much, c=change: c(image, m)) for much in (1, 3))
        assert 1.5 * same < little < more / 1.5


def test_real_images_are_closer_to_each_other_than_to_spoilt_ones(real_data):
    """GOWT1 nuclei, one half against the other half and against itself changed."""
    files = volumes.find_files(real_data / "gowt1" / "images")[:4]
    images = [volumes.read(file)[256:768, 256:768] for file in files]
    scale = intensity.fit(images, "asinh")
    images = [intensity.normalise(image, scale) for image in images]
    rng = np.random.default_rng(0)
    unit, first, second = pooled(images), pooled(images[:2]), pooled(images[2:])
    halves = f.frechet(first, second, reference=unit)
    spoilt = {
        "blur": [ndimage.gaussian_filter(image, 1.0) for image in images[2:]],
        "noise": [image + rng.normal(0, 0.1, image.shape) for image in images[2:]],
        "bright": [image + 0.2 for image in images[2:]],
    }
    for name, changed in spoilt.items():
        assert f.frechet(first, pooled(changed), reference=unit) > 1.5 * halves, name


def test_features_are_what_their_names_say():
    ramp = np.fromfunction(lambda y, x: 0.01 * x, (64, 64))
    row = dict(zip(f.names(2), f.features(ramp)[0], strict=True))
    np.testing.assert_allclose([row["mean"], row["quantile_0.5"]], 0.315, atol=0.006)
    np.testing.assert_allclose(row["sd"], 0.01 * np.sqrt((64**2 - 1) / 12), rtol=1e-5)
    inner = f.features(np.fromfunction(lambda y, x: 0.01 * x, (128, 192)))
    middle = dict(zip(f.names(2), inner.reshape(3, 5, -1)[1, 2], strict=True))  # no border near
    np.testing.assert_allclose([middle["gradient_1_mean"], middle["gradient_4_mean"]], [0.01, 0.04], rtol=1e-4)
    assert middle["gradient_2_sd"] < 1e-5 and middle["laplacian_2_mean"] < 1e-5 and middle["residual_mean"] < 1e-5
    # A wave of wave number k: mean |sin| = 2 / pi, smoothed by exp(-(k s)^2 / 2), two derivatives give k^2.
    k = 2 * np.pi / 32
    wave = np.fromfunction(lambda y, x: np.sin(k * x), (128, 192))
    middle = dict(zip(f.names(2), f.features(wave).reshape(3, 5, -1)[1, 2], strict=True))
    expected = 2 / np.pi * (4 * k) ** 2 * np.exp(-((4 * k) ** 2) / 2)
    np.testing.assert_allclose(middle["laplacian_4_mean"], expected, rtol=0.02)


@pytest.mark.parametrize(("shape", "patch", "count"), [((64, 64), None, 1), ((127, 130), None, 6),
                                                       ((16, 32, 48), None, 2), ((5, 9), (1, 1), 45)])  # fmt: skip
def test_patches_overlap_by_half_and_small_images_take_smaller_ones(shape, patch, count):
    assert f.features(np.zeros(shape), patch).shape == (count, len(f.names(len(shape))))
    assert f.patch_shape([(70, 41), (64, 300)]) == (64, 41)
    assert f.patch_shape([(10, 40, 44)]) == (10, 32, 32)


def test_too_little_is_refused():
    with pytest.raises(InputError, match=r"at least \(64, 64\) voxels, got shape \(63, 80\)"):
        f.features(np.zeros((63, 80)))
    rows = np.random.default_rng(0).normal(size=(4, 3))
    with pytest.raises(InputError, match="at least 2 patches in either set, got 4 and 1"):
        f.frechet(rows, rows[:1])
    with pytest.raises(InputError, match="of one F"):
        f.frechet(rows, rows[:, :2])
    with pytest.raises(InputError, match="finite"):
        f.frechet(rows, np.full((4, 3), np.nan))
