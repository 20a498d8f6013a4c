"""Smooth random fields on uniform cubic B-splines: warps of the coordinates, and smooth noise.

A field is a tensor product, so it is made by one small matrix product per axis, whatever the rank.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxsynth import keys


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


def cell_bend(key: jax.Array, num: int, ndim: int, amplitude: float) -> jax.Array:
    """Random control points of a B-spline warp for each of `num` cells (papers 000 and 001: GOWT1 and HeLa).

    Args:
      key: typed PRNG key.
      num: cells; static.
      ndim: 2 or 3, static.
      amplitude: displacements lie within +- this share of the cell's window, its bounding box.

    Returns:
      float32 [num, D, 3, ..., 3], shares of the window.
    """
    return jax.random.uniform(key, (num, ndim, *(3,) * ndim), minval=-amplitude, maxval=amplitude)


def bent_value(value: Callable, reach_um: jax.Array, control: jax.Array) -> tuple[Callable, jax.Array]:
    """A cell shape seen through each cell's own B-spline warp.

    The control points are those of one quadratic B-spline segment over the window, from its low end to its high end,
    so the warp is smooth and three of them per axis are all it has.

    Args:
      value: as `raster.owners` takes it.
      reach_um: float32 [N, D], half edges of the cells' bounding boxes.
      control: float32 [N, D, 3, ..., 3], from `cell_bend`.

    Returns:
      The warped shape's value, and float32 [N, D], half edges of boxes that hold it.
    """
    ndim = reach_um.shape[1]
    # Beyond its window a cell keeps the warp of the window's border.
    wide_um = 2 * reach_um
    grown_um = reach_um + wide_um * jnp.max(jnp.abs(control.reshape(*reach_um.shape, -1)), axis=-1)

    def weights(share: jax.Array) -> tuple[jax.Array, ...]:
        return (1 - share) ** 2 / 2, (1 + 2 * share * (1 - share)) / 2, share**2 / 2

    def evaluate(cell: jax.Array, offset: tuple[jax.Array, ...]) -> jax.Array:
        shares = [jnp.clip(0.5 + x / wide_um[:, d][cell], 0.0, 1.0) for d, x in enumerate(offset)]
        axes = [weights(share) for share in shares]

        def spline(part, place=()):
            if len(place) == ndim:
                return control[(slice(None), part, *place)][cell]
            return sum(w * spline(part, (*place, i)) for i, w in enumerate(axes[len(place)]))

        return value(cell, tuple(x + wide_um[:, d][cell] * spline(d) for d, x in enumerate(offset)))

    return evaluate, grown_um


@struct.dataclass
class Bend:
    """A smooth displacement of space by a few Gaussian bumps: x + sum_j push_j exp(-|x - centre_j|^2 / (2 width_j^2)).

    Attributes:
      centre_um, push_um: float32 [J, D].
      width_um: float32 [J].
    """

    centre_um: jax.Array
    push_um: jax.Array
    width_um: jax.Array


# The slope of a Gaussian of height 1 and width 1 is at most e^(-1/2); pushes whose slopes add up to less than 1 fold
# nothing over.
STEEPEST = math.exp(-0.5)


def gaussian_bend(key: jax.Array, size_um: jax.Array, num: int, strength: float = 0.6) -> Bend:
    """A few large random distortions of a body in the middle of a volume (003, code: bent embryos).

    Args:
      key: typed PRNG key.
      size_um: float32 [D], the volume's edges.
      num: J, static.
      strength: sum of the bumps' steepest slopes, in [0, 1): below 1 the bend is one-to-one.

    Returns:
      Bend; bumps are between 0.6 and 1.2 of the volume's shortest edge wide, pushes lie across its longest axis.
    """
    ndim, short = size_um.shape[0], jnp.min(size_um)
    centre = jax.random.uniform(keys.stream(key, "centre"), (num, ndim), minval=0.1, maxval=0.9) * size_um
    width = short * jax.random.uniform(keys.stream(key, "width"), (num,), minval=0.6, maxval=1.2)
    push = jax.random.normal(keys.stream(key, "push"), (num, ndim))
    push = jnp.where(jnp.arange(ndim) == jnp.argmax(size_um), 0.0, push)
    push = push / jnp.maximum(jnp.linalg.norm(push, axis=1, keepdims=True), 1e-6)
    share = jax.random.uniform(keys.stream(key, "share"), (num,), minval=0.3, maxval=1.0)
    return Bend(centre, push * (strength / num * share * width / STEEPEST)[:, None], width)


def dent(point_um: jax.Array, normal: jax.Array, depth_um: jax.Array | float, width_um: jax.Array | float) -> Bend:
    """A dent that pushes a surface inwards.

    Args:
      point_um: float32 [D], on the surface.
      normal: float32 [D], unit vector inwards.
      depth_um: how far; less than width_um * sqrt(e), or the bend folds over.
      width_um: standard deviation of the dent.
    """
    # Seen through the bend, what was outside lies where the inside is looked for.
    point = point_um + depth_um * normal
    push = -depth_um * normal
    return Bend(point[None], push[None], jnp.asarray(width_um, jnp.float32)[None])


def random_dents(
    key: jax.Array,
    centre_um: jax.Array,
    semi_axes_um: jax.Array,
    num: int,
    depth_um: jax.Array | float,
    width_um: jax.Array | float,
) -> Bend:
    """Dents at random points of an ellipsoid's surface (003, code: dented embryos).

    A body both dented and bent is dented first: `foregrounds.bent(foregrounds.bent(body, dents), bend)`.

    Args:
      key: typed PRNG key.
      centre_um, semi_axes_um: float32 [D].
      num: dents, static.
      depth_um, width_um: as in `dent`; with num * depth_um < width_um * sqrt(e) no set of dents folds over.
    """
    way = jax.random.normal(key, (num, centre_um.shape[0]))
    way = way / jnp.linalg.norm(way, axis=1, keepdims=True)
    normal = -way / semi_axes_um
    normal = normal / jnp.linalg.norm(normal, axis=1, keepdims=True)
    points = centre_um + semi_axes_um * way
    return join(*(dent(point, inwards, depth_um, width_um) for point, inwards in zip(points, normal, strict=True)))


def join(*bends: Bend) -> Bend:
    """All bumps of several bends at once."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *bends)


def bend(bend: Bend, coords: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Displaced coordinates, elementwise: D arrays that broadcast against each other -> D arrays, micrometres."""
    moved = list(coords)
    for j in range(bend.width_um.shape[0]):
        squared = sum((x - bend.centre_um[j, d]) ** 2 for d, x in enumerate(coords))
        bump = jnp.exp(-squared / (2 * bend.width_um[j] ** 2))
        moved = [x + bend.push_um[j, d] * bump for d, x in enumerate(moved)]
    return tuple(moved)


def reach_um(bend: Bend) -> jax.Array:
    """The farthest a bend can move a point along each axis: float32 [D]."""
    return jnp.sum(jnp.abs(bend.push_um), axis=0)
