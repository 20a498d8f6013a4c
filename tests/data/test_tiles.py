"""Tiles: cutting and merging are inverse, and no seam shows in what is sampled through them."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsynth.data import tile_grid, tiles
from jaxsynth.data.tile_grid import MOST_OVERHEAD, TILE_NUMBERS
from jaxsynth.diffusion import samplers
from jaxsynth.diffusion.schedule import make_schedule
from jaxsynth.errors import InputError

CASES = [
    ((100, 130), (64, 64), (16, 16), 8),
    ((100, 130), (64, 64), (16, 24), 0),
    ((51, 64, 90), (32, 64, 48), (8, 16, 8), 0),
    ((40, 40), (64, 64), (8, 8), 16),
    ((17, 200), (24, 72), (8, 48), 16),
    ((100, 130), (40, 48), (32, 32), 16),
]


def _pool(x):
    """Means of cells of 4, [B, *S, C] -> [B, *S/4, C]."""
    for axis in range(1, x.ndim - 1):
        x = x.reshape(*x.shape[:axis], -1, 4, *x.shape[axis + 1 :]).mean(axis + 1)
    return x


def _repeat(x):
    for axis in range(1, x.ndim - 1):
        x = jnp.repeat(x, 4, axis)
    return x


def _near(x, reach):
    """Sum over a cube of neighbours, zeros outside, as a convolution does it."""
    for axis in range(1, x.ndim - 1):
        pad = [(0, 0)] * x.ndim
        pad[axis] = (reach, reach)
        padded = jnp.pad(x, pad)
        size = x.shape[axis]
        x = sum(jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(2 * reach + 1)) / (2 * reach + 1)
    return x


# Neighbourhoods: 8 voxels in shrink (2 coarse ones), 3 coarse ones in deepen, 5 voxels in grow.
TOY = tiles.Stages(
    shrink=lambda x, t, cond: _near(_pool(x if cond is None else x * cond), 2),
    deepen=lambda h, t: _near(jnp.sin(5 * h), 3),
    grow=lambda x, deep, t, cond: _near(x + _repeat(deep) * t.reshape((-1,) + (1,) * (x.ndim - 1)), 5),
    margin=8,
    deep_margin=4,
)


def _whole(stages, x, t, cond=None):
    """The three parts on the volume in one piece, extended by reflection to multiples of 8."""
    pad = [(0, -n % 8) for n in x.shape[:-1]] + [(0, 0)]
    x8, c8 = (None if v is None else jnp.pad(v, pad, mode="reflect")[None] for v in (x, cond))
    out = stages.grow(x8, stages.deepen(stages.shrink(x8, t[None], c8), t[None]), t[None], c8)[0]
    return out[tuple(slice(n) for n in x.shape[:-1])]


@pytest.mark.parametrize(("shape", "tile", "overlap", "margin"), CASES)
def test_split_then_merge_is_the_identity(shape, tile, overlap, margin):
    grid = tile_grid.plan_tiles(shape, tile, overlap, margin=margin)
    volume = jax.random.normal(jax.random.key(0), (*shape, 2))
    same = jax.jit(lambda v: tiles.merge(tiles.split(v, grid)(jnp.arange(grid.num_tiles)), grid))(volume)
    np.testing.assert_allclose(same, volume, atol=1e-6)


@pytest.mark.parametrize(("shape", "tile", "overlap", "margin"), CASES)
def test_margins_do_not_count(shape, tile, overlap, margin):
    """Spoil the margin at every inner end of every tile: nothing changes. One voxel more, and it shows."""
    grid = tile_grid.plan_tiles(shape, tile, overlap, margin=margin)
    volume = jnp.ones((*shape, 1))
    cut = tiles.split(volume, grid)(jnp.arange(grid.num_tiles))

    def spoil(depth):
        spoilt = np.array(cut)
        for number, index in enumerate(np.ndindex(*grid.counts)):
            for axis, (i, count) in enumerate(zip(index, grid.counts, strict=True)):
                lines = np.moveaxis(spoilt[number], axis, 0)
                lines[: depth if i > 0 else 0] = 99
                lines[lines.shape[0] - (depth if i < count - 1 else 0) :] = 99
        return np.asarray(tiles.merge(jnp.asarray(spoilt), grid))

    np.testing.assert_allclose(spoil(margin), volume, atol=1e-6)
    assert grid.num_tiles == 1 or spoil(margin + 1).max() > 2


@pytest.mark.parametrize(("shape", "tile", "overlap", "margin"), CASES)
def test_grid_covers_the_volume_within_limits(shape, tile, overlap, margin):
    grid = tile_grid.plan_tiles(shape, tile, overlap, margin=margin)
    for axis in range(len(shape)):
        assert grid.tile[axis] <= max(tile[axis], grid.padded[axis] if grid.counts[axis] == 1 else 0)
        end = grid.stride[axis] * (grid.counts[axis] - 1) + grid.tile[axis]
        assert grid.padded[axis] <= end < grid.padded[axis] + 8 * grid.counts[axis]
        assert grid.padded[axis] % 8 == grid.stride[axis] % 8 == 0
        assert 0 <= grid.padded[axis] - shape[axis] < 8
        assert grid.counts[axis] == 1 or grid.tile[axis] - grid.stride[axis] >= overlap[axis]


def test_batch_does_not_change_a_bit():
    """100 x 130 in 12 tiles and more, evaluated 1, 5 and all at a time."""
    grid = tile_grid.plan_tiles((100, 130), (48, 48), margin=8)
    assert grid.num_tiles >= 12
    x = jax.random.normal(jax.random.key(0), (100, 130, 1))
    batches = (1, 5, grid.num_tiles)
    results = [np.asarray(jax.jit(tiles.tiled(TOY, grid, batch))(x, jnp.int32(2), x)) for batch in batches]
    np.testing.assert_allclose(results[1], results[0], atol=1e-6)
    np.testing.assert_allclose(results[2], results[0], atol=1e-6)


def test_blending_weighs_neighbours_by_distance():
    """Tiles that say their own number: beyond the margins of an overlap the volume goes over in even steps."""
    for overlap, margin in ((24, 4), (32, 16), (16, 0)):
        grid = tile_grid.plan_tiles((16, 104), (16, 72), (8, overlap), margin=margin)
        assert grid.counts == (1, 2)
        numbers = jnp.arange(2.0).reshape(2, 1, 1, 1)
        merged = tiles.merge(jnp.broadcast_to(numbers, (2, *grid.tile, 1)), grid)[0, :, 0]
        begin, end = grid.stride[1] + margin, grid.tile[1] - margin
        assert end - begin == overlap - 2 * margin
        np.testing.assert_array_equal(merged[:begin], 0)
        np.testing.assert_array_equal(merged[end:], 1)
        np.testing.assert_allclose(merged[begin:end], (np.arange(end - begin) + 0.5) / max(end - begin, 1), atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "tile", "overlap", "deep_tile"),
    [
        ((100, 130), (56, 56), None, None),
        ((100, 130), (56, 56), (24, 16), (16, 18)),
        ((51, 30, 70), (32, 32, 40), None, (10, 8, 12)),
        ((100, 130), (128, 136), None, None),
    ],
)
def test_neighbourhoods_leave_no_seam(shape, tile, overlap, deep_tile):
    """Parts with zeros around their tile: the ends of tiles do not count, so tiled equals whole to rounding."""
    x = 0.5 + jax.random.normal(jax.random.key(0), (*shape, 1))
    cond = jax.random.normal(jax.random.key(1), (*shape, 1))
    grid = tile_grid.plan_tiles(shape, tile, overlap, margin=8)
    deep_grid = deep_tile and tile_grid.plan_tiles(grid.coarse(4).shape, deep_tile, margin=4, multiple=2)
    assert deep_grid is None or deep_grid.num_tiles > 3
    whole = _whole(TOY, x, jnp.int32(2), cond)
    run = jax.jit(tiles.tiled(TOY, grid, 3, deep_grid=deep_grid))
    np.testing.assert_allclose(run(x, jnp.int32(2), cond), whole, atol=1e-5)


def test_a_margin_too_short_shows():
    """Or the test above would see nothing."""
    x = 0.5 + jax.random.normal(jax.random.key(0), (100, 130, 1))
    grid = tile_grid.plan_tiles((100, 130), (56, 56), (8, 8), margin=4)
    with pytest.raises(InputError, match="margin"):
        tiles.tiled(TOY, grid)
    run = tiles.tiled(dataclasses.replace(TOY, margin=4), grid)
    assert float(jnp.abs(run(x, jnp.int32(2), None) - _whole(TOY, x, jnp.int32(2))).max()) > 0.01


def test_sampling_in_tiles_keeps_the_noise_variance():
    """Exact denoiser of Gaussian data, tile by tile: the spread in overlaps equals that elsewhere (and the data's).

    Tiles denoised on their own and averaged afterwards keep only 0.25 to 0.78 of the variance there.
    """
    std, shape = 0.3, (192, 192)
    schedule = make_schedule("cosine", 1000)
    bars = jnp.asarray(schedule.alphas_bar, jnp.float32)

    def denoise(x, t, cond):
        a = bars[t].reshape((-1, 1, 1, 1))
        return x * jnp.sqrt(1 - a) / (a * std**2 + 1 - a)

    stages = tiles.Stages(lambda x, t, cond: _pool(x), lambda h, t: h, lambda x, deep, t, cond: denoise(x, t, cond))
    grid = tile_grid.plan_tiles(shape, (72, 72))
    assert grid.num_tiles == 16
    key = jax.random.key(0)
    plan = samplers.make_plan("ddpm", schedule, 400, 100)

    @jax.jit
    def run(key):
        x = samplers.start(key, std * jax.random.normal(key, (*shape, 1)), 400, schedule)
        return samplers.sample(tiles.tiled(stages, grid, 4), key, x, plan, clip=False)

    out = np.stack([np.asarray(run(k))[..., 0] for k in jax.random.split(key, 4)])
    covered = np.zeros(shape, int)
    for i in range(grid.counts[0]):
        for j in range(grid.counts[1]):
            y, x = i * grid.stride[0], j * grid.stride[1]
            covered[y : y + grid.tile[0], x : x + grid.tile[1]] += 1
    once, more = out[:, covered == 1], out[:, covered > 1]
    assert min(once.size, more.size) > 20_000
    tolerance = 5 * np.sqrt(2 / once.size + 2 / more.size)
    assert abs(more.var() / once.var() - 1) < tolerance
    assert abs(out.std() / std - 1) < 0.02


def test_work_overhead_is_small():
    """Evaluated over asked voxels, and operations, at the default tiles."""
    large = (180, 512, 512)
    for memory, most in ((12 * 2**30, 1.2), (60 * 2**30, 1.03)):
        grid = tile_grid.plan_tiles(large, tile_grid.choose_tile(large, memory=memory))
        assert grid.overhead < most
        # 7 % of the operations are computed twice, 10 % are not in the tiles.
        assert 0.9 * grid.overhead + 0.1 < grid.work(0.07, 0.1) < 1.3
    assert tile_grid.plan_tiles((64, 64), (512, 512)).overhead == 1.0
    assert tile_grid.plan_tiles((64, 64), (512, 512)).work(0.07, 0.1) == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [(96, 200), (300, 100), (64, 96, 120)])
@pytest.mark.parametrize("num_devices", [1, 4])
def test_chosen_tile_is_the_best_that_fits(shape, num_devices):
    """Against trying all tiles there are."""
    per_voxel = 4 * TILE_NUMBERS[len(shape)] * 16
    sizes = [range(40, -(-n // 8) * 8 + 1, 8) for n in shape]
    for share in (0.3, 0.6, 2.0):
        room = per_voxel * share * np.prod(shape)
        memory = int(room + tile_grid.volume_bytes(shape, 16)) + 1

        def cost(tile):
            grid = tile_grid.plan_tiles(shape, tile)
            shared = num_devices if grid.overhead <= MOST_OVERHEAD else 1
            return -(-grid.num_tiles // shared) * np.prod(grid.tile), grid.num_tiles

        fitting = [tile for tile in itertools.product(*sizes) if per_voxel * np.prod(tile) <= room]
        tile = tile_grid.choose_tile(shape, num_devices=num_devices, memory=memory)
        assert cost(tile) == min(cost(tile) for tile in fitting)
        assert per_voxel * np.prod(tile) <= room
    assert tile_grid.choose_tile(shape, memory=1) == (40,) * len(shape)


def test_what_does_not_stay_on_the_device_leaves_its_tiles_a_fixed_share():
    """At the most that stays, the tiles have what they have beyond it: one rule, no step."""
    shape = (512, 512)
    memory = round(tile_grid.volume_bytes(shape, 16) / tile_grid.VOLUME_SHARE)
    assert tile_grid.stays_on_device(shape, memory=memory + 1)
    assert not tile_grid.stays_on_device(shape, memory=memory - 1)
    assert not tile_grid.stays_on_device(shape, features=32, memory=memory + 1)
    tile = tile_grid.choose_tile(shape, memory=memory + 1)
    assert tile == tile_grid.choose_tile(shape, memory=memory - 1)
    assert 4 * TILE_NUMBERS[2] * 16 * np.prod(tile) <= 0.25 * memory


def test_a_short_overlap_is_refused_where_the_volume_must_be_cut():
    shape = (24, 100, 300)
    whole = tile_grid.choose_tile(shape, (0, 0, 0), memory=2**40)
    assert whole == (24, 104, 304)
    memory = round(0.8 * 4 * TILE_NUMBERS[3] * 16 * np.prod(whole))
    with pytest.raises(InputError, match=r"--overlap 32,0,16: .* needs 32 or more"):
        tile_grid.choose_tile(shape, (32, 0, 16), memory=memory)
    tile = tile_grid.choose_tile(shape, (0, 0, 32), memory=memory)  # the last axis alone is cut
    assert tile[:2] == (24, 104) and tile_grid.plan_tiles(shape, tile, (0, 0, 32)).counts[2] > 1


@pytest.mark.parametrize("tile", [40, 47, 64, 96, 200])
def test_the_longest_overlap_is_what_the_tile_allows(tile):
    longest = tile_grid.longest_overlap(tile)
    tile_grid.plan_tiles((1000,), (tile,), (longest,))
    with pytest.raises(InputError, match="too small"):
        tile_grid.plan_tiles((1000,), (tile,), (longest + 1,))


def test_memory_to_use_is_a_part_of_the_machines():
    assert 2**24 < tile_grid.memory_bytes() < 2**44
    if jax.default_backend() == "cpu":
        assert tile_grid.memory_bytes(4) == tile_grid.memory_bytes() // 4


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [((32, 32), None, "too small"), ((64, 64), (24, 32), "too short"), ((64,), (32, 32), "one number per axis")],
)
def test_impossible_grids_are_named(tile, overlap, message):
    with pytest.raises(InputError, match=message):
        tile_grid.plan_tiles((100, 100), tile, overlap)
