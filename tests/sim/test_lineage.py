"""Time series: the laws they are drawn from, and that tracks are tracks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsynth.records import Cells
from jaxsynth.sim import foregrounds, grid, lineage

CAPACITY = 160
SIZE = (400.0, 400.0)


def population(num, ndim=2, radius=(3.0, 5.0), size=SIZE, seed=0, slots=None):
    """Cells on a jittered lattice, so that none overlap; brightness 0.5."""
    rng = np.random.default_rng(seed)
    slots = slots or max(num, 1)
    side = int(np.ceil(slots ** (1 / ndim)))
    lattice = np.stack(np.meshgrid(*[np.arange(side)] * ndim, indexing="ij"), -1).reshape(-1, ndim)[:slots]
    pitch = np.asarray(size)[:ndim] / side
    return Cells(
        jnp.asarray((lattice + 0.5 + rng.uniform(-0.05, 0.05, lattice.shape)) * pitch, jnp.float32),
        jnp.asarray(rng.uniform(*radius, (slots, ndim)), jnp.float32),
        grid.random_rotation(jax.random.key(seed), slots, ndim),
        jnp.full(slots, 0.5),
        jnp.arange(slots) < num,
        jnp.bool_(False),
    )


@functools.cache
def simulator(num_frames=25, capacity=CAPACITY, closed=False):
    """(key, first, size_um, keyword arguments) -> Lineage, compiled once per form."""

    def run(key, first, size_um, rates):
        body = foregrounds.ellipsoid(size_um / 2, 0.4 * size_um)
        contains = (lambda points_um: body.contains(tuple(points_um.T))) if closed else None
        return lineage.simulate_lineage(key, first, size_um, num_frames, capacity, contains=contains, **rates)

    return jax.jit(run)


ALL = {"cycle_frames": 8.0, "step_um": 0.3, "speed_um": 0.5, "persistence_frames": 4.0, "contact": 0.85,
       "death_rate": 0.0, "cycle_spread": 0.15, "turn": 0.05, "brightness_noise": 0.1}  # fmt: skip


def simulate(seed=0, first=None, size=SIZE, num_frames=25, capacity=CAPACITY, closed=False, **rates):
    """Every rate is given every time, so that one program serves all tests."""
    first = population(8) if first is None else first
    rates = {name: jnp.float32(value) for name, value in (ALL | rates).items()}
    return simulator(num_frames, capacity, closed)(jax.random.key(seed), first, jnp.asarray(size), rates)


def volumes(cells):
    return np.prod(np.asarray(cells.radii_um, np.float64), axis=-1)


@pytest.fixture(scope="module")
def grown():
    result = simulate()
    assert not result.overflow
    return result


def stays(result):
    valid = np.asarray(result.cells.valid)
    begin = np.where(valid.any(0), valid.argmax(0), -1)
    end = np.where(valid.any(0), len(valid) - 1 - valid[::-1].argmax(0), -1)
    return valid, begin, end


def test_first_frame_is_what_was_given(grown):
    first, given = lineage.frame(grown, 0), population(8)
    for name in ("centre_um", "radii_um", "rotation", "brightness", "valid"):
        np.testing.assert_array_equal(getattr(first, name)[:8], getattr(given, name))
    assert not first.valid[8:].any()


def test_tracks_are_contiguous_and_daughters_follow_their_mothers(grown):
    valid, begin, end = stays(grown)
    parent = np.asarray(grown.parent)
    np.testing.assert_array_equal(valid.sum(0)[begin >= 0], (end - begin + 1)[begin >= 0])
    daughters = np.flatnonzero(parent)
    assert len(daughters) > 40 and (parent[:8] == 0).all()
    mothers = parent[daughters] - 1
    np.testing.assert_array_equal(begin[daughters], end[mothers] + 1)
    assert (np.bincount(mothers)[np.unique(mothers)] == 2).all()
    # Slots are filled in order and without gaps.
    assert (np.flatnonzero(valid.any(0)) == np.arange(valid.any(0).sum())).all()


def test_volume_is_conserved_at_division(grown):
    _, begin, _ = stays(grown)
    parent, volume = np.asarray(grown.parent), volumes(grown.cells)
    for mother in np.unique(parent[parent > 0]) - 1:
        one, two = np.flatnonzero(parent == mother + 1)
        now = begin[one]
        assert volume[now, one] == pytest.approx(volume[now, two], rel=1e-5)
        # One frame's growth, 2^(1 / cycle) of a cycle of 8 +- 37 %, lies between the frames.
        ratio = (volume[now, one] + volume[now, two]) / volume[now - 1, mother]
        assert 2 ** (1 / 11.1) < ratio < 2 ** (1 / 4.9)


def test_volume_doubles_in_a_cycle(grown):
    volume, (valid, begin, end) = volumes(grown.cells), stays(grown)
    parent = np.asarray(grown.parent)
    whole = [mother for mother in np.unique(parent[parent > 0]) - 1 if begin[mother] > 0]
    assert len(whole) > 10
    # Last frame against first: up to one frame short of a cycle at either end.
    ratio = np.array([volume[end[cell], cell] / volume[begin[cell], cell] for cell in whole])
    assert (ratio < 2.001).all() and (ratio > 2 ** (1 - 2 / 4.9)).all()
    assert volume[valid].mean() == pytest.approx(volume[0, :8].mean(), rel=0.25)


def test_daughters_lie_side_by_side_along_the_mothers_long_axis():
    first = population(16, radius=(3.0, 3.001))
    first = first.replace(radii_um=first.radii_um * jnp.asarray([1.0, 2.0]))
    result = simulate(1, first, contact=0.0, step_um=0.0, speed_um=0.0, turn=0.0, cycle_frames=12.0)
    _, begin, _ = stays(result)
    parent, cells = np.asarray(result.parent), jax.tree.map(np.asarray, result.cells)
    families = [mother for mother in np.unique(parent[parent > 0]) - 1 if mother < 16]
    assert len(families) == 16
    for mother in families:
        one, two = np.flatnonzero(parent == mother + 1)
        now = begin[one]
        apart = cells.centre_um[now, one] - cells.centre_um[now, two]
        long_axis = cells.rotation[now - 1, mother, 1]
        radii = cells.radii_um[now, one]
        assert abs(apart @ long_axis) == pytest.approx(np.linalg.norm(apart), rel=1e-4)
        # They touch, and are themselves long across.
        assert np.linalg.norm(apart) == pytest.approx(2 * radii.min(), rel=1e-4)
        assert abs(cells.rotation[now, one, radii.argmax()] @ long_axis) < 1e-3
        assert radii.max() / radii.min() == pytest.approx(2, rel=1e-3)
        middle = (cells.centre_um[now, one] + cells.centre_um[now, two]) / 2
        np.testing.assert_allclose(middle, cells.centre_um[now - 1, mother], atol=1e-3)


def test_number_doubles_in_a_cycle():
    results = [simulate(seed, contact=0.0) for seed in range(12)]
    assert not any(result.overflow for result in results)
    counts = np.mean([result.cells.valid.sum(1) for result in results], axis=0)
    # Steady growth from the first frame on; the spread of 15 % shortens the doubling time by 0.8 %.
    np.testing.assert_allclose(np.log2(counts / 8), np.arange(25) / 8, atol=0.2)


def test_mean_squared_displacement():
    still = {"cycle_frames": np.inf, "contact": 0.0}
    first = population(CAPACITY)

    def displacement(**rates):
        path = np.concatenate(
            [simulate(seed, first, size=(1e4, 1e4), **still, **rates).cells.centre_um for seed in range(5)], axis=1
        )
        return np.mean((path - path[:1]) ** 2, axis=(1, 2))

    lag = np.arange(25)
    brown = displacement(step_um=0.5, speed_um=0.0)
    np.testing.assert_allclose(brown[1:], 0.25 * lag[1:], rtol=0.15)
    kept = np.exp(-1 / 4)
    persistent = displacement(step_um=0.0, speed_um=0.5, persistence_frames=4.0)
    expected = [0.25 * (n + 2 * sum((n - k) * kept**k for k in range(1, n))) for n in lag]
    np.testing.assert_allclose(persistent[1:], expected[1:], rtol=0.15)


def test_without_rates_nothing_changes():
    result = simulate(cycle_frames=np.inf, step_um=0.0, speed_um=0.0, turn=0.0)
    last, first = lineage.frame(result, 24), lineage.frame(result, 0)
    for name in ("centre_um", "radii_um", "rotation", "brightness", "valid"):
        np.testing.assert_allclose(getattr(last, name), getattr(first, name), atol=1e-6)


def test_turning_keeps_rotations_and_diffuses():
    result = simulate(first=population(CAPACITY), cycle_frames=np.inf, contact=0.0, turn=0.05)
    turned = np.asarray(result.cells.rotation, np.float64)
    np.testing.assert_allclose(turned @ turned.swapaxes(-1, -2), np.broadcast_to(np.eye(2), turned.shape), atol=1e-4)
    cosine = np.einsum("tnd,nd->tn", turned[:, :, 0], turned[0, :, 0])
    # Rotational diffusion: <cos> = exp(-variance / 2).
    assert cosine[24].mean() == pytest.approx(np.exp(-24 * 0.05**2 / 2), abs=0.02)


def test_cells_keep_apart_however_they_are_crowded(grown):
    def worst(result):
        cells = jax.tree.map(np.asarray, result.cells)
        lack = []
        for at in range(25):
            there = cells.valid[at]
            keep = 0.85 * np.sqrt(volumes(cells)[at, there])
            centre = cells.centre_um[at, there].astype(np.float64)
            distance = np.linalg.norm(centre[:, None] - centre, axis=-1) + 1e6 * np.eye(there.sum())
            lack.append(max(0.0, (keep[:, None] + keep - distance).max()))
        return np.array(lack)

    np.testing.assert_allclose(worst(grown), grown.overlap_um, atol=1e-3)
    # Sisters are born closer than that and pushed apart in the same frame.
    free = simulate(contact=0.0)
    assert worst(free).max() > 1.0
    assert worst(grown).max() < 0.1
    first = population(8, size=(24.0, 24.0))
    packed = simulate(2, first.replace(centre_um=first.centre_um + 190.0))
    assert packed.cells.valid[24].sum() > 40 and worst(packed).max() < 0.6


def test_closed_region_keeps_all_cells_inside():
    size = (120.0, 120.0)
    first = population(16, size=(50.0, 50.0))
    first = first.replace(centre_um=first.centre_um + 35.0)
    result = simulate(3, first, size=size, closed=True, step_um=2.0, cycle_frames=10.0)
    cells = jax.tree.map(np.asarray, result.cells)
    assert cells.valid[24].sum() > 60 and (np.diff(cells.valid.sum(1)) >= 0).all()
    own = np.sum(((cells.centre_um - 60) / 48) ** 2, axis=-1)
    assert own[cells.valid].max() <= 1 + 1e-5 and own[cells.valid].max() > 0.9
    # Cells born at the wall are apart all the same.
    last = cells.centre_um[24, cells.valid[24]]
    distance = np.linalg.norm(last[:, None] - last, axis=-1) + 1e6 * np.eye(len(last))
    assert distance.min() > 2


def test_cells_leave_over_the_edge():
    first = population(16, size=(40.0, 40.0))
    result = simulate(first=first, size=(40.0, 40.0), cycle_frames=np.inf, speed_um=3.0, persistence_frames=50.0)
    cells, (valid, _, end) = jax.tree.map(np.asarray, result.cells), stays(result)
    assert valid[0].sum() == 16 and valid[24].sum() < 8
    gap = np.clip(cells.centre_um, 0, 40) - cells.centre_um
    own = np.sum((np.einsum("tnij,tnj->tni", cells.rotation, gap) / cells.radii_um) ** 2, axis=-1)
    assert own[valid].max() <= 1.0001
    gone = np.flatnonzero((end >= 0) & (end < 24))
    assert (own[end[gone] + 1, gone] > 0.9999).all()
    assert (np.diff(valid.astype(int), axis=0)[:, :16] <= 0).all()  # none come back


def test_death_rate():
    result = simulate(first=population(CAPACITY), cycle_frames=np.inf, contact=0.0, death_rate=0.05)
    counts = np.asarray(result.cells.valid.sum(1))
    np.testing.assert_allclose(counts / CAPACITY, 0.95 ** np.arange(25), atol=0.12)
    assert (np.asarray(result.parent) == 0).all() and counts[24] < 60


def test_brightness_is_inherited():
    exact, noisy = simulate(brightness_noise=0.0), simulate(brightness_noise=0.1)
    assert (np.asarray(exact.cells.brightness)[np.asarray(exact.cells.valid)] == 0.5).all()
    _, begin, _ = stays(noisy)
    parent, brightness = np.asarray(noisy.parent), np.asarray(noisy.cells.brightness)
    born = np.flatnonzero(parent)
    change = brightness[begin[born], born] - brightness[begin[born] - 1, parent[born] - 1]
    assert change.std() == pytest.approx(0.1, abs=0.03) and abs(change.mean()) < 0.04
    assert brightness.min() >= 0 and brightness.max() <= 1


def test_more_cells_than_slots_is_told_and_a_larger_capacity_goes_on():
    small, large = simulate(capacity=40), simulate()
    assert small.overflow and not large.overflow
    told = np.asarray(small.cells.overflow)
    assert not told[0] and told[24] and (np.diff(told.astype(int)) >= 0).all()
    before = told.argmax()
    assert before > 3
    for name in ("centre_um", "radii_um", "brightness", "valid"):
        one, two = (np.asarray(getattr(result.cells, name)[:before]) for result in (small, large))
        there = np.asarray(small.cells.valid[:before])
        np.testing.assert_allclose(one[there], two[:, :40][there], rtol=1e-5, atol=1e-3)
    assert not large.cells.valid[:before, 40:].any()
    # Who cannot divide stays as large as it is.
    assert volumes(small.cells)[24].max() < 1.01 * 2 * 25


@pytest.mark.parametrize("num", [0, 1])
def test_no_cell_and_one_cell(num):
    result = simulate(first=population(num, slots=16))
    valid, begin, _ = stays(result)
    assert valid[0].sum() == num
    assert valid[24].sum() >= (4 if num else 0) and (num or not valid.any())
    # Empty slots of the first frame that lie behind its cells are used.
    assert (begin >= 0).sum() == valid.any(0).argmin()


def test_vmap_is_the_loop():
    first = population(6, slots=16)
    rates = {name: jnp.float32(value) for name, value in ALL.items()}
    run = functools.partial(simulator(), first=first, size_um=jnp.asarray(SIZE), rates=rates)
    many = jax.jit(jax.vmap(lambda key: run(key)))(jax.random.split(jax.random.key(5), 3))
    for index, key in enumerate(jax.random.split(jax.random.key(5), 3)):
        one = run(key)
        np.testing.assert_array_equal(many.cells.valid[index], one.cells.valid)
        np.testing.assert_array_equal(many.parent[index], one.parent)
        # Rounding differs, and cells that push each other carry it on.
        np.testing.assert_allclose(many.cells.centre_um[index], one.cells.centre_um, atol=2e-2)


def test_three_dimensions():
    first = population(8, ndim=3, size=(60.0, 60.0, 60.0))
    result = simulate(first=first, size=(60.0, 60.0, 60.0), cycle_frames=10.0, turn=0.1)
    assert not result.overflow and result.cells.valid[24].sum() > 24
    turned = np.asarray(result.cells.rotation, np.float64)
    np.testing.assert_allclose(turned @ turned.swapaxes(-1, -2), np.broadcast_to(np.eye(3), turned.shape), atol=1e-4)
    assert (np.linalg.det(turned) > 0).all() and result.overlap_um.max() < 0.3
    assert volumes(result.cells)[24][np.asarray(result.cells.valid[24])].max() < 2.1 * 5**3


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"capacity: .* 16 slots .* 8"):
        lineage.simulate_lineage(jax.random.key(0), population(16), SIZE, 3, 8)
    with pytest.raises(ValueError, match="num_frames"):
        lineage.simulate_lineage(jax.random.key(0), population(16), SIZE, 0, 32)
