"""Cells as spherical harmonics: their radius is a short sum of smooth functions of the direction (paper 003, 3.3).

In 3D the functions are the real orthonormal spherical harmonics Y_lm (eq. 5), index l^2 + l + m; in 2D the circle's
orthonormal Fourier series, index 0 for the constant, 2 l - 1 for sin(l t) and 2 l for cos(l t). A body's coefficients
become a table of radii (`table`), which `starshape.rasterise` draws.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxsynth.sim import starshape

FLOOR = 0.2  # least radius of a random shape, as a share of its mean


def num_coefficients(order: int, ndim: int) -> int:
    """R = (L + 1)^2 in 3D, 2 L + 1 in 2D."""
    if order < 0 or ndim not in (2, 3):
        raise ValueError(f"harmonics are known for orders from 0 in 2 and 3 dimensions, not {order}, {ndim}")
    return (order + 1) ** 2 if ndim == 3 else 2 * order + 1


def order_of(num: int, ndim: int) -> int:
    """The order L that has `num` coefficients."""
    order = math.isqrt(num) - 1 if ndim == 3 else (num - 1) // 2
    if num < 1 or num_coefficients(order, ndim) != num:
        raise ValueError(f"no order has {num} coefficients in {ndim} dimensions")
    return order


def _degrees(order: int, ndim: int) -> tuple[np.ndarray, np.ndarray]:
    """l and m of every coefficient, int [R]. In 2D l = |m|, m < 0 is the sine."""
    if ndim == 2:
        m = np.array([0] + [sign * degree for degree in range(1, order + 1) for sign in (-1, 1)])
        return np.abs(m), m
    l = np.repeat(np.arange(order + 1), 2 * np.arange(order + 1) + 1)  # noqa: E741
    return l, np.arange(len(l)) - l * l - l


def constant(ndim: int) -> float:
    """The first function, Y_00: 1 / sqrt(4 pi) in 3D, 1 / sqrt(2 pi) in 2D."""
    return 1 / math.sqrt({2: 2, 3: 4}[ndim] * math.pi)


def basis(directions: jax.Array, order: int) -> jax.Array:
    """The harmonics at unit vectors.

    Y_lm is sqrt(2) times the real part (m > 0) or the imaginary part (m < 0) of eq. 5 without the phase (-1)^m. The
    polar axis is z, the azimuth runs from x to y. Normalised Legendre functions divided by sin(theta)^m come from the
    three-term recurrence in l, times powers of x + i y: no trigonometry, smooth at the poles, stable in float32
    (within 2e-5 to order 30).

    Args:
      directions: float32 [..., D], (y, x) or (z, y, x), of length 1.
      order: L, static, 0 or more.

    Returns:
      float32 [..., R], orthonormal over the sphere (the circle in 2D).
    """
    ndim = directions.shape[-1]
    degree, m = _degrees(order, ndim)
    x, y = directions[..., -1], directions[..., -2]
    tables = _recurrence(order)

    def climb(carry, row):
        last, before, cosine, sine = carry
        start, first, second = row
        here = start + first * directions[..., :1] * last - second * before
        # (x + i y)^l of this l beside the Legendre functions of this l.
        return (here, last, x * cosine - y * sine, x * sine + y * cosine), (here, cosine, sine)

    zero = jnp.zeros((*x.shape, order + 1))
    _, (legendre, cosine, sine) = jax.lax.scan(climb, (zero, zero, jnp.ones_like(x), jnp.zeros_like(x)), tables)
    turning = jnp.where((m < 0).reshape(-1, *[1] * x.ndim), sine[abs(m)], cosine[abs(m)])
    turning = jnp.moveaxis(turning, 0, -1)
    if ndim == 2:
        return turning * np.where(m == 0, constant(2), 1 / math.sqrt(math.pi)).astype(np.float32)
    legendre = jnp.moveaxis(legendre, 0, -2)[..., degree, abs(m)]
    return legendre * turning * np.where(m == 0, 1, math.sqrt(2)).astype(np.float32)


def _recurrence(order: int) -> tuple[np.ndarray, ...]:
    """s, a, b of P_lm = s + a z P_(l-1)m - b P_(l-2)m, the fully normalised Legendre functions over sin(theta)^m:
    float32 [L + 1 (l), L + 1 (m)] each. s starts the column m at l = m with sqrt((2 m + 1)!! / (2 m)!! / 4 pi)."""
    m = np.arange(order + 1.0)
    l = m[:, None]  # noqa: E741
    start = np.sqrt(np.cumprod(np.where(m > 0, (2 * m + 1) / np.maximum(2 * m, 1), 1)) / (4 * math.pi))
    first = np.sqrt(np.where(l > m, (4 * l**2 - 1) / np.where(l > m, l**2 - m**2, 1), 0))
    second = first * np.sqrt(np.maximum((l - 1) ** 2 - m**2, 0) / np.maximum(4 * (l - 1) ** 2 - 1, 1))
    return tuple(np.float32(part) for part in (np.diag(start), first, second))


def radius(coefficients: jax.Array, directions: jax.Array) -> jax.Array:
    """Paper 003, eq. 6: the radius in given directions.

    Args:
      coefficients: float32 [..., R], micrometres.
      directions: float32 [..., D], unit vectors.

    Returns:
      float32 [*batch of the coefficients, *batch of the directions]; may be negative for arbitrary coefficients.
    """
    ndim = directions.shape[-1]
    functions = basis(directions, order_of(coefficients.shape[-1], ndim))
    return jnp.tensordot(coefficients, functions, axes=(-1, -1), precision="highest")


def table_size(order: int, ndim: int) -> int:
    """K of a table that serves this order: 6 nodes or more to the shortest wave along the equator; odd in 3D."""
    return max(17, 3 * order + 1) | 1 if ndim == 3 else max(64, 8 * order)


def table(coefficients: jax.Array, ndim: int, size: int | None = None) -> jax.Array:
    """The radii at the nodes of `starshape`'s table: float32 [..., K] or [..., K, K]; K = `table_size` where None."""
    order = order_of(coefficients.shape[-1], ndim)
    size = table_size(order, ndim) if size is None else size
    # The nodes are constants: the compiler shall not try to work the basis out by itself.
    nodes = jax.lax.optimization_barrier(starshape.directions(size, ndim))
    return radius(coefficients, nodes)


def random_coefficients(
    key: jax.Array,
    radius_um: jax.Array,
    order: int,
    gamma: jax.Array,
    *,
    ndim: int = 3,
    decay: str = "order",
    floor: float = FLOOR,
) -> jax.Array:
    """A random shape (paper 003, eq. 7): c_00 = r / Y_00, the others r w e^(-gamma l), w ~ N(0, 1).

    The mean radius over all directions is r exactly; the published code leaves Y_00 out and gets 0.28 r. Eq. 7 prints
    e^(-gamma m) with m from -l to l, which grows without bound for m < 0 and leaves all zonal terms (m = 0)
    undamped; what its text and its figure 4 say, weights that fall with the level of detail, is a decay in the order.

    Radii near or below zero are excluded by shrinking all deviations from the sphere together, just so far that the
    least radius at the nodes of a table is `floor` times the mean: the shape stays smooth and its mean the same. With
    gamma above 1.5 that hardly ever happens.

    Args:
      key: typed PRNG key.
      radius_um: r, float [], micrometres; may be traced.
      order: L, static.
      gamma: float [], smoothness: 0.5 is rough, 8 all but a sphere; may be traced.
      ndim: static, 2 or 3.
      decay: static; "order": e^(-gamma l); "power": the power of order l falls as l^-gamma, as the published code
        has it, i.e. l^(-gamma / 2) / sqrt(2 l + 1) for each coefficient; "degree": e^(-gamma |m|), as printed.
      floor: in [0, 1).

    Returns:
      float32 [R], micrometres.
    """
    degree, m = _degrees(order, ndim)
    if decay == "order":
        scale = jnp.exp(-gamma * degree)
    elif decay == "degree":
        scale = jnp.exp(-gamma * abs(m))
    elif decay == "power":
        many = 2 * degree + 1 if ndim == 3 else 2
        scale = jnp.maximum(degree, 1.0) ** (-gamma / 2) / np.sqrt(many)
    else:
        raise ValueError(f'decay: expected "order", "degree" or "power", not {decay!r}')
    unit = jnp.where(degree > 0, jax.random.normal(key, degree.shape) * scale, 0.0)
    lowest = jnp.min(table(unit, ndim))
    unit = unit * jnp.minimum(1.0, (1 - floor) / jnp.maximum(-lowest, 1e-6))
    return jnp.where(degree > 0, unit, 1 / constant(ndim)) * radius_um


def quadrature(order: int, ndim: int) -> tuple[np.ndarray, np.ndarray]:
    """Directions and weights whose weighted sum is the exact integral over the sphere (circle in 2D) of products of
    two harmonics up to `order`: float32 [Q, D] and [Q], the weights' sum 4 pi (2 pi)."""
    turns = 2 * order + 1
    angle = 2 * np.pi * (np.arange(turns) + 0.5) / turns
    around = np.stack([np.sin(angle), np.cos(angle)], -1)
    if ndim == 2:
        return around.astype(np.float32), np.full(turns, 2 * np.pi / turns, np.float32)
    z, share = np.polynomial.legendre.leggauss(order + 1)
    flat = np.sqrt(1 - z**2)[:, None, None] * around
    units = np.concatenate([np.broadcast_to(z[:, None, None], (*flat.shape[:2], 1)), flat], -1)
    return units.reshape(-1, 3).astype(np.float32), np.repeat(share * 2 * np.pi / turns, turns).astype(np.float32)


def fit(mask: jax.Array, spacing_um: jax.Array, order: int) -> tuple[jax.Array, jax.Array]:
    """The harmonics of a given body, by quadrature of its radii (`starshape.radii_from_mask`).

    Of a body that is not star-shaped about its centroid the farthest boundary counts. The rays are those of twice the
    order, so that detail beyond it does not fold back.

    Args:
      mask: bool [*S], one body.
      spacing_um: float32 [D].
      order: L, static.

    Returns:
      centre_um float32 [D], the centroid, and coefficients float32 [R], micrometres; all 0 for an empty mask.
    """
    ndim = mask.ndim
    units, share = quadrature(max(2 * order, 8), ndim)
    units = jax.lax.optimization_barrier(jnp.asarray(units))
    centre_um = starshape.centroid_um(mask, spacing_um)
    radii = starshape.radii_from_mask(mask, spacing_um, units, centre_um)
    return centre_um, jnp.matmul(radii * share, basis(units, order), precision="highest")
