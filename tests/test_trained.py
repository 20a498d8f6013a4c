"""What a trained model makes of a sketch: the same in memory and streamed, in tiles or whole, on any devices."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from configs import ddpm as ddpm_config
from jaxsynth import devices, keys, trained
from jaxsynth.data import tile_grid
from jaxsynth.errors import InputError
from jaxsynth.tasks import ddpm

SHALLOW = (16, 72, 72)


def model(ndim, norm, num_devices=None, noise_channel=False):
    """A network of few features whose output is as strong as its input."""
    config = ddpm_config.get_config()
    config.data.patch = (8,) * ndim
    config.model.features = 4 if ndim == 2 else 2
    config.model.norm = norm
    config.model.noise_channel = noise_channel
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
        ("none", SHALLOW, (16, 40, 40), 1),
        ("instance", (83, 150), (104, 96), None),
        ("instance", SHALLOW, (16, 64, 48), 1),
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


def batch(shape, size):
    """Sketches and keys, all different."""
    x0 = np.stack([np.roll(sketch(shape), i, axis=-1) for i in range(size)])
    return jnp.stack([keys.stream(jax.random.key(0), "sample", f"name {i}") for i in range(size)]), x0


@pytest.mark.parametrize(
    ("norm", "shape", "noise_channel", "num_devices"),
    [("group", (40, 50), False, 8), ("instance", (8, 16, 24), True, 2)],
)
def test_a_batch_is_its_images(norm, shape, noise_channel, num_devices):
    """Made at once, one or more per device, in one piece or several, or one by one."""
    network = model(len(shape), norm, num_devices, noise_channel)
    plan = trained.make_plan(network, 200, "dpmpp_sde", 3)
    many, told = trained.batch_generator(network), []
    names, x0 = batch(shape, 8)
    images = many(names, x0, plan, sigma=1.0)
    assert images.shape == x0.shape and images.dtype == jnp.float32
    assert images.sharding.is_equivalent_to(devices.split(network.mesh), images.ndim)
    pieces = many(names, x0, plan, sigma=1.0, progress=lambda *done: told.append(done))
    np.testing.assert_array_equal(images, pieces)
    assert told[-1] == (3, 3)
    single = model(len(shape), norm, 1, noise_channel)
    one = trained.generator(single)
    for i in (0, 3, 7):
        image = one(names[i], x0[i], plan, sigma=1.0)
        assert image.std() > 0.1
        np.testing.assert_allclose(images[i], image, atol=2e-4)


def test_devices_share_the_work_of_a_batch():
    """By what the compiled program of one device does, and no device hears of another."""
    flops = {}
    for count in (1, 8):
        network = model(2, "group", count)
        plan, many = trained.make_plan(network, 200, "dpmpp_sde", 3), trained.batch_generator(network)
        program = jax.jit(lambda names, x0, plan=plan, many=many: many(names, x0, plan, sigma=1.0))
        program = program.lower(*jax.device_put(batch((64, 64), 8), devices.split(network.mesh))).compile()
        flops[count] = program.cost_analysis()["flops"]
        text = program.as_text()
        assert not any(word in text for word in ("all-reduce", "all-gather", "all-to-all", "collective-permute"))
    assert flops[8] == pytest.approx(flops[1] / 8, rel=0.05)


def test_whole_images_must_fit_into_the_memory(monkeypatch):
    network = model(2, "group", 2)
    need = 4 * (tile_grid.TILE_NUMBERS[2] * 4 * 96**2) + tile_grid.volume_bytes((96, 96), 4)
    for share, fits in ((0.99, [False, False]), (1.01, [True, False]), (2.02, [True, True])):
        monkeypatch.setattr(tile_grid, "memory_bytes", lambda num_devices=1, share=share: round(need * share))
        assert [trained.whole(network, (96, 96), each=each) for each in (1, 2)] == fits
    assert trained.whole(network, (96, 96), (96, 104)) and not trained.whole(network, (96, 96), (96, 88))


def test_rounded_shapes_are_few_and_hardly_larger():
    lengths = range(1, 3000)
    (larger,) = zip(*(trained.rounded((n,)) for n in lengths), strict=True)
    assert all(m >= n and m % 8 == 0 and m - n < max(8, n / 8) for n, m in zip(lengths, larger, strict=True))
    assert trained.rounded(larger) == larger
    for power in (32, 64, 128, 1024):
        assert len({m for m in larger if power < m <= 2 * power}) <= 8
    assert trained.rounded((51, 129, 1000)) == (56, 144, 1024)
