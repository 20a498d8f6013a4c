"""Coordinates and rotations."""

import jax
import numpy as np
import pytest
from scipy import stats

from jaxsynth.sim import grid


def test_axes_hold_the_voxel_centres():
    z, y, x = grid.axes_um((2, 3, 4), np.array([2.0, 0.5, 0.25]))
    assert z.shape == (2, 1, 1) and y.shape == (1, 3, 1) and x.shape == (1, 1, 4)
    np.testing.assert_allclose(np.ravel(z), [1.0, 3.0])
    np.testing.assert_allclose(np.ravel(x), [0.125, 0.375, 0.625, 0.875])


@pytest.mark.parametrize("ndim", [2, 3])
def test_rotations_are_proper(ndim):
    rotation = np.asarray(grid.random_rotation(jax.random.key(0), 50, ndim))
    np.testing.assert_allclose(rotation @ rotation.transpose(0, 2, 1), np.tile(np.eye(ndim), (50, 1, 1)), atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-5)


def test_rotations_are_uniform_over_so3():
    """Haar measure: any axis is uniform on the sphere, and the angle has density (1 - cos a) / pi."""
    rotation = np.asarray(grid.random_rotation(jax.random.key(1), 4000, 3), np.float64)
    for axis in range(3):
        for component in range(3):
            assert stats.kstest(rotation[:, axis, component], stats.uniform(-1, 2).cdf).pvalue > 1e-3
    angle = np.arccos(np.clip((np.trace(rotation, axis1=1, axis2=2) - 1) / 2, -1, 1))
    assert stats.kstest(angle, lambda a: (a - np.sin(a)) / np.pi).pvalue > 1e-3


def test_rotations_are_uniform_over_so2():
    rotation = np.asarray(grid.random_rotation(jax.random.key(1), 4000, 2), np.float64)
    angle = np.arctan2(rotation[:, 1, 0], rotation[:, 0, 0])
    assert stats.kstest(angle, stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > 1e-3
