"""Statistical shape model (paper 003, 3.2): the mean of given bodies and the main ways in which they differ.

Bodies are their radii along the rays of a table (`starshape.directions`), from the centroid. The paper takes the
boundary points on those rays; along fixed rays that says the same in a third of the numbers. Nothing is aligned or
scaled beforehand: size and orientation are part of what varies.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxsynth.sim import starshape

LIMIT = 3.0  # weights stay within so many standard deviations (eq. 4)
FLOOR = 0.05  # least radius drawn, as a share of the mean shape's


@struct.dataclass
class ShapeModel:
    """mean + sum_j b_j modes_j, with |b_j| <= 3 sd_j.

    Attributes:
      mean: float32 [R], micrometres; R = K * K nodes of an octahedral table in 3D, K of a ring in 2D.
      modes: float32 [M, R], orthonormal under the mean over all directions (`starshape.weights`), so that a mode
        counts by what it does to the body and not by how densely the nodes lie; modes beyond those that the samples
        span are 0.
      sd: float32 [M], micrometres, falling; the root mean square over all directions of the change that one standard
        deviation of the mode makes.
      size: K, static.
      ndim: 2 or 3, static.
    """

    mean: jax.Array
    modes: jax.Array
    sd: jax.Array
    size: int = struct.field(pytree_node=False)
    ndim: int = struct.field(pytree_node=False)


def fit(radii: jax.Array, num_modes: int) -> ShapeModel:
    """The model of K_samples bodies, by singular value decomposition of their deviations from the mean.

    Args:
      radii: float32 [K_samples, K] or [K_samples, K, K], micrometres, at least one (`starshape.radii_from_mask`).
      num_modes: M, static. K_samples bodies span K_samples - 1 modes; any further ones are 0 and change nothing, so
        a model of one body draws that body.

    Raises:
      ValueError: no sample, or not square tables.
    """
    num, ndim, size = radii.shape[0], radii.ndim, radii.shape[-1]
    if num < 1 or radii.shape[1:] != (size,) * (ndim - 1) or num_modes < 0:
        raise ValueError(
            f"a shape model needs samples [N, K] or [N, K, K] and 0 modes or more, got {radii.shape}, {num_modes}"
        )
    flat = radii.reshape(num, starshape.num_nodes(size, ndim))
    mean = jnp.mean(flat, axis=0)
    return _from_deviations(mean, (flat - mean) / max(num - 1, 1) ** 0.5, num_modes, size, ndim)


def _from_deviations(mean, deviations, num_modes, size, ndim) -> ShapeModel:
    """The model whose covariance is deviations^T deviations."""
    root = jnp.sqrt(starshape.weights(size, ndim)).reshape(-1)
    _, sd, modes = jnp.linalg.svd(deviations * root, full_matrices=False)
    sd, modes = sd[:num_modes], modes[:num_modes] / root
    # What rounding leaves of a direction that no sample spans is no mode.
    real = sd > 1e-5 * jnp.sqrt(jnp.sum((mean * root) ** 2))
    fill = num_modes - sd.shape[0]
    sd, modes = jnp.where(real, sd, 0.0), jnp.where(real[:, None], modes, 0.0)
    return ShapeModel(mean, jnp.pad(modes, ((0, fill), (0, 0))), jnp.pad(sd, (0, fill)), size, ndim)


def draw(key: jax.Array, model: ShapeModel, num_modes: int | None = None) -> jax.Array:
    """A new body (paper 003, eq. 4): radii float32 [R], micrometres.

    b_j is normal with standard deviation lambda_j, cut off at 3 lambda_j. The paper calls lambda_j an eigenvalue of the
    covariance matrix, which is a variance; as a bound on b_j it must be its square root, the standard deviation along
    the mode, `model.sd`. The published code draws without a bound. No radius falls below 5 % of the mean shape's.

    Args:
      key: typed PRNG key.
      model: of M modes.
      num_modes: static; only the first ones are used, all where None.
    """
    num_modes = model.sd.shape[0] if num_modes is None else num_modes
    if not 0 <= num_modes <= model.sd.shape[0]:
        raise ValueError(f"num_modes: expected 0 to {model.sd.shape[0]}, got {num_modes}")
    b = model.sd[:num_modes] * jax.random.truncated_normal(key, -LIMIT, LIMIT, (num_modes,))
    radii = model.mean + jnp.tensordot(b, model.modes[:num_modes], axes=1, precision="highest")
    return jnp.maximum(radii, FLOOR * model.mean)


def table(model: ShapeModel, radii: jax.Array) -> jax.Array:
    """Radii float32 [..., R] of the model as tables for `starshape`: float32 [..., K] or [..., K, K]."""
    return radii.reshape(*radii.shape[:-1], *(model.size,) * (model.ndim - 1))


def scaled(model: ShapeModel, factor: jax.Array) -> ShapeModel:
    """The model of the same shapes, `factor` times as large in every direction; may be traced."""
    return model.replace(mean=model.mean * factor, sd=model.sd * factor)


# The default meristem: primordia at successive golden angles, 137.5 degrees, oldest first.
BASE = 0.45  # of the height: how far the base lies below the centre
BELOW = 0.15  # of the height: how far the body goes on below the base
_AZIMUTH = np.float32([2.5, 4.9, 1.0168, 3.4168])
_OUTGROWTH = np.float32([0.6, 0.5, 0.35, 0.2])  # how far each grows out, as a share of the radius there
_DEPTH = np.float32([0.2, 0.1, -0.1, -0.3])  # slope of its axis from the centre; older ones are carried down
_SPREAD = 0.27  # radians over which an outgrowth falls to 0.6 of its height
ROUND = 16.0  # the rim's sharpness
_SD = np.float32([0.08, 0.06, 0.05, *(0.4 * _OUTGROWTH)])


def meristem(height_um: jax.Array, width_um: jax.Array, size: int = 65) -> ShapeModel:
    """An analytic model of half a shoot apical meristem, the default where the user gives no label images.

    The paper fits its model to the labels of six plants, from which none is shipped here. This is a description
    instead: an upright half ellipsoid, apex towards z = 0, with four primordia on its flank, older ones larger and
    lower, each a share of the radius that falls off as a Gaussian of the angle from its axis. The body goes on for
    `BELOW` * height_um below the base and ends flat, with a rounded rim: let the base lie on the end of the volume,
    which then cuts the organism as in real images.
    Seven modes are the first-order changes of that shape: height (sd 8 %), y against x (6 %), width (5 %) and each
    primordium's outgrowth (sd 40 % of itself, so that two to four of them show), made orthonormal and sorted together.

    Args:
      height_um, width_um: float [], the mean body's height and its extent along the wider of y and x, micrometres;
        in the paper's volumes about 221 by 495 voxels of equal edge. May be traced.
      size: K, static.

    Returns:
      A model with 7 modes, about a centre that lies `BASE` * height_um above the base and, as the primordia are uneven,
      not in the middle of the extent in y and x: see `starshape.box_um`.
    """
    units = starshape.directions(size, 3).reshape(-1, 3)
    axes = jnp.stack([_DEPTH, np.sin(_AZIMUTH), np.cos(_AZIMUTH)], axis=-1)
    axes = axes / jnp.linalg.norm(axes, axis=-1, keepdims=True)

    def dome(directions, outgrowth):
        # A unit sphere round the foot of the centre, seen from the centre.
        up = BASE * directions[..., 0]
        sphere = up + jnp.sqrt(up**2 + 1 - BASE**2)
        bump = jnp.exp((jnp.matmul(directions, axes.T, precision="highest") - 1) / _SPREAD**2)
        return sphere * (1 + jnp.sum(outgrowth * bump, axis=-1))

    def cut(whole, base):
        # A smooth minimum with the base plane: a sharp rim between the nodes of a table would come out ragged.
        return whole * (1 + (whole * jnp.maximum(units[:, 0], 0.0) / base) ** ROUND) ** (-1 / ROUND)

    # The width is that of dome and primordia together, the height that of the apex, where no primordium is.
    points = units * cut(dome(units, _OUTGROWTH), BASE)[:, None]
    extent = jnp.max(jnp.max(points, axis=0) - jnp.min(points, axis=0))
    apex = -jnp.min(points[:, 0])

    def radii(change):
        height, against, wider = change[0], change[1], change[2]
        across = width_um / extent * (1 + wider)
        stretch = jnp.stack(
            [height_um * (1 - BASE) / apex * (1 + height), across * (1 + against), across * (1 - against)]
        )
        # The radius of a stretched body is that of the body in the direction before the stretch, by length.
        before = units / stretch
        length = jnp.linalg.norm(before, axis=-1)
        whole = dome(before / length[:, None], _OUTGROWTH + change[3:]) / length
        return cut(whole, (BASE + BELOW) * height_um)

    still = jnp.zeros(len(_SD))
    deviations = jax.jacfwd(radii)(still).T * _SD[:, None]
    return _from_deviations(radii(still), deviations, len(_SD), size, 3)
