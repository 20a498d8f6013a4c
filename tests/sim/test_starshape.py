"""Tables of radii: directions, lookup, boxes, rasterising and reading back, against closed forms."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsynth.sim import grid, starshape

SIZE = {2: 64, 3: 33}


def units(num, ndim, seed=0):
    """Random directions, and all the axes' both ends."""
    u = np.random.default_rng(seed).normal(size=(num, ndim))
    u = np.concatenate([u, np.eye(ndim), -np.eye(ndim)])
    return (u / np.linalg.norm(u, axis=1, keepdims=True)).astype(np.float32)


def smooth(d):
    """A smooth body without symmetries."""
    return 5 + d[..., 0] + 0.8 * d[..., -1] * d[..., 0] + 0.5 * d[..., -2] ** 3


def ellipsoid(d, semi):
    return np.float32(1 / np.sqrt(np.sum((d / np.asarray(semi)) ** 2, axis=-1)))


def parts(d):
    return tuple(np.moveaxis(d, -1, 0))


# Compiled whole, and NumPy arrays: eager, every operation would be compiled by itself.
@functools.cache
def directions(size, ndim):
    return np.asarray(jax.jit(starshape.directions, static_argnums=(0, 1))(size, ndim))


lookup = jax.jit(starshape.lookup)
weights = jax.jit(starshape.weights, static_argnums=(0, 1))
box_um = jax.jit(starshape.box_um)
radii_from_mask = jax.jit(starshape.radii_from_mask)
rasterise = jax.jit(starshape.rasterise, static_argnames=("shape", "per_block"))


@pytest.mark.parametrize(("ndim", "size"), [(2, 7), (2, 64), (3, 6), (3, 33)])
def test_nodes_are_unit_vectors_that_lookup_finds_again(ndim, size):
    d = directions(size, ndim)
    assert d.shape == (size,) * (ndim - 1) + (ndim,)
    np.testing.assert_allclose(np.linalg.norm(d, axis=-1), 1, atol=1e-6)
    table = smooth(d)
    got = lookup(table[None], jnp.int32(0), parts(3.7 * d))
    np.testing.assert_allclose(got, table, atol=1e-5)


def test_odd_tables_have_nodes_on_the_axes():
    d = np.asarray(directions(9, 3)).reshape(-1, 3)
    for axis in np.concatenate([np.eye(3), -np.eye(3)]):
        assert (d @ axis).max() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("ndim", [2, 3])
def test_lookup_converges_everywhere_on_the_sphere(ndim):
    """Linear interpolation: twice the nodes, a quarter of the error; borders and poles included."""
    d = units(3000, ndim)
    error = []
    for size in (SIZE[ndim] // 2 + 1, SIZE[ndim]):
        table = smooth(directions(size, ndim))
        error.append(abs(lookup(table[None], jnp.int32(0), parts(2 * d)) - smooth(d)).max())
    assert error[1] < 0.02 and error[1] < 0.35 * error[0]


def test_lookup_picks_the_body_and_is_safe_at_the_centre():
    table = jnp.arange(1.0, 4.0)[:, None, None] * jnp.ones((3, 5, 5))
    index = jnp.array([2, 0, 1, 1])
    offset = (jnp.array([0.0, -1, 2, 0]), jnp.array([0.0, 5, 0, 0]), jnp.array([0.0, 0, -1, -7]))
    np.testing.assert_allclose(lookup(table, index, offset), index + 1.0, rtol=1e-6)
    zero = (jnp.float32(0), jnp.float32(0), jnp.float32(0))
    assert starshape.value(table)(jnp.int32(0), zero) == 0
    assert starshape.value(0 * table)(jnp.int32(0), offset)[1] > 1  # a body without extent holds nothing


@pytest.mark.parametrize("ndim", [2, 3])
def test_weights_integrate_over_all_directions(ndim):
    size = SIZE[ndim]
    w, d = np.asarray(weights(size, ndim)), directions(size, ndim)
    axes = tuple(range(ndim - 1))
    np.testing.assert_allclose(np.sum(w[..., None] * d, axis=axes), 0, atol=1e-6)
    second = (d * w[..., None]).reshape(-1, ndim).T @ d.reshape(-1, ndim)
    np.testing.assert_allclose(second, np.eye(ndim) / ndim, atol=2e-3)
    semi = [6.0, 4.0, 5.0][:ndim]
    volume = np.sum(w * ellipsoid(d, semi) ** ndim)  # in units of the unit ball's
    assert float(volume) == pytest.approx(math.prod(semi), rel=0.01)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("turned", [False, True])
def test_box_holds_the_body_and_is_tight(ndim, turned):
    size = SIZE[ndim]
    table = np.stack([smooth(directions(size, ndim)), np.full((size,) * (ndim - 1), 2.0, np.float32)])
    rotation = grid.random_rotation(jax.random.key(3), 2, ndim) if turned else None
    low, high = box_um(table, rotation)
    d = units(20000, ndim)
    for n in range(2):
        points = np.asarray(lookup(table, jnp.int32(n), parts(d)))[:, None] * d
        points = points if rotation is None else points @ np.asarray(rotation[n])
        assert (points >= low[n]).all() and (points <= high[n]).all()
        assert (points.max(0) > 0.9 * high[n]).all() and (points.min(0) < 0.9 * low[n]).all()
    np.testing.assert_allclose(starshape.reach_um(table, rotation), np.maximum(-low, high), rtol=1e-6)


@pytest.mark.parametrize(("shape", "spacing"), [((64, 72), (0.5, 0.4)), ((24, 50, 48), (1.0, 0.5, 0.5))])
def test_rasterised_ellipsoids_equal_the_quadratic_form(shape, spacing):
    ndim, semi = len(shape), jnp.array([6.0, 9.0, 7.0])[3 - len(shape) :]
    centre = jnp.array(shape) * jnp.array(spacing) / 2 + 0.1
    rotation = grid.random_rotation(jax.random.key(1), 1, ndim)
    table = ellipsoid(directions(2 * SIZE[ndim] - 1, ndim), semi)[None]
    labels, overflow = rasterise(
        centre[None], table, jnp.ones(1, bool), shape=shape, spacing_um=jnp.array(spacing), rotation=rotation
    )
    at = np.stack(np.broadcast_arrays(*grid.axes_um(shape, jnp.array(spacing))), -1) - centre
    value = (((at @ np.asarray(rotation[0]).T) / semi) ** 2).sum(-1)
    doubtful = abs(value - 1) < 0.01
    assert not overflow and doubtful.mean() < 0.02
    np.testing.assert_array_equal((np.asarray(labels) == 1)[~doubtful], (np.asarray(value) <= 1)[~doubtful])


def test_rasterise_leaves_out_invalid_bodies_and_tells_of_too_many():
    table = jnp.full((12, 17), 3.0)
    centre = jnp.stack([jnp.linspace(4, 28, 12), jnp.full(12, 16.0)], -1)
    labels, overflow = rasterise(centre, table, jnp.arange(12) % 2 == 0, shape=(32, 32), spacing_um=jnp.ones(2))
    assert set(np.unique(labels)) == {0, 1, 3, 5, 7, 9, 11} and not overflow
    labels, overflow = rasterise(centre, table, jnp.ones(12, bool), shape=(32, 32), spacing_um=jnp.ones(2), per_block=8)
    assert overflow
    labels, _ = rasterise(centre, table, jnp.zeros(12, bool), shape=(32, 32), spacing_um=jnp.ones(2))
    assert not labels.any()


@pytest.mark.parametrize(("shape", "spacing"), [((64, 72), (0.5, 0.4)), ((24, 50, 48), (1.0, 0.5, 0.5))])
def test_radii_of_a_mask_are_those_of_the_body(shape, spacing):
    ndim, semi = len(shape), jnp.array([8.0, 9.0, 7.0])[3 - len(shape) :]
    at = np.stack(np.broadcast_arrays(*grid.axes_um(shape, jnp.array(spacing))), -1)
    centre = np.array(shape) * spacing / 2 + 0.13
    mask = (((at - centre) / semi) ** 2).sum(-1) <= 1
    np.testing.assert_allclose(starshape.centroid_um(jnp.asarray(mask), jnp.array(spacing)), centre, atol=0.05)
    d = units(300, ndim)
    got = radii_from_mask(jnp.asarray(mask), jnp.array(spacing), d)
    expected = np.asarray(ellipsoid(d, semi))
    assert abs(got - expected).max() < max(spacing)
    assert abs((got - expected).mean()) < 0.1 * max(spacing)


def test_radii_of_a_box_are_exact_and_scale_with_the_spacing():
    """Along the axes the boundary lies on the voxels' faces, also where the volume ends; 3D of one voxel in z."""
    for shape, box in (((20, 24), (8, 24)), ((1, 20, 24), (1, 8, 24))):
        ndim = len(shape)
        mask = np.zeros(shape, bool)
        mask[
            tuple(slice((n - b) // 2, (n + b) // 2) if n > b else slice(None) for n, b in zip(shape, box, strict=True))
        ] = True
        d = jnp.concatenate([jnp.eye(ndim), -jnp.eye(ndim)])
        for spacing in ((1.0,) * ndim, (2.0, 0.3, 0.7)[:ndim]):
            got = radii_from_mask(jnp.asarray(mask), jnp.array(spacing), d)
            np.testing.assert_allclose(got, np.tile(np.array(box) * spacing / 2, 2), rtol=0.02)


def test_a_body_that_is_not_star_shaped_gives_its_farthest_boundary():
    mask = np.zeros((32, 32), bool)
    mask[8:24, 4:10] = mask[8:24, 20:28] = True
    d = jnp.array([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0]])
    got = radii_from_mask(jnp.asarray(mask), jnp.ones(2), d, jnp.array([16.0, 6.0]))
    np.testing.assert_allclose(got, [22.0, 2.0, 8.0], atol=0.02)
    # From the gap between the two parts some rays meet neither.
    got = radii_from_mask(jnp.asarray(mask), jnp.ones(2), d, jnp.array([16.0, 15.0]))
    np.testing.assert_allclose(got, [13.0, 11.0, 0.0], atol=0.02)


def test_an_empty_mask_has_no_radii():
    got = radii_from_mask(jnp.zeros((12, 14), bool), jnp.ones(2), directions(8, 2))
    np.testing.assert_array_equal(got, 0)
    np.testing.assert_allclose(starshape.centroid_um(jnp.zeros((12, 14), bool), jnp.ones(2)), [6, 7], rtol=1e-6)


def test_vmap_is_the_loop():
    masks = jnp.asarray(np.random.default_rng(0).random((3, 12, 14)) < 0.6)
    d = directions(16, 2)
    got = jax.jit(jax.vmap(functools.partial(starshape.radii_from_mask, directions=d), in_axes=(0, None)))(
        masks, jnp.ones(2)
    )
    for mask, radii in zip(masks, got, strict=True):
        np.testing.assert_allclose(radii_from_mask(mask, jnp.ones(2), d), radii, rtol=1e-5)


def test_soft_occupancy_has_the_closed_form_gradient():
    """d volume / d radius of a soft ball is close to its surface, and moves all the nodes."""
    at = grid.axes_um((24, 24, 24), jnp.ones(3))
    offset = tuple(x - 12.0 for x in at)

    def volume(scale):
        value = starshape.value(scale * jnp.ones((1, 9, 9)))(jnp.int32(0), offset)
        return jnp.sum(jax.nn.sigmoid((1 - value) / 0.05))

    assert float(jax.jit(jax.grad(volume))(8.0)) == pytest.approx(4 * math.pi * 64, rel=0.05)


def test_impossible_tables_are_refused():
    with pytest.raises(ValueError, match="2 or 3 dimensions"):
        starshape.directions(8, 4)
    with pytest.raises(ValueError, match="2 or more nodes"):
        starshape.directions(1, 3)
