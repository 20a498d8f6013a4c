"""The engine behind placements: who is too close, who stays where they are, and what a source proposes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from jaxsynth.sim import foregrounds, packing, sources

BALL = foregrounds.ellipsoid(jnp.zeros(3), jnp.full(3, 10.0))
apart = jax.jit(packing.apart)


@pytest.mark.parametrize("count", [1, 3, 70, 100])
def test_apart_finds_exactly_those_too_close_to_a_lower_slot(count):
    random = np.random.default_rng(count)
    centres = np.zeros((100, 3), np.float32)
    centres[:] = random.uniform(-1, 1, (100, 3)) * [3, 20, 5]
    clearance = random.uniform(0.2, 1.5, 100).astype(np.float32)
    placed = np.arange(100) < count
    fixed = placed & (random.random(100) < 0.2)
    kept = apart(clearance, centres, placed, fixed)
    rank = np.where(fixed, -1, np.arange(100))
    close = cdist(centres, centres) < clearance[:, None] + clearance[None]
    bad = (close & placed[None] & (rank[None] < rank[:, None])).any(1)
    np.testing.assert_array_equal(kept, placed & ~bad)
    assert not (fixed & ~np.asarray(kept)).any()
    if count == 100:
        assert 10 < bad.sum() < 90


def test_gaps_are_distances_to_the_balls():
    random = np.random.default_rng(0)
    points, centres = random.normal(size=(50, 2)), random.normal(size=(20, 2))
    clearance, placed = random.uniform(0, 0.3, 20), random.random(20) < 0.7
    expected = (cdist(points, centres) - clearance)[:, placed].min(1)
    np.testing.assert_allclose(packing.gaps(*map(jnp.asarray, (points, centres, clearance, placed))), expected, 1e-4)
    assert np.isinf(packing.gaps(jnp.asarray(points), jnp.asarray(centres), clearance, jnp.zeros(20, bool))).all()


def test_new_cells_fit_between_those_that_stay():
    # 8 large cells at the corners of a cube, and as many small ones as fit between them.
    corners = np.stack(np.meshgrid(*[[-4.0, 4.0]] * 3), -1).reshape(8, 3)
    centres = jnp.zeros((64, 3)).at[:8].set(corners)
    clearance = jnp.where(jnp.arange(64) < 8, 3.5, 1.2)
    there, wanted = jnp.arange(64) < 8, jnp.arange(64) < 60
    new, placed = jax.jit(lambda key: packing.place(key, sources.uniform(BALL), clearance, wanted, centres, there))(
        jax.random.key(0)
    )
    np.testing.assert_array_equal(new[:8], corners)
    assert placed[:8].all() and not placed[60:].any() and placed.sum() > 30
    points, own = np.asarray(new, np.float64)[placed], np.asarray(clearance)[placed]
    gap = cdist(points, points) - own[:, None] - own[None]
    assert gap[np.triu_indices(len(points), 1)].min() >= -1e-5
    assert np.linalg.norm(points[8:], axis=1).max() <= 10 + 1e-5


def test_spreading_evens_out_and_leaves_the_fixed():
    random = np.random.default_rng(0)
    way = random.normal(size=(100, 3))
    centres = jnp.asarray(10 * way / np.linalg.norm(way, axis=1, keepdims=True), jnp.float32)
    placed, fixed = jnp.arange(100) < 90, jnp.arange(100) < 5
    source = sources.shell(jnp.zeros(3), jnp.full(3, 10.0), 0.99)
    # A lattice of 90 points on this sphere has a distance of 4.0.
    new = jax.jit(lambda x: packing.spread(source, jnp.full(100, 1.75), x, placed, fixed, 60))(centres)
    np.testing.assert_array_equal(new[:5], centres[:5])
    np.testing.assert_array_equal(new[90:], centres[90:])
    before, after = (cKDTree(np.asarray(x)[5:90]).query(np.asarray(x)[5:90], 2)[0][:, 1] for x in (centres, new))
    assert before.min() < 0.5 and after.min() > 2.5 and after.mean() > 3.2
    radius = np.linalg.norm(np.asarray(new), axis=1)
    assert radius.min() > 9.9 - 1e-4 and radius.max() < 10 + 1e-4


def test_no_slots():
    none = jnp.zeros(0, bool)
    centres, placed = packing.place(
        jax.random.key(0), sources.uniform(BALL), jnp.zeros(0), none, jnp.zeros((0, 3)), none
    )
    assert centres.shape == (0, 3) and placed.shape == (0,)


def test_uniform_proposals_hit_small_regions():
    # A ball fills 4 % of a box of three times its size along each axis.
    loose = BALL._replace(low_um=jnp.full(3, -20.0), high_um=jnp.full(3, 30.0))
    points, sound = sources.uniform(loose).propose(jax.random.key(0), 2000)
    points = np.asarray(points)[np.asarray(sound)[:, 0]]
    assert 900 < len(points) <= 2000  # 16 * 2000 * 3.35 % = 1072
    radius = np.linalg.norm(points, axis=1)
    assert radius.max() <= 10
    assert stats.kstest((radius / 10) ** 3, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("ndim", [2, 3])
def test_shell_proposals_are_uniform_in_its_volume(ndim):
    centre, semi_axes = jnp.arange(ndim) * 5.0, jnp.array([4.0, 2.0, 3.0])[:ndim]
    points, sound = sources.shell(centre, semi_axes, 0.5).propose(jax.random.key(0), 2000)
    own = (np.asarray(points) - np.asarray(centre)) / np.asarray(semi_axes)
    radius = np.linalg.norm(own, axis=1)
    assert sound.all() and radius.min() >= 0.5 - 1e-5 and radius.max() <= 1 + 1e-5
    share = (radius**ndim - 0.5**ndim) / (1 - 0.5**ndim)
    assert stats.kstest(share, "uniform").pvalue > 1e-3
    octant = (own > 0) @ (2 ** np.arange(ndim))
    assert stats.chisquare(np.bincount(octant)).pvalue > 1e-3


def test_proposals_for_cells_of_different_depths():
    values = 10 - jnp.sqrt(sum(x**2 for x in jnp.meshgrid(*[jnp.linspace(-12, 12, 33)] * 2, indexing="ij")))
    depth = foregrounds.Depth(values, jnp.full(2, -12.0), jnp.full(2, 0.75))
    low = jnp.array([1.0, 3.0, 5.0])
    points, sound = sources.near_surface(depth, low, low + 1).propose(jax.random.key(0), 500)
    below, sound = 10 - np.linalg.norm(points, axis=1), np.asarray(sound)
    for cell in range(3):
        assert sound[:, cell].sum() > 50
        own = below[sound[:, cell]]
        assert own.min() > low[cell] - 0.1 and own.max() < low[cell] + 1.1
