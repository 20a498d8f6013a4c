"""Sketches and the Gaussian blur, against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxsynth.sim import sketch

RNG = np.random.default_rng(0)


def test_levels():
    labels = jnp.array([[0, 1], [2, 3]])
    drawn = sketch.sketch(labels, jnp.array([0.7, 0.0, 1.0, 0.5]), levels=(-0.9, -0.5, 0.5))
    np.testing.assert_allclose(drawn, [[-0.9, -0.5], [0.5, 0.0]], atol=1e-6)
    assert drawn.dtype == jnp.float32


@pytest.mark.parametrize("shape", [(40, 50), (6, 20, 30)])
def test_cell_means_equal_scipy(shape):
    labels = RNG.integers(0, 9, shape)
    labels[labels == 5] = 0
    image = (33000 + 50 * labels + RNG.normal(0, 20, shape)).astype(np.float32)
    means, background = jax.jit(sketch.cell_means, static_argnums=2)(labels, image, 12)
    present = [1, 2, 3, 4, 6, 7, 8]
    expected = ndimage.mean(image.astype(np.float64), labels, present)
    np.testing.assert_allclose(np.asarray(means)[np.array(present) - 1], expected, atol=0.01)
    np.testing.assert_array_equal(np.asarray(means)[[4, 8, 9, 10, 11]], 0)
    np.testing.assert_allclose(background, image[labels == 0].mean(dtype=np.float64), atol=0.01)


def test_background_mean_keeps_its_digits_over_many_voxels():
    image = np.full((2048, 1024), 60000.0, np.float32)
    image[::2] += 1
    _, background = sketch.cell_means(jnp.zeros(image.shape, jnp.int32), image, 4)
    assert float(background) == pytest.approx(60000.5, abs=0.01)


def test_labels_without_background_take_the_darkest_value():
    labels = np.array([[1, 1], [2, 2]])
    means, background = sketch.cell_means(labels, np.array([[1.0, 3.0], [5.0, 7.0]]), 2)
    np.testing.assert_allclose(means, [2, 6])
    assert background == 1


def test_sketch_from_image_gives_each_cell_its_mean():
    labels = np.zeros((12, 12), np.int32)
    labels[2:5, 2:5], labels[7:10, 6:11] = 1, 3
    image = RNG.uniform(-1, 1, labels.shape).astype(np.float32)
    drawn = np.asarray(sketch.sketch_from_image(labels, image, 4))
    for label in (0, 1, 3):
        np.testing.assert_allclose(drawn[labels == label], image[labels == label].mean(), atol=1e-6)


@pytest.mark.parametrize("shape", [(31, 40), (5, 21, 18), (1, 16, 16)])
@pytest.mark.parametrize("sigma", [1.0, 2.3, 0.0])
def test_blur_equals_scipy(shape, sigma):
    x = RNG.normal(size=shape).astype(np.float32)
    expected = ndimage.gaussian_filter(x.astype(np.float64), sigma, mode="reflect", truncate=4)
    np.testing.assert_allclose(jax.jit(sketch.blur, static_argnums=1)(x, sigma), expected, atol=1e-5)


def test_blur_by_axis_equals_scipy():
    x = RNG.normal(size=(9, 16, 20)).astype(np.float32)
    sigma = (0.4, 1.0, 2.0)
    np.testing.assert_allclose(sketch.blur(x, sigma), ndimage.gaussian_filter(x, sigma, mode="reflect"), atol=1e-5)
