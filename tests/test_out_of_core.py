"""Sampling of volumes on the host: the in-memory sampler's result, mapped or not, whatever the tiles and slabs."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxsynth import out_of_core
from jaxsynth.data import streaming, tile_grid
from jaxsynth.diffusion import samplers
from jaxsynth.diffusion.schedule import make_schedule
from jaxsynth.sim.sketch import blur

SCHEDULE = make_schedule("linear", 1000)


@functools.cache
def network(ndim):
    """A network with a second input, as denoise(x, t, cond) of one volume and as stages.

    Without norm: a group norm over the two channels that four features begin with is nearly a step, and would make
    much of a rounding error from one evaluation to the next.
    """
    net, params = toy.network(ndim, "none", 2)

    def denoise(x, t, cond):
        return net.apply({"params": params}, jnp.concatenate([x, cond], -1)[None], t[None])[0]

    return denoise, streaming.compiled(functools.partial(toy.stages, net), params)


def draw(shape):
    return np.tanh(2 * np.random.default_rng(0).normal(size=shape)).astype(np.float32)


@pytest.mark.parametrize(
    ("sampler", "shape", "tile", "batch_size"),
    [
        ("ddpm", (83, 130), (64, 64), 3),  # noise in every step
        ("dpmpp_sde", (11, 13, 100), (16, 16, 64), 1),  # and x0 of the step before
    ],
)
def test_out_of_core_is_in_memory(tmp_path, sampler, shape, tile, batch_size):
    denoise, stages = network(len(shape))
    plan = samplers.make_plan(sampler, SCHEDULE, 300, 4)
    key, cond_key = jax.random.split(jax.random.key(3))
    sketch = draw(shape)
    x = samplers.start(key, blur(sketch, 1.0)[..., None], 300, SCHEDULE)
    cond = samplers.rows_of_noise(cond_key, 0, x.shape)
    expected = np.asarray(jax.jit(lambda x, cond: samplers.sample(denoise, key, x, plan, cond))(x, cond))[..., 0]
    grid = tile_grid.plan_tiles(shape, tile)
    done, results = [], []
    for scratch in (None, tmp_path):
        image = out_of_core.sample(
            stages,
            key,
            sketch,
            plan,
            SCHEDULE,
            grid,
            sigma=1.0,
            cond_key=cond_key,
            batch_size=batch_size,
            scratch=scratch,
            progress=done.append,
        )
        assert os.listdir(tmp_path) == []
        assert image.shape == shape and image.dtype == np.float32
        results.append(image)
    assert done == [1, 2, 3, 4] * 2
    assert np.abs(expected - np.asarray(blur(sketch, 1.0))).mean() > 0.01
    np.testing.assert_allclose(results[0], expected, atol=1e-4)
    np.testing.assert_array_equal(results[0], results[1])


def test_neither_the_device_nor_an_interruption_keeps_anything(tmp_path):
    """A long volume goes through a device that never holds a tenth of it; stopped, it leaves an empty folder."""
    _, stages = network(2)
    plan = samplers.make_plan("dpmpp", SCHEDULE, 300, 2)
    sketch = draw((2000, 64))
    grid = tile_grid.plan_tiles(sketch.shape, (64, 64))
    base = sum(array.nbytes for array in jax.live_arrays())
    held = []

    class Stopped(Exception):
        pass

    def progress(done):
        held.append(sum(array.nbytes for array in jax.live_arrays()) - base)
        raise Stopped

    with pytest.raises(Stopped):
        out_of_core.sample(
            stages,
            jax.random.key(0),
            sketch,
            plan,
            SCHEDULE,
            grid,
            cond_key=jax.random.key(1),
            batch_size=3,
            deep_grid=streaming.plan_deep_tiles(stages, grid),
            scratch=tmp_path,
            progress=progress,
        )
    assert held[0] < sketch.nbytes / 10
    assert os.listdir(tmp_path) == []


def test_only_what_is_kept_comes_back_from_the_device(monkeypatch):
    """x0 of a step only where the next one uses it."""
    _, stages = network(2)
    pipelined, counts = streaming.pipelined, []

    def watched(results, store):
        def counting():
            for where, arrays in results:
                counts.append(len(jax.tree.leaves(arrays)))
                yield where, arrays

        pipelined(counting(), store)

    monkeypatch.setattr(streaming, "pipelined", watched)
    sketch = draw((40, 40))
    grid = tile_grid.plan_tiles(sketch.shape, (40, 40))
    for sampler, most in (("ddim", 1), ("dpmpp", 2)):
        plan = samplers.make_plan(sampler, SCHEDULE, 300, 3)
        out_of_core.sample(stages, jax.random.key(0), sketch, plan, SCHEDULE, grid, cond_key=jax.random.key(1))
        assert max(counts) == most
        counts.clear()
