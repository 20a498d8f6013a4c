"""The segmentation network: what its output depends on, sizes, precision, and the doubling it is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsynth.data import tile_grid, tiles
from jaxsynth.errors import InputError
from jaxsynth.nn.blocks import TransposedConv
from jaxsynth.nn.flownet import FlowNet, deep_margin, margin, operations, receptive_field
from jaxsynth.nn.unet import FACTOR


def _net_and_params(rank=2, **options):
    net = FlowNet(features=4, **options)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *(8,) * rank, 1)))
    rng = np.random.default_rng(0)

    def values(shape):
        centre, spread = (0, np.sqrt(2 / np.prod(shape[:-1]))) if len(shape) > 1 else (0.3, 0.3)
        return jnp.asarray(centre + spread * rng.standard_normal(shape), jnp.float32)

    return net, jax.tree.map(lambda leaf: values(leaf.shape), shapes)


def _lit(method, *inputs):
    """Which columns of the output see a column that is lit: bool [B, X], of inputs [B, X] with 0 and 1.

    With positive weights, no biases and no norm, the output is above 0 wherever it sees anything above 0, and 0 else.
    """
    net, params = _net_and_params(norm="none")
    params = jax.tree.map(lambda p: jnp.abs(p) + 1e-3 if p.ndim > 1 else jnp.zeros_like(p), params)
    channels = {"shrink": [1], "deepen": [8], "grow": [1, 16], "__call__": [1]}[method]
    heights = {"shrink": [8], "deepen": [2], "grow": [8, 2], "__call__": [8]}[method]
    images = [
        jnp.asarray(np.broadcast_to(lit[:, None, :, None], (len(lit), height, lit.shape[1], channel)), jnp.float32)
        for lit, height, channel in zip(inputs, heights, channels, strict=True)
    ]
    y = np.asarray(jax.jit(lambda *images: net.apply(params, *images, method=method))(*images))
    assert np.isfinite(y).all()
    return (y > 0).any((1, 3))


def _apply(net, params, x):
    return np.asarray(jax.jit(net.apply)(params, x))


def test_receptive_field_is_exact():
    """The reach of a lit column, for eight neighbours: all places on the grid of the halvings."""
    radius = receptive_field()
    first, size = 8 * (radius // 8 + 1), 16 * (radius // 8 + 2)
    columns = first + np.arange(8)
    seen = _lit("__call__", np.arange(size) == columns[:, None])
    assert not seen[:, [0, -1]].any()
    assert max(np.abs(np.flatnonzero(row) - column).max() for row, column in zip(seen, columns, strict=True)) == radius


def test_margins_are_exact():
    """All that a tile's end may spoil changes with what lies beyond it, and nothing else."""

    def outside(size, first, last):
        return ((np.arange(size) < first) | (np.arange(size) >= last))[None]

    def spoilt(seen, first, last):
        clean = np.flatnonzero(~seen[0, first:last])
        return max(clean.min(), last - first - 1 - clean.max())

    assert spoilt(_lit("grow", outside(96, 16, 80), outside(24, 4, 20)), 16, 80) == 17 and margin() == 24
    assert 0 < FACTOR * spoilt(_lit("shrink", outside(96, 16, 80)), 4, 20) <= margin()
    assert spoilt(_lit("deepen", outside(80, 26, 54)), 26, 54) == 11 and deep_margin() == 12


@pytest.mark.parametrize("size, norm", [((13, 21), "instance"), ((3, 9, 10), "group")])
def test_the_three_parts_are_the_network(size, norm):
    net, params = _net_and_params(len(size), norm=norm)
    x = jax.random.normal(jax.random.key(2), (2, *size, 1))

    @jax.jit
    def parts(x):
        small = net.apply(params, x, method="shrink")
        deep = net.apply(params, small, method="deepen")
        return small, deep, net.apply(params, x, deep, method="grow")

    small, deep, out = parts(x)
    coarse = tuple(-(-n // 8) * 8 // FACTOR for n in size)
    assert small.shape == (2, *coarse, 8) and deep.shape == (2, *coarse, 16)
    np.testing.assert_allclose(out, _apply(net, params, x), atol=1e-5)


@pytest.mark.parametrize("shape, tile, deep_tile", [((150, 21), (80, 24), (28, 6)), ((9, 120, 8), (16, 80, 8), None)])
def test_tiles_are_the_whole(shape, tile, deep_tile):
    net, params = _net_and_params(len(shape), norm="group")
    x = jax.random.normal(jax.random.key(2), (*shape, 1))
    stages = tiles.Stages(
        shrink=lambda x, t, cond: net.apply(params, x, method="shrink"),
        deepen=lambda h, t: net.apply(params, h, method="deepen"),
        grow=lambda x, deep, t, cond: net.apply(params, x, deep, method="grow"),
        margin=margin(),
        deep_margin=deep_margin(),
    )
    grid = tile_grid.plan_tiles(shape, tile, margin=margin())
    deep_grid = deep_tile and tile_grid.plan_tiles(
        grid.coarse(FACTOR).shape, deep_tile, margin=deep_margin(), multiple=2
    )
    assert grid.num_tiles > 1 and (not deep_tile or deep_grid.num_tiles > 1)
    tiled = jax.jit(tiles.tiled(stages, grid, deep_grid=deep_grid))(x, jnp.int32(0), None)
    np.testing.assert_allclose(tiled, _apply(net, params, x[None])[0], atol=1e-5)


@pytest.mark.parametrize("rank", [2, 3])
def test_operations_are_those_of_the_kernels(rank):
    """Every kernel is applied once per voxel of its level, a transposed one per voxel of what it doubles."""
    params = jax.eval_shape(FlowNet().init, jax.random.key(0), jnp.zeros((1, *(8,) * rank, 1)))["params"]
    levels = {"c1": 0, "d1": 1, "c2": 1, "d2": 2, "c3": 2, "d3": 3, "c4": 3, "u1": 2, "c5": 2, "u2": 1, "c6": 1}
    levels |= {"u3": 0, "c7": 0, "out": 0}

    def count(stages):
        total = 0
        for stage in stages:
            for layer, arrays in params[stage].items():
                level = levels[stage] + layer.startswith("transposed")
                total += arrays["kernel"].size / 2 ** (rank * level) if "kernel" in arrays else 0
        return total

    expected = [count(stages) for stages in (["c1", "d1", "c2", "d2"], ["c3", "d3", "c4", "u1", "c5"], levels)]
    np.testing.assert_allclose(operations(rank, 16), expected)


@pytest.mark.parametrize("norm, local", [("none", True), ("group", True), ("instance", False)])
def test_far_pixels_matter_to_instance_norm_only(norm, local):
    net, params = _net_and_params(norm=norm)
    radius = receptive_field()
    x = jax.random.normal(jax.random.key(1), (1, 16, 2 * radius + 18, 1))
    changed = x.at[:, :, 7 + radius + 1 :].multiply(3.0)
    difference = np.abs(_apply(net, params, x) - _apply(net, params, changed))[:, :, :8].max()
    assert difference < 1e-6 if local else difference > 1e-4


@pytest.mark.parametrize("size", [(13, 21), (3, 9, 10)])
def test_any_size_is_the_reflected_image_cropped(size):
    net, params = _net_and_params(len(size))
    x = jax.random.normal(jax.random.key(2), (2, *size, 1))
    padding = [(0, 0), *((0, -n % 8) for n in size), (0, 0)]
    padded = np.pad(np.asarray(x), padding, mode="reflect")
    expected = _apply(net, params, padded)[(slice(None), *(slice(n) for n in size))]
    actual = _apply(net, params, x)
    assert actual.shape == (2, *size, 1 + len(size)) and np.abs(actual).max() <= 1
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_at_first_it_says_little_and_all_of_it_learns():
    """Outputs are small, so tanh is steep, and every weight has a gradient."""
    net = FlowNet(features=4, norm="group")
    x = jax.random.normal(jax.random.key(0), (2, 16, 16, 1))
    params = jax.jit(net.init)(jax.random.key(1), x)["params"]

    def loss(params):
        y = net.apply({"params": params}, x)
        return jnp.square(y - 0.5).mean(), y

    gradients, y = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert 1e-3 < y.std() and jnp.abs(y).max() < 0.8
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        if path[-1].key == "kernel":
            assert jnp.abs(gradient).max() > 1e-6, path


@pytest.mark.parametrize("rank", [2, 3])
def test_first_weights_of_a_doubling_double_the_square(rank):
    """He et al. 2015: so that half of it survives the rectifier. Taps that fall between voxels do not count."""
    net = TransposedConv(64)
    x = jax.random.normal(jax.random.key(0), (1, *(10,) * rank, 64))
    y = jax.jit(lambda x: net.init_with_output(jax.random.key(1), x)[0])(x)
    assert abs(jnp.square(y[(slice(None), *[slice(2, -2)] * rank)]).mean() - 2) < 0.2


def test_bfloat16_is_near_float32():
    net, params = _net_and_params(norm="group")
    half = FlowNet(features=4, norm="group", dtype=jnp.bfloat16)
    x = jax.random.normal(jax.random.key(3), (1, 16, 16, 1))
    shapes = jax.eval_shape(half.init, jax.random.key(0), x)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
    expected, actual = _apply(net, params, x), _apply(half, params, x)
    assert actual.dtype == np.float32
    assert 0 < np.abs(actual - expected).mean() / np.abs(expected).mean() < 0.1


def test_remat_and_the_plain_form_change_nothing():
    net, params = _net_and_params(norm="group")
    x = jax.random.normal(jax.random.key(4), (1, 16, 24, 1))

    def gradient(net):
        return jax.jit(jax.grad(lambda p: (net.apply(p, x) ** 2).mean()))(params)

    plain, again = gradient(net), gradient(FlowNet(features=4, norm="group", remat=True, direct=True))
    assert jax.tree.structure(plain) == jax.tree.structure(again)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(np.abs(a).max(), 1e-3), rtol=1e-4)


def test_channels_can_be_chosen():
    net = FlowNet(features=4, out_channels=2)
    assert jax.eval_shape(net.init_with_output, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))[0].shape == (1, 8, 8, 2)


@pytest.mark.parametrize(
    "options, shape, word",
    [({"norm": "batch"}, (1, 8, 8, 1), "norm"), ({"features": 7}, (1, 8, 8, 1), "features"), ({}, (8, 8, 1), "x:")],
)
def test_mistakes_are_named(options, shape, word):
    with pytest.raises(InputError, match=word):
        FlowNet(**options).init(jax.random.key(0), jnp.zeros(shape))
