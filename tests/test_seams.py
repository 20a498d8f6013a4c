"""The denoiser in tiles: equal to the whole volume's, on any device, in bounded memory, with no seam to be found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxsynth import devices
from jaxsynth.data import tile_grid, tiles
from jaxsynth.data.tile_grid import TILE_NUMBERS
from jaxsynth.diffusion import samplers
from jaxsynth.diffusion.schedule import make_schedule
from jaxsynth.nn import unet

T = jnp.int32(300)


def _params(net, rank, channels):
    """Weights with the gains of a trained network: its output is as strong as its input."""
    x = jnp.zeros((1, *(8,) * rank, channels))
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros(1, int))["params"]
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        centre = {"kernel": 0.0, "bias": 0.0, "slope": 0.25, "scale": 1.0}[path[-1].key]
        spread = np.sqrt(2 / np.prod(leaf.shape[:-1])) if path[-1].key == "kernel" else 0.1
        return jnp.asarray(centre + spread * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def test_margins_are_the_networks():
    stages = toy.stages(None, None)
    assert (stages.factor, stages.margin) == (unet.FACTOR, unet.margin()) == (4, tile_grid.MARGIN)
    assert stages.deep_margin == unet.deep_margin()


@pytest.mark.parametrize(
    ("norm", "shape", "settings"),
    [
        (
            "group",
            (100, 150),
            [((64, 64), None, 1, None), ((40, 96), None, 4, (24, 32)), ((96, 104), (40, 48), 3, None)],
        ),
        ("none", (52, 45, 41), [((40, 48, 48), None, 1, None)]),
    ],
)
def test_tiled_is_the_whole(norm, shape, settings):
    """For any tile, overlap and batch, sizes that are no multiples of 8, with a second channel."""
    net = unet.UNet(features=8, norm=norm)
    params = _params(net, len(shape), 2)
    x, cond = (jax.random.normal(jax.random.key(i), (*shape, 1)) for i in (1, 2))
    whole = jax.jit(lambda x: net.apply({"params": params}, x[None], T[None])[0])(jnp.concatenate([x, cond], -1))
    assert whole.std() > 0.3
    for tile, overlap, batch, deep_tile in settings:
        grid = tile_grid.plan_tiles(shape, tile, overlap)
        assert grid.num_tiles > 1
        coarse = grid.coarse(4).shape
        deep = deep_tile and tile_grid.plan_tiles(coarse, deep_tile, margin=unet.deep_margin(), multiple=2)
        out = jax.jit(tiles.tiled(toy.stages(net, params), grid, batch, deep_grid=deep))(x, T, cond)
        error = float(jnp.abs(out - whole).max() / whole.std())
        assert error < 1e-4


def test_on_eight_devices():
    """Six tiles shared out over eight devices, two of them idle, give what one device gives."""
    net = unet.UNet(features=8, norm="group")
    params = _params(net, 2, 1)
    mesh = devices.make_mesh()
    assert mesh.size == 8
    grid = tile_grid.plan_tiles((100, 150), (72, 72))
    x = jax.random.normal(jax.random.key(1), (100, 150, 1))
    seen = []

    def constrain(batch):
        seen.append(batch.shape[0])
        return jax.lax.with_sharding_constraint(batch, devices.split(mesh))

    alone = jax.jit(tiles.tiled(toy.stages(net, params), grid, 1))
    shared = tiles.tiled(toy.stages(net, params), grid, 8, constrain)
    shared = jax.jit(shared, out_shardings=devices.replicated(mesh)).lower(
        *(jax.device_put(v, devices.replicated(mesh)) for v in (x, T)), None
    )
    assert set(seen) == {8}
    shared = shared.compile()
    out = shared(*(jax.device_put(v, devices.replicated(mesh)) for v in (x, T)), None)
    np.testing.assert_allclose(out, alone(x, T, None), atol=1e-4)
    # A device computes one tile of six; so does a turn of the loop over them, all that XLA counts of a loop.
    one, turn = (program.cost_analysis()["flops"] for program in (shared, alone.lower(x, T, None).compile()))
    assert one < 1.5 * turn


def test_no_statistic_tells_where_the_tiles_end():
    """Four steps of a noise in tiles. Mean, variance and gradient of the columns at the cuts lie in the 99 % band of
    the others; with tiles that ignore their margins they do not."""
    shape = (96, 408)
    net = unet.UNet(features=4, norm="group")
    params = _params(net, 2, 1)
    schedule = make_schedule("cosine", 1000)
    plan = samplers.make_plan("dpmpp_sde", schedule, 400, 4)
    key = jax.random.key(3)

    def columns(stages, grid):
        @jax.jit
        def run(key):
            x = samplers.start(key, jnp.zeros((*shape, 1)), 400, schedule)
            return samplers.sample(tiles.tiled(stages, grid, 2), key, x, plan)

        image = np.asarray(run(key))[..., 0].astype(float)
        step = np.abs(np.diff(image, axis=1)).mean(0)
        table = np.stack([image.mean(0)[1:], image.var(0)[1:], step])
        cuts = [i * grid.stride[1] + grid.margin for i in range(1, grid.counts[1])]
        assert len(cuts) >= 3
        at = np.isin(np.arange(1, shape[1]), cuts + [cut - 1 for cut in cuts])
        # The frame of the image sees the zeros around it.
        others = table[:, 16:-16][:, ~at[16:-16]]
        low, high = np.quantile(others, [0.005, 0.995], axis=1, keepdims=True)
        return (table[:, at] >= low) & (table[:, at] <= high)

    good = columns(toy.stages(net, params), tile_grid.plan_tiles(shape, (96, 128)))
    assert good.all()
    bad = columns(toy.stages(net, params, margin=0), tile_grid.plan_tiles(shape, (96, 104), (8, 8), margin=0))
    assert not bad.all()


@pytest.mark.parametrize(
    ("features", "shape", "tile"),
    [(16, (768, 768), (128, 128)), (32, (768, 768), (128, 128)), (16, (64, 128, 128), (40, 48, 48))],
)
def test_memory_is_that_of_a_batch_of_tiles_and_a_few_volumes(features, shape, tile):
    net = unet.UNet(features=features, norm="none")
    params = _params(net, len(shape), 1)

    def temporaries(grid, batch):
        run = tiles.tiled(toy.stages(net, params), grid, batch)
        like = jax.ShapeDtypeStruct((*shape, 1), jnp.float32)
        return jax.jit(run).lower(like, T, None).compile().memory_analysis().temp_size_in_bytes

    grid = tile_grid.plan_tiles(shape, tile)
    needed = temporaries(grid, 2)
    allowed = 4 * TILE_NUMBERS[len(shape)] * features * 2 * np.prod(grid.tile) + tile_grid.volume_bytes(shape, features)
    # A state of two volumes and a second input are not part of one evaluation.
    assert needed + 4 * 3 * np.prod(shape) < allowed
    if features == 16 and len(shape) == 2:
        assert needed < temporaries(tile_grid.plan_tiles(shape, shape), 1) / 2
