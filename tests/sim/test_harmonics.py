"""Spherical harmonics against SciPy, quadrature and closed forms; shapes there and back."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import sph_harm_y
from skimage.measure import regionprops
from skimage.morphology import convex_hull_image

from jaxsynth.data import volumes
from jaxsynth.sim import grid, harmonics, starshape

SHAPE, SPACING = (34, 50, 50), (1.75, 0.8, 0.8)

basis = jax.jit(harmonics.basis, static_argnames="order")
radius = jax.jit(harmonics.radius)
make_table = jax.jit(harmonics.table, static_argnames=("ndim", "size"))
random_coefficients = jax.jit(harmonics.random_coefficients, static_argnames=("order", "ndim", "decay"))


def units(num, ndim=3):
    u = np.random.default_rng(0).normal(size=(num, ndim))
    u = np.concatenate([u, np.eye(ndim), -np.eye(ndim)])
    return u / np.linalg.norm(u, axis=1, keepdims=True)


def round_trip(mask, spacing_um, order):
    """(intersection over union, volume ratio) of a body and its harmonics."""
    ndim = mask.ndim
    centre, coefficients = harmonics.fit(mask, spacing_um, order)
    table = harmonics.table(coefficients, ndim)
    labels, _ = starshape.rasterise(centre[None], table[None], jnp.ones(1, bool), mask.shape, spacing_um)
    drawn = labels > 0
    return jnp.sum(drawn & mask) / jnp.sum(drawn | mask), jnp.sum(drawn) / jnp.sum(mask)


round_trip = jax.jit(round_trip, static_argnames="order")


def test_basis_is_scipys_to_order_30():
    u, order = units(500), 30
    got = np.asarray(basis(jnp.float32(u), order))
    assert got.shape == (506, 31**2) and got.dtype == np.float32
    polar, azimuth = np.arccos(u[:, 0]), np.arctan2(u[:, 1], u[:, 2])
    for degree in range(order + 1):
        for m in range(-degree, degree + 1):
            y = sph_harm_y(degree, abs(m), polar, azimuth) * (-1) ** m
            real = y.real if m == 0 else math.sqrt(2) * (y.real if m > 0 else y.imag)
            np.testing.assert_allclose(got[:, degree**2 + degree + m], real, atol=3e-5)


@pytest.mark.parametrize(("ndim", "order"), [(2, 12), (3, 20), (3, 0)])
def test_basis_is_orthonormal_under_the_quadrature(ndim, order):
    u, share = harmonics.quadrature(order, ndim)
    functions = np.asarray(basis(u, order), np.float64)
    assert functions.shape[-1] == harmonics.num_coefficients(order, ndim)
    np.testing.assert_allclose((functions * share[:, None]).T @ functions, np.eye(functions.shape[-1]), atol=1e-5)


def test_circle_basis_is_the_fourier_series():
    angle = np.linspace(0, 6, 50)
    got = basis(jnp.float32(np.stack([np.sin(angle), np.cos(angle)], -1)), 4)
    for degree in range(1, 5):
        np.testing.assert_allclose(got[:, 2 * degree - 1], np.sin(degree * angle) / math.sqrt(math.pi), atol=2e-6)
        np.testing.assert_allclose(got[:, 2 * degree], np.cos(degree * angle) / math.sqrt(math.pi), atol=2e-6)


@pytest.mark.parametrize(("ndim", "shape"), [(2, (40, 44)), (3, (40, 44, 40))])
def test_order_zero_is_a_ball_of_the_radius_in_voxels(ndim, shape):
    @jax.jit
    def draw(key):
        coefficients = harmonics.random_coefficients(key, 9.0, 0, 5.0, ndim=ndim)
        table = harmonics.table(coefficients, ndim)
        centre = jnp.array(shape) / 2.0
        at = grid.axes_um(shape, jnp.ones(ndim))
        inside = sum((x - c) ** 2 for x, c in zip(at, centre, strict=True)) <= 81.0
        labels, _ = starshape.rasterise(centre[None], table[None], jnp.ones(1, bool), shape, jnp.ones(ndim))
        return coefficients, table, labels == 1, inside

    coefficients, table, drawn, inside = draw(jax.random.key(0))
    assert coefficients.shape == (1,)
    np.testing.assert_allclose(table, 9.0, rtol=1e-6)
    np.testing.assert_array_equal(drawn, inside)
    ball = {2: math.pi * 81, 3: 4 / 3 * math.pi * 729}[ndim]
    assert int(drawn.sum()) == pytest.approx(ball, rel=0.03)  # so far off is the count of voxel centres


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("gamma", [0.1, 0.5, 5.0])
def test_random_shapes_have_the_nominal_mean_and_no_hole(ndim, gamma):
    """Rough ones as well: the mean radius is r exactly, the least one at or above its floor."""
    draw = jax.vmap(lambda key: random_coefficients(key, 12.0, order=8, gamma=gamma, ndim=ndim))
    coefficients = draw(jax.random.split(jax.random.key(1), 50))
    table = make_table(coefficients, ndim=ndim)
    assert table.min() >= harmonics.FLOOR * 12.0 - 1e-4
    u, share = harmonics.quadrature(8, ndim)
    np.testing.assert_allclose(radius(coefficients, u) @ share / share.sum(), 12.0, rtol=1e-5)
    rough = float(jnp.std(table))
    assert (rough > 1.5) == (gamma < 1) and (rough < 0.1) == (gamma == 5.0)


def test_random_weights_fall_as_eq_7():
    draw = jax.vmap(lambda key: random_coefficients(key, 1.0, order=3, gamma=1.6))
    c = np.asarray(draw(jax.random.split(jax.random.key(2), 4000)))
    degree = np.array([0, 1, 1, 1, 2, 2, 2, 2, 2, *[3] * 7])
    expected = np.where(degree > 0, np.exp(-1.6 * degree), 0)
    np.testing.assert_allclose(c.std(0), expected, rtol=0.07, atol=1e-4)
    np.testing.assert_allclose(c[:, 1:].mean(0), 0, atol=0.02)
    draw = jax.vmap(lambda key: random_coefficients(key, 1.0, order=3, gamma=6.0, decay="power"))
    c = np.asarray(draw(jax.random.split(jax.random.key(3), 4000)))
    power = np.array([(c[:, degree == d] ** 2).sum(1).mean() for d in (1, 2, 3)])
    np.testing.assert_allclose(power / power[0], [1, 2.0**-6, 3.0**-6], rtol=0.1)
    with pytest.raises(ValueError, match="decay"):
        harmonics.random_coefficients(jax.random.key(0), 1.0, 2, 1.0, decay="fast")


def test_table_agrees_with_the_radius_between_its_nodes():
    draw = jax.vmap(lambda key: random_coefficients(key, 10.0, order=20, gamma=1.0))
    coefficients = draw(jax.random.split(jax.random.key(4), 3))
    table, u = make_table(coefficients, ndim=3), jnp.float32(units(2000))
    got = starshape.lookup(table, jnp.arange(3)[:, None], tuple(jnp.moveaxis(5 * u, -1, 0)))
    assert abs(got - radius(coefficients, u)).max() < 0.05
    assert jnp.std(table) > 0.2


def test_fit_gives_the_body_back():
    """Harmonics of order 4, drawn as a mask and fitted: the surface to a fraction of a voxel."""
    start, u = jnp.array([29.9, 20.2, 19.7]), jnp.float32(units(400))

    @jax.jit
    def there_and_back(key):
        coefficients = harmonics.random_coefficients(key, 13.0, 4, 1.3).at[1:4].set(0.0)
        table = harmonics.table(coefficients, 3, 33)[None]
        labels, _ = starshape.rasterise(start[None], table, jnp.ones(1, bool), SHAPE, jnp.array(SPACING))
        centre, fitted = harmonics.fit(labels > 0, jnp.array(SPACING), 4)
        # The centroid is not the centre that the radii were measured from: compare the surfaces.
        surface = centre + harmonics.radius(fitted, u)[:, None] * u - start
        reach = jnp.linalg.norm(surface, axis=-1)
        return reach, harmonics.radius(coefficients, surface / reach[:, None])

    reach, expected = there_and_back(jax.random.key(5))
    assert abs(reach - expected).max() < 0.9 and abs(reach - expected).mean() < 0.25
    assert jnp.std(expected) > 0.4


def test_ellipsoids_and_peanuts_survive_the_round_trip():
    centre = np.array(SHAPE) * SPACING / 2
    at = [(np.arange(n) + 0.5) * step - c for n, step, c in zip(SHAPE, SPACING, centre, strict=True)]
    z, y, x = np.meshgrid(*at, indexing="ij")
    ellipsoid = (z / 20) ** 2 + (y / 17) ** 2 + (x / 11) ** 2 <= 1
    # Two balls that overlap so much that each holds the middle: dented round the waist, yet star-shaped.
    peanut = z**2 + y**2 + (abs(x) - 8.0) ** 2 <= 10.0**2
    for body, order, least in ((ellipsoid, 4, 0.97), (ellipsoid, 16, 0.98), (peanut, 16, 0.97)):
        overlap, ratio = round_trip(jnp.asarray(body), jnp.array(SPACING), order=order)
        assert overlap > least and abs(ratio - 1) < 0.015
    hull = convex_hull_image(peanut)
    assert hull.sum() / peanut.sum() > 1.1  # what filling a triangulation would give


def test_round_trip_in_two_dimensions():
    y, x = np.ogrid[:60, :64]
    angle = np.arctan2(y - 30, x - 32)
    star = jnp.asarray(np.hypot(y - 30, x - 32) <= 18 + 5 * np.cos(5 * angle))
    overlap, ratio = round_trip(star, jnp.ones(2), order=10)
    assert overlap > 0.97 and abs(ratio - 1) < 0.01


def test_real_nuclei_survive_the_round_trip(real_data):
    labels = volumes.read_labels(real_data / "embryo3d" / "masks" / "Emb05_t351.tif")
    results = []
    for cell in regionprops(labels):
        low, high = np.reshape(cell.bbox, (2, 3))
        if (low == 0).any() or (high == labels.shape).any() or any(np.greater(cell.image.shape, np.subtract(SHAPE, 2))):
            continue
        mask = np.zeros(SHAPE, bool)
        mask[tuple(slice(1, n + 1) for n in cell.image.shape)] = cell.image
        results.append([round_trip(jnp.asarray(mask), jnp.array(SPACING), order=order) for order in (4, 16)])
    overlap, ratio = np.moveaxis(np.array(results), -1, 0)
    assert len(results) >= 5
    assert overlap[:, 1].mean() > 0.97 and overlap[:, 1].min() > 0.9 and abs(ratio[:, 1] - 1).mean() < 0.02
    assert (overlap[:, 0] < overlap[:, 1]).all()


def test_soft_volume_is_differentiable_in_the_coefficients():
    """Volume grows by the surface per unit of mean radius, and not at all, to first order, with the other harmonics."""
    offset = tuple(x - 12.0 for x in grid.axes_um((24, 24, 24), jnp.ones(3)))

    def volume(coefficients):
        value = starshape.value(harmonics.table(coefficients, 3, 17)[None])(jnp.int32(0), offset)
        return jnp.sum(jax.nn.sigmoid((1 - value) / 0.1))

    ball = jnp.zeros(9).at[0].set(7.0 / harmonics.constant(3))
    gradient = np.asarray(jax.jit(jax.grad(volume))(ball))
    per_unit = 4 * math.pi * 49 * harmonics.constant(3)
    assert gradient[0] == pytest.approx(per_unit, rel=0.05)
    np.testing.assert_allclose(gradient[1:], 0, atol=0.02 * per_unit)


def test_gradient_descent_finds_a_shape():
    """Fitting by gradients, as one would to an image: from a ball to an ellipsoid."""
    offset = tuple(x - 12.0 for x in grid.axes_um((24, 24, 24), jnp.ones(3)))
    form = sum((x / r) ** 2 for x, r in zip(offset, (6.0, 9.0, 7.0), strict=True))
    target = jax.nn.sigmoid((1 - form) / 0.2)

    def loss(coefficients):
        value = starshape.value(harmonics.table(coefficients, 3, 17)[None])(jnp.int32(0), offset)
        return jnp.mean((jax.nn.sigmoid((1 - value) / 0.2) - target) ** 2)

    @jax.jit
    def descend(start):
        end = jax.lax.fori_loop(0, 80, lambda _, c: c - 300 * jax.grad(loss)(c), start)
        return loss(start), loss(end), harmonics.radius(end, jnp.eye(3))

    before, after, along = descend(jnp.zeros(25).at[0].set(7.0 / harmonics.constant(3)))
    assert after < 0.05 * before
    np.testing.assert_allclose(along, [6, 9, 7], atol=0.4)


def test_vmap_is_the_loop():
    keys, radii = jax.random.split(jax.random.key(6), 4), jnp.array([3.0, 5.0, 8.0, 2.0])
    both = jax.jit(jax.vmap(lambda key, r: harmonics.random_coefficients(key, r, 6, 0.7)))(keys, radii)
    for key, r, got in zip(keys, radii, both, strict=True):
        np.testing.assert_allclose(random_coefficients(key, r, order=6, gamma=0.7), got, rtol=1e-4, atol=1e-4)


def test_a_wrong_number_of_coefficients_is_refused():
    with pytest.raises(ValueError, match="no order has 5 coefficients"):
        harmonics.table(jnp.ones(5), 3)
    with pytest.raises(ValueError, match="orders from 0"):
        harmonics.num_coefficients(-1, 3)
