"""The statistical shape model against NumPy's eigenvectors, and the analytic meristem."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsynth.sim import shape_model, starshape

fit = jax.jit(shape_model.fit, static_argnames="num_modes")
draw = jax.jit(shape_model.draw, static_argnames="num_modes")


def ellipsoids(num, size=9, seed=0):
    semi = np.random.default_rng(seed).uniform(4, 8, (num, 3))
    d = np.asarray(starshape.directions(size, 3))
    return np.float32(1 / np.sqrt(((d / semi[:, None, None]) ** 2).sum(-1)))


def test_modes_are_the_weighted_eigenvectors():
    radii = ellipsoids(12)
    model = fit(radii, num_modes=4)
    flat, w = radii.reshape(12, -1).astype(np.float64), np.asarray(starshape.weights(9, 3), np.float64).ravel()
    np.testing.assert_allclose(model.mean, flat.mean(0), rtol=1e-5)
    covariance = np.cov(flat.T) * np.sqrt(np.outer(w, w))
    values, vectors = np.linalg.eigh(covariance)
    np.testing.assert_allclose(model.sd, np.sqrt(values[::-1][:4]), rtol=1e-3)
    expected = vectors[:, ::-1][:, :4].T / np.sqrt(w)
    sign = np.sign((expected * np.asarray(model.modes) * w).sum(1))
    np.testing.assert_allclose(model.modes, expected * sign[:, None], atol=5e-3)
    np.testing.assert_allclose((model.modes * w) @ np.asarray(model.modes).T, np.eye(4), atol=1e-5)


def test_all_modes_together_give_a_sample_back():
    radii = ellipsoids(5)
    model = fit(radii, num_modes=4)
    w = starshape.weights(9, 3).ravel()
    b = (radii.reshape(5, -1) - model.mean) * w @ model.modes.T
    np.testing.assert_allclose(model.mean + b @ model.modes, radii.reshape(5, -1), atol=1e-4)


def test_one_sample_draws_itself_and_missing_modes_do_nothing():
    radii = ellipsoids(1)
    model = fit(radii, num_modes=3)
    assert model.modes.shape == (3, 81) and not model.sd.any()
    np.testing.assert_allclose(draw(jax.random.key(0), model), radii.ravel(), rtol=1e-6)
    model = fit(ellipsoids(3), num_modes=6)
    assert model.modes.shape == (6, 81)
    assert (model.sd[:2] > 0.1).all() and not model.sd[2:].any() and not model.modes[2:].any()
    assert jnp.isfinite(draw(jax.random.key(0), model)).all()
    assert not fit(np.repeat(radii, 4, 0), num_modes=3).sd.any()  # bodies all alike
    assert fit(radii, num_modes=0).modes.shape == (0, 81)


def test_weights_are_normal_cut_at_three_sd():
    model = fit(ellipsoids(30), num_modes=3)
    keys = jax.random.split(jax.random.key(1), 4000)
    radii = jax.vmap(lambda key: draw(key, model))(keys)
    w = starshape.weights(9, 3).ravel()
    b = np.asarray((radii - model.mean) * w @ model.modes.T / model.sd)
    assert abs(b).max() < 3.01 and abs(b).max() > 2.8
    np.testing.assert_allclose(b.std(0), 0.9866, atol=0.03)  # of a normal cut at 3
    np.testing.assert_allclose(b.mean(0), 0, atol=0.06)
    first = np.asarray(jax.vmap(lambda key: draw(key, model, num_modes=1))(keys[:50]))
    assert np.linalg.matrix_rank(first - np.asarray(model.mean), tol=1e-2) == 1


def test_radii_stay_positive_whatever_the_sd():
    model = fit(ellipsoids(6), num_modes=3)
    wild = model.replace(sd=model.sd * 50)
    radii = jax.vmap(lambda key: draw(key, wild))(jax.random.split(jax.random.key(2), 100))
    assert (radii >= 0.0499 * model.mean).all() and (radii < 0.051 * model.mean).any()


def test_two_dimensions_and_tables():
    radii = np.float32(np.random.default_rng(0).uniform(3, 5, (7, 16)))
    model = fit(radii, num_modes=2)
    assert (model.ndim, model.size) == (2, 16)
    assert shape_model.table(model, model.mean).shape == (16,)
    model = fit(ellipsoids(4), num_modes=2)
    drawn = jax.vmap(lambda key: draw(key, model))(jax.random.split(jax.random.key(0), 5))
    table = shape_model.table(model, drawn)
    assert table.shape == (5, 9, 9)
    # A border node and its mirror image are one direction: the drawn bodies are closed.
    np.testing.assert_allclose(table[:, 0], table[:, 0, ::-1], rtol=1e-5)
    np.testing.assert_allclose(table[:, :, -1], table[:, ::-1, -1], rtol=1e-5)


def test_scaled_models_draw_scaled_bodies():
    model = fit(ellipsoids(6), num_modes=3)
    key = jax.random.key(3)
    larger = draw(key, shape_model.scaled(model, 2.5))
    np.testing.assert_allclose(larger, 2.5 * draw(key, model), rtol=1e-5)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="samples"):
        shape_model.fit(jnp.ones((0, 9, 9)), 2)
    with pytest.raises(ValueError, match="samples"):
        shape_model.fit(jnp.ones((3, 9, 8)), 2)
    with pytest.raises(ValueError, match="num_modes: expected 0 to 3, got 4"):
        shape_model.draw(jax.random.key(0), fit(ellipsoids(6), num_modes=3), 4)


@pytest.fixture(scope="module")
def meristems():
    """Two sizes by one program, the sizes traced."""
    both = jax.jit(jax.vmap(shape_model.meristem))(jnp.array([221.0, 44.2]), jnp.array([495.0, 99.0]))
    return tuple(jax.tree.map(lambda x, n=n: x[n], both) for n in range(2))


def test_the_meristem_has_the_extents_asked_for(meristems):
    model, small = meristems
    points = np.asarray(model.mean)[:, None] * np.asarray(starshape.directions(model.size, 3)).reshape(-1, 3)
    low, high = points.min(0), points.max(0)
    base, below = shape_model.BASE * 221, (shape_model.BASE + shape_model.BELOW) * 221
    assert base - low[0] == pytest.approx(221, rel=0.02)
    assert max(high[1:] - low[1:]) == pytest.approx(495, rel=0.02) and min(high[1:] - low[1:]) > 0.8 * 495
    assert high[0] == pytest.approx(below, rel=0.02)
    assert (np.diff(model.sd) <= 0).all() and (model.sd > 0.5).all()
    np.testing.assert_allclose(5 * small.mean, model.mean, rtol=1e-3)
    np.testing.assert_allclose(5 * small.sd, model.sd, rtol=1e-3)


def test_meristems_are_domes_with_primordia_and_differ(meristems):
    model = meristems[1]
    shape, spacing = (44, 120, 120), jnp.ones(3)

    @jax.jit
    def mask(radii):
        centre = jnp.array([[44.0 * (1 - shape_model.BASE), 60.0, 60.0]])
        return (
            starshape.rasterise(centre, shape_model.table(model, radii)[None], jnp.ones(1, bool), shape, spacing)[0] > 0
        )

    mean = np.asarray(mask(model.mean))
    area = mean.sum((1, 2))
    assert (
        area[-1] > 3000 and (np.diff(area) > -0.01 * area[-1]).all()
    )  # wider and wider down to the base, cut by the volume
    assert not mean[0].any() or area[0] < 200
    # The flank near the base bulges where the primordia stand: from the centre it is farthest in two to four places.
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    ring = starshape.lookup(
        shape_model.table(model, model.mean)[None],
        jnp.int32(0),
        (jnp.full(72, 0.1), jnp.float32(np.sin(angle)), jnp.float32(np.cos(angle))),
    )
    peaks = (ring > np.roll(ring, 1)) & (ring > np.roll(ring, -1))
    assert 2 <= peaks.sum() <= 4 and ring.max() > 1.25 * ring.min()
    one, two = (mask(draw(jax.random.key(seed), model)) for seed in (0, 1))
    overlap = (one & two).sum() / (one | two).sum()
    assert 0.6 < overlap < 0.98
