"""Smooth random fields on uniform cubic B-splines: warps of the coordinates, and smooth noise.

A field is a tensor product, so it is made by one small matrix product per axis, whatever the rank.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np


def bspline_basis(size: int, knot_vox: float) -> np.ndarray:
    """The uniform cubic B-spline basis at voxel centres: float32 [size, K], K = ceil(size / knot_vox) + 3.

    Rows sum to 1; control point k sits at voxel coordinate (k - 1) * knot_vox. Fixed by the shape alone, so it is
    computed while tracing.
    """
    at = (np.arange(size) + 0.5) / knot_vox
    first = np.floor(at).astype(int)
    t = (at - first)[:, None]
    weights = np.concatenate([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1)
    basis = np.zeros((size, math.ceil(size / knot_vox) + 3), np.float32)
    np.put_along_axis(basis, first[:, None] + np.arange(4), weights / 6, axis=1)
    return basis


def bspline_field(control: jax.Array, bases: tuple[np.ndarray, ...]) -> jax.Array:
    """The tensor-product spline of control points [K_1, ..., K_D]: float32 [*S], S_d = rows of the d-th basis."""
    for axis, basis in enumerate(bases):
        control = jnp.moveaxis(jnp.tensordot(basis, control, axes=(1, axis)), 0, axis)
    return control


def random_warp(
    key: jax.Array, shape: tuple[int, ...], knot_vox: tuple[float, ...], amplitude_um: float
) -> tuple[jax.Array, ...]:
    """A smooth random displacement of the coordinates: D arrays float32 [*S], micrometres, within +-amplitude_um.

    The papers warp each cell in a window of its own with 3 x 3 control points. With knots about as far apart as a
    cell's radius, one field over the volume bends every cell as freely, neighbours alike, at the cost of one cell.
    """
    bases = tuple(bspline_basis(size, knot) for size, knot in zip(shape, knot_vox, strict=True))
    count = tuple(basis.shape[1] for basis in bases)
    control = jax.random.uniform(key, (len(shape), *count), minval=-amplitude_um, maxval=amplitude_um)
    return tuple(bspline_field(part, bases) for part in control)


def smooth_noise(key: jax.Array, shape: tuple[int, ...], knot_vox: tuple[float, ...]) -> jax.Array:
    """Gaussian noise with mean 0 and variance 1 at every voxel, smooth over about `knot_vox`: float32 [*S]."""
    bases = []
    for size, knot in zip(shape, knot_vox, strict=True):
        basis = bspline_basis(size, knot)
        bases.append(basis / np.linalg.norm(basis, axis=1, keepdims=True))
    return bspline_field(jax.random.normal(key, tuple(basis.shape[1] for basis in bases)), tuple(bases))
