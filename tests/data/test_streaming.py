"""Volumes of the host evaluated by tiles: the same as the whole on the device, in bounded memory, leaving nothing."""

import dataclasses
import functools
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxsynth import devices
from jaxsynth.data import streaming, tile_grid, tiles
from jaxsynth.errors import InputError
from jaxsynth.sim import sketch

T = 70


@functools.cache
def network(ndim, has_cond=False):
    """(A network's output on a whole volume, its stages)."""
    net, params = toy.network(ndim, "group", 1 + has_cond)

    def whole(x, cond=None):
        x = x if cond is None else jnp.concatenate([x, cond], -1)
        return np.asarray(jax.jit(net.apply)({"params": params}, x[None], jnp.full(1, T)))[0]

    return whole, streaming.compiled(functools.partial(toy.stages, net), params)


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


# ---- the network ----


@pytest.mark.parametrize(
    ("shape", "tile", "batch_size"),
    [((83, 150), (64, 64), 3), ((10, 13, 100), (16, 16, 64), 2), ((9, 5), (64, 64), 1)],
)
def test_streamed_is_the_whole(tmp_path, shape, tile, batch_size):
    """Several tiles, batches that go up and that do not, sizes that are no multiples of 8, in memory and mapped."""
    whole, stages = network(len(shape))
    x = noise(*shape, 1)
    expected = whole(x)
    grid = tile_grid.plan_tiles(shape, tile)
    outs = []
    for folder in (None, tmp_path):
        outs.append(streaming.open_array(x.shape, folder=folder))
        streaming.streamed(stages, grid, batch_size=batch_size, folder=folder)(x, T, None, outs[-1])
    assert expected.std() > 0.1
    np.testing.assert_allclose(outs[0], expected, atol=1e-4)
    np.testing.assert_array_equal(outs[0], outs[1])


def test_coarse_levels_in_tiles():
    """For volumes whose coarse levels do not fit either; with a second input, on eight devices."""
    shape = (24, 600)
    whole, stages = network(2, has_cond=True)
    x, cond = noise(*shape, 1), noise(*shape, 2)[..., 1:]
    grid = tile_grid.plan_tiles(shape, (24, 64))
    deep_grid = streaming.plan_deep_tiles(stages, grid)
    assert deep_grid.counts[1] > 1
    mesh = devices.make_mesh()
    out = np.zeros_like(x)
    place = functools.partial(jax.device_put, device=devices.split(mesh))
    denoise = streaming.streamed(stages, grid, batch_size=mesh.size, deep_grid=deep_grid, place=place)
    denoise(x, T, cond, out)
    np.testing.assert_allclose(out, whole(x, cond), atol=1e-4)
    denoise(x + 1, T, cond, out)  # nothing is left over from the first
    np.testing.assert_allclose(out, whole(x + 1, cond), atol=1e-4)


def test_coarse_levels_are_cut_only_where_they_are_large():
    _, stages = network(2)
    assert streaming.plan_deep_tiles(stages, tile_grid.plan_tiles((256, 256), (160, 160))) is None
    grid = tile_grid.plan_tiles((2048, 2048), (128, 128))
    deep = streaming.plan_deep_tiles(stages, grid)
    assert deep.shape == (512, 512)
    assert 0.3 < streaming.DEEP_WEIGHT * math.prod(deep.tile) / math.prod(grid.tile) <= 1


@pytest.mark.parametrize(
    ("shape", "tile", "overlap", "deep"),
    [
        ((300, 16), (72, 16), None, False),
        ((100, 260), (72, 104), (40, 64), True),
        ((20, 70, 90), (24, 48, 56), (32, 40, 32), False),  # blended along one axis, cut along another
    ],
)
def test_tiles_that_disagree_are_merged_as_in_memory(tmp_path, shape, tile, overlap, deep):
    """Stages that say how deep in its tile a voxel lies, and of what mean the tile is."""

    def axes(x):
        return range(1, x.ndim - 1)

    def depth(like):
        total = 0
        for axis in axes(like):
            along = jnp.minimum(jnp.arange(like.shape[axis]), jnp.arange(like.shape[axis])[::-1])
            total += along.reshape([-1 if i == axis else 1 for i in range(like.ndim)]) / like.shape[axis]
        return total + like / 10 + like.mean(tuple(axes(like)), keepdims=True)

    def every_fourth(x):
        return x[(slice(None), *(slice(None, None, 4),) * (x.ndim - 2))]

    stages = tiles.Stages(
        shrink=lambda x, t, cond: depth(every_fourth(x)),
        deepen=lambda h, t: depth(h),
        grow=lambda x, deep, t, cond: depth(x) + depth(functools.reduce(lambda d, a: d.repeat(4, a), axes(x), deep)),
    )

    grid = tile_grid.plan_tiles(shape, tile, overlap)
    deep_grid = streaming.plan_deep_tiles(stages, grid) if deep else None
    assert grid.num_tiles > 3 and (not deep or (deep_grid.num_tiles > 1 and deep_grid.blended[1] == 8))
    x = noise(*shape, 1)
    expected = jax.jit(tiles.tiled(stages, grid, 2, deep_grid=deep_grid))(x, jnp.int32(T), None)
    out = streaming.open_array(x.shape, folder=tmp_path)
    denoise = streaming.streamed(stages, grid, batch_size=3, deep_grid=deep_grid)
    for _ in range(2):  # nothing is left over from the first
        denoise(x, T, None, out)
        np.testing.assert_allclose(out, expected, atol=1e-5)


def test_the_volume_s_length_costs_neither_device_memory_nor_compilation():
    _, stages = network(2)
    most, sizes = [], []
    for length in (696, 3248):
        base = sum(array.nbytes for array in jax.live_arrays())
        held = []

        def grow(*inputs, base=base, held=held):
            held.append(sum(array.nbytes for array in jax.live_arrays()) - base)
            return stages.grow(*inputs)

        x = np.zeros((length, 64, 1), np.float32)
        grid = tile_grid.plan_tiles(x.shape[:-1], (96, 64))
        deep_grid = streaming.plan_deep_tiles(stages, grid)
        assert (grid.tile, deep_grid.tile) == ((96, 64), (42, 16))
        watched = dataclasses.replace(stages, grow=grow)
        streaming.streamed(watched, grid, deep_grid=deep_grid)(x, T, None, np.zeros_like(x))
        most.append(max(held))
        sizes.append([getattr(stages, name).func._cache_size() for name in ("shrink", "deepen", "grow")])
    assert max(most) < 8 * 4 * 96 * 64  # tiles and prediction, and what is coarse, 32 channels / 16; two of each
    assert sizes[0] == sizes[1]


def test_a_grid_with_too_little_margin_is_refused():
    _, stages = network(2)
    with pytest.raises(InputError, match="needs tiles with 16 voxels of it, got 8"):
        streaming.streamed(stages, tile_grid.plan_tiles((200, 64), (64, 64), margin=8))
    grid = tile_grid.plan_tiles((200, 64), (64, 64))
    deep_grid = tile_grid.plan_tiles((50, 16), (20, 16), margin=4, multiple=2)
    with pytest.raises(InputError, match="needs tiles with 10 voxels of it, got 4"):
        streaming.streamed(stages, grid, deep_grid=deep_grid)


# ---- arrays and slabs ----


def test_scratch_files_have_no_name_and_their_room_is_taken(tmp_path):
    array = streaming.open_array((3, 5), np.int16, tmp_path)
    assert isinstance(array, np.memmap) and array.dtype == np.int16 and not array.any()
    array[1] = 7
    assert os.listdir(tmp_path) == []
    np.testing.assert_array_equal(array.sum(), 35)
    assert not isinstance(streaming.open_array((3, 5)), np.memmap)


def test_a_scratch_folder_that_does_not_do(tmp_path):
    with pytest.raises(InputError, match=r"none: cannot make a file of 4e-08 GB \(No such file"):
        streaming.open_array((10,), np.float32, tmp_path / "none")
    with pytest.raises(InputError, match=r"cannot make a file of 1e\+09 GB"):
        streaming.open_array((10**9, 10**9), np.uint8, tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("most", [1, 25, 26, 1000])
def test_slabs_cover_the_rows_once(most):
    found = list(streaming.slabs((7, 3, 4), most))
    assert [row for first, count in found for row in range(first, first + count)] == list(range(7))
    assert all(count * 12 <= max(most, 12) for _, count in found)


def test_storing_lags_behind_computing_by_one():
    events = []

    def results():
        for i in range(3):
            events.append(f"dispatch {i}")
            yield i, jnp.full(2, i)

    streaming.pipelined(results(), lambda where, array: events.append(f"store {where} {int(array[0])}"))
    assert events == ["dispatch 0", "dispatch 1", "store 0 0", "dispatch 2", "store 1 1", "store 2 2"]


@pytest.mark.parametrize("sigma", [0.0, 1.0, (2.3, 0.0, 0.7)])
def test_blurred_slabs_are_the_blurred_whole(sigma):
    """Also where the kernel (19 rows) is longer than the volume (6)."""
    volume = noise(6, 20, 9)
    expected = np.asarray(sketch.blur(volume, sigma))
    for first, count in ((0, 6), (0, 1), (2, 3), (5, 1)):
        slab = streaming.blurred(volume, sigma, first, count)
        np.testing.assert_allclose(slab, expected[first : first + count], atol=1e-6)
