"""What a trained model makes of a sketch: the same in memory and streamed, in tiles or whole, on any devices."""

import os

import jax
import numpy as np
import pytest
import toy

from configs import ddpm as ddpm_config
from jaxsynth import devices, trained
from jaxsynth.data import tile_grid
from jaxsynth.errors import InputError
from jaxsynth.tasks import ddpm

SHALLOW = (24, 72, 72)


def model(ndim, norm, num_devices=None):
    """A network of few features whose output is as strong as its input."""
    config = ddpm_config.get_config()
    config.data.patch = (8,) * ndim
    config.model.features = 4 if ndim == 2 else 2
    config.model.norm = norm
    parts = ddpm.build(config)
    shapes = jax.eval_shape(lambda key: ddpm.init(parts, key, (1, *config.data.patch, 1)), jax.random.key(0)).params
    mesh = devices.make_mesh(jax.devices()[:num_devices])
    params = jax.device_put(toy.weights(shapes), devices.replicated(mesh))
    return trained.Trained(None, {}, config, None, parts, params, mesh)


def sketch(shape):
    return np.tanh(2 * np.random.default_rng(0).normal(size=shape)).astype(np.float32)


@pytest.mark.parametrize(
    ("norm", "shape", "tile", "num_devices"),
    [
        ("none", (83, 150), (64, 64), None),
        ("none", SHALLOW, (24, 40, 40), 1),
        ("instance", (83, 150), (104, 96), None),
        ("instance", SHALLOW, (24, 64, 48), 1),
    ],
)
def test_streamed_is_in_memory(tmp_path, norm, shape, tile, num_devices):
    """Several tiles, and steps that use the one before; with no statistics of tiles also as in one tile."""
    network = model(len(shape), norm, num_devices)
    plan = trained.make_plan(network, 200, "dpmpp", 3 if len(shape) == 2 else 2)
    grid = trained.grid_for(network, shape, tile)
    assert grid.num_tiles > 1 and (max(grid.blended) > 0) == (norm == "instance")
    told = []

    def make(tile, **options):
        image = trained.generator(network, tile=tile, **options)(
            jax.random.key(3), sketch(shape), plan, sigma=1.0, progress=lambda *done: told.append(done)
        )
        assert image.shape == shape and image.dtype == np.float32 and image.std() > 0.1
        assert told[-1] == (plan.num_evaluations,) * 2
        return image

    in_memory = make(tile)
    np.testing.assert_allclose(make(tile, scratch=tmp_path), in_memory, atol=1e-3)
    assert os.listdir(tmp_path) == []
    if norm == "none" and len(shape) == 2:
        np.testing.assert_allclose(make(shape), in_memory, atol=1e-3)


def test_a_volume_that_does_not_stay_on_the_device_is_streamed(monkeypatch):
    """By the same rule that chooses its tiles, and then with the coarse levels in tiles too."""
    shape = (40, 600)
    network = model(2, "none", 1)
    plan = trained.make_plan(network, 200, "dpmpp", 2)
    in_memory = trained.generator(network)(jax.random.key(3), sketch(shape), plan)
    memory = round(tile_grid.volume_bytes(shape, 4) / tile_grid.VOLUME_SHARE) - 8
    monkeypatch.setattr(tile_grid, "memory_bytes", lambda num_devices=1: memory)
    assert trained.grid_for(network, shape).num_tiles > 3
    monkeypatch.setattr(trained.samplers, "run", None)  # what runs in memory
    streamed = trained.generator(network)(jax.random.key(3), sketch(shape), plan)
    np.testing.assert_allclose(streamed, in_memory, atol=1e-3)


def test_with_an_instance_norm_tiles_do_not_depend_on_the_devices():
    shape, few = (3000, 3000), 2**30
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": few}[name])
        grids = {
            (norm, count): trained.grid_for(model(2, norm, count), shape)
            for norm in ("instance", "none")
            for count in (1, 8)
        }
    assert grids["instance", 1] == grids["instance", 8]
    assert grids["instance", 1].num_tiles > 1
    assert np.prod(grids["none", 8].tile) < np.prod(grids["none", 1].tile)
    assert set(grids["instance", 1].blended) <= {0, 32} and set(grids["none", 1].blended) == {0}


def test_default_overlaps_go_with_any_tile():
    network = model(2, "instance", 1)
    for tile, blended in ((40, 0), (64, 16), (96, 32), (200, 32)):
        assert trained.grid_for(network, (500, 500), (tile, tile)).blended == (blended,) * 2
    assert trained.grid_for(network, (500, 500), (96, 96), (40, 48)).blended == (8, 16)
    assert trained.grid_for(network, (24, 500), (24, 96)).counts[0] == 1
    with pytest.raises(InputError, match="too short"):
        trained.grid_for(network, (500, 500), (96, 96), (16, 16))
