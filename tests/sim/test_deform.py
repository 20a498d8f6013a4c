"""B-spline fields against SciPy's splines and their stated bounds."""

import jax
import numpy as np
import pytest
from scipy.interpolate import BSpline

from jaxsynth.sim import deform


@pytest.mark.parametrize(("size", "knot"), [(20, 4.0), (17, 2.5), (5, 9.0), (1, 2.0)])
def test_basis_is_the_cubic_b_spline(size, knot):
    basis = deform.bspline_basis(size, knot)
    at = np.arange(size) + 0.5
    for k in range(basis.shape[1]):
        spline = BSpline.basis_element((k - 1 + np.arange(-2, 3)) * knot, extrapolate=False)
        np.testing.assert_allclose(basis[:, k], np.nan_to_num(spline(at)), atol=1e-6)
    np.testing.assert_allclose(basis.sum(1), 1, atol=1e-6)


def test_field_of_linear_control_points_is_linear():
    shape, knots = (9, 14, 11), (3.0, 4.0, 2.5)
    bases = tuple(deform.bspline_basis(size, knot) for size, knot in zip(shape, knots, strict=True))
    grids = np.meshgrid(*[(np.arange(b.shape[1]) - 1) * k for b, k in zip(bases, knots, strict=True)], indexing="ij")
    field = deform.bspline_field(np.float32(grids[0] + 2 * grids[1] - 3 * grids[2]), bases)
    z, y, x = np.meshgrid(*[np.arange(size) + 0.5 for size in shape], indexing="ij")
    np.testing.assert_allclose(field, z + 2 * y - 3 * x, atol=1e-3)


def test_warp_stays_within_its_amplitude_and_its_axes_differ():
    y, x = deform.random_warp(jax.random.key(0), (60, 80), (5.0, 5.0), 2.0)
    assert 0.5 < np.abs(y).max() <= 2 and 0.5 < np.abs(x).max() <= 2
    assert abs(np.corrcoef(np.ravel(y), np.ravel(x))[0, 1]) < 0.2


def test_noise_has_unit_variance_everywhere():
    draw = jax.vmap(lambda key: deform.smooth_noise(key, (10, 13), (3.0, 4.0)))
    noise = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    assert abs(noise.mean(0)).max() < 0.08
    np.testing.assert_allclose(noise.var(0), 1, atol=0.12)
