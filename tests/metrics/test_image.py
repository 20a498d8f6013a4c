"""Image metrics against scikit-image and closed forms."""

import jax
import numpy as np
import pytest
import skimage.metrics
from scipy import ndimage

from jaxsynth.errors import InputError
from jaxsynth.metrics import image


def pair(shape, dtype, pedestal=0.0):
    """A smooth image and a noisy copy, with a bright pedestal where one is asked for."""
    rng = np.random.default_rng(len(shape))
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), 2)
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    noisy = smooth + rng.normal(scale=0.1, size=shape)
    if dtype == np.uint16:
        return [np.clip(pedestal + 600 * v, 0, 65535).astype(dtype) for v in (smooth, noisy)]
    return [v.astype(dtype) for v in (smooth, noisy)]


CASES = [
    ((61, 45), np.float32, 0),
    ((12, 21, 17), np.float32, 0),
    ((61, 45), np.uint16, 33000),
    ((12, 21, 17), np.uint16, 33000),
    ((7, 9), np.float32, 0),
]


@pytest.mark.parametrize("shape, dtype, pedestal", CASES)
def test_equals_skimage(shape, dtype, pedestal):
    x, y = pair(shape, dtype, pedestal)
    width = float(np.ptp(x.astype(float)))
    x64, y64 = x.astype(float), y.astype(float)
    expected = {
        "psnr": skimage.metrics.peak_signal_noise_ratio(x64, y64, data_range=width),
        "ssim": skimage.metrics.structural_similarity(x64, y64, data_range=width),
        "nrmse": skimage.metrics.normalized_root_mse(x64, y64),
        "mae": np.abs(x64 - y64).mean(),
        "zncc": np.corrcoef(x64.ravel(), y64.ravel())[0, 1],
    }
    for name, metric in image.METRICS.items():
        np.testing.assert_allclose(metric(x, y, data_range=width), expected[name], rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(jax.jit(metric)(x, y), expected[name], rtol=1e-5, err_msg=f"{name}, own range")


def test_large_volume_keeps_its_digits():
    x, y = pair((1024, 1024), np.uint16, 33000)
    for name, expected in (
        ("psnr", skimage.metrics.peak_signal_noise_ratio(x.astype(float), y.astype(float), data_range=600)),
        ("zncc", np.corrcoef(x.ravel(), y.ravel())[0, 1]),
    ):
        got = image.METRICS[name](x, y, data_range=600)
        np.testing.assert_allclose(got, expected, rtol=2e-6, err_msg=name)


def test_zncc_ignores_affine_change_and_knows_sign():
    x, y = pair((33, 40), np.float32)
    plain = image.zncc(x, y)
    assert 0.5 < plain < 0.99
    np.testing.assert_allclose(image.zncc(x, 7 * y + 40), plain, rtol=1e-5)
    np.testing.assert_allclose(image.zncc(x, -y), -plain, rtol=1e-6)


def test_closed_forms():
    x = np.linspace(0, 1, 400, dtype=np.float32).reshape(20, 20)
    np.testing.assert_allclose(image.psnr(x, x + 0.1, data_range=1), 20, rtol=1e-5)
    np.testing.assert_allclose(image.psnr(x, x + 0.1, data_range=10), 40, rtol=1e-5)
    np.testing.assert_allclose(image.mae(x, x - 0.25), 0.25, rtol=1e-6)
    assert image.ssim(x, x) == 1 and np.isposinf(image.psnr(x, x)) and image.nrmse(x, x) == 0


def test_user_mistakes_are_named():
    x = np.zeros((20, 20), np.float32)
    with pytest.raises(InputError, match=r"\(20, 20\) and \(20, 19\)"):
        image.mae(x, x[:, :19])
    with pytest.raises(InputError, match="at least 7"):
        image.ssim(x[:6], x[:6])
