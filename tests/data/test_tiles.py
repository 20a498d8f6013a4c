"""Tiles: cutting and merging are inverse, and no seam shows in what is sampled through them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsynth.data import tiles
from jaxsynth.diffusion import samplers
from jaxsynth.diffusion.schedule import make_schedule
from jaxsynth.errors import InputError

CASES = [
    ((100, 130), (64, 64), (16, 16)),
    ((51, 64, 90), (32, 64, 48), (8, 8, 8)),
    ((40, 40), (64, 64), (8, 8)),
    ((17, 200), (16, 72), (8, 24)),
]


@pytest.mark.parametrize(("shape", "tile", "overlap"), CASES)
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_split_then_merge_is_the_identity(shape, tile, overlap, batch):
    grid = tiles.plan_tiles(shape, tile, overlap)
    volume = jax.random.normal(jax.random.key(0), (*shape, 2))
    same = jax.jit(tiles.tiled(lambda x, t, cond: x, grid, batch))(volume, jnp.int32(0), None)
    np.testing.assert_allclose(same, volume, atol=1e-6)


@pytest.mark.parametrize(("shape", "tile", "overlap"), CASES)
def test_grid_covers_the_volume_within_limits(shape, tile, overlap):
    grid = tiles.plan_tiles(shape, tile, overlap)
    for axis in range(len(shape)):
        assert grid.tile[axis] <= max(tile[axis], grid.padded[axis] if grid.counts[axis] == 1 else 0)
        end = grid.stride[axis] * (grid.counts[axis] - 1) + grid.tile[axis]
        assert grid.padded[axis] <= end < grid.padded[axis] + 8 * grid.counts[axis]
        assert grid.padded[axis] % 8 == grid.stride[axis] % 8 == 0
        assert 0 <= grid.padded[axis] - shape[axis] < 8
        assert grid.counts[axis] == 1 or grid.tile[axis] - grid.stride[axis] >= overlap[axis]


def test_batch_does_not_change_a_bit():
    """A smooth function of neighbours, 100 x 130 in 12 tiles, evaluated 1, 5 and 12 at a time."""
    grid = tiles.plan_tiles((100, 130), (48, 48), (16, 16))
    volume = jax.random.normal(jax.random.key(0), (100, 130, 1))

    def evaluate(x, t, cond):
        return sum(jnp.roll(x, shift, axis) for shift in (-1, 0, 1) for axis in (1, 2)) * cond

    results = [
        np.asarray(jax.jit(tiles.tiled(evaluate, grid, batch))(volume, jnp.int32(0), volume)) for batch in (1, 5, 12)
    ]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_blending_weighs_neighbours_by_distance():
    """Tiles that say their own number: across an overlap the volume goes from one to the next in even steps."""
    grid = tiles.plan_tiles((16, 104), (16, 64), (8, 24))
    assert grid.counts == (1, 2)
    numbers = jnp.arange(2.0).reshape(2, 1, 1, 1)
    merged = tiles.merge(jnp.broadcast_to(numbers, (2, *grid.tile, 1)), grid)[0, :, 0]
    stride, overlap = grid.stride[1], grid.tile[1] - grid.stride[1]
    np.testing.assert_array_equal(merged[:stride], 0)
    np.testing.assert_array_equal(merged[stride + overlap :], 1)
    ramp = np.clip(2 * (np.arange(overlap) + 0.5) / overlap - 0.5, 0, 1)
    np.testing.assert_allclose(merged[stride : stride + overlap], ramp, atol=1e-6)


def test_a_denoiser_with_a_neighbourhood_leaves_no_seam():
    """A 9 x 9 blur with zeros around its tile: the ends of tiles do not count, so tiled equals whole to rounding."""
    kernel = jnp.ones((9, 9, 1, 1)) / 81
    volume = 0.5 + jax.random.normal(jax.random.key(0), (100, 130, 1))

    def blur(x, t, cond):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    padded = jnp.pad(volume, [(0, 4), (0, 6), (0, 0)], mode="reflect")  # to a multiple of 8, as the network pads
    whole = blur(padded[None], None, None)[0, :100, :130]
    grid = tiles.plan_tiles((100, 130), (56, 56), (16, 16))
    assert grid.num_tiles > 4
    np.testing.assert_allclose(tiles.tiled(blur, grid, 2)(volume, jnp.int32(0), None), whole, atol=1e-5)
    # A shorter overlap than twice the neighbourhood must show, or this test would see nothing.
    short = tiles.plan_tiles((100, 130), (56, 56), (8, 8))
    assert float(jnp.abs(tiles.tiled(blur, short, 2)(volume, jnp.int32(0), None) - whole).max()) > 0.01


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

    grid = tiles.plan_tiles(shape, (72, 72), (24, 24))
    assert grid.num_tiles == 16
    key = jax.random.key(0)
    plan = samplers.ddpm_plan(schedule, 400, num_steps=100)

    @jax.jit
    def run(key):
        x = samplers.start(key, std * jax.random.normal(key, (*shape, 1)), 400, schedule)
        return samplers.ddpm(tiles.tiled(denoise, grid, 4), key, x, plan, clip=False)

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
    """Evaluated over asked voxels at the sampler's own default tiles."""
    assert tiles.plan_tiles((1024, 1024), (512, 512), (64, 64)).overhead < 1.3
    assert tiles.plan_tiles((64, 64), (512, 512), (64, 64)).overhead == 1.0


@pytest.mark.parametrize(
    ("tile", "overlap", "message"), [((16, 16), (16, 16), "overlap"), ((64,), (8, 8), "one number per axis")]
)
def test_impossible_grids_are_named(tile, overlap, message):
    with pytest.raises(InputError, match=message):
        tiles.plan_tiles((100, 100), tile, overlap)
